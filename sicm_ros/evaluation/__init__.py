# SPDX-License-Identifier: Apache-2.0
"""Scores, pictures and comparisons."""
