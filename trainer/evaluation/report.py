"""EvalReport: what several ways of spending fewer MACs keep of the unpruned encoder, as values, JSON and a table."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from prtool.records import to_plain
from prtool.spec import RANK

UNPRUNED = "unpruned"
ZERO_SHOT, NEIGHBOURS = "zero-shot", "nearest neighbours"
"""What an accuracy is of: class prompts, or the labels of the nearest images."""
_NORMAL_95 = 1.959964
_TEXT_TO_IMAGE, _IMAGE_TO_TEXT, _MATCHING = "text to image @1/5/10", "image to text @1/5/10", "matching %"
_OPTIONAL = (_TEXT_TO_IMAGE, _IMAGE_TO_TEXT, _MATCHING)


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
        accuracy: top-1 in percent, zero-shot, or of the nearest labelled images where the model has no text side; None for images without
            labels.
        images: how many were evaluated.
        gmacs: cost of one image in 10^9 MAC, with what the method adds; the golden search is not counted.
        matching_rate: share of the k best golden patches among the k kept at the first location; None without golden ranking or order.
        cosine: mean cosine of the embeddings to the unpruned ones, a measure that needs no labels.
        lost, won: changed decisions: images that only the unpruned encoder, and that only this row has right, for the error of a
            difference on the same images; None where nobody counted.
        image_size: height and width of the images that the encoder read, in pixels.
        overlap_own: share, 0 to 1, of each image's ten nearest images by the unpruned embeddings that are its nearest by these; None
            with fewer than four images. Needs no labels.
        overlap_cross: the same, where these embeddings ask an index of the unpruned ones.
        text_to_image: recall@1, 5 and 10 in percent: share of the class prompts with an image of the class, or of the captions with
            their image, among the k nearest images; None without labels and captions.
        image_to_text: the same for images: share of those with their class, or one of their captions, among the k nearest texts.
    """

    method: str
    keep: float
    accuracy: float | None
    images: int
    gmacs: float
    matching_rate: float | None
    cosine: float
    lost: int | None = None
    won: int | None = None
    image_size: tuple[int, int] = (0, 0)
    overlap_own: float | None = None
    overlap_cross: float | None = None
    text_to_image: tuple[float, ...] | None = None
    image_to_text: tuple[float, ...] | None = None

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
        rows: unpruned first, then each method's, in the order that was asked; JSON and table are sorted by cost.
        model, pretrained: as `load_model` takes them.
        weights_sha256: digest of the image tower's tensors.
        data: the data folder.
        split: the part of it.
        seed: of random choices and of the subset of images.
        locations: 1-based blocks on entry to which tokens drop, or in which they merge.
        patches: N, before any is dropped.
        predictor_trained: False for a freshly initialised predictor, whose choice means nothing; None without predictor.
        notes: what a reader of the figures has to know.
        seen_images: how many of the evaluated images the run was trained or validated on.
        seen_paths: the first of them.
        retrieval_images: on how many images, at equal distances, overlap and recall were computed.
        prune_method: of the run: "rank", "merge" or "none".
        accuracy_by: "zero-shot", "nearest neighbours" (of a model without text side), or "" where there is none.
        texts: what recall was computed with: "class prompts", "captions", or "" for neither.
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
    retrieval_images: int = 0
    texts: str = ""
    prune_method: str = RANK
    accuracy_by: str = ZERO_SHOT

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

    def macs_share(self, row: EvalRow) -> float:
        """The MACs of a row as a share of the unpruned encoder's."""
        return row.gmacs / self.unpruned.gmacs

    def by_cost(self) -> tuple[EvalRow, ...]:
        """The unpruned row, then all others by falling MACs, so that methods of equal cost stand side by side."""
        return (self.unpruned, *sorted((row for row in self.rows if row.method != UNPRUNED), key=lambda row: -row.gmacs))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: {"results": [one object a row, by falling MACs], "model": ..., ...}."""
        facts = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name not in ("rows", "notes")}
        facts["locations"], facts["seen_paths"] = list(self.locations), list(self.seen_paths)
        return {"results": [self._plain(row) for row in self.by_cost()], **facts, "notes": list(self.notes)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names with units, and rows of text by falling MACs; columns of optional figures that no row has are left out."""
        rows = [self._cells(row) for row in self.by_cost()]
        columns = [name for name in rows[0] if name not in _OPTIONAL or any(row[name] != "-" for row in rows)]
        return columns, [[row[name] for name in columns] for row in rows]

    def _plain(self, row: EvalRow) -> dict[str, Any]:
        """A row, its drop and its share of the MACs; in the order of the fields."""
        value: dict[str, Any] = to_plain(row)
        return value | {"macs_share": self.macs_share(row), "drop": row.drop, "drop_low": row.drop_low, "drop_high": row.drop_high}

    def _cells(self, row: EvalRow) -> dict[str, str]:
        compared = row.method != UNPRUNED and row.drop is not None
        height, width = row.image_size
        return {
            "method": row.method,
            "keep": str(round(row.keep, 4)),
            "px": str(height) if height == width else f"{height}x{width}",
            "MACs %": f"{100 * self.macs_share(row):.1f}",
            "accuracy %": figures(row.accuracy),
            "drop (95 %)": f"{row.drop:.1f} [{row.drop_low:.1f}, {row.drop_high:.1f}]" if compared else "-",
            "lost/won": f"{row.lost}/{row.won}" if compared else "-",
            "cosine": f"{row.cosine:.4f}",
            "overlap own/cross": figures(row.overlap_own, row.overlap_cross, digits=3),
            _TEXT_TO_IMAGE: figures(*row.text_to_image or (None,)),
            _IMAGE_TO_TEXT: figures(*row.image_to_text or (None,)),
            _MATCHING: figures(None if row.matching_rate is None else 100 * row.matching_rate),
            "GMAC": f"{row.gmacs:.3f}",
            "images": str(row.images),
        }


def figures(*values: float | None, digits: int = 1) -> str:
    """Figures as text, "-" where there are none."""
    found = [f"{value:.{digits}f}" for value in values if value is not None]
    return "/".join(found) or "-"
