"""The general forms of a data set: CoOp's split file, train/val/test folders, class folders, plain photographs, and CSV."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.datasets.images import NO_LABEL, SPLITS
from prtool.trainer.datasets.labels import RawLabel, resolve_labels
from prtool.trainer.datasets.listing import (
    SEEDED_NOTE,
    Entry,
    Listing,
    folder_names,
    image_names,
    names_in_order,
    seeded_split,
)

SPLIT_FILE = "split_coop.json"
NAMES_FILE = "classnames.txt"
"""Class names, one a line in label order, beside tar shards or a CSV file with numbers."""

_CSV_COLUMNS = ("path", "label", "split", "classname")
Rename = Callable[[str], str]
"""From a class folder's name to the class name."""


def read_split_file(root: Path, file: Path, images: str = "") -> Listing:
    """CoOp's JSON: {"train": [[path, label, class name], ...], "val": [...], "test": [...]}.

    Args:
        root: the listing's root.
        file: the JSON file.
        images: the folder that its paths start from, relative to `root`; "" for `root` itself.

    Raises:
        DataError: the file cannot be read, is of another form, or has labels with gaps or with two names.
    """
    prefix = f"{images}/" if images else ""
    try:
        parts = json.loads(file.read_bytes())
        rows = {split: [(str(path), int(label), str(name)) for path, label, name in parts[split]] for split in SPLITS if split in parts}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as cause:
        raise DataError(f"{file} is not of the form {{train, val, test: [[path, label, class name], ...]}} ({cause!r})") from cause
    names: dict[int, str] = {}
    for path, label, name in (row for part in rows.values() for row in part):
        if names.setdefault(label, name) != name:
            raise DataError(f"{file} gives label {label} two class names, {names[label]!r} and {name!r} (at {path!r})")
    splits = {split: [(prefix + path, label) for path, label, _ in part] for split, part in rows.items()}
    return Listing(root, names_in_order(names, file), splits)


def read_split_folders(root: Path, rename: Rename = str) -> Listing:
    """train/, val/ and test/ (those that exist) with one folder a class; photographs directly in them have no labels.

    Raises:
        DataError: a folder cannot be listed, or a class folder has no image in any split.
    """
    found = [split for split in SPLITS if (root / split).is_dir()]
    folders = sorted({name for split in found for name in folder_names(root / split)})
    if not folders:
        return Listing(root, (), {split: [(f"{split}/{name}", NO_LABEL) for name in image_names(root / split)] for split in found})
    label_of = {name: label for label, name in enumerate(folders)}
    splits = {split: _class_entries(root, split, label_of) for split in found}
    _check_classes(root, folders, (entry for part in splits.values() for entry in part))
    return Listing(root, tuple(map(rename, folders)), splits)


def read_class_folders(root: Path, inside: str = "", rename: Rename = str, ignored: Iterable[str] = ()) -> Listing:
    """One folder a class and no splits: they are drawn with a fixed seed, 50/20/30 as CoOp does.

    Args:
        root: the listing's root.
        inside: the folder of the class folders, relative to `root`.
        rename: class folder -> class name.
        ignored: folders that are no class.

    Raises:
        DataError: a folder cannot be listed, is empty, or has too few images for three parts.
    """
    folders = [name for name in folder_names(root / inside) if name not in set(ignored)]
    entries = _class_entries(root, inside, {name: label for label, name in enumerate(folders)})
    _check_classes(root / inside, folders, entries)
    classnames = tuple(map(rename, folders))
    return Listing(root, classnames, seeded_split(entries, classnames), SEEDED_NOTE)


def read_photos(root: Path) -> Listing:
    """Photographs directly in a folder: no labels, and splits drawn with a fixed seed.

    Raises:
        DataError: the folder cannot be listed, or has fewer than three images.
    """
    return Listing(root, (), seeded_split([(name, NO_LABEL) for name in image_names(root)], ()), SEEDED_NOTE)


def read_csv(file: Path) -> Listing:
    """A CSV file with a header: path (relative to the file's folder), and where known label, split (train, val or test) and classname.

    Text labels are class names; numbers take their names from the column classname or from classnames.txt beside the
    file. Without a column split, splits are drawn with a fixed seed; without labels, images have none.

    Raises:
        DataError: the file cannot be read, lacks the column path, or a row has no path, a wrong split or a label without a name.
    """
    rows = _csv_rows(file)
    raw = [RawLabel(row["path"], row["label"] or row["classname"], row["classname"]) for row in rows]
    labels, classnames = resolve_labels(raw, read_names(file.parent), file)
    entries = [(row["path"], label) for row, label in zip(rows, labels, strict=True)]
    if not any(row["split"] for row in rows):
        return Listing(file.parent, classnames, seeded_split(sorted(entries), classnames), SEEDED_NOTE)
    splits: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for number, (row, entry) in enumerate(zip(rows, entries, strict=True), start=2):
        if row["split"] not in SPLITS:
            raise DataError(f"{file}, row {number}: split = {row['split']!r}, but it must be one of {', '.join(SPLITS)}")
        splits[row["split"]].append(entry)
    return Listing(file.parent, classnames, splits)


def read_names(folder: Path) -> tuple[str, ...]:
    """The lines of classnames.txt in a folder; none where there is no such file.

    Raises:
        DataError: the file cannot be read.
    """
    return tuple(read_lines(folder / NAMES_FILE)) if (folder / NAMES_FILE).is_file() else ()


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text file without surrounding blanks, empty ones left out.

    Raises:
        DataError: the file cannot be read, or is no UTF-8 text.
    """
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{file} cannot be read as UTF-8 text: {cause}") from cause


def _csv_rows(file: Path) -> list[dict[str, str]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            columns = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = columns
            if "path" not in columns:
                raise DataError(f"{file} has the columns {columns}, but one must be called path; the header may also name label, split and classname")
            rows = [{name: (row.get(name) or "").strip() for name in _CSV_COLUMNS} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"{file} cannot be read as CSV: {cause}") from cause
    for number, row in enumerate(rows, start=2):
        if not row["path"]:
            raise DataError(f"{file}, row {number}: the column path is empty; each row needs an image")
    return rows


def _class_entries(root: Path, inside: str, label_of: dict[str, int]) -> list[Entry]:
    prefix = f"{inside}/" if inside else ""
    present = (name for name in label_of if (root / inside / name).is_dir())
    return [(f"{prefix}{name}/{image}", label_of[name]) for name in present for image in image_names(root / inside / name)]


def _check_classes(where: Path, folders: list[str], entries: Iterable[Entry]) -> None:
    present = {label for _, label in entries}
    empty = [name for label, name in enumerate(folders) if label not in present]
    if empty:
        raise DataError(f"{where} has {len(empty)} class folders without an image, the first {empty[0]!r}; fill them or remove them")
