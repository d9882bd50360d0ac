"""A reduced encoder in training: its embedding, and its hidden states next to the patches that they belong to."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prtool.spec import RANK, PruneSpec
from prtool.trainer.models.pruned import PrunedEncoder, gather, select
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.recovery.data import Taps


class Shortened(NamedTuple):
    """One batch.

    Attributes:
        embedding: (batch, E), L2-normalised.
        states: for each tapped block, the tokens (batch, prefix + k, D) that leave it.
        places: (batch, k) int64, the number of each patch of `states`; None without taps.
    """

    embedding: Tensor
    states: list[Tensor]
    places: Tensor | None


def taps_of(spec: PruneSpec, *, hidden: bool, smaller: bool) -> Taps:
    """Where recovery reads the encoders: it begins at the first block that sees fewer tokens, which with a `smaller` image is block 1.

    Hidden states (of images of the native size only) are those in the middle of the blocks behind the last location, and of the last
    block but one, behind which patches matter no more where the head reads the class token.
    """
    first = 1 if smaller or not spec.locations else spec.locations[0]
    if not hidden or smaller or spec.method != RANK:
        return Taps(first)
    last = spec.locations[-1]
    return Taps(first, tuple(sorted({block for block in ((last + spec.depth) // 2, spec.depth - 1) if last <= block < spec.depth})))


def shortened(encoder: ReducedEncoder, tokens: Tensor, counts: Sequence[int], taps: Taps) -> Shortened:
    """Runs an encoder without learnable tokens from the tokens (batch, prefix + N, D) that enter block `taps.first`."""
    if not isinstance(encoder, PrunedEncoder):
        return Shortened(encoder.encode_from(tokens, taps.first, counts), [], None)
    tower, begin = encoder.tower, encoder.spec.locations[-1]
    tokens, places = _dropped(encoder, tokens, counts, taps)
    states = []
    for block in taps.blocks:
        tokens, begin = tower.run_blocks(tokens, begin, block), block + 1
        states.append(tokens)
    embedding = tower.head(tower.run_blocks(tokens, begin, tower.depth))
    return Shortened(functional.normalize(embedding, dim=-1), states, places)


def _dropped(encoder: PrunedEncoder, tokens: Tensor, counts: Sequence[int], taps: Taps) -> tuple[Tensor, Tensor | None]:
    """Tokens selected at the last location, and the number of each patch."""
    with torch.autocast(tokens.device.type, enabled=False):
        # In float32, as deployed: in bfloat16 the ranking is another one.
        tokens, scores = encoder.run_pre_from(tokens, taps.first)
    places = None
    for place, k in enumerate(counts):
        if place:
            tokens, scores = encoder.run_mid(place, tokens)
        chosen = select(scores, k)
        places = chosen if places is None else places.gather(1, chosen)
        tokens = gather(tokens, chosen, encoder.spec.prefix_tokens)
    return tokens, places
