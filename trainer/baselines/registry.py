"""The methods that `eval` knows by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from prtool.errors import ConfigError
from prtool.trainer.baselines.base import Method
from prtool.trainer.baselines.cls_attention import ClsAttention
from prtool.trainer.baselines.patch_ranking import PatchRanking
from prtool.trainer.baselines.random_ import Random
from prtool.trainer.predictor import PatchScorer
from prtool.trainer.spread import SpreadScorer
from prtool.trainer.vit import VisionTower

GOLDEN = "golden"
"""The oracle: it needs a ranking of the very images, which the evaluation computes for it."""


@dataclass(frozen=True, slots=True)
class Ingredients:
    """What methods are made of.

    Attributes:
        tower: the frozen image encoder.
        scorer: the predictor at the location, or None where there is none.
        seed: of every random choice.
    """

    tower: VisionTower
    scorer: PatchScorer | SpreadScorer | None
    seed: int


def _patch_ranking(given: Ingredients) -> Method:
    if given.scorer is None:
        raise ConfigError("method 'patch-ranking' needs a predictor, but there is none; train one, or leave patch-ranking out of --method")
    return PatchRanking(given.scorer)


METHODS: Mapping[str, Callable[[Ingredients], Method]] = {
    "patch-ranking": _patch_ranking,
    "cls-attention": lambda given: ClsAttention(given.tower),
    "random": lambda given: Random(given.seed),
}
"""Name -> maker of each method but the oracle."""
