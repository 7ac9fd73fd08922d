# SPDX-License-Identifier: Apache-2.0
"""The renderer: layouts, the scene around them, its surfaces, and both views of it."""
