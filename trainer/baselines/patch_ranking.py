"""Patch Ranking: keep what the predictor scores highest."""

from typing import cast

from torch import Tensor

from prtool.spec import PruneSpec
from prtool.trainer.baselines.base import Entered, RankingMethod
from prtool.trainer.predictor import PatchScorer
from prtool.trainer.spread import SpreadScorer


class PatchRanking(RankingMethod):
    """The learned predictor at the location (method, section 2).

    Args:
        scorer: on the tower's device, in evaluation mode.
    """

    def __init__(self, scorer: PatchScorer | SpreadScorer) -> None:
        self._scorer = scorer

    @property
    def name(self) -> str:  # noqa: D102 - as declared
        return "patch-ranking"

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        return cast(Tensor, self._scorer(entered.tokens))

    def scoring_macs(self, spec: PruneSpec) -> int:  # noqa: D102, ARG002
        return self._scorer.macs()
