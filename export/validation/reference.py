"""What PyTorch says about one batch: the answers that graphs and engines must give."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.trainer.models.pruned import PrunedEncoder, gather, select

# Scores nearer to each other than this many times the graph's own error rank by rounding, not by content.
_TIE_ERRORS = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a graph chose at one location.

    Attributes:
        scores: (batch, patches) float32, of the patches as they arrived.
        indices: (batch, k) int64, places among them, in the order in which the next graph takes them.
    """

    scores: Tensor
    indices: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Path:
    """One way through PyTorch, with one entry for each location.

    Attributes:
        entering: tokens (batch, prefix + patches + appended, D) that enter the location.
        scores: (batch, patches) of these.
        kept: tokens (batch, prefix + k + appended, D) that stay.
        patches: (batch, k) int64, the patches that are left behind the last location, in their order; 0 is at the top left.
        score_errors: largest difference of a graph's score from PyTorch's, where a graph was followed; else 0.
        embedding: (batch, E), L2-normalised.
    """

    entering: tuple[Tensor, ...]
    scores: tuple[Tensor, ...]
    kept: tuple[Tensor, ...]
    patches: Tensor
    score_errors: tuple[float, ...]
    embedding: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Tokens and scores of one batch in PyTorch, from which any keep count follows.

    Attributes:
        encoder: the PyTorch encoder.
        pixels: (batch, 3, height, width) float32.
        tokens: (batch, prefix + N + appended, D) float32, entering the first location.
        scores: (batch, N) float32.
    """

    encoder: PrunedEncoder
    pixels: Tensor
    tokens: Tensor
    scores: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, encoder: PrunedEncoder, pixels: Tensor) -> "Reference":
        """Runs PyTorch on (batch, 3, height, width) float32."""
        tokens, scores = encoder.run_pre(pixels)
        return cls(encoder, pixels, tokens, scores)

    @torch.no_grad()
    def full(self) -> Tensor:
        """The embedding (batch, E) of the plain tower, without learnable tokens, L2-normalised; computed in each call."""
        return functional.normalize(self.encoder.tower(self.pixels), dim=-1)

    def path(self, counts: Sequence[int]) -> Path:
        """PyTorch's own way, with `counts` patches kept at each location."""
        return self._walk(counts, ())

    def follow(self, choices: Sequence[Choice]) -> Path:
        """The way to compare a graph with, image by image: PyTorch's own, but the graph's where only rounding decides.

        An image leaves the graph's way at the first location where the two differ by more than near ties.

        Args:
            choices: the graph's, one a location.
        """
        return self._walk([choice.indices.shape[1] for choice in choices], choices)

    @torch.no_grad()
    def _walk(self, counts: Sequence[int], choices: Sequence[Choice]) -> Path:
        tokens, scores, spec = self.tokens, self.scores, self.encoder.spec
        patches = torch.arange(scores.shape[1]).expand(len(scores), -1)
        following = torch.full((len(scores),), bool(choices))
        entering, ranked, kept, errors = [], [], [], []
        for place, k in enumerate(counts):
            entering.append(tokens)
            ranked.append(scores)
            indices, error = select(scores, k), 0.0
            if following.any():
                found = choices[place]
                error = float((found.scores - scores)[following].abs().max())
                following = following & accepts(scores, found.indices, error)
                indices = torch.where(following[:, None], found.indices, indices)
            errors.append(error)
            patches = patches.gather(1, indices)
            kept.append(gather(tokens, indices, spec.prefix_tokens, spec.learnable_tokens))
            if place + 1 < len(counts):
                tokens, scores = self.encoder.run_mid(place + 1, kept[-1])
        embedding = self.encoder.run_post(kept[-1])
        return Path(tuple(entering), tuple(ranked), tuple(kept), patches, tuple(errors), embedding)


def accepts(scores: Tensor, found: Tensor, score_error: float) -> Tensor:
    """For each image, whether a choice differs from the best one only by scores so near that rounding decides between them.

    The order counts as well: a later location may rank the patches as they arrive.

    Args:
        scores: (batch, patches), PyTorch's.
        found: (batch, k) int64, the graph's choice.
        score_error: largest difference of a graph's score from PyTorch's.

    Returns:
        (batch,) bool.
    """
    taken = scores.gather(1, found)
    left = scores.scatter(1, found, float("-inf")).amax(dim=1, keepdim=True)
    # The best of all that come behind each patch of the choice.
    behind = torch.cat((taken[:, 1:], left), dim=1).flip(1).cummax(dim=1).values.flip(1)
    return (behind - taken <= _TIE_ERRORS * score_error).all(dim=1)


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of patches that two choices (batch, k) have in common."""
    shared = [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return sum(shared) / first.numel()
