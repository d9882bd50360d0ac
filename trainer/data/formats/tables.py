"""CSV files: one image a row, as spreadsheets and scripts write them."""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.errors import DataError
from prtool.text_safety import printable
from prtool.trainer.data.formats.text_files import read_lines, read_text
from prtool.trainer.data.images import SPLITS
from prtool.trainer.data.labels import RawLabel, resolve_labels
from prtool.trainer.data.listing import HASHED_NOTE, Entry, Listing, hashed_split, joined
from prtool.trainer.data.split_names import split_named

if TYPE_CHECKING:
    from _csv import Reader

NAMES_FILE = "classnames.txt"
"""Class names, one a line in label order, next to tar shards or a CSV file with numbers."""

_COLUMNS = ("path", "label", "split", "classname")
_DELIMITERS = (",", ";", "\t")
_Row = tuple[int, dict[str, str]]


def read_csv(file: Path) -> Listing:
    """A CSV file with a header: path (relative to the file's folder), and where known label, split (train, val or test) and classname.

    Values are separated by commas, semicolons or tabs. Text labels are class names, or ids where a column classname says
    another name; numbers take their names from that column or from classnames.txt next to the file. Without a column split,
    splits come from a hash of each path; without labels, images have none.

    Raises:
        DataError: the file cannot be read, lacks the column path, names an image twice, or a row has more or fewer values than
            the header, no path, a wrong split or a label without a name.
    """
    rows, note = _rows(file)
    raw = [RawLabel(row["path"], row["label"] or row["classname"], row["classname"]) for _, row in rows]
    labels, classnames = resolve_labels(raw, read_names(file.parent), file)
    entries = [(row["path"], label) for (_, row), label in zip(rows, labels, strict=True)]
    if not any(row["split"] for _, row in rows):
        return Listing(file.parent, classnames, hashed_split(entries, classnames), joined(HASHED_NOTE, note))
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for (number, row), entry in zip(rows, entries, strict=True):
        split = split_named(row["split"])
        if split is None:
            raise DataError(f"{file}, line {number}: split = '{printable(row['split'])}', but it must be one of {', '.join(SPLITS)}")
        splits[split].append(entry)
    return Listing(file.parent, classnames, splits, note)


def read_names(folder: Path) -> tuple[str, ...]:
    """The lines of classnames.txt in a folder; none where there is no such file.

    Raises:
        DataError: the file cannot be read.
    """
    return tuple(read_lines(folder / NAMES_FILE)) if (folder / NAMES_FILE).exists() else ()


def _rows(file: Path) -> tuple[list[_Row], str]:
    """The rows with the numbers of their lines, and a note that names columns which are not read."""
    text = read_text(file)
    try:
        delimiter, columns = _header(file, text)
        rows = [_row(file, columns, line, values) for line, values in _values(text, delimiter)]
    except csv.Error as cause:
        raise DataError(f"{file} cannot be read as CSV: {cause}") from cause
    repeated = [path for path, count in Counter(row["path"] for _, row in rows).items() if count > 1]
    if repeated:
        raise DataError(f"{file} names {len(repeated)} images more than once, the first '{printable(repeated[0])}'; give each one row")
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
    raise DataError(f"{file} has the columns {shown}, but one must be called path; the header may also name label, split and classname")


def _values(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The values of each row behind the header, with the number of its last line; empty lines are left out."""
    reader = _reader(text, delimiter)
    next(reader)
    yield from ((reader.line_num, values) for values in reader if any(value.strip() for value in values))


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
