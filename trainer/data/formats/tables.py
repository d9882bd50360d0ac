"""CSV files with one image a row, and other text next to images, in the encodings that spreadsheets save."""

import codecs
import contextlib
import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.errors import DataError
from prtool.strict import read_regular
from prtool.text_safety import printable
from prtool.trainer.data.images import SPLITS, split_named
from prtool.trainer.data.labels import RawLabel, resolve_labels
from prtool.trainer.data.listing import Entry, Listing

if TYPE_CHECKING:
    from _csv import Reader

NAMES_FILE = "classnames.txt"
"""Class names, one a line in label order, next to tar shards or a CSV file with numbers."""

MAX_BYTES = 1 << 30
"""Maximum size of a file with labels."""

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_COLUMNS = ("path", "label", "split", "classname", "caption")
_DELIMITERS = (",", ";", "\t")
_Row = tuple[int, dict[str, str]]


def decode_text(content: bytes) -> str:
    """UTF-8 with or without a byte-order mark, or UTF-16 with one, as text without the mark.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    return content.decode("utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig")


def read_text(file: Path) -> str:
    """The text of a regular file, in one of the encodings of `decode_text`."""
    try:
        return decode_text(read_regular(file, MAX_BYTES))
    except (OSError, ValueError) as cause:
        raise DataError(f"{file} cannot be read as UTF-8 text: {getattr(cause, 'strerror', None) or cause}") from cause


def read_lines(file: Path) -> list[str]:
    """The lines of a text file without surrounding blanks, empty ones left out."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def read_names(folder: Path) -> tuple[str, ...]:
    """The lines of classnames.txt in a folder; none if there is no such file."""
    return tuple(read_lines(folder / NAMES_FILE)) if (folder / NAMES_FILE).exists() else ()


@contextlib.contextmanager
def expect_form(file: Path, form: str) -> Iterator[None]:
    """Maps what reading a malformed list raises to a DataError that states the expected form."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as cause:
        raise DataError(f"{file} is not of the form {form} ({printable(repr(cause), 300)})") from cause


def read_csv(file: Path) -> Listing:
    """A CSV file with a header: path (relative to the file's folder), and optionally label, split (train, val or test), classname and caption.

    Values are separated by commas, semicolons or tabs. Text labels are class names, or ids for which the column classname has
    the name; numbers take their names from that column or from classnames.txt next to the file. Without a column split,
    splits come from a hash of each path; without labels, images have none. An image with several captions has a row for each,
    which differ in nothing else. An image named twice otherwise, and a row with more or fewer values than the header, without a
    path, with an unknown split, with a label without a name or without a caption where others have one, are errors.
    """
    rows, note = _rows(file)
    captions = _captions(file, rows)
    rows = _one_an_image(file, rows)
    raw = [RawLabel(row["path"], row["label"] or row["classname"], row["classname"]) for _, row in rows]
    entries, classnames = resolve_labels(raw, read_names(file.parent), file)
    if not any(row["split"] for _, row in rows):
        return replace(Listing.hashed(file.parent, classnames, entries, note), captions=captions)
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for (line, row), entry in zip(rows, entries, strict=True):
        split = split_named(row["split"])
        if split is None:
            raise DataError(f"{file}, line {line}: split = '{printable(row['split'])}', but it must be one of {', '.join(SPLITS)}")
        splits[split].append(entry)
    return Listing(file.parent, classnames, splits, note, captions)


def _captions(file: Path, rows: list[_Row]) -> dict[str, tuple[str, ...]]:
    """The captions of each image, in the order of the rows; none where no row has one."""
    found: dict[str, tuple[str, ...]] = {}
    for _, row in rows:
        found[row["path"]] = (*found.get(row["path"], ()), *filter(None, [row["caption"]]))
    without = [(line, row["path"]) for line, row in rows if not row["caption"]]
    if len(without) == len(rows):
        return {}
    if without:
        line, path = without[0]
        raise DataError(
            f"{file}: {len(without)} of {len(rows)} rows have no caption, the first in line {line}, of '{printable(path)}'; "
            "give every image a caption, or none"
        )
    return found


def _one_an_image(file: Path, rows: list[_Row]) -> list[_Row]:
    """The first row of each image; the others may differ from it by their caption alone."""
    first: dict[str, dict[str, str]] = {}
    found = []
    for line, row in rows:
        known = first.setdefault(row["path"], row)
        if known is row:
            found.append((line, row))
            continue
        if not row["caption"]:
            raise DataError(f"{file}, line {line} names '{printable(row['path'])}' once more; give each image one row, or a row for each caption")
        for name in _COLUMNS:
            if name != "caption" and row[name] != known[name]:
                two = f"'{printable(known[name])}' and '{printable(row[name])}'"
                raise DataError(
                    f"{file}, line {line} gives '{printable(row['path'])}' two values of {name}, {two}; its rows may differ in the caption alone"
                )
    return found


def _rows(file: Path) -> tuple[list[_Row], str]:
    """The rows with the numbers of their lines, and a note that names columns which are not read."""
    text = read_text(file)
    try:
        delimiter, columns = _header(file, text)
        reader = _reader(text, delimiter)
        next(reader)
        rows = [_row(file, columns, reader.line_num, values) for values in reader if any(value.strip() for value in values)]
    except csv.Error as cause:
        raise DataError(f"{file} cannot be read as CSV: {cause}") from cause
    unread = [name for name in columns if name not in _COLUMNS]
    return rows, f"columns that are not read: {printable(', '.join(unread))}" if unread else ""


def _header(file: Path, text: str) -> tuple[str, list[str]]:
    """The delimiter with which the first line names a column path, and its columns in lower case."""
    for delimiter in _DELIMITERS:
        columns = [name.strip().lower() for name in next(_reader(text, delimiter), [])]
        if "path" in columns:
            twice = [name for name in _COLUMNS if columns.count(name) > 1]
            if twice:
                raise DataError(f"{file} has two columns called {twice[0]}; give each once")
            return delimiter, columns
    shown = printable([name.strip() for name in next(_reader(text, _DELIMITERS[0]), [])], 300)
    raise DataError(f"{file} has the columns {shown}, but one must be called path; the header may also name label, split, classname and caption")


def _reader(text: str, delimiter: str) -> "Reader":
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)


def _row(file: Path, columns: list[str], line: int, values: list[str]) -> _Row:
    if len(values) != len(columns):
        raise DataError(
            f"{file}, line {line} has {len(values)} values for {len(columns)} columns: {printable(values, 200)}; "
            'put a value that holds the separator in quotes ("salt, pepper")'
        )
    found = dict(zip(columns, (value.strip() for value in values), strict=True))
    row = {name: found.get(name, "") for name in _COLUMNS}
    if not row["path"]:
        raise DataError(f"{file}, line {line}: the column path is empty; each row needs an image")
    return line, row
