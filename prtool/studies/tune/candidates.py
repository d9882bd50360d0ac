"""Candidates of `prtool tune`: a family is a reducer, an image size and locations, a candidate a family at one keep; nothing is measured here."""

from dataclasses import dataclass

from prtool.spec import MERGE, NONE
from prtool.trainer.evaluation.report import UNPRUNED, EvalRow, drop_error


@dataclass(frozen=True, slots=True)
class Family:
    """What one run covers, whatever the keep.

    Attributes:
        method: of `prtool.spec.METHODS`; "unpruned" for the model as it is.
        image_size: side of the images in pixels; 0 for the native size.
        locations: as `prune.locations` takes them: blocks on entry to which patches drop, or the first, and perhaps the last, in which they
            merge; () where nothing is dropped.
    """

    method: str
    image_size: int = 0
    locations: tuple[int, ...] = ()

    @property
    def native(self) -> "Family":
        """The same at the native size."""
        return Family(self.method, 0, self.locations)

    @property
    def folder(self) -> str:
        """The name of its folder."""
        size = f"{self.image_size}px" if self.image_size else ""
        return "-".join(filter(None, (self.method, *map(str, self.locations), size)))

    def __str__(self) -> str:
        if self.method == UNPRUNED:
            return "the unpruned model"
        size = f"{self.image_size} px" if self.image_size else ""
        if self.method == NONE:
            return f"{size} alone"
        where = ",".join(map(str, self.locations))
        what = f"merging from block {where}" if self.method == MERGE else f"ranking at location {where}"
        return f"{what}, {size}" if size else what


UNPRUNED_FAMILY = Family(UNPRUNED)


@dataclass(frozen=True, slots=True)
class Speed:
    """Measured time of one call.

    Attributes:
        latency_ms: the unpruned model's median divided by `ratio`.
        ratio: speed-up against the unpruned model in the same rounds; `low` and `high` enclose it with 95 % confidence.
    """

    latency_ms: float
    ratio: float = 1.0
    low: float = 1.0
    high: float = 1.0


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model, with everything that was measured of it.

    Attributes:
        family: reducer, image size and locations.
        keep: share of the patches that stay, 0 to 1.
        k: number of patches that stay.
        row: cost and quality, in float32.
        unpruned: those of the unpruned model on the same images.
        batch: images a call.
        speed: None where it was not timed.
    """

    family: Family
    keep: float
    k: int
    row: EvalRow
    unpruned: EvalRow
    batch: int
    speed: Speed | None = None

    @property
    def is_unpruned(self) -> bool:
        """Whether this is the model as it is."""
        return self.family.method == UNPRUNED

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images that the encoder reads."""
        return self.row.image_size

    @property
    def gmacs(self) -> float:
        """Cost of one image in 10^9 MAC."""
        return self.row.gmacs

    @property
    def macs_share(self) -> float:
        """That cost as a share of the unpruned model's."""
        return self.row.gmacs / self.unpruned.gmacs

    @property
    def accuracy(self) -> float | None:
        """Zero-shot top-1 in percent; None without labels."""
        return self.row.accuracy

    @property
    def cosine(self) -> float:
        """Mean cosine to the unpruned embedding."""
        return self.row.cosine

    @property
    def overlap(self) -> float | None:
        """Share of the ten nearest images that stay, by its own index or the unpruned one, whichever is lower; None with too few images."""
        found = [value for value in (self.row.overlap_own, self.row.overlap_cross) if value is not None]
        return min(found, default=None)

    @property
    def recall(self) -> float | None:
        """Recall@1 from text to image in percent; None without labels and captions."""
        return self.row.text_to_image[0] if self.row.text_to_image else None

    @property
    def drop(self) -> float | None:
        """Points of accuracy below the unpruned model on the same images; None without labels."""
        if self.is_unpruned:
            return None if self.accuracy is None else 0.0
        return self.row.drop

    @property
    def drop_error(self) -> float | None:
        """Half the width of its 95 % interval, in points; None without labels."""
        if self.is_unpruned or self.row.lost is None or self.row.won is None:
            return None if self.accuracy is None else 0.0
        return drop_error(self.row.lost, self.row.won, self.row.images)

    @property
    def recall_drop(self) -> float | None:
        """Points of `recall` below the unpruned model; None without labels and captions."""
        recall, before = self.recall, self.unpruned.text_to_image
        return None if recall is None or not before else before[0] - recall

    @property
    def images_per_s(self) -> float | None:
        """Images a second at this batch; None where it was not timed."""
        return None if self.speed is None else 1e3 * self.batch / self.speed.latency_ms

    def __str__(self) -> str:
        if self.is_unpruned or self.family.method == NONE:
            return str(self.family)
        return f"{self.family}, keep {self.keep:g} ({self.k} patches)"

    def figures(self) -> str:
        """Human-readable cost, speed and quality."""
        speed = self.speed
        timed = "" if speed is None else f", {speed.latency_ms:.3g} ms a call of {self.batch}, {self.images_per_s:.1f} images/s, {speed.ratio:.2f}x"
        lost = "" if self.drop is None else f", {self.drop:.2f} points of accuracy lost"
        return f"{100 * self.macs_share:.0f} % of the MACs{timed}{lost}, cosine {self.cosine:.4f}"
