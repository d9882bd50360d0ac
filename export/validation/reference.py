"""PyTorch's outputs for one batch, which graphs and engines are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from prtool.export.source import ExportSource
from prtool.runtime.patch_tokens import PatchTokens
from prtool.trainer.models.pruned import PlainEncoder, PrunedEncoder, gather, select
from prtool.trainer.models.tower import VisionTower

# Scores that differ by less than this many times the graph's own error are ordered by rounding.
_TIE_ERRORS = 4.0

Selection = tuple[Tensor, Tensor]
"""What a graph selected at one location.

Scores (batch, patches) float32 of the patches as they arrived, and indices (batch, k) int64 among them in the order that
the next graph takes.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Route:
    """One way through PyTorch, with one entry for each location.

    Attributes:
        entering: tokens (batch, prefix + patches + learnable, D) at the location.
        scores: (batch, patches) of these.
        kept: tokens (batch, prefix + k + learnable, D) that stay.
        patches: (batch, k) int64, row-major positions of the patches that are left behind the last location, in their order.
        score_errors: largest difference between a followed graph's scores and PyTorch's; 0 where no graph was followed.
        embedding: (batch, E), L2-normalised.
    """

    entering: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    patches: Tensor
    score_errors: tuple[float, ...]
    embedding: Tensor


class Reference:
    """Tokens and scores of one batch in PyTorch, from which any keep count follows."""

    @torch.no_grad()
    def __init__(self, encoder: PrunedEncoder, pixels: Tensor) -> None:
        """Runs the blocks before the first location on (batch, 3, height, width) float32."""
        self.encoder, self.pixels = encoder, pixels
        self.tokens, self.scores = encoder.run_pre(pixels)

    def route(self, counts: Sequence[int], follow: Sequence[Selection] = ()) -> Route:
        """PyTorch's result with `counts` patches kept at each location.

        Args:
            counts: one a location.
            follow: a graph's selections, one a location. They replace PyTorch's where only rounding decides, image by image, up
                to the first location where the two differ by more than near ties.
        """
        with torch.no_grad():
            return self._walk(counts, follow)

    def _walk(self, counts: Sequence[int], follow: Sequence[Selection]) -> Route:
        tokens, scores, spec = self.tokens, self.scores, self.encoder.spec
        patches = torch.arange(scores.shape[1]).expand(len(scores), -1)
        following = torch.full((len(scores),), bool(follow))
        entering, ranked, kept, errors = [], [], [], []
        for place, k in enumerate(counts):
            entering.append(tokens)
            ranked.append(scores)
            indices, error = select(scores, k), 0.0
            if following.any():
                found_scores, found = follow[place]
                error = float((found_scores - scores)[following].abs().max())
                following = following & accepts(scores, found, error)
                indices = torch.where(following[:, None], found, indices)
            errors.append(error)
            patches = patches.gather(1, indices)
            kept.append(gather(tokens, indices, spec.prefix_tokens, spec.learnable_tokens))
            if place + 1 < len(counts):
                tokens, scores = self.encoder.run_mid(place + 1, kept[-1])
        return Route(tuple(entering), tuple(ranked), tuple(kept), patches, tuple(errors), self.encoder.run_post(kept[-1]))


@torch.no_grad()
def unpruned(native: VisionTower, pixels: Tensor) -> Tensor:
    """The embedding (batch, E) of the native tower, without pruning and learnable tokens, L2-normalised."""
    return functional.normalize(native(pixels), dim=-1)


@torch.no_grad()
def patch_tokens(source: ExportSource, pixels: Tensor, k: int, follow: Sequence[Selection] = ()) -> PatchTokens:
    """PyTorch's patch tokens of (batch, 3, height, width) with k patches kept; `follow` as in `Reference.route`."""
    encoder = source.pruned
    if isinstance(encoder, PrunedEncoder):
        route = Reference(encoder, pixels).route(encoder.spec.counts(k), follow)
        indices, order = route.patches.sort(dim=1)
        tokens = encoder.patch_tokens(route.kept[-1], source.tokens_block)
        tokens, embedding = tokens.gather(1, order.unsqueeze(-1).expand_as(tokens)), route.embedding
    else:
        plain = cast(PlainEncoder, encoder)
        tokens, embedding = plain.patch_tokens(pixels, source.tokens_block), plain.encode(pixels)
        indices = torch.arange(k).expand(len(pixels), -1)
    return PatchTokens(*(tensor.numpy() for tensor in (embedding, tokens, indices)))


def accepts(scores: Tensor, found: Tensor, score_error: float) -> Tensor:
    """For each image, whether a selection differs from the best one only where scores tie within rounding.

    The order counts as well: a later location may rank the patches as they arrive.

    Args:
        scores: (batch, patches), PyTorch's.
        found: (batch, k) int64, the graph's selection.
        score_error: largest difference between the graph's scores and PyTorch's.

    Returns:
        (batch,) bool.
    """
    taken = scores.gather(1, found)
    left = scores.scatter(1, found, float("-inf")).amax(dim=1, keepdim=True)
    # The best of all patches behind each selected one.
    behind = torch.cat((taken[:, 1:], left), dim=1).flip(1).cummax(dim=1).values.flip(1)
    return (behind - taken <= _TIE_ERRORS * score_error).all(dim=1)


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """For each row (batch, k) of distinct indices, the share that is also in the other's row: (batch,) float64."""
    return (first.unsqueeze(2) == second.unsqueeze(1)).any(dim=2).double().mean(dim=1)
