"""One store for work that resumes: results under the key of everything that they depend on, sealed, written atomically."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prtool.exchange import sweep
from prtool.files import storage_errors, write_bytes
from prtool.strict import parse_json, read_regular
from prtool.text_safety import LINE_CHARACTERS, printable

RECORD_BYTES = 1 << 28
"""Maximum size of a sealed JSON file: the class names and paths of a large data set fit."""
_SEAL = re.compile(rb',\n "seal": "([0-9a-f]{64})"\n}\n')
_SEAL_BYTES = len(',\n "seal": ""\n}\n') + 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Store:
    """Results that can be computed again, one file each. An entry is read only under the key and name that it was written under.

    Attributes:
        folder: where the files lie, made at the first write; None stores nothing.
        key: what the results depend on, such as a `digest`.
    """

    folder: Path | None
    key: str

    def read(self, name: str) -> Any | None:  # noqa: ANN401 - as it was written
        """The JSON value of an entry; None where there is none, or one of another key, or (with a logged warning) a damaged one."""
        if self.folder is None:
            return None
        try:
            found = read_sealed(self.folder / name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as cause:
            self._warn(name, cause)
            return None
        return found["value"] if self._owns(name, found) else None

    def write(self, name: str, value: object) -> None:
        """Stores a plain JSON value; raises StorageError where it cannot be written, and an earlier entry stays."""
        if self.folder is not None:
            write_sealed(self.folder / name, {**self._owner(name), "value": value})

    def remove(self, name: str) -> None:
        """Deletes an entry, and what killed processes left of it; raises StorageError where it cannot."""
        if self.folder is not None:
            with storage_errors(self.folder / name):
                (self.folder / name).unlink(missing_ok=True)
                sweep(self.folder / name)

    def _owner(self, name: str) -> dict[str, object]:
        return {"key": self.key, "name": name}

    def _owns(self, name: str, found: Mapping[str, object]) -> bool:
        return self._owner(name).items() <= found.items()

    def _warn(self, name: str, cause: Exception) -> None:
        _log.warning("%s", printable(f"{self.folder}/{name} is damaged ({cause}); what it held is computed again", LINE_CHARACTERS))


def digest(*parts: object) -> str:
    """SHA-256 of plain JSON values, in hexadecimal; the order of an object's members does not matter."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def write_sealed(path: Path, value: Mapping[str, object]) -> None:
    """Writes an object as sealed JSON, atomically; raises StorageError."""
    write_bytes(path, seal(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given; raises OSError, or ValueError where it is damaged or was changed."""
    return unseal(read_regular(path, RECORD_BYTES))


def seal(value: Mapping[str, object]) -> bytes:
    """An object as indented JSON whose last member, "seal", is the SHA-256 of every byte before it; NaN and infinity raise ValueError."""
    body = json.dumps(value, indent=1, allow_nan=False).removesuffix("\n}").encode()
    return body + f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()


def unseal(content: bytes) -> dict[str, Any]:
    """What `seal` was given; raises ValueError where it has no seal, was changed, or is not strict JSON (see `prtool.strict.parse_json`)."""
    body = content[:-_SEAL_BYTES]
    found = _SEAL.fullmatch(content[len(body) :])
    if found is None:
        raise ValueError("it does not end with a seal")
    actual = hashlib.sha256(body).hexdigest()
    if actual.encode() != found.group(1):
        raise ValueError(f"checksum mismatch: its SHA-256 is {actual[:12]}, but its seal says {found.group(1)[:12].decode()}")
    value = parse_json(content)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    del value["seal"]
    return value
