"""PRE and POST of one encoder at each precision; every other graph is made of these two."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor

from prtool.engines.base import Array
from prtool.errors import ConfigError
from prtool.export.graphs import PostGraph, PreGraph
from prtool.export.half import HALVES, to_half
from prtool.export.onnx import to_onnx
from prtool.export.quantise import Int8Options, to_int8
from prtool.export.signature import signatures
from prtool.export.source import ExportSource
from prtool.trainer.pruned import PrunedEncoder, gather, select

PRECISIONS = ("fp32", *HALVES, "int8")
_BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class Int8Request:
    """What int8 needs besides the encoder.

    Attributes:
        pixels: (images, 3, height, width) float32, real images; None where int8 is not asked for.
        counts: keep counts that POST must work at.
        options: how scales are chosen.
    """

    pixels: Tensor | None
    counts: Sequence[int]
    options: Int8Options


@dataclass(frozen=True, slots=True)
class CalibrationSamples:
    """Inputs of PRE and of POST, one mapping a call."""

    pre: list[Mapping[str, Array]]
    post: list[Mapping[str, Array]]


@torch.no_grad()
def calibration_samples(encoder: PrunedEncoder, pixels: Tensor, counts: Sequence[int]) -> CalibrationSamples:
    """What the two graphs are given in use.

    Args:
        encoder: the PyTorch encoder, which says which tokens reach POST.
        pixels: (images, 3, height, width) float32, real images.
        counts: keep counts that POST must work at; they take turns.
    """
    samples = CalibrationSamples([], [])
    for number, batch in enumerate(torch.split(pixels, _BATCH)):
        tokens, scores = encoder.enter(batch)
        chosen = select(scores, counts[number % len(counts)])
        samples.pre.append({"pixels": batch.numpy()})
        samples.post.append({"tokens": gather(tokens, chosen, encoder.spec.prefix_tokens, encoder.spec.appended_tokens).numpy()})
    return samples


def stages(source: ExportSource, *, flat: bool = True) -> list[ir.Model]:
    """PRE and POST in float32; `flat` as in `prtool.export.graphs.FlatLinear`."""
    specs = signatures(source)
    return [to_onnx(PreGraph(source.pruned, flat=flat), specs["pre"]), to_onnx(PostGraph(source.pruned, flat=flat), specs["post"])]


def at_precision(source: ExportSource, plain: Sequence[ir.Model], precision: str, int8: Int8Request) -> list[ir.Model]:
    """PRE and POST at a precision.

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
        return list(plain)
    if precision != "int8":
        return [to_half(stage, precision) for stage in plain]
    if int8.pixels is None:
        raise ConfigError("int8 takes its scales from real images, and there are none; give them with --data")
    samples = calibration_samples(source.pruned, int8.pixels, int8.counts)
    pre, post = stages(source, flat=False)
    return [to_int8(pre, samples.pre, int8.options), to_int8(post, samples.post, int8.options)]
