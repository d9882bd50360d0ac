"""The value of `--data`: a folder or file, NAME:FOLDER for a known set, or several of them; a comma of a path is written twice."""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import DataError
from prtool.text_safety import printable
from prtool.trainer.data.formats.known import KNOWN
from prtool.trainer.data.formats.layouts import KnownSet


@dataclass(frozen=True, slots=True)
class Address:
    """One data set: where it lies, and which known set the user said it is, if any."""

    path: Path
    known: KnownSet | None = None

    def text(self) -> str:
        """The absolute text that `parse_data` reads back."""
        absolute = str(self.path.resolve()).replace(",", ",,")
        return absolute if self.known is None else f"{self.known.name}:{absolute}"


def parse_data(text: str | Path) -> tuple[Address, ...]:
    """Reads `--data`: FOLDER, FILE.csv, SHARD.tar, NAME:FOLDER, or several of them separated by commas.

    A text that is an existing path, or NAME: and an existing folder, is that path, whatever it contains.

    Raises:
        DataError: it is empty, a name is unknown or has no folder, a path does not exist, one set is named twice, or the text
            may mean two things.
    """
    whole = str(text)
    plain = _existing(whole)
    parts = _split(whole)
    if plain is not None:
        if parts != [whole] and all(_existing(part) is not None for part in parts):
            other = " and ".join(map(printable, parts))
            raise DataError(f"data = '{printable(whole)}' may mean that path, or {other}, which are there too; write a comma of a path twice")
        return (plain,)
    if not all(part.strip() for part in parts):
        raise DataError(f"data = '{printable(whole)}' has an empty part; give FOLDER, NAME:FOLDER, or several of them separated by commas")
    found = tuple(map(_address, parts))
    texts = [address.text() for address in found]
    if len(set(texts)) != len(texts):
        raise DataError(f"data = '{printable(whole)}' names one set twice; name each once")
    return found


def split_data(text: str) -> tuple[str, ...]:
    """The parts of a list of addresses, as `parse_data` separates them; they need not exist."""
    return (text,) if _existing(text) is not None else tuple(part.strip() for part in _split(text))


def folder_of(text: str) -> Path:
    """The folder or file of one address, without its NAME:; it need not exist."""
    found = _existing(text)
    return Path(text.partition(":")[2] or text).expanduser() if found is None else found.path


def _split(text: str) -> list[str]:
    parts = [""]
    for token in re.split("(,,|,)", text):
        if token == ",":
            parts.append("")
        else:
            parts[-1] += "," if token == ",," else token
    return parts


def _existing(text: str) -> Address | None:
    """What a text names as it stands, or None if nothing is there."""
    if not text.strip():
        return None
    path = Path(text).expanduser()
    if os.path.exists(path):  # noqa: PTH110 - Path.exists raises where a name is too long
        return Address(path)
    name, _, rest = text.partition(":")
    folder = Path(rest).expanduser()
    return Address(folder, KNOWN[name]) if name in KNOWN and rest and os.path.isdir(folder) else None  # noqa: PTH112


def _address(given: str) -> Address:
    part = given.strip()
    found = _existing(given) or _existing(part)
    if found is not None:
        return found
    name, colon, rest = part.partition(":")
    comma = "a comma of a path is written twice; " if "," in part else ""
    if not colon:
        if name in KNOWN:
            raise DataError(f"data = {part!r} names a known set without its folder; give --data {name}:FOLDER; {KNOWN[name].explain(Path('FOLDER'))}")
        raise DataError(
            f"data folder {printable(part, 300)} does not exist; {comma}give --data a folder (split_coop.json, train/ val/ test/, class folders, "
            "or tar shards), a CSV file, or NAME:FOLDER"
        )
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.4) or KNOWN
        raise DataError(f"data = '{printable(part)}': no such path, and '{printable(name)}' is not a known set; known sets: {', '.join(near)}")
    missing = printable(rest) or "(empty)"
    raise DataError(f"data = '{printable(part)}': the folder {missing} does not exist; {comma}{KNOWN[name].explain(Path(rest).expanduser())}")
