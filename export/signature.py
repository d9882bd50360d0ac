"""The declared inputs and outputs of the graphs that a source gives."""

from prtool.export.source import ExportSource
from prtool.graphs.signature import BATCH, PATCHES, TOKENS, EncoderShape, GraphSpec, graph_signatures, stage_roles

__all__ = ["BATCH", "PATCHES", "TOKENS", "signatures", "stage_roles"]


def signatures(source: ExportSource, precision: str = "fp32") -> dict[str, GraphSpec]:
    """Role -> file, inputs and outputs of the graphs that `source` gives at one precision; see `graph_signatures`."""
    tower = source.pruned.tower
    return graph_signatures(EncoderShape(tower.image_size, source.spec, tower.width, tower.embed_dim, source.model.context_length), precision)
