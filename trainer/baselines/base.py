"""What every way of choosing patches shares: tokens that enter the pruning location go in, an embedding comes out."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Protocol, final

from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.spec import Cost, Keep, PruneSpec
from prtool.trainer.pruned import gather, select
from prtool.trainer.vit import VisionTower


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """One batch at the pruning location; every method starts from the same one.

    Attributes:
        tokens: (batch, prefix + N, D) float32 that enter block `spec.locations[0]`; never to be changed in place.
        indices: the index of each image in the evaluated ImageSet, so that a choice can belong to an image.
        tower: the frozen image encoder.
        spec: where tokens drop, with one location.
    """

    tokens: Tensor
    indices: tuple[int, ...]
    tower: VisionTower
    spec: PruneSpec

    def __post_init__(self) -> None:
        if len(self.spec.locations) != 1 or self.spec.appended_tokens:
            raise ConfigError(
                f"locations = {list(self.spec.locations)} with {self.spec.appended_tokens} learnable tokens, "
                "but methods are compared at one location without learnable tokens; give one location"
            )

    @property
    def location(self) -> int:
        """The 1-based block that the tokens enter."""
        return self.spec.locations[0]

    def keep_patches(self, indices: Tensor) -> Tensor:
        """The embedding (batch, E), L2-normalised, with only the patches `indices` (batch, k) int64 kept."""
        return self.leave(gather(self.tokens, indices, self.spec.prefix_tokens))

    def leave(self, tokens: Tensor) -> Tensor:
        """Runs the rest of the encoder on (batch, tokens, D): the embedding (batch, E), L2-normalised."""
        return functional.normalize(self.tower.leave(tokens, self.location), dim=-1)


class Method(Protocol):
    """One way to spend fewer tokens. Methods need not rank: they may fuse or merge tokens as well."""

    @property
    def name(self) -> str:
        """The name in options, reports and figures."""
        ...

    def encode(self, entered: Entered, k: int) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, at a budget of `k` patches, 1 to N."""
        ...

    def gmacs(self, cost: Cost, spec: PruneSpec, k: int) -> float:
        """Cost of one image in 10^9 MAC at a budget of `k` patches, with all that the method adds to the encoder's `cost`."""
        ...


class RankingMethod(ABC):
    """A method that scores each patch and keeps the k best; ties go to the lower index. One that does more implements Method itself."""

    @property
    @abstractmethod
    def name(self) -> str:
        """The name in options, reports and figures."""

    @abstractmethod
    def scores(self, entered: Entered) -> Tensor:
        """One score a patch (batch, N), high = keep."""

    def scoring_macs(self, spec: PruneSpec) -> int:  # noqa: ARG002 - most methods cost nothing
        """MACs that the scores cost for one image; 0 unless a method says otherwise."""
        return 0

    @final
    def order(self, entered: Entered) -> Tensor:
        """All patches (batch, N) int64 from most to least important."""
        return select(self.scores(entered), entered.spec.patches)

    @final
    def encode(self, entered: Entered, k: int) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the k best patches."""
        return entered.keep_patches(select(self.scores(entered), k))

    def gmacs(self, cost: Cost, spec: PruneSpec, k: int) -> float:
        """Cost of one image in 10^9 MAC: the encoder with k patches kept, and the scores."""
        return replace(cost, scorer_macs=self.scoring_macs(spec)).pruned_gmacs(spec, Keep.count(k))
