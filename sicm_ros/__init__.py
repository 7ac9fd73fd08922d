# SPDX-License-Identifier: Apache-2.0
"""Split 3D object detection from stereo images: joint feature compression (SMFC) over ROS 2."""

import pkgutil

# The generated message modules may lie in another folder than this source tree; join the two.
__path__ = pkgutil.extend_path(__path__, __name__)

__version__ = "0.1.0"
