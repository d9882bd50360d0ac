"""Choosing among measured candidates: limits, the Pareto front and the best candidate; nothing is measured here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from prtool.errors import ConfigError

SAME_TIME = 1.02
"""Maximum ratio of two times that count as equal; smaller steps are within a benchmark's noise."""
Point = tuple[float, float, float]
"""Cost (lower is better), time (lower is better) and quality (higher is better)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run the model, with everything that was measured of it.

    Attributes:
        locations: 1-based blocks on entry to which patches drop; () for the unpruned model.
        keep: share of the patches kept at the last location, 0 to 1.
        k: number of patches kept there.
        gmacs: cost of one image in 10^9 MAC.
        batch: images a call.
        latency_ms: of one call, the unpruned model's median divided by `speedup`.
        speedup: against the unpruned model in the same rounds.
        speedup_low, speedup_high: its 95 % interval.
        cosine: mean cosine to the unpruned embedding.
        accuracy: zero-shot top-1 in percent; None where the images have no labels.
        drop: points of accuracy below the unpruned model on the same images; None without labels.
        drop_error: half the width of its 95 % interval, in points; None without labels.
    """

    locations: tuple[int, ...]
    keep: float
    k: int
    gmacs: float
    batch: int
    latency_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    cosine: float
    accuracy: float | None = None
    drop: float | None = None
    drop_error: float | None = None

    @property
    def is_unpruned(self) -> bool:
        """Whether this is the model as it is."""
        return not self.locations

    @property
    def images_per_s(self) -> float:
        """Images a second at this batch."""
        return 1e3 * self.batch / self.latency_ms

    def __str__(self) -> str:
        if self.is_unpruned:
            return "the unpruned model"
        return f"location {','.join(map(str, self.locations))}, keep {self.keep:g} ({self.k} patches)"

    def figures(self) -> str:
        """Human-readable speed and quality."""
        speed = f"{self.latency_ms:.3g} ms a call of {self.batch}, {self.images_per_s:.1f} images/s, {self.speedup:.2f}x"
        lost = "" if self.drop is None else f", {self.drop:.2f} points of accuracy lost"
        return f"{speed}{lost}, cosine {self.cosine:.4f}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the chosen candidate; None for no limit.

    Attributes:
        max_drop: points of accuracy below the unpruned model, 0 to 100.
        min_cosine: mean cosine to the unpruned embedding, 0 to 1; needs no labels.
        max_latency_ms: milliseconds of one call of a batch.
        min_images_per_s: images per second; the same kind of limit as `max_latency_ms`, so give one of them.
    """

    max_drop: float | None = None
    min_cosine: float | None = None
    max_latency_ms: float | None = None
    min_images_per_s: float | None = None

    def __post_init__(self) -> None:
        if not self.given():
            raise ConfigError("no limit is given; give --max-drop or --max-latency-ms, or --set limits.min_cosine=C or limits.min_images_per_s=R")
        _check_range("max_drop", self.max_drop, 100.0, "points of accuracy, 0 to 100")
        _check_range("min_cosine", self.min_cosine, 1.0, "a mean cosine, 0 to 1")
        for name in ("max_latency_ms", "min_images_per_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name} = {value}, but it must be above 0")
        if self.max_latency_ms is not None and self.min_images_per_s is not None:
            raise ConfigError(
                f"max_latency_ms = {self.max_latency_ms:g} and min_images_per_s = {self.min_images_per_s:g} are two forms of one limit "
                "(images/s = 1000 x batch / ms); give one of them"
            )

    @property
    def on_quality(self) -> bool:
        """Whether accuracy or cosine is limited: then the fastest wins, else the most accurate."""
        return self.max_drop is not None or self.min_cosine is not None

    @property
    def by_cosine(self) -> bool:
        """Whether quality is the cosine: it is limited, and accuracy is not."""
        return self.min_cosine is not None and self.max_drop is None

    def given(self) -> dict[str, float]:
        """The limits that were given, by name."""
        values = {name: getattr(self, name) for name in ("max_drop", "min_cosine", "max_latency_ms", "min_images_per_s")}
        return {name: float(value) for name, value in values.items() if value is not None}

    def quality_within(self, candidate: Candidate) -> bool:
        """Whether accuracy and cosine are within the limits; an unknown accuracy is not."""
        dropped = self.max_drop is not None and (candidate.drop is None or candidate.drop > self.max_drop)
        return not dropped and (self.min_cosine is None or candidate.cosine >= self.min_cosine)

    def speed_within(self, candidate: Candidate) -> bool:
        """Whether the time is within the limits."""
        slow = self.max_latency_ms is not None and candidate.latency_ms > self.max_latency_ms
        return not slow and (self.min_images_per_s is None or candidate.images_per_s >= self.min_images_per_s)

    def quality(self, candidate: Candidate) -> tuple[float, float]:
        """What is compared, higher is better: accuracy, and cosine where it is equal; cosine alone where that counts or there are no labels."""
        if self.by_cosine or candidate.accuracy is None:
            return candidate.cosine, candidate.cosine
        return candidate.accuracy, candidate.cosine

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value:g}" for name, value in self.given().items())


def choose(candidates: Sequence[Candidate], limits: Limits) -> Candidate | None:
    """The best candidate within every limit; None where there is none.

    With a limit on quality it is the fastest, and of those within 2 % of its time the best. With limits on speed alone it
    is the best, and of equally good ones the fastest.

    Args:
        candidates: the unpruned model among them.
        limits: on quality and speed.
    """
    fit = [candidate for candidate in candidates if limits.quality_within(candidate) and limits.speed_within(candidate)]
    if not fit:
        return None
    if limits.on_quality:
        least = min(candidate.latency_ms for candidate in fit)
        fit = [candidate for candidate in fit if candidate.latency_ms <= SAME_TIME * least]
    return max(fit, key=lambda candidate: (limits.quality(candidate), -candidate.latency_ms, candidate.is_unpruned))


def nearest(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """Where no candidate is within every limit: the fastest of those within the limits on quality.

    Without one of those, it is the best of all. The unpruned model, when it is among the candidates, is within every limit on quality.
    """
    fit = [candidate for candidate in candidates if limits.quality_within(candidate)]
    return min(fit, key=lambda candidate: candidate.latency_ms) if fit else max(candidates, key=limits.quality)


def pareto_front(points: Sequence[Point]) -> tuple[bool, ...]:
    """For each point, whether no other is at least as good in all three and better in one; equal points are both on the front."""
    return tuple(not any(_dominates(other, point) for other in points) for point in points)


def front_of(candidates: Sequence[Candidate], limits: Limits) -> tuple[bool, ...]:
    """`pareto_front` over (GMACs, latency, accuracy or cosine)."""
    return pareto_front([(candidate.gmacs, candidate.latency_ms, limits.quality(candidate)[0]) for candidate in candidates])


def _dominates(one: Point, other: Point) -> bool:
    at_least = one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2]
    return at_least and one != other


def _check_range(name: str, value: float | None, most: float, what: str) -> None:
    if value is not None and not 0.0 <= value <= most:
        raise ConfigError(f"{name} = {value}, but it must be {what}")
