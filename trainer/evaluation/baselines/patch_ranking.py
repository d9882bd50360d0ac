"""Patch Ranking: keep what the predictors score highest, with the tower as it is or with learnable tokens next to the patches."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from prtool.errors import ConfigError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, RankingMethod, encoder_gmacs
from prtool.trainer.models.predictor import scorer_macs
from prtool.trainer.models.pruned import PrunedEncoder


class PatchRanking(RankingMethod):
    """The learned predictors (method, section 2), as `PrunedEncoder` uses them.

    Args:
        scorers: one for each location, on the tower's device, in evaluation mode. The first sees prefix and all patches,
            a later one prefix and the patches that are left.
    """

    name = "patch-ranking"

    def __init__(self, scorers: Sequence[nn.Module]) -> None:
        self._scorers = tuple(scorers)

    def scores(self, entered: Entered) -> Tensor:  # noqa: D102
        if len(self._scorers) != len(entered.spec.locations):
            raise ConfigError(f"{len(self._scorers)} scorers for locations {list(entered.spec.locations)}; give one scorer for each")
        return cast(Tensor, self._scorers[0](entered.tokens))

    def scores_at(self, place: int, entered: Entered, tokens: Tensor) -> Tensor:  # noqa: D102, ARG002
        return cast(Tensor, self._scorers[place](tokens))

    def scoring_macs(self, spec: PruneSpec, counts: Counts) -> int:  # noqa: D102, ARG002
        return scorer_macs(self._scorers)


class TunedPatchRanking(Method):
    """The predictors in a tower with learnable tokens (method, section 3), and class embeddings with a learned context.

    The learnable tokens come on top of the budget's patches (method, section 4), so `gmacs` is above the other methods'
    by what they cost. With every patch kept it is the tuned encoder, not the unpruned one.

    Args:
        encoder: with the learnable tokens, on the tower's device, in evaluation mode.
        classes: (classes, E) float32, L2-normalised, with the learned context; None takes the zero-shot ones.
    """

    name = "patch-ranking-tokens"

    def __init__(self, encoder: PrunedEncoder, classes: Tensor | None = None) -> None:
        self._encoder = encoder
        self.classes = classes

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the best patches and the learnable tokens."""
        if self._encoder.spec.locations != entered.spec.locations:
            wanted = list(self._encoder.spec.locations)
            raise ConfigError(f"locations = {list(entered.spec.locations)}, but the tuned encoder prunes at {wanted}; compare at those")
        entered.keeps_all(counts)
        tokens, scores = entered.once((self, "entered"), lambda: self._encoder.run_pre_from(entered.embedded))
        return self._encoder.finish(tokens, scores, counts)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:  # noqa: ARG002 - the encoder has its own spec
        """Cost of one image in 10^9 MAC: the encoder with its learnable tokens, and the scorers."""
        return encoder_gmacs(cost, self._encoder.spec, counts) + scorer_macs(self._encoder.scorers) / 1e9
