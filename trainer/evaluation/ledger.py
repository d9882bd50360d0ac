"""Ledger: what an evaluation has found for each image, kept on disk so that an interrupted one goes on where it stopped."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from prtool.store import digest
from prtool.trainer.store import TensorStore

_SAVE_SECONDS = 30.0
_DONE = "done"


class Ledger:
    """Columns of one value, or one row of values, an image; some are of a part of the images.

    Args:
        images: how many are evaluated.
        folder: where the ledger lies while the evaluation runs; None keeps it in memory. A damaged file is not used, with a note.
        identity: everything that the values depend on, as plain JSON; a ledger of another identity is another file.
        save_seconds: least time between two saves.
        name: how its file's name begins.
    """

    def __init__(
        self, images: int, folder: Path | None, identity: Mapping[str, object], save_seconds: float = _SAVE_SECONDS, name: str = "unfinished"
    ) -> None:
        key = digest(images, identity)
        self._store, self._name = TensorStore(folder, key), f"{name}-{key[:16]}.safetensors"
        self._columns: dict[str, Tensor] = {_DONE: torch.zeros(images, dtype=torch.bool)}
        self._save_seconds, self._saved = save_seconds, time.monotonic()
        found = self._store.read_tensors(self._name)
        if found is not None:
            self._columns = found.tensors

    def missing(self) -> list[int]:
        """The indices of the images that are still to be evaluated."""
        return (~self._columns[_DONE]).nonzero().squeeze(1).tolist()

    def put(self, column: str, indices: Sequence[int], values: Tensor, length: int | None = None) -> None:
        """Sets the values (batch, ...) of some rows of a column, which its first values make: one row an image, or `length` rows."""
        if column not in self._columns:
            rows = len(self._columns[_DONE]) if length is None else length
            self._columns[column] = torch.zeros((rows, *values.shape[1:]), dtype=values.dtype)
        self._columns[column][list(indices)] = values.cpu()

    def close(self, indices: Sequence[int]) -> None:
        """Says that every column of these images is set; now and then writes the ledger.

        Raises:
            StorageError: it cannot be written.
        """
        self._columns[_DONE][list(indices)] = True
        if time.monotonic() - self._saved >= self._save_seconds:
            self.save()

    def save(self) -> None:
        """Writes the ledger, where it has a folder.

        Raises:
            StorageError: it cannot be written.
        """
        self._store.write_tensors(self._name, self._columns)
        self._saved = time.monotonic()

    def rows(self, name: str, indices: Sequence[int]) -> Tensor | None:
        """The values (len(indices), ...) of some images in a column; None where one of them is still to be evaluated."""
        places = list(indices)
        return self._columns[name][places] if bool(self._columns[_DONE][places].all()) else None

    def column(self, name: str) -> Tensor:
        """The values (images, ...), or as many as `put` was told, of a column."""
        return self._columns[name]

    def remove(self) -> None:
        """Deletes the file, and what killed processes left of it: what is finished stands in the report.

        Raises:
            StorageError: it cannot be deleted.
        """
        self._store.remove(self._name)
