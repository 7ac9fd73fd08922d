# SPDX-License-Identifier: Apache-2.0
"""Scores, and how long the codec takes."""
