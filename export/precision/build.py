"""The graphs that are exported from PyTorch, at each precision; FUSED, and FULL where possible, are composed of these."""

from collections.abc import Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from prtool.engines.base import Array
from prtool.export.graphs.modules import image_graphs
from prtool.export.graphs.onnx import to_onnx
from prtool.export.precision.half import to_half
from prtool.export.precision.int8 import to_int8
from prtool.export.source import ExportSource
from prtool.graphs.signature import stage_roles
from prtool.spec import Keep
from prtool.trainer.models.pruned import PrunedEncoder

Samples = list[Mapping[str, Array]]
"""Inputs of one graph, one mapping a call."""
_BATCH = 8


@torch.no_grad()
def calibration_samples(encoder: PrunedEncoder, pixels: Tensor, counts: Sequence[int]) -> dict[str, Samples]:
    """The inputs of each graph in use, by role.

    Args:
        encoder: the PyTorch encoder, which selects the tokens that enter the graphs behind a selection.
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

    With learnable tokens "full" comes last, because the stages joined without selection differ from the unpruned tower then.

    Args:
        source: the encoder.
        flat: as in `prtool.export.graphs.attention.FlatLinear`.

    Raises:
        ModelError: a graph cannot be exported.
    """
    encoder, specs = source.pruned, source.signatures()
    modules = image_graphs(encoder, flat=flat)
    if not encoder.spec.learnable_tokens:
        del modules["full"]
    return {role: to_onnx(module, specs[role], encoder.spec.always_kept + 1) for role, module in modules.items()}


def at_precision(
    source: ExportSource, plain: Mapping[str, ir.Model], precision: str, samples: Mapping[str, Samples] | None = None
) -> dict[str, ir.Model]:
    """The same graphs at a precision.

    Args:
        source: the encoder.
        plain: `stages(source)`.
        precision: of `prtool.export.checks.PRECISIONS`.
        samples: `calibration_samples`, which int8 needs.

    Raises:
        ModelError: a graph cannot be converted.
        EngineUnavailable: a library is not installed.
    """
    if precision == "fp32":
        return dict(plain)
    if precision == "int8":
        return {role: to_int8(model, samples[role] if samples else []) for role, model in stages(source, flat=False).items()}
    return {role: to_half(model, precision) for role, model in plain.items()}
