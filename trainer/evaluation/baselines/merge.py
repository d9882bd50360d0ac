"""Gradual merging as a method: the run's own, or at the same cost as what another run drops."""

from torch import Tensor

from prtool.errors import ConfigError, ModelError
from prtool.spec import MERGE, Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, encoder_gmacs
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.settings import MERGE_METHOD, TOME


class Merge(Method):
    """`MergedEncoder` in the blocks of a spec; a run that merges in them has its own counts, another one counts of the same cost.

    Args:
        name: "merge" or "tome".
        tower: the frozen image encoder.
        spec: of method "merge".

    Raises:
        ConfigError: the tower cannot merge.
    """

    def __init__(self, name: str, tower: VisionTower, spec: PruneSpec) -> None:
        self.name = name
        try:
            self._encoder = MergedEncoder(tower, spec)
        except ModelError as cause:
            raise ConfigError(f"method {name!r} does not suit this image tower: {cause}; or leave {name} out of --method") from cause
        self._schedules: dict[tuple[Cost, PruneSpec, Counts], Counts] = {}

    @classmethod
    def of_run(cls, tower: VisionTower, spec: PruneSpec) -> "Merge":
        """The run's own merging, else from its first location to the last block but one.

        Raises:
            ConfigError: the tower cannot merge, or there is no block between the first location and the last.
        """
        return cls(MERGE_METHOD, tower, spec if spec.method == MERGE else tower.prune_spec(spec.locations[:1], method=MERGE))

    @classmethod
    def tome(cls, tower: VisionTower) -> "Merge":
        """ToMe as published (Bolya et al., "Token Merging: Your ViT But Faster", 2023): from block 1 on.

        In the last block the head reads nothing that merging changes.
        """
        return cls(TOME, tower, tower.prune_spec((1,), method=MERGE))

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
        key, own = (cost, spec, counts), self._encoder.spec
        if spec == own:
            return counts
        if key not in self._schedules:
            self._schedules[key] = schedule(cost, own, encoder_gmacs(cost, spec, counts))
        return self._schedules[key]


def schedule(cost: Cost, spec: PruneSpec, gmacs: float) -> Counts:
    """The patches behind the merging of each location whose cost is nearest to `gmacs`.

    The merges are equal or one more at the first locations; a block with fewer pairs than that merges all it has.

    Raises:
        ConfigError: merging every pair costs more than `gmacs`.
    """
    tried = [_capped(spec, total) for total in range(len(spec.locations) * (spec.patches // 2) + 1)]
    costs = [cost.pruned_gmacs(spec, counts) for counts in tried]
    if min(costs) > gmacs:
        raise ConfigError(f"merging all pairs in every block costs {min(costs):.3f} GMAC an image, but the budget is {gmacs:.3f}; keep more patches")
    return tried[min(range(len(tried)), key=lambda total: abs(costs[total] - gmacs))]


def _capped(spec: PruneSpec, total: int) -> Counts:
    """What `total` merges leave: equal numbers, each at most the pairs that its block has."""
    patches, left, places = spec.patches, [], len(spec.locations)
    for place in range(places):
        patches -= min(total // places + (place < total % places), patches // 2)
        left.append(patches)
    return tuple(left)
