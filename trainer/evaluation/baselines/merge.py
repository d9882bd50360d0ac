"""Gradual merging as a method: the run's own, or at the same cost as what another run drops."""

from torch import Tensor

from prtool.errors import ConfigError, ModelError
from prtool.spec import MERGE, Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, encoder_gmacs
from prtool.trainer.evaluation.baselines.tome import schedule
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.tower import VisionTower


class Merge(Method):
    """`MergedEncoder`: in a run that merges with its own blocks and counts, else from the run's first location to the last block but one.

    Args:
        tower: the frozen image encoder.
        spec: of the run.

    Raises:
        ConfigError: the tower cannot merge, or there is no block between the first location and the last.
    """

    name = "merge"

    def __init__(self, tower: VisionTower, spec: PruneSpec) -> None:
        own = spec if spec.method == MERGE else tower.prune_spec(spec.locations[:1], method=MERGE)
        try:
            self._encoder = MergedEncoder(tower, own)
        except ModelError as cause:
            raise ConfigError(f"method 'merge' does not suit this image tower: {cause}; or leave merge out of --method") from cause
        self._schedules: dict[tuple[PruneSpec, Counts], Counts] = {}

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the merged tokens."""
        if entered.keeps_all(counts):
            return entered.whole
        attended = entered.once((self, "attended"), lambda: self._encoder.run_pre_from(entered.embedded))
        return self._encoder.finish(*attended, self._merged(self._encoder.tower.cost(), entered.spec, counts))

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Cost of one image in 10^9 MAC, matching included."""
        return cost.pruned_gmacs(self._encoder.spec, self._merged(cost, spec, counts))

    def _merged(self, cost: Cost, spec: PruneSpec, counts: Counts) -> Counts:
        """The patches behind each merging: the counts themselves, or what costs as much."""
        if spec == self._encoder.spec:
            return counts
        if (spec, counts) not in self._schedules:
            self._schedules[spec, counts] = schedule(cost, self._encoder.spec, encoder_gmacs(cost, spec, counts))
        return self._schedules[spec, counts]
