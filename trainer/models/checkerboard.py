"""The checkerboard bonus: neighbouring patches are redundant, so of two similar ones the selection keeps one before both."""

from typing import cast

import torch
from torch import Tensor, nn

from prtool.trainer.models.predictor import PatchScorer

_EPSILON = 1e-6


class CheckerboardScorer(nn.Module):
    """A trained scorer whose scores are standardised in each image and raised on every second patch, as on a chessboard.

    A leave-one-out ranking judges each patch while all its neighbours are there, so it calls whole even regions unimportant,
    and a predictor that follows it drops them whole. Not part of the paper; strength 0 leaves the order as it is.

    Args:
        scorer: the trained scorer, (batch, prefix + N, D) -> (batch, N).
        grid: rows and columns of patches.
        strength: difference between the two colours of the board, in standard deviations of an image's scores.
    """

    def __init__(self, scorer: PatchScorer, grid: tuple[int, int], strength: float) -> None:
        super().__init__()
        self.scorer = scorer
        rows, columns = torch.arange(grid[0])[:, None], torch.arange(grid[1])
        board = ((rows + columns) % 2 == 0).flatten().float() - 0.5
        self.board: Tensor
        self.register_buffer("board", strength * board, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, prefix + N, D) float32 -> (batch, N) float32, high = keep."""
        scores = cast(Tensor, self.scorer(tokens))
        centred = scores - scores.mean(dim=1, keepdim=True)
        deviation = centred.square().mean(dim=1, keepdim=True).sqrt()
        return centred / (deviation + _EPSILON) + self.board

    def macs(self) -> int:
        """Multiply-accumulates of one image in matrix products."""
        return self.scorer.macs()
