# SPDX-License-Identifier: Apache-2.0
"""Programs around the nodes, in this process or in processes of their own: demo, play, record, transcode."""
