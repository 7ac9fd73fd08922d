# SPDX-License-Identifier: Apache-2.0
"""Where stereo pairs come from."""
