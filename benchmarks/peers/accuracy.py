"""Accuracies next to speeds: what the frontier measured for the same method, relative image size and cost, on its model."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prtool.errors import DataError

UNPRUNED = "unpruned"
_NEAR = 0.03
"""Largest difference of two costs, as shares of the unpruned MACs, that count as the same."""


@dataclass(frozen=True, slots=True)
class Accuracies:
    """The rows of a frontier file; `about` says of what model and data.

    Attributes:
        native: side of the unpruned model's images, in pixels.
        unpruned: its accuracy in percent.
    """

    rows: Sequence[Mapping[str, Any]]
    about: str
    native: int
    unpruned: float

    @classmethod
    def load(cls, path: Path) -> "Accuracies":
        """Reads a result of `python -m benchmarks.frontier`.

        Raises:
            DataError: it cannot be read, or is none.
        """
        try:
            value = json.loads(path.read_text())
            rows = value["rows"]
            unpruned = next(row for row in rows if row["method"] == UNPRUNED)
            about = f"{value['model']} in PyTorch fp32, mean of {', '.join(value['data'])}"
            return cls(tuple(rows), about, int(unpruned["image_size"]), float(unpruned["accuracy"]))
        except (OSError, ValueError) as cause:
            raise DataError(f"{path} cannot be read as JSON: {cause}; give a file that 'python -m benchmarks.frontier' wrote") from cause
        except (LookupError, TypeError, StopIteration) as cause:
            raise DataError(f"{path} is no result of 'python -m benchmarks.frontier' ({cause!r}); give one that it wrote") from cause

    def of(self, method: str, relative_size: float, share: float) -> Mapping[str, Any] | None:
        """The row of a method whose image is the same part of the native one, and whose cost is nearest; None where none is near."""
        own = [row for row in self.rows if row["method"] == method and abs(row["image_size"] / self.native - relative_size) < 1e-6]
        nearest = min(own, key=lambda row: abs(row["share"] - share), default=None)
        return nearest if nearest is not None and abs(nearest["share"] - share) <= _NEAR else None
