# SPDX-License-Identifier: Apache-2.0
"""Both halves in OpenVINO, on a CPU, in bfloat16 where it computes in that itself, else in float32.

PyTorch's network is converted once, and the graphs are kept in the user's cache folder (``graph_cache``). Each half is
two graphs, one for each stage, so that stages are timed whatever runs them. Images of a batch go through on streams of
their own: graphs have fixed shapes, and a core for an image is faster than all cores for each image in turn.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from ..model_store import StoredModel
from ..networks.detection import AnalysisOutput
from ..networks.mvsfc_net import MvsfcNet
from ..networks.smfc import Reconstruction
from ..processor import bfloat16_is_native
from .graph_cache import core, stored_graphs

__all__ = ["ConversionError", "OpenVinoRemote", "OpenVinoVehicle"]

Arrays = tuple[np.ndarray, ...]
Parts = tuple[nn.Module, nn.Module]  # what is converted, and what it has to compute
Tensors = tuple[Tensor, ...]
Precision: TypeAlias = Literal["float32", "bfloat16"]
HINTS: dict[Precision, str] = {"float32": "f32", "bfloat16": "bf16"}
_TOLERANCE = 1e-3  # of a graph's outputs against PyTorch's, as a share of their largest magnitude


class ConversionError(RuntimeError):
    """A network that OpenVINO cannot convert or run; one line."""


def native_precision() -> Precision:
    """bfloat16 where OpenVINO and the CPU have it: half the memory, twice the products and more.

    OpenVINO also has it on CPUs that only convert it (AVX-VNNI-INT16 and its kin) and multiply in float32.
    Everything is in bfloat16 then, also what PyTorch keeps in float32 under autocast (``networks.detection``). What it
    costs in AP is in ``docs/performance.md``.
    """
    offered = "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if offered and bfloat16_is_native() else "float32"


def _precision(float32: bool) -> Precision:
    try:
        return "float32" if float32 else native_precision()
    except RuntimeError as error:
        raise ConversionError(f"OpenVINO cannot say what this CPU has: {_line(error)}") from None


class _Interleaved(nn.Module):
    """A transposed convolution that doubles the size, as a 3x3 convolution to the four parities of row and column.

    Output 2 m + p takes input m + d through kernel element p + padding - 2 d.
    """

    def __init__(self, conv: nn.ConvTranspose2d) -> None:
        super().__init__()
        inputs, outputs, kernel, _ = conv.weight.shape
        padding = int(conv.padding[0])
        weight = conv.weight.detach().new_zeros(outputs, 2, 2, inputs, 3, 3)
        places = [(p, d, p + padding - 2 * d) for p in (0, 1) for d in (-1, 0, 1)]
        places = [place for place in places if 0 <= place[2] < kernel]
        assert {r for _, _, r in places} == set(range(kernel)) and conv.groups == 1 and conv.dilation == (1, 1)
        for p, d, r in places:
            for q, e, c in places:
                weight[:, p, q, :, d + 1, e + 1] = conv.weight.detach()[:, :, r, c].t()
        self.conv = nn.Conv2d(inputs, 4 * outputs, 3, padding=1)
        self.conv.weight = nn.Parameter(weight.flatten(0, 2))
        assert conv.bias is not None
        self.conv.bias = nn.Parameter(conv.bias.detach().repeat_interleave(4))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(self.conv(x), 2)


def _mirrored(conv: nn.ConvTranspose2d) -> nn.Conv2d:
    """A transposed convolution of stride 1 as a convolution: the kernel is turned by half a turn."""
    inputs, outputs, kernel, _ = conv.weight.shape
    same = nn.Conv2d(inputs, outputs, kernel, padding=kernel - 1 - int(conv.padding[0]))
    same.weight = nn.Parameter(conv.weight.detach().transpose(0, 1).flip(2, 3).contiguous())
    same.bias = conv.bias
    return same


def _without_transposed(net: nn.Module) -> nn.Module:
    """The same layers, without those transposed convolutions for which oneDNN has no bfloat16 kernel.

    Those of stride 1 and those with output padding run in float32, four times as long as the convolutions do.
    """
    net = copy.deepcopy(net)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ConvTranspose2d) and child.stride == (1, 1):
                setattr(module, name, _mirrored(child))
            elif isinstance(child, nn.ConvTranspose2d) and child.stride == (2, 2) and any(child.output_padding):
                setattr(module, name, _Interleaved(child))
    return net


class _Backbone(nn.Module):
    """Views (1, H, W, 3), as cameras have them in memory -> both views' f0, f1, f2."""

    def __init__(self, net: MvsfcNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, left: Tensor, right: Tensor) -> Tensors:
        features = self.net.features(left.permute(0, 3, 1, 2), right.permute(0, 3, 1, 2))
        return tuple(view for scale in features for view in scale)


class _SmfcEncoder(nn.Module):
    """f0, f1, f2 of both views -> their latents."""

    def __init__(self, net: MvsfcNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, l0: Tensor, r0: Tensor, l1: Tensor, r1: Tensor, l2: Tensor, r2: Tensor) -> Tensors:
        return self.net.latents(((l0, r0), (l1, r1), (l2, r2)))


class _SmfcDecoder(nn.Module):
    """Latents -> f0 where it is needed, f1, f2 of both views, then the volumes where they are coded."""

    def __init__(self, net: MvsfcNet, precision: Precision = "float32") -> None:
        super().__init__()
        self.decoder = net.smfc_decoder if precision == "float32" else _without_transposed(net.smfc_decoder)
        self.with_f0 = net.config.matching == "remote"

    def forward(self, left: Tensor, right: Tensor) -> Tensors:
        features, volumes = self.decoder(left, right, self.with_f0)
        views = [view for scale in features if scale is not None for view in scale]
        return (*views, *(() if volumes is None else (volumes,)))


class _Analysis(nn.Module):
    """What ``_SmfcDecoder`` gives -> logits of classes and directions, regression."""

    def __init__(self, net: MvsfcNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, *decoded: Tensor) -> Tensors:
        if self.net.config.matching == "vehicle":
            l1, r1, l2, r2, volumes = decoded
            reconstruction = Reconstruction((None, (l1, r1), (l2, r2)), volumes)
        else:
            l0, r0, l1, r1, l2, r2 = decoded
            reconstruction = Reconstruction(((l0, r0), (l1, r1), (l2, r2)), None)
        return self.net.detect_decoded(reconstruction)[:3]


class _Chain:
    """Two graphs, the second on what the first gives. One call at a time; results last until the next one."""

    def __init__(self, graphs: Sequence[ov.Model], precision: Precision, streams: int, threads: int) -> None:
        # Threads that are bound to cores would fight with those of the other half, where both run on one machine.
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "ENABLE_CPU_PINNING": False,
        }
        self._compiled = [core().compile_model(graph, "CPU", settings) for graph in graphs]
        self._requests: list[tuple[ov.InferRequest, ov.InferRequest]] = []

    def _grow(self, count: int) -> None:
        while len(self._requests) < count:
            first, second = (compiled.create_infer_request() for compiled in self._compiled)
            for i in range(len(second.input_tensors)):
                second.set_input_tensor(i, first.get_output_tensor(i))
            self._requests.append((first, second))

    def __call__(self, items: Sequence[Arrays], stages: tuple[str, str], lap: Callable[[str], None]) -> list[Arrays]:
        """The outputs for the inputs of each item; ``lap`` as in ``engine``, with the names of the ``stages``."""
        self._grow(len(items))
        used = self._requests[: len(items)]
        for (first, _), inputs in zip(used, items, strict=True):
            first.start_async(dict(enumerate(inputs)), share_inputs=True)
        for first, _ in used:
            first.wait()
        lap(stages[0])
        for _, second in used:
            second.start_async()
        for _, second in used:
            second.wait()
        lap(stages[1])
        return [tuple(x.data for x in second.output_tensors) for _, second in used]


class _Half:
    """The chain of one half: for one image with all threads, and for several with a stream for each thread."""

    def __init__(
        self,
        model: StoredModel,
        half: str,
        parts: Callable[[], Sequence[Parts]],
        example: Tensors,
        precision: Precision,
    ) -> None:
        self._graphs = stored_graphs(model, half, lambda: _convert(parts(), example))
        self._threads = torch.get_num_threads()
        self.precision = precision
        try:
            self._one = _Chain(self._graphs, self.precision, 1, self._threads)
        except RuntimeError as error:
            raise ConversionError(f"OpenVINO cannot run the network: {_line(error)}") from None
        self._several: _Chain | None = None
        self._lock = threading.Lock()

    def __call__(self, inputs: Sequence[Tensor], stages: tuple[str, str], lap: Callable[[str], None]) -> list[Tensor]:
        """The outputs for float32 ``inputs`` (B, ...), each in memory of its own."""
        count = len(inputs[0])
        arrays = [x.contiguous().numpy() for x in inputs]
        items = [tuple(x[i : i + 1] for x in arrays) for i in range(count)]
        with self._lock:
            chain = self._one
            if count > 1 and self._threads > 1:
                self._several = chain = self._several or _Chain(
                    self._graphs, self.precision, self._threads, self._threads
                )
            outputs = chain(items, stages, lap)
            return [torch.from_numpy(np.concatenate(x)) for x in zip(*outputs, strict=True)]


def _convert(parts: Sequence[Parts], example: Tensors) -> list[ov.Model]:
    """A graph of each part, each on what the one before gives, checked against PyTorch. Raises ConversionError."""
    graphs = []
    try:
        with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what tracing takes as constant; all shapes are
            for part, network in parts:
                inputs = [ov.PartialShape(list(x.shape)) for x in example]
                traced = torch.jit.trace(part.eval(), example, check_trace=False)
                graphs.append(ov.convert_model(traced, example_input=example, input=inputs))
                expected = network.eval()(*example)
                found = core().compile_model(graphs[-1], "CPU", {"INFERENCE_PRECISION_HINT": HINTS["float32"]})(
                    [x.contiguous().numpy() for x in example]
                )
                for i, x in enumerate(expected):
                    error = float((torch.from_numpy(found[i]) - x).abs().max() / x.abs().max().clamp(min=1e-6))
                    if not error <= _TOLERANCE:
                        raise ConversionError(
                            f"OpenVINO {ov.get_version()} computes another network: output {i} of "
                            f"{type(network).__name__} is off by {error:.2g} of its largest value"
                        )
                example = tuple(x.contiguous() for x in expected)
    except ConversionError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a converter raises
        raise ConversionError(f"OpenVINO {ov.get_version()} cannot convert the network: {_line(error)}") from None
    return graphs


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


class OpenVinoVehicle:
    """See ``engine.VehicleEngine``. Raises ConversionError."""

    def __init__(self, model: StoredModel, float32: bool = False) -> None:
        config = model.config
        generator = torch.Generator().manual_seed(0)
        views = torch.randn(2, config.height, config.width, 3, generator=generator)

        def parts() -> list[Parts]:
            return [(part, part) for part in (_Backbone(model.net), _SmfcEncoder(model.net))]

        self._half = _Half(model, "vehicle", parts, (views[:1], views[1:]), _precision(float32))
        self.name = f"openvino-{self._half.precision}"

    def __call__(self, left: Tensor, right: Tensor, lap: Callable[[str], None]) -> tuple[Tensor, Tensor]:
        views = [x.permute(0, 2, 3, 1) for x in (left, right)]
        latents = self._half(views, ("backbone", "smfc"), lap)
        return latents[0], latents[1]


class OpenVinoRemote:
    """See ``engine.RemoteEngine``. Raises ConversionError."""

    def __init__(self, model: StoredModel, float32: bool = False) -> None:
        config = model.config
        generator = torch.Generator().manual_seed(0)
        shape = (2, config.latent_channels, *config.latent_size)
        latents = torch.randn(shape, generator=generator).mul(4).round()
        precision = _precision(float32)

        def parts() -> list[Parts]:
            analysis = _Analysis(model.net)
            return [(_SmfcDecoder(model.net, precision), _SmfcDecoder(model.net)), (analysis, analysis)]

        name = "remote" if precision == "float32" else f"remote-{precision}"
        self._half = _Half(model, name, parts, (latents[:1], latents[1:]), precision)
        self.name = f"openvino-{self._half.precision}"

    def __call__(self, left: Tensor, right: Tensor, lap: Callable[[str], None]) -> AnalysisOutput:
        classes, directions, regression = self._half((left, right), ("smfc", "analysis"), lap)
        return AnalysisOutput(classes, directions, regression, None, None)
