"""EvalReport: accuracy against keep rate for several methods, as values, JSON and a table."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

UNPRUNED = "unpruned"
_NORMAL_95 = 1.959964


def paired_drop(lost: int, won: int, images: int) -> float:
    """Points of accuracy lost on the same images, exact: a difference of two percentages is not."""
    return 100 * (lost - won) / images


def drop_error(lost: int, won: int, images: int) -> float:
    """Half the width of the 95 % interval of a drop in accuracy, in points, for two models on the same images.

    Only the images on which they differ carry error: (lost + won - (lost - won)^2 / n) / n^2 is the variance. Half an image
    is added to each of the four cells before (Agresti and Min, Statistics in Medicine 24, 2005), so that no difference on
    few images is no certainty.

    Args:
        lost: images that only the unpruned model has right.
        won: images that only the pruned model has right.
        images: how many were evaluated, at least 1.
    """
    total = images + 2
    variance = (lost + won + 1 - (lost - won) ** 2 / total) / total**2
    return 100 * _NORMAL_95 * math.sqrt(variance)


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One method at one keep rate.

    Attributes:
        method: its name; "unpruned" for the encoder as it is.
        keep: share of the patches kept, 0 to 1.
        accuracy: zero-shot top-1, in percent.
        images: how many were evaluated.
        gmacs: cost of one image in 10^9 MAC, with what the method adds; the golden search is not counted.
        matching_rate: share of the k best golden patches among the k kept at the first location; None without golden ranking or order.
        cosine: mean cosine of the embeddings to the unpruned ones, a measure that needs no labels.
        lost, won: images that only the unpruned encoder, and that only this row has right, for the error of a difference on the
            same images; None where nobody counted.
    """

    method: str
    keep: float
    accuracy: float
    images: int
    gmacs: float
    matching_rate: float | None
    cosine: float
    lost: int | None = None
    won: int | None = None

    @property
    def drop(self) -> float | None:
        """Points of accuracy below the unpruned encoder on the same images, negative where this row is better."""
        return None if self.lost is None or self.won is None else paired_drop(self.lost, self.won, self.images)

    @property
    def drop_low(self) -> float | None:
        """Lower end of the 95 % interval of `drop`."""
        return None if self.drop is None else self.drop - self._error()

    @property
    def drop_high(self) -> float | None:
        """Upper end of the 95 % interval of `drop`."""
        return None if self.drop is None else self.drop + self._error()

    def _error(self) -> float:
        return drop_error(self.lost or 0, self.won or 0, self.images)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """What `evaluate` measured.

    Attributes:
        rows: unpruned first, then each method's, in the order that was asked.
        model, pretrained: as `load_model` takes them.
        weights_sha256: digest of the image tower's tensors.
        data: the data folder.
        split: the part of it.
        seed: of random choices and of the subset of images.
        locations: 1-based blocks on entry to which tokens drop.
        patches: N, before any is dropped.
        predictor_trained: False for a freshly initialised predictor, whose choice means nothing; None without predictor.
        notes: what a reader of the figures has to know.
        seen_images: how many of the evaluated images the run was trained or validated on.
        seen_paths: the first of them.
    """

    rows: tuple[EvalRow, ...]
    model: str
    pretrained: str
    weights_sha256: str
    data: str
    split: str
    seed: int
    locations: tuple[int, ...]
    patches: int
    predictor_trained: bool | None
    notes: tuple[str, ...] = ()
    seen_images: int = 0
    seen_paths: tuple[str, ...] = ()

    @property
    def unpruned(self) -> EvalRow:
        """The row of the encoder as it is."""
        return next(row for row in self.rows if row.method == UNPRUNED)

    @property
    def methods(self) -> tuple[str, ...]:
        """The compared methods, in the order of the rows."""
        return tuple(dict.fromkeys(row.method for row in self.rows if row.method != UNPRUNED))

    def of(self, method: str) -> tuple[EvalRow, ...]:
        """The rows of one method."""
        return tuple(row for row in self.rows if row.method == method)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: {"results": [one object a row], "model": ..., ...}."""
        facts = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in ("rows", "notes")}
        facts["locations"], facts["seen_paths"] = list(self.locations), list(self.seen_paths)
        return {"results": [_plain(row) for row in self.rows], **facts, "notes": list(self.notes)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names with units, and rows of text."""
        columns = ["method", "keep", "accuracy %", "drop (95 %)", "cosine", "matching %", "GMAC/image", "images"]
        return columns, [_cells(row) for row in self.rows]


def _plain(row: EvalRow) -> dict[str, Any]:
    """A row and its drop."""
    return dataclasses.asdict(row) | {"drop": row.drop, "drop_low": row.drop_low, "drop_high": row.drop_high}


def _cells(row: EvalRow) -> list[str]:
    matching = "-" if row.matching_rate is None else f"{100 * row.matching_rate:.1f}"
    drop = "-" if row.drop is None or row.method == UNPRUNED else f"{row.drop:.1f} [{row.drop_low:.1f}, {row.drop_high:.1f}]"
    return [row.method, str(round(row.keep, 4)), f"{row.accuracy:.1f}", drop, f"{row.cosine:.4f}", matching, f"{row.gmacs:.3f}", str(row.images)]
