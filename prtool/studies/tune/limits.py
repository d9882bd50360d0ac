"""Limits of `prtool tune` on quality, cost and speed, and the default where none is given."""

import math
from dataclasses import dataclass, fields, replace

from prtool.errors import ConfigError
from prtool.studies.tune.candidates import Candidate

DEFAULT_DROP, DEFAULT_COSINE = 0.5, 0.98
"""The limit where none is given: points of accuracy, and on images without labels the mean cosine."""
_RANGES = {
    "max_drop": (100.0, "points of accuracy, 0 to 100"),
    "max_recall_drop": (100.0, "points of recall@1 from text to image, 0 to 100"),
    "min_cosine": (1.0, "a mean cosine, 0 to 1"),
    "min_overlap": (1.0, "a share of the nearest images, 0 to 1"),
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the chosen candidate; None for no limit.

    Attributes:
        max_drop: points of accuracy below the unpruned model, 0 to 100.
        max_recall_drop: points of recall@1 from text to image below the unpruned model, 0 to 100; of captions or class prompts.
        min_cosine: mean cosine to the unpruned embedding, 0 to 1; needs no labels.
        min_overlap: share of the ten nearest images that stay, 0 to 1, both in its own index and in the unpruned one; needs no labels.
        max_gmacs: cost of one image in 10^9 MAC.
        max_latency_ms: milliseconds of one call of a batch.
        min_images_per_s: images per second; the same kind of limit as `max_latency_ms`, so give one of them.
    """

    max_drop: float | None = None
    max_recall_drop: float | None = None
    min_cosine: float | None = None
    min_overlap: float | None = None
    max_gmacs: float | None = None
    max_latency_ms: float | None = None
    min_images_per_s: float | None = None

    def __post_init__(self) -> None:
        for name, (most, what) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= most:
                raise ConfigError(f"{name} = {value}, but it must be {what}")
        for name in ("max_gmacs", "max_latency_ms", "min_images_per_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ConfigError(f"{name} = {value}, but it must be above 0")
        if self.max_latency_ms is not None and self.min_images_per_s is not None:
            raise ConfigError(
                f"max_latency_ms = {self.max_latency_ms:g} and min_images_per_s = {self.min_images_per_s:g} are two forms of one limit "
                "(images/s = 1000 x batch / ms); give one of them"
            )

    def or_default(self, *, labelled: bool) -> "Limits":
        """These, or where none is given the default: 0.5 points of accuracy, on images without labels a mean cosine of 0.98."""
        if self.given():
            return self
        return replace(self, max_drop=DEFAULT_DROP) if labelled else replace(self, min_cosine=DEFAULT_COSINE)

    @property
    def on_quality(self) -> bool:
        """Whether quality is limited: then the fastest wins, else the best."""
        return any(getattr(self, name) is not None for name in _RANGES)

    @property
    def measure(self) -> str:
        """What compares candidates by quality: the first that is limited of accuracy, recall, overlap and cosine; accuracy where none is."""
        names = {"max_drop": "accuracy", "max_recall_drop": "recall", "min_overlap": "overlap", "min_cosine": "cosine"}
        return next((measure for name, measure in names.items() if getattr(self, name) is not None), "accuracy")

    def given(self) -> dict[str, float]:
        """The limits that were given, by name."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: float(value) for name, value in values.items() if value is not None}

    def quality_within(self, candidate: Candidate) -> bool:
        """Whether every limited measure is within its limit; an unknown one is not."""
        lowest = ((self.min_cosine, candidate.cosine), (self.min_overlap, candidate.overlap))
        highest = ((self.max_drop, candidate.drop), (self.max_recall_drop, candidate.recall_drop))
        below = any(limit is not None and (value is None or value < limit) for limit, value in lowest)
        return not below and not any(limit is not None and (value is None or value > limit) for limit, value in highest)

    def cost_within(self, candidate: Candidate) -> bool:
        """Whether multiply-accumulates and time are within the limits; an unknown time is not within a limit on time."""
        if self.max_gmacs is not None and candidate.gmacs > self.max_gmacs:
            return False
        if self.max_latency_ms is None and self.min_images_per_s is None:
            return True
        return candidate.speed is not None and candidate.speed.latency_ms <= self.latency_ms(candidate.batch)

    def latency_ms(self, batch: int) -> float:
        """The longest time of a call that the limits allow."""
        by_rate = math.inf if self.min_images_per_s is None else 1e3 * batch / self.min_images_per_s
        return by_rate if self.max_latency_ms is None else self.max_latency_ms

    def quality(self, candidate: Candidate) -> tuple[float, float]:
        """What is compared, higher is better: `measure`, and the cosine where it is equal; the cosine alone where the measure is unknown."""
        value: float | None = getattr(candidate, self.measure)
        return (candidate.cosine if value is None else value), candidate.cosine

    def __str__(self) -> str:
        return ", ".join(f"{name} = {value:g}" for name, value in self.given().items())
