# SPDX-License-Identifier: Apache-2.0
"""CompressAI, which learned codecs are built from; imported only where one of them is, since that takes seconds."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

import torch

from .image_codec import CodecError

__all__ = ["compressai", "compressai_missing"]

_declared: list[torch.library.Library] = []  # declarations last as long as these


def compressai_missing() -> str:
    """Why CompressAI is not here, in one line, or nothing."""
    if importlib.util.find_spec("compressai") is not None:
        return ""
    return "needs CompressAI: pip install -r requirements/evaluate.txt"


@cache
def compressai() -> ModuleType:
    """The package, with its coder and layers.

    It imports torchvision. PyPI's, built for CUDA, fails beside a CPU build of PyTorch unless two operators, which
    nothing here uses, are declared. Raises CodecError if it is there and cannot be imported.
    """
    try:
        return _imported()
    except (ImportError, RuntimeError) as error:
        words = " ".join(str(error).split())
        raise CodecError(f"CompressAI cannot be imported: {words[:200]}") from None


def _imported() -> ModuleType:
    try:
        import compressai
    except RuntimeError as e:
        if "torchvision::nms does not exist" not in str(e):
            raise
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _declared[-1].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import compressai
    import compressai.ans
    import compressai.entropy_models
    import compressai.latent_codecs
    import compressai.layers

    return compressai
