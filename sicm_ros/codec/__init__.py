# SPDX-License-Identifier: Apache-2.0
"""Run time of the codec: stereo images or features to packets of bytes and back. Needs no ROS."""
