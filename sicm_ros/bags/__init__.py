# SPDX-License-Identifier: Apache-2.0
"""rosbag2 files (sqlite3 and mcap), read and written by ``rosbags``: no ROS is needed."""
