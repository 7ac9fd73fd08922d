# SPDX-License-Identifier: Apache-2.0
"""ROS messages <-> the package's own types. Messages are read and made by their fields; rclpy is not imported."""
