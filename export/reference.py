"""What PyTorch says about one batch: the answers that graphs and engines must give."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prtool.trainer.pruned import PrunedEncoder, gather, select

# Scores nearer to each other than this many times the graph's own error rank by rounding, not by content.
_TIE_ERRORS = 4.0


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """Tokens and scores of one batch in PyTorch, from which any keep count follows.

    Attributes:
        encoder: the PyTorch encoder.
        pixels: (batch, 3, height, width) float32.
        tokens: (batch, prefix + N + appended, D) float32, entering the location.
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
        tokens, scores = encoder.enter(pixels)
        return cls(encoder, pixels, tokens, scores)

    @torch.no_grad()
    def full(self) -> Tensor:
        """The unpruned embedding (batch, E), L2-normalised; computed in each call."""
        return functional.normalize(self.encoder.tower(self.pixels), dim=-1)

    def indices(self, k: int) -> Tensor:
        """The patches that PyTorch keeps, (batch, k) int64."""
        return select(self.scores, k)

    @torch.no_grad()
    def kept(self, indices: Tensor) -> Tensor:
        """The tokens that stay with `indices` (batch, k): (batch, prefix + k + appended, D)."""
        return gather(self.tokens, indices, self.encoder.spec.prefix_tokens, self.encoder.spec.appended_tokens)

    @torch.no_grad()
    def embedding(self, indices: Tensor) -> Tensor:
        """The embedding (batch, E) with the patches `indices` (batch, k) kept."""
        return self.encoder.leave(self.kept(indices))

    def accepted(self, found: Tensor, score_error: float) -> Tensor:
        """The choice of patches to compare a graph with, image by image.

        Args:
            found: (batch, k) int64, the graph's choice.
            score_error: largest difference of a graph's score from PyTorch's.

        Returns:
            (batch, k) int64: PyTorch's own choice; but the graph's where the two differ only in patches whose
            scores are so near that rounding decides between them.
        """
        own = self.indices(found.shape[1])
        dropped, taken = _difference(own, found, self.scores), _difference(found, own, self.scores)
        tied = [bool(len(out) and float(out.max() - into.min()) <= _TIE_ERRORS * score_error) for out, into in zip(dropped, taken, strict=True)]
        return torch.where(torch.tensor(tied)[:, None], found, own)


def overlap(first: Tensor, second: Tensor) -> float:
    """Share of patches that two choices (batch, k) have in common."""
    shared = [len(set(a) & set(b)) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    return sum(shared) / first.numel()


def _difference(first: Tensor, second: Tensor, scores: Tensor) -> list[Tensor]:
    """For each image, the scores of the patches in `first` that are not in `second`."""
    rows = zip(first.tolist(), second.tolist(), scores, strict=True)
    return [row[sorted(set(a) - set(b))] for a, b, row in rows]
