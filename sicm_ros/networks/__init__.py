# SPDX-License-Identifier: Apache-2.0
"""Torch modules of MVSFC-Net; no files, no ROS, no argument parsing."""
