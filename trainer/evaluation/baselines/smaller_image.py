"""A smaller image: the unpruned encoder on fewer pixels, with interpolated positions and nothing trained."""

from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, encoder_gmacs
from prtool.trainer.models.tower import VisionTower


class SmallerImage(Method):
    """Every block is shorter, and decoding and resizing cost less as well (CLIPA, Li et al. 2023, shortens training in this way).

    Of the sides that are a multiple of the patch, it reads the one whose cost is nearest to the budget, and `gmacs` is that cost.

    Args:
        native: the unpruned encoder.
        cost: of the encoder whose budgets are met.

    Raises:
        ConfigError: the native tower cannot take other sizes.
    """

    name = "smaller-image"

    def __init__(self, native: VisionTower, cost: Cost) -> None:
        self._native, self._cost = native, cost
        self._towers = {native.image_size[0]: native}
        self._sides: dict[tuple[PruneSpec, Counts], int] = {}
        sides = (*native.smaller_sizes, native.image_size[0])
        try:
            self._tower(sides[-2:][0])
        except ModelError as cause:
            raise ConfigError(f"method 'smaller-image' does not suit this image tower: {cause}; or leave smaller-image out of --method") from cause
        self._costs = {side: native.gmacs_at(side) for side in sides}

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the smaller images."""
        side = self._side(entered.spec, counts)
        if side == self._native.image_size[0]:
            return entered.unpruned
        return entered.once((self, side), lambda: functional.normalize(self._tower(side)(entered.pixels_at((side, side))), dim=-1))

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:  # noqa: ARG002 - the budget's is known
        """Cost of one smaller image in 10^9 MAC."""
        return self._costs[self._side(spec, counts)]

    def image_size(self, spec: PruneSpec, counts: Counts) -> tuple[int, int]:
        """Height and width of the images at a budget."""
        side = self._side(spec, counts)
        return side, side

    def _side(self, spec: PruneSpec, counts: Counts) -> int:
        if (spec, counts) not in self._sides:
            budget = encoder_gmacs(self._cost, spec, counts)
            self._sides[spec, counts] = min(self._costs, key=lambda side: abs(self._costs[side] - budget))
        return self._sides[spec, counts]

    def _tower(self, side: int) -> VisionTower:
        if side not in self._towers:
            self._towers[side] = self._native.resized(side)
        return self._towers[side]
