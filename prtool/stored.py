"""Stored results: what was computed once, kept with a digest and the key of all that it depends on, and taken again only while both hold."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prtool.files import write_bytes
from prtool.sealed import seal, unseal
from prtool.strict import read_regular
from prtool.text_safety import LINE_CHARACTERS, printable

RECORD_BYTES = 1 << 28
"""Size of a sealed JSON file at most: the class names and paths of a large data set fit."""
_log = logging.getLogger(__name__)


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Writes an object as sealed JSON, atomically.

    Raises:
        StorageError: it cannot be written; whatever stood at `path` is untouched.
    """
    write_bytes(path, seal(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given.

    Raises:
        OSError: the file cannot be read; FileNotFoundError where there is none.
        ValueError: it is damaged or was changed.
    """
    return unseal(read_regular(path, RECORD_BYTES))


def keep_json(path: Path, key: str, value: object) -> None:
    """Keeps a plain JSON value under the key of all that it depends on, for `recall_json`.

    Raises:
        StorageError: it cannot be written.
    """
    write_sealed(path, {"key": key, "value": value})


def recall_json(path: Path, key: str) -> Any | None:  # noqa: ANN401 - as it was kept
    """What was kept under this key; None where there is nothing, it is of another key, or (with a note) it is damaged."""
    try:
        found = read_sealed(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as cause:
        note_damage(path, cause)
        return None
    return found["value"] if found.get("key") == key else None


def note_damage(path: Path, cause: Exception) -> None:
    """Says that a stored result is not used."""
    _log.warning("%s", printable(f"{path} is damaged ({cause}); what it held is computed again", LINE_CHARACTERS))
