"""What `--data` says: a folder or file, NAME:FOLDER for a known set, or several of them with commas between."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.datasets.known import KNOWN, KnownSet


@dataclass(frozen=True, slots=True)
class Address:
    """One data set: where it lies, and which known set the user said it is, if any."""

    path: Path
    known: KnownSet | None = None

    def text(self) -> str:
        """The absolute text that `parse_data` reads back."""
        absolute = str(self.path.resolve())
        return absolute if self.known is None else f"{self.known.name}:{absolute}"


def parse_data(text: str | Path) -> tuple[Address, ...]:
    """Reads `--data`: FOLDER, FILE.csv, SHARD.tar, NAME:FOLDER, or several of them with commas between.

    A text that is an existing path is that path, whatever it contains.

    Raises:
        DataError: it is empty, a name is unknown or has no folder, a path does not exist, or one set is named twice.
    """
    whole = str(text)
    if whole.strip() and Path(whole).expanduser().exists():
        return (Address(Path(whole).expanduser()),)
    parts = [part.strip() for part in whole.split(",")]
    if not all(parts):
        raise DataError(f"data = {whole!r} has an empty part; give FOLDER, NAME:FOLDER, or several of them with commas between")
    found = tuple(map(_address, parts))
    texts = [address.text() for address in found]
    if len(set(texts)) != len(texts):
        raise DataError(f"data = {whole!r} names one set twice; name each once")
    return found


def _address(part: str) -> Address:
    plain = Path(part).expanduser()
    if plain.exists():
        return Address(plain)
    name, colon, rest = part.partition(":")
    if not colon:
        if name in KNOWN:
            raise DataError(f"data = {part!r} names a known set without its folder; give --data {name}:FOLDER; {KNOWN[name].explain(Path('FOLDER'))}")
        raise DataError(
            f"data folder {part} does not exist; give --data a folder (split_coop.json, train/ val/ test/, class folders, or tar shards), "
            "a CSV file, or NAME:FOLDER"
        )
    if name not in KNOWN:
        near = difflib.get_close_matches(name, KNOWN, n=3, cutoff=0.4) or KNOWN
        raise DataError(f"data = {part!r}: no such path, and {name!r} is no known set; known: {', '.join(near)}")
    folder = Path(rest).expanduser()
    if not rest or not folder.is_dir():
        raise DataError(f"data = {part!r}: the folder {rest or '(empty)'} does not exist; {KNOWN[name].explain(folder)}")
    return Address(folder, KNOWN[name])
