"""The methods that `eval` knows by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from prtool.errors import ConfigError
from prtool.trainer.evaluation.baselines.avit import AVit
from prtool.trainer.evaluation.baselines.base import Method
from prtool.trainer.evaluation.baselines.cls_attention import ClsAttention
from prtool.trainer.evaluation.baselines.evit import EVit
from prtool.trainer.evaluation.baselines.patch_ranking import PatchRanking, TunedPatchRanking
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.baselines.tome import ToMe
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.settings import PATCH_RANKING_TOKENS


@dataclass(frozen=True, slots=True, eq=False)
class Ingredients:
    """What methods are made of.

    Attributes:
        tower: the frozen image encoder.
        scorers: the predictors, one for each location; () where there are none.
        seed: of every random choice.
        tuned: the encoder with learnable tokens, or None where the run has none.
        tuned_classes: (classes, E) float32, L2-normalised, with the learned context; None where the run has none.
    """

    tower: VisionTower
    scorers: tuple[nn.Module, ...]
    seed: int
    tuned: PrunedEncoder | None = None
    tuned_classes: Tensor | None = None


def _patch_ranking(given: Ingredients) -> Method:
    if not given.scorers:
        raise ConfigError("method 'patch-ranking' needs a predictor, but there is none; train one, or leave patch-ranking out of --method")
    return PatchRanking(given.scorers)


def _tuned(given: Ingredients) -> Method:
    if given.tuned is None:
        raise ConfigError(f"method {PATCH_RANKING_TOKENS!r} needs learnable tokens, which the run has not; run 'prtool train --phase tokens'")
    return TunedPatchRanking(given.tuned, given.tuned_classes)


METHODS: Mapping[str, Callable[[Ingredients], Method]] = {
    "patch-ranking": _patch_ranking,
    PATCH_RANKING_TOKENS: _tuned,
    "cls-attention": lambda given: ClsAttention(given.tower),
    "evit": lambda given: EVit(given.tower),
    "avit": lambda given: AVit(given.tower),
    "tome": lambda given: ToMe(given.tower),
    "random": lambda given: Random(given.seed),
}
"""Name -> maker of each method but the oracle."""
