"""Patch Ranking: keep what the predictor scores highest."""

from typing import cast

from torch import Tensor, nn

from prtool.spec import PruneSpec
from prtool.trainer.baselines.base import Entered, RankingMethod


class PatchRanking(RankingMethod):
    """The learned predictor at the location (method, section 2).

    Args:
        scorer: (batch, prefix + N, D) -> (batch, N), high = keep.
        macs: what the scorer costs for one image, in MAC.
    """

    def __init__(self, scorer: nn.Module, macs: int) -> None:
        self._scorer = scorer.eval()
        self._macs = macs

    @property
    def name(self) -> str:  # noqa: D102 - as declared
        return "patch-ranking"

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        return cast(Tensor, self._scorer(entered.tokens))

    def scoring_macs(self, spec: PruneSpec) -> int:  # noqa: D102, ARG002
        return self._macs
