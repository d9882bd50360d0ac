"""What all methods of spending fewer tokens share: tokens of the frozen tower go in, an embedding comes out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast, final

from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.spec import RANK, Cost, PruneSpec
from prtool.trainer.models.pruned import gather, select
from prtool.trainer.models.tower import VisionTower

Counts = tuple[int, ...]
"""A budget: the patches that stay at each location, as `PruneSpec.counts` gives them."""
CALIBRATION_IMAGES = 128
"""Images on which a method that spends differently on each one is fitted to its budget."""
T = TypeVar("T")
_UNPRUNED, _WHOLE = "unpruned", "whole"


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """One batch of images on its way through the frozen tower; every method starts from the same one.

    Attributes:
        embedded: (batch, prefix + N, D) float32 that enter block 1; never to be changed in place.
        tokens: the same, on entry to block `spec.locations[0]` where patches drop there.
        indices: the index of each image in the evaluated ImageSet, so that a choice can belong to an image.
        tower: the frozen image encoder, at the image size of the run.
        spec: where tokens drop or merge, without learnable tokens.
        native: the unpruned encoder, where its images are larger than the tower's; None where it is the tower.
        pixels: the images in every size that is read: (height, width) -> (batch, 3, height, width) float32.
    """

    embedded: Tensor
    tokens: Tensor
    indices: tuple[int, ...]
    tower: VisionTower
    spec: PruneSpec
    native: VisionTower | None = None
    pixels: Mapping[tuple[int, int], Tensor] = field(default_factory=dict)
    _known: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.spec.learnable_tokens:
            raise ConfigError(f"the spec has {self.spec.learnable_tokens} learnable tokens, but the frozen tower has none; give a spec without")

    @classmethod
    def of(cls, tower: VisionTower, pixels: Tensor, indices: Sequence[int], spec: PruneSpec) -> "Entered":
        """Runs the tower on (batch, 3, height, width) up to the first location."""
        embedded = tower.embed(pixels)
        return cls(embedded, tower.run_blocks(embedded, 1, first_block(spec) - 1), tuple(indices), tower, spec)

    @property
    def unpruned(self) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the unpruned encoder at its native size; computed once."""
        if self.native is None:
            return self.once(_UNPRUNED, self._all_tokens)
        native = self.native
        return self.once(_UNPRUNED, lambda: functional.normalize(native(self.pixels_at(native.image_size)), dim=-1))

    @property
    def whole(self) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of all tokens of the tower; computed once."""
        return self.unpruned if self.native is None else self.once(_WHOLE, self._all_tokens)

    def _all_tokens(self) -> Tensor:
        return functional.normalize(self.tower.run_post(self.tokens, first_block(self.spec)), dim=-1)

    def know_unpruned(self, embedding: Tensor) -> None:
        """Takes the unpruned embedding (batch, E) from an earlier evaluation, so that it is not computed again."""
        self._known[_UNPRUNED] = embedding.to(self.tokens.device)

    def pixels_at(self, size: tuple[int, int]) -> Tensor:
        """The images in one of the sizes of `pixels`, on the tower's device."""
        return self.pixels[size].to(self.tokens.device)

    def once(self, key: Hashable, compute: Callable[[], T]) -> T:
        """What `compute` gave for this batch when it was asked for under `key` first, so that several budgets share it."""
        if key not in self._known:
            self._known[key] = compute()
        return cast(T, self._known[key])

    def keeps_all(self, counts: Counts) -> bool:
        """Whether the budget is every patch.

        Raises:
            KeepError: the counts are none that the spec takes.
        """
        self.spec.check_counts(counts)
        return not counts or counts[-1] == self.spec.patches

    def walk(self, shorten: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Runs from the first location to the end, and at each location replaces the tokens by fewer.

        Args:
            shorten: place of the location (from 0) and the tokens (batch, prefix + patches now, D) that enter it -> those that stay.

        Returns:
            The embedding (batch, E), L2-normalised.
        """
        tokens, locations = self.tokens, self.spec.locations
        for place, location in enumerate(locations):
            if place:
                tokens = self.tower.run_blocks(tokens, locations[place - 1], location - 1)
            tokens = shorten(place, tokens)
        return functional.normalize(self.tower.run_post(tokens, locations[-1]), dim=-1)


class Method(ABC):
    """One way to spend fewer tokens. Methods need not rank: they may fuse or merge tokens as well.

    Attributes:
        name: in options, reports and figures.
        classes: (classes, E) float32, L2-normalised: class embeddings of the method's own; None takes the zero-shot ones.
    """

    name: str
    classes: Tensor | None = None

    @abstractmethod
    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, at a budget of `counts` patches."""

    @abstractmethod
    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Cost of one image in 10^9 MAC at a budget, with all that the method adds to the encoder's `cost`.

        Raises:
            ConfigError: the method cannot reach the budget.
        """

    def image_size(self, spec: PruneSpec, counts: Counts) -> tuple[int, int] | None:  # noqa: ARG002 - most read what the run reads
        """Height and width of the images that `encode` takes from `Entered.pixels_at`; None for one that starts from the run's tokens."""
        return None


class AdaptiveMethod(Method):
    """A Method that spends another amount on each image, and the budget on average; `gmacs` is the mean of the calibration sample."""

    @abstractmethod
    def calibrate(self, sample: Entered, budgets: Sequence[Counts]) -> None:
        """Sets what the method needs to meet each budget on average over images like those of `sample`; comes before `encode`."""

    @abstractmethod
    def spent(self, entered: Entered, counts: Counts) -> Tensor:
        """What `encode` spends on each image: (batch,) float64, in 10^9 MAC."""


class RankingMethod(Method):
    """A method that scores each patch and keeps the k best; ties go to the lower index. One that does more derives from Method.

    At locations behind the first it keeps its order, unless it scores again in `scores_at`.
    """

    @abstractmethod
    def scores(self, entered: Entered) -> Tensor:
        """One score a patch (batch, N) at the first location, high = keep."""

    def scores_at(self, place: int, entered: Entered, tokens: Tensor) -> Tensor | None:  # noqa: ARG002 - most keep their order
        """Scores at a location behind the first.

        Args:
            place: 1 for the second location.
            entered: where the batch came from.
            tokens: (batch, prefix + patches now, D) that enter the location, patches in falling order of the scores before.

        Returns:
            (batch, patches now), high = keep; None keeps the order.
        """
        return None

    def scoring_macs(self, spec: PruneSpec, counts: Counts) -> int:  # noqa: ARG002 - most methods cost nothing
        """MACs that all scores cost for one image; 0 unless a method says otherwise."""
        return 0

    @final
    def order(self, entered: Entered) -> Tensor:
        """All patches (batch, N) int64 from most to least important at the first location; computed once a batch."""
        return entered.once((self, "order"), lambda: select(self.scores(entered), entered.spec.patches))

    @final
    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the best patches."""
        if entered.keeps_all(counts):
            # Whatever the order: attention does not see it.
            return entered.whole
        prefix = entered.spec.prefix_tokens

        def shorten(place: int, tokens: Tensor) -> Tensor:
            if place == 0:
                return gather(tokens, self.order(entered)[:, : counts[0]], prefix)
            scores = self.scores_at(place, entered, tokens)
            return tokens[:, : prefix + counts[place]] if scores is None else gather(tokens, select(scores, counts[place]), prefix)

        return entered.walk(shorten)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:
        """Cost of one image in 10^9 MAC: the encoder with the patches kept, and the scores."""
        return encoder_gmacs(cost, spec, counts) + self.scoring_macs(spec, counts) / 1e9


def first_block(spec: PruneSpec) -> int:
    """The block that `Entered.tokens` enter."""
    return spec.locations[0] if spec.method == RANK else 1


def encoder_gmacs(cost: Cost, spec: PruneSpec, counts: Counts) -> float:
    """The budget itself in 10^9 MAC an image: the encoder with `counts` patches kept, and nothing else."""
    return cost.gmacs(spec.tokens_by_block(counts), spec.tokens_leaving(counts))


def arriving(spec: PruneSpec, counts: Counts) -> tuple[int, ...]:
    """Patches that arrive at each location: all N at the first, then what the one before kept."""
    return (spec.patches, *counts[:-1])
