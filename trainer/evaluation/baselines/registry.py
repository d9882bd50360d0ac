"""The methods that `eval` knows by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prtool.errors import ConfigError
from prtool.spec import PruneSpec
from prtool.trainer.evaluation.baselines.avit import AVit
from prtool.trainer.evaluation.baselines.base import AdaptiveMethod, Counts, Method
from prtool.trainer.evaluation.baselines.cls_attention import ClsAttention
from prtool.trainer.evaluation.baselines.evit import EVit
from prtool.trainer.evaluation.baselines.merge import Merge
from prtool.trainer.evaluation.baselines.patch_ranking import PatchRanking, TunedPatchRanking
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.baselines.recovered import Recovered
from prtool.trainer.evaluation.baselines.smaller_image import SmallerImage
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.settings import MERGE_METHOD, PATCH_RANKING_TOKENS, RECOVERED, SMALLER_IMAGE, TOME


@dataclass(frozen=True, slots=True, eq=False)
class Ingredients:
    """What methods are made of.

    Attributes:
        tower: the frozen image encoder, at the image size of the run.
        native: the same at its native size.
        spec: where tokens drop or merge in the run, without learnable tokens.
        scorers: the predictors, one for each location; () where there are none.
        seed: of every random choice.
        tuned: the encoder with learnable tokens, or None where the run has none.
        tuned_classes: (classes, E) float32, L2-normalised, with the learned context; None where the run has none.
        recovered: the run's encoder with its corrections, without learnable tokens, or None where the run has none.
    """

    tower: VisionTower
    native: VisionTower
    spec: PruneSpec
    scorers: tuple[nn.Module, ...]
    seed: int
    tuned: PrunedEncoder | None = None
    tuned_classes: Tensor | None = None
    recovered: ReducedEncoder | None = None


def _patch_ranking(given: Ingredients) -> Method:
    if not given.scorers:
        raise ConfigError("method 'patch-ranking' needs a predictor, but there is none; train one, or leave patch-ranking out of --method")
    return PatchRanking(given.scorers)


def _tuned(given: Ingredients) -> Method:
    if given.tuned is None:
        raise ConfigError(f"method {PATCH_RANKING_TOKENS!r} needs learnable tokens, which the run has not; run 'prtool train --phase tokens'")
    return TunedPatchRanking(given.tuned, given.tuned_classes)


def _recovered(given: Ingredients) -> Method:
    if given.recovered is None:
        raise ConfigError(f"method {RECOVERED!r} needs a recovery, which the run has not; run 'prtool train --phase recover'")
    return Recovered(given.recovered)


METHODS: Mapping[str, Callable[[Ingredients], Method]] = {
    "patch-ranking": _patch_ranking,
    PATCH_RANKING_TOKENS: _tuned,
    RECOVERED: _recovered,
    MERGE_METHOD: lambda given: Merge.of_run(given.tower, given.spec),
    SMALLER_IMAGE: lambda given: SmallerImage(given.native, given.tower.cost()),
    TOME: lambda given: Merge.tome(given.tower),
    "evit": lambda given: EVit(given.tower),
    "avit": lambda given: AVit(given.tower),
    "cls-attention": lambda given: ClsAttention(given.tower),
    "random": lambda given: Random(given.seed),
}
"""Name -> maker of each method but the oracle."""


def make_methods(given: Ingredients, names: Sequence[str], budgets: Sequence[Counts], *, leave_out: bool) -> tuple[dict[str, Method], list[str]]:
    """The methods by name, checked against the budgets, and notes of those that were left out.

    Args:
        given: what they are made of.
        names: of `METHODS`.
        budgets: each method must be able to reach all of them.
        leave_out: what a method cannot do is a note and not an error, as long as another is left.

    Raises:
        ConfigError: a method does not suit the tower or the run, or cannot reach a budget.
    """
    made: dict[str, Method] = {}
    failed: list[ConfigError] = []
    for name in names:
        try:
            method = METHODS[name](given)
            for counts in () if isinstance(method, AdaptiveMethod) else budgets:
                method.gmacs(given.tower.cost(), given.spec, counts)
            made[name] = method
        except ConfigError as cause:
            if not leave_out:
                raise
            failed.append(cause)
    if failed and not made:
        raise failed[0]
    return made, [f"not compared: {cause}" for cause in failed]
