"""The declared inputs and outputs of every graph of a bundle; docs/bundle-format.md says them in words."""

from prtool.export.source import ExportSource
from prtool.manifest import GraphSpec, TensorSpec

BATCH = "batch"
TOKENS = "tokens"


def signatures(source: ExportSource) -> dict[str, GraphSpec]:
    """Role -> file, inputs and outputs of the graphs that `source` gives."""
    tower, prune = source.pruned.tower, source.spec
    pixels = TensorSpec("pixels", "float32", (BATCH, 3, *tower.image_size))
    embedding = TensorSpec("embedding", "float32", (BATCH, tower.embed_dim))
    entering = TensorSpec("tokens", "float32", (BATCH, prune.always_kept + prune.patches, tower.width))
    scores = TensorSpec("scores", "float32", (BATCH, prune.patches))
    staying = TensorSpec("tokens", "float32", (BATCH, TOKENS, tower.width))
    counts = TensorSpec("k", "int64", (len(prune.locations),))
    token_ids = TensorSpec("tokens", "int64", (BATCH, source.model.context_length))
    return {
        "full": GraphSpec("full.onnx", (pixels,), (embedding,)),
        "pre": GraphSpec("pre.onnx", (pixels,), (entering, scores)),
        "post": GraphSpec("post.onnx", (staying,), (embedding,)),
        "fused": GraphSpec("fused.onnx", (pixels, counts), (embedding,)),
        "text": GraphSpec("text.onnx", (token_ids,), (embedding,)),
    }
