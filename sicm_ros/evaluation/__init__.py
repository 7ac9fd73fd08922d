# SPDX-License-Identifier: Apache-2.0
"""Evaluation: KITTI's AP, recall, latency."""
