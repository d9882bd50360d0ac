"""The graphs that come from PyTorch, at each precision; FUSED, and FULL where it can be, are made of these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from prtool.engines.base import Array
from prtool.errors import ConfigError
from prtool.export.graphs.modules import FullGraph, MidGraph, PostGraph, PreGraph
from prtool.export.graphs.onnx import to_onnx
from prtool.export.precision.half import HALVES, to_half
from prtool.export.precision.int8 import Int8Options, to_int8
from prtool.export.signature import signatures, stage_roles
from prtool.export.source import ExportSource
from prtool.spec import Keep
from prtool.trainer.models.pruned import PrunedEncoder

PRECISIONS = ("fp32", *HALVES, "int8")
Samples = list[Mapping[str, Array]]
"""Inputs of one graph, one mapping a call."""
_BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class Int8Request:
    """What int8 needs besides the encoder.

    Attributes:
        pixels: (images, 3, height, width) float32, real images; None where int8 is not asked for.
        counts: keep counts, at the last location, that the graphs behind a selection must work at.
        options: how scales are chosen.
    """

    pixels: Tensor | None
    counts: Sequence[int]
    options: Int8Options


@torch.no_grad()
def calibration_samples(encoder: PrunedEncoder, pixels: Tensor, counts: Sequence[int]) -> dict[str, Samples]:
    """What each graph is given in use, by role.

    Args:
        encoder: the PyTorch encoder, which says which tokens reach the graphs behind a selection.
        pixels: (images, 3, height, width) float32, real images.
        counts: keep counts at the last location; they take turns.
    """
    spec = encoder.spec
    samples: dict[str, Samples] = {role: [] for role in ("full", *stage_roles(spec))}
    for number, batch in enumerate(torch.split(pixels, _BATCH)):
        samples["full"].append({"pixels": batch.numpy()})
        samples["pre"].append({"pixels": batch.numpy()})
        tokens, scores = encoder.run_pre(batch)
        kept = spec.counts(Keep.count(counts[number % len(counts)]))
        for place, (role, k) in enumerate(zip(stage_roles(spec)[1:], kept, strict=True), start=1):
            tokens = encoder.drop(tokens, scores, k)
            samples[role].append({"tokens": tokens.numpy()})
            if place < len(kept):
                tokens, scores = encoder.run_mid(place, tokens)
    return samples


def stages(source: ExportSource, *, flat: bool = True) -> dict[str, ir.Model]:
    """The graphs in float32 that are exported from PyTorch: "pre", "mid_1", ..., "post" in their order.

    With learnable tokens "full" comes last, for then the stages joined without selection are another model than the plain tower.

    Args:
        source: the encoder.
        flat: as in `prtool.export.graphs.attention.FlatLinear`.

    Raises:
        ModelError: a graph cannot be exported.
    """
    encoder, specs = source.pruned, signatures(source)
    modules: dict[str, nn.Module] = {"pre": PreGraph(encoder, flat=flat)}
    modules |= {f"mid_{place}": MidGraph(encoder, place, flat=flat) for place in range(1, len(encoder.spec.locations))}
    modules["post"] = PostGraph(encoder, flat=flat)
    if encoder.spec.learnable_tokens:
        modules["full"] = FullGraph(encoder.tower, flat=flat)
    return {role: to_onnx(module, specs[role], encoder.spec.always_kept + 1) for role, module in modules.items()}


def at_precision(source: ExportSource, plain: Mapping[str, ir.Model], precision: str, int8: Int8Request) -> dict[str, ir.Model]:
    """The same graphs at a precision.

    Args:
        source: the encoder.
        plain: `stages(source)`, for all that start from it.
        precision: of `PRECISIONS`.
        int8: images and settings for int8.

    Raises:
        ConfigError: int8 without images.
        ModelError: a graph cannot be converted.
        EngineUnavailable: a library is not installed.
    """
    if precision == "fp32":
        return dict(plain)
    if precision != "int8":
        return {role: to_half(model, precision) for role, model in plain.items()}
    if int8.pixels is None:
        raise ConfigError("int8 takes its scales from real images, and there are none; give them with --data")
    samples = calibration_samples(source.pruned, int8.pixels, int8.counts)
    return {role: to_int8(model, samples[role], int8.options) for role, model in stages(source, flat=False).items()}
