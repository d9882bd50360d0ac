"""The graphs that are exported from PyTorch, at each precision; FUSED, and FULL where possible, are composed of these."""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir
import torch
from torch import Tensor, nn

from prtool.engines.base import Array
from prtool.export.graphs.compose import full, fused, with_patch_tokens
from prtool.export.graphs.merging import merged, merging_graphs, merging_specs
from prtool.export.graphs.modules import image_graphs
from prtool.export.graphs.onnx import to_onnx
from prtool.export.precision.half import to_half
from prtool.export.precision.int8 import to_int8
from prtool.export.source import ExportSource, Pixels
from prtool.graphs.signature import GraphSpec, stage_roles
from prtool.spec import MERGE, NONE, RANK
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder

Samples = list[Mapping[str, Array]]
"""Inputs of one graph, one mapping a call."""
_BATCH = 8


@torch.no_grad()
def calibration_samples(source: ExportSource, pixels: Pixels, counts: Sequence[int]) -> dict[str, Samples]:
    """The inputs of each graph in use, by role.

    Args:
        source: the encoder, which selects or merges the tokens that enter the graphs behind.
        pixels: real images.
        counts: keep counts at the last location; they take turns.
    """
    samples: dict[str, Samples] = {"full": []}
    for number, batch in enumerate(pixels.split(_BATCH)):
        samples["full"].append({"pixels": batch.full.numpy()})
        for role, inputs in _entering(source.pruned, batch.own, counts[number % len(counts)]):
            samples.setdefault(role, []).append({name: tensor.numpy() for name, tensor in inputs.items()})
    if source.tokens_block:
        given, same = ("post_tokens", "post") if source.spec.locations else ("tokens", "fused")
        samples[given] = samples[same]
    return samples


def _entering(encoder: ReducedEncoder, pixels: Tensor, keep: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each graph's role and inputs, for one batch."""
    roles, kept = stage_roles(encoder.spec), encoder.spec.counts(keep)
    yield "fused" if encoder.spec.method == NONE else roles[0], {"pixels": pixels}
    if isinstance(encoder, PrunedEncoder):
        tokens, scores = encoder.run_pre(pixels)
        for place, (role, k) in enumerate(zip(roles[1:], kept, strict=True), start=1):
            tokens = encoder.drop(tokens, scores, k)
            yield role, {"tokens": tokens}
            if place < len(kept):
                tokens, scores = encoder.run_mid(place, tokens)
    elif isinstance(encoder, MergedEncoder):
        (tokens, metric), sizes = encoder.run_pre(pixels), None
        for place, (role, k) in enumerate(zip(roles[1:], kept, strict=True), start=1):
            tokens, sizes = encoder.merge(tokens, metric, sizes, k)
            yield role, {"tokens": tokens, "bias": sizes.log()}
            if place < len(kept):
                tokens, metric = encoder.run_mid(place, tokens, sizes)


def stages(source: ExportSource, *, flat: bool = True) -> dict[str, ir.Model]:
    """The graphs in float32 that are exported from PyTorch, in their order: those between selections or mergings, and FULL.

    Where patches are ranked, the graphs end to end are FULL, unless there are learnable tokens or the images of FULL are larger.

    Args:
        source: the encoder.
        flat: as in `prtool.export.graphs.attention.FlatLinear`.

    Raises:
        ModelError: a graph cannot be exported.
    """
    encoder, native, specs = source.pruned, source.model.native, source.signatures()
    if isinstance(encoder, MergedEncoder):
        modules: dict[str, nn.Module] = merging_graphs(encoder, native, flat=flat)
        specs |= merging_specs(encoder)
    else:
        modules = dict(image_graphs(encoder, native, flat=flat, patch_tokens=source.tokens_block))
        if "post_tokens" in modules:
            specs["post_tokens"] = GraphSpec("post_tokens.onnx", specs["post"].inputs, specs["tokens"].outputs[:2])
        if encoder.spec.method == RANK and not encoder.spec.learnable_tokens and native is encoder.tower:
            del modules["full"]
    return {role: to_onnx(module, specs[role], encoder.spec.always_kept + 1) for role, module in modules.items()}


def joined(source: ExportSource, graphs: Mapping[str, ir.Model], precision: str) -> dict[str, ir.Model]:
    """The image graphs of a bundle, by role, of those that `at_precision` gave."""
    specs, prune = source.signatures(precision), source.spec
    made = dict(graphs)
    if prune.locations:
        join = merged if prune.method == MERGE else fused
        made["fused"] = join([graphs[role] for role in stage_roles(prune)], prune, specs["fused"])
    if "full" not in made:
        made["full"] = full([graphs[role] for role in stage_roles(prune)], specs["full"])
    if "post_tokens" in made:
        made["tokens"] = with_patch_tokens([graphs[role] for role in (*stage_roles(prune)[:-1], "post_tokens")], prune, specs["tokens"])
    return {role: made[role] for role in specs if role != "text"}


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
