"""What was written in a layout, and how close it is to the bundle."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class LayoutCase:
    """One graph compared with the bundle's on ONNX Runtime.

    Attributes:
        file: below the folder.
        batch: images or prompts of the call.
        max_error: largest difference of any value of an embedding.
    """

    file: str
    batch: int
    max_error: float


@dataclass(frozen=True, slots=True)
class LayoutReport:
    """A written layout.

    Attributes:
        folder: where it lies.
        layout, precision, pixels: as asked for.
        keep: patches that the image graph keeps.
        cases: every comparison.
        notes: what a user of the folder should know.
    """

    folder: Path
    layout: str
    precision: str
    pixels: str
    keep: int
    cases: tuple[LayoutCase, ...]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**dataclasses.asdict(self), "folder": str(self.folder)}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The comparisons: column titles and rows of cells."""
        rows = [[case.file, str(case.batch), f"{case.max_error:.2e}"] for case in self.cases]
        return ["compared with the bundle", "batch", "largest error"], rows
