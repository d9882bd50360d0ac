"""The encoder that each reducer makes: patches dropped by rank, patches merged, or a smaller image alone."""

from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.pruned import PlainEncoder, PrunedEncoder

ReducedEncoder = PrunedEncoder | MergedEncoder | PlainEncoder
"""Each has `tower`, `spec`, and `encode(pixels, counts)` and `encode_from(tokens, block, counts) -> (batch, E)`, L2-normalised: the
reference of every graph."""
