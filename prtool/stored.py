"""The former functions of `prtool.store`, until their callers use `Store`."""

from pathlib import Path
from typing import Any

from prtool.store import Store, read_sealed, write_sealed

__all__ = ["keep_json", "read_sealed", "recall_json", "write_sealed"]


def keep_json(path: Path, key: str, value: object) -> None:
    """See `Store.write`."""
    Store(path.parent, key).write(path.name, value)


def recall_json(path: Path, key: str) -> Any | None:  # noqa: ANN401
    """See `Store.read`."""
    return Store(path.parent, key).read(path.name)
