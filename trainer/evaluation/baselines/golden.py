"""Golden: the oracle, which has tried for each image what happens without a patch."""

import torch
from torch import Tensor

from prtool.errors import ShapeError
from prtool.trainer.evaluation.baselines.base import Entered, RankingMethod


class Golden(RankingMethod):
    """Keeps the head of each image's golden ranking (method, section 1). Its search is not part of `gmacs`.

    Args:
        ranking: (images, N) integers, row i the patches of image i from most to least important.

    Raises:
        ShapeError: the tensor is not two-dimensional, or a row is no permutation of 0 to N - 1.
    """

    name = "golden"

    def __init__(self, ranking: Tensor) -> None:
        if ranking.dim() != 2 or not bool((ranking.sort(dim=1).values == torch.arange(ranking.shape[1], device=ranking.device)).all()):
            raise ShapeError(f"golden ranking of shape {tuple(ranking.shape)}, but each row must order the patches 0 to N - 1; rank the images again")
        self._ranking = ranking.long().cpu()

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        ranking = self._ranking[list(entered.indices)]
        if ranking.shape[1] != entered.spec.patches:
            raise ShapeError(f"the golden ranking is of {ranking.shape[1]} patches, but the model has {entered.spec.patches}; rank the images again")
        falling = torch.arange(ranking.shape[1], 0, -1).expand_as(ranking)
        return torch.zeros_like(ranking).scatter_(1, ranking, falling).to(entered.tokens.device)
