# SPDX-License-Identifier: Apache-2.0
"""What every ROS 2 node shares. rclpy is imported here, in nodes/ and in jobs/, and nowhere else."""
