"""The declared inputs and outputs of every graph of a bundle; docs/bundle-format.md says them in words."""

from dataclasses import replace

from prtool.export.source import ExportSource
from prtool.manifest import GraphSpec, TensorSpec
from prtool.runtime.pipeline import roles_after_selection
from prtool.spec import PruneSpec

BATCH = "batch"
TOKENS = "tokens"
PATCHES = "patches"


def stage_roles(prune: PruneSpec) -> list[str]:
    """The roles of the graphs that selection stands between: "pre", "mid_1", ..., "post"."""
    return ["pre", *roles_after_selection(prune)]


def signatures(source: ExportSource, precision: str = "fp32") -> dict[str, GraphSpec]:
    """Role -> file, inputs and outputs of the graphs that `source` gives at one precision.

    Inputs and outputs are float32 at every precision; the text side, which runs once for a set of classes, is fp32 only.
    """
    folder = "" if precision == "fp32" else f"{precision}/"
    tower, prune = source.pruned.tower, source.spec
    pixels = TensorSpec("pixels", "float32", (BATCH, 3, *tower.image_size))
    embedding = TensorSpec("embedding", "float32", (BATCH, tower.embed_dim))
    entering = TensorSpec("tokens", "float32", (BATCH, prune.always_kept + prune.patches, tower.width))
    scores = TensorSpec("scores", "float32", (BATCH, prune.patches))
    staying = TensorSpec("tokens", "float32", (BATCH, TOKENS, tower.width))
    moved, ranked = replace(staying, name="tokens_out"), TensorSpec("scores", "float32", (BATCH, PATCHES))
    mids = {role: GraphSpec(f"{folder}{role}.onnx", (staying,), (moved, ranked)) for role in stage_roles(prune)[1:-1]}
    counts = TensorSpec("k", "int64", (len(prune.locations),))
    token_ids = TensorSpec("tokens", "int64", (BATCH, source.model.context_length))
    graphs = {
        "full": GraphSpec(f"{folder}full.onnx", (pixels,), (embedding,)),
        "pre": GraphSpec(f"{folder}pre.onnx", (pixels,), (entering, scores)),
        **mids,
        "post": GraphSpec(f"{folder}post.onnx", (staying,), (embedding,)),
        "fused": GraphSpec(f"{folder}fused.onnx", (pixels, counts), (embedding,)),
    }
    return graphs if folder else {**graphs, "text": GraphSpec("text.onnx", (token_ids,), (embedding,))}
