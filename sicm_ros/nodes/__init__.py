# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes: encoder on the vehicle, decoder elsewhere, KITTI player, overlay, viewer."""
