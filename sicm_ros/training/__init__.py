# SPDX-License-Identifier: Apache-2.0
"""Training of MVSFC-Net: data, losses, and the four stages."""
