"""The inputs and outputs that every graph of a bundle must have; docs/bundle-format.md, section 3."""

from dataclasses import dataclass, replace

from prtool.spec import RANK, PruneSpec

BATCH = "batch"
TOKENS = "tokens"
PATCHES = "patches"
WEIGHTS_NAME = "weights.bin"
"""The file of external data in the folder of the graphs that share it."""
WEIGHTS_ALIGNMENT = 64
"""Offsets into it are multiples of this many bytes: a cache line, and the widest vector of any engine."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One graph input or output: name, numpy dtype name, and axes (a size, or the name of a dynamic axis)."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class GraphSpec:
    """One ONNX file of the bundle and its signature."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class EncoderShape:
    """What the signatures depend on.

    Attributes:
        image: height and width of the pixels of the pruned encoder.
        native: height and width of the pixels of the unpruned one.
        prune: locations, patches and tokens.
        width: D, the width of a token; of no effect where no graph takes or gives tokens.
        embed_dim: E, the width of an embedding.
        context_length: token ids of a prompt; 0 without a text side.
        patch_tokens_width: width of the patch tokens that are given out; 0 where none are.
    """

    image: tuple[int, int]
    native: tuple[int, int]
    prune: PruneSpec
    width: int
    embed_dim: int
    context_length: int = 0
    patch_tokens_width: int = 0


def stage_roles(prune: PruneSpec) -> list[str]:
    """The roles of the graphs that selection stands between: "pre", "mid_1", ..., "post"."""
    return ["pre", *(f"mid_{place}" for place in range(1, len(prune.locations))), "post"]


def bundle_roles(prune: PruneSpec) -> list[str]:
    """The roles of the image graphs of a bundle: those of the stages only where patches are selected between them."""
    return [*(stage_roles(prune) if prune.method == RANK else ()), "fused", "full"]


def graph_signatures(shape: EncoderShape, precision: str = "fp32") -> dict[str, GraphSpec]:
    """Role -> file, inputs and outputs of every graph at one precision.

    Inputs and outputs are float32 at every precision. FUSED takes one count a location, and no `k` where there is none. TOKENS is FUSED that
    also gives the patch tokens. The text side, which runs once for a set of classes, is fp32 only.
    """
    folder = "" if precision == "fp32" else f"{precision}/"
    prune = shape.prune
    pixels, native = (TensorSpec("pixels", "float32", (BATCH, 3, *size)) for size in (shape.image, shape.native))
    embedding = TensorSpec("embedding", "float32", (BATCH, shape.embed_dim))
    entering = TensorSpec("tokens", "float32", (BATCH, prune.always_kept + prune.patches, shape.width))
    scores = TensorSpec("scores", "float32", (BATCH, prune.patches))
    staying = TensorSpec("tokens", "float32", (BATCH, TOKENS, shape.width))
    moved, ranked = replace(staying, name="tokens_out"), TensorSpec("scores", "float32", (BATCH, PATCHES))
    counts = TensorSpec("k", "int64", (len(prune.locations),))
    found = {
        "full": GraphSpec(f"{folder}full.onnx", (native,), (embedding,)),
        "pre": GraphSpec(f"{folder}pre.onnx", (pixels,), (entering, scores)),
        **{role: GraphSpec(f"{folder}{role}.onnx", (staying,), (moved, ranked)) for role in stage_roles(prune)[1:-1]},
        "post": GraphSpec(f"{folder}post.onnx", (staying,), (embedding,)),
        "fused": GraphSpec(f"{folder}fused.onnx", (pixels, counts) if prune.locations else (pixels,), (embedding,)),
    }
    graphs = {role: found[role] for role in bundle_roles(prune)}
    if shape.patch_tokens_width:
        patches = PATCHES if prune.locations else prune.patches
        given = TensorSpec("patch_tokens", "float32", (BATCH, patches, shape.patch_tokens_width))
        numbers = (TensorSpec("indices", "int64", (BATCH, patches)),) if prune.locations else ()
        graphs["tokens"] = GraphSpec(f"{folder}tokens.onnx", found["fused"].inputs, (embedding, given, *numbers))
    if shape.context_length and not folder:
        graphs["text"] = GraphSpec("text.onnx", (TensorSpec("tokens", "int64", (BATCH, shape.context_length)),), (embedding,))
    return graphs
