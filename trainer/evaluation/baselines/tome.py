"""ToMe as a method (Bolya et al., "Token Merging: Your ViT But Faster", 2023): patches merge in every block, as published.

It is `prtool.trainer.models.merging.MergedEncoder` from block 1 on. In the last block the head reads nothing that merging changes.
"""

from torch import Tensor

from prtool.errors import ConfigError, ModelError
from prtool.spec import MERGE, Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, encoder_gmacs
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.tower import VisionTower


class ToMe(Method):
    """Merging in equal numbers in every block, so that all MACs, matching included, are the budget's.

    Raises:
        ConfigError: the tower cannot merge.
    """

    name = "tome"

    def __init__(self, tower: VisionTower) -> None:
        try:
            self._encoder = MergedEncoder(tower, tower.prune_spec((1,), method=MERGE))
        except ModelError as cause:
            raise ConfigError(f"method 'tome' does not suit this image tower: {cause}; or leave tome out of --method") from cause
        self._schedules: dict[tuple[Cost, PruneSpec, Counts], Counts] = {}

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the merged tokens."""
        if entered.keeps_all(counts):
            return entered.whole
        attended = entered.once((self, "attended"), lambda: self._encoder.run_pre_from(entered.embedded))
        return self._encoder.finish(*attended, self._merges(self._encoder.tower.cost(), entered.spec, counts))

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Cost of one image in 10^9 MAC, matching included."""
        return cost.pruned_gmacs(self._encoder.spec, self._merges(cost, spec, counts))

    def _merges(self, cost: Cost, spec: PruneSpec, counts: Counts) -> Counts:
        key = (cost, spec, counts)
        if key not in self._schedules:
            self._schedules[key] = schedule(cost, self._encoder.spec, encoder_gmacs(cost, spec, counts))
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
