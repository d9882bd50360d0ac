"""Recovered: the run's own encoder with its corrections, whichever reducer it has."""

from collections.abc import Sequence

from torch import Tensor, nn

from prtool.errors import ConfigError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, first_block
from prtool.trainer.models.predictor import scorer_macs
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.settings import RECOVERED


class Recovered(Method):
    """An encoder whose blocks are corrected where they see fewer tokens; with every patch kept it is not the unpruned one.

    Args:
        encoder: on the tower's device, in evaluation mode, without learnable tokens.
    """

    name = RECOVERED

    def __init__(self, encoder: ReducedEncoder) -> None:
        self._encoder = encoder

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, at a budget of the run's own spec."""
        if self._encoder.spec != entered.spec:
            raise ConfigError(f"the recovered encoder shortens as {self._encoder.spec}, but the evaluation as {entered.spec}; compare in its own run")
        entered.keeps_all(counts)
        if entered.native is not None:
            # Every block sees fewer tokens of a smaller image, and so every one is corrected.
            return self._encoder.encode_from(entered.embedded, 1, counts)
        return self._encoder.encode_from(entered.tokens, first_block(entered.spec), counts)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:  # noqa: D102 - as declared
        scorers: Sequence[nn.Module] = self._encoder.scorers if isinstance(self._encoder, PrunedEncoder) else ()  # type: ignore[assignment]
        return cost.pruned_gmacs(spec, counts) + scorer_macs(scorers) / 1e9
