"""EvalReport: accuracy against keep rate for several methods, as values, JSON and a table."""

import dataclasses
from dataclasses import dataclass
from typing import Any

UNPRUNED = "unpruned"


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One method at one keep rate.

    Attributes:
        method: its name; "unpruned" for the encoder as it is.
        keep: share of the patches kept, 0 to 1.
        accuracy: zero-shot top-1, in percent.
        images: how many were evaluated.
        gmacs: cost of one image in 10^9 MAC, with what the method adds; the golden search is not counted.
        matching_rate: share of the k best golden patches among the k kept, k by `keep`; None without golden ranking or order.
        cosine: mean cosine of the embeddings to the unpruned ones, a measure that needs no labels.
    """

    method: str
    keep: float
    accuracy: float
    images: int
    gmacs: float
    matching_rate: float | None
    cosine: float


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
        location: 1-based block on entry to which tokens drop.
        patches: N, before any is dropped.
        predictor_trained: False for a freshly initialised predictor, whose choice means nothing; None without predictor.
        notes: what a reader of the figures has to know.
    """

    rows: tuple[EvalRow, ...]
    model: str
    pretrained: str
    weights_sha256: str
    data: str
    split: str
    seed: int
    location: int
    patches: int
    predictor_trained: bool | None
    notes: tuple[str, ...] = ()

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
        return {"results": [dataclasses.asdict(row) for row in self.rows], **facts, "notes": list(self.notes)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names with units, and rows of text."""
        columns = ["method", "keep", "accuracy %", "cosine", "matching %", "GMAC/image", "images"]
        return columns, [_cells(row) for row in self.rows]


def _cells(row: EvalRow) -> list[str]:
    matching = "-" if row.matching_rate is None else f"{100 * row.matching_rate:.1f}"
    return [row.method, str(round(row.keep, 4)), f"{row.accuracy:.1f}", f"{row.cosine:.4f}", matching, f"{row.gmacs:.3f}", str(row.images)]
