"""The general forms of a data set in folders: CoOp's split file, train/val/test, class folders, plain photographs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prtool.errors import DataError
from prtool.runtime.images.files import LeftOut, folder_names, grouped, search
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.data.formats.tables import MAX_BYTES, expect_form
from prtool.trainer.data.images import NO_LABEL, SPLITS, split_named
from prtool.trainer.data.labels import whole_label
from prtool.trainer.data.listing import Entry, Listing, joined, names_in_order, numbered

SPLIT_FILE = "split_coop.json"

Rename = Callable[[str], str]
"""From a class folder's name to the class name."""


def read_split_file(root: Path, file: Path, images: str = "") -> Listing:
    """CoOp's JSON: {"train": [[path, label, class name], ...], "val": [...], "test": [...]}.

    Args:
        root: the listing's root.
        file: the JSON file; labels with gaps or with two names are errors.
        images: the folder that its paths start from, relative to `root`; "" for `root` itself.
    """
    prefix = f"{images}/" if images else ""
    with expect_form(file, "{train, val, test: [[path, label, class name], ...]}"):
        parts = parse_json(read_regular(file, MAX_BYTES).removeprefix(b"\xef\xbb\xbf"))
        rows = {split: [_split_row(row) for row in parts[split]] for split in SPLITS if split in parts}
    names: dict[int, str] = {}
    for path, label, name in (row for part in rows.values() for row in part):
        if names.setdefault(label, name) != name:
            two = f"'{printable(names[label])}' and '{printable(name)}'"
            raise DataError(f"{file} gives label {label} two class names, {two} (at '{printable(path)}')")
    splits = {split: [(prefix + path, label) for path, label, _ in part] for split, part in rows.items()}
    return Listing(root, names_in_order(names, file), splits)


def find_split_folders(root: Path) -> dict[str, str]:
    """Split -> the name of its folder in `root`, in any case, "valid" and "validation" for val too; two folders of a split are an error."""
    found: dict[str, str] = {}
    for name in folder_names(root):
        split = split_named(name)
        if split is not None and found.setdefault(split, name) != name:
            raise DataError(f"{root} has two folders of the split {split}: {found[split]} and {name}; keep one of them")
    return {split: found[split] for split in SPLITS if split in found}


def read_split_folders(root: Path, folders: Mapping[str, str], rename: Rename = str) -> Listing:
    """train/, val/ and test/ (those that exist) with one folder per class, or with photographs without labels if there is no class folder.

    If there are no class folders but other folders with images next to a folder "train", that folder is a class itself; next to
    several such folders this is ambiguous, and an error. So is a class folder that has no image in any split.

    Args:
        root: the listing's root.
        folders: as `find_split_folders` gives them.
        rename: class folder -> class name.
    """
    images, left_out = search(root, follow=True)
    groups = grouped(images)
    others = [name for name in groups if name not in ("", *folders.values())]
    inside = {split: grouped(path.partition("/")[2] for path in groups.get(name, ())) for split, name in folders.items()}
    labelled = any(set(parts) - {""} for parts in inside.values())
    used = [name for name in folders.values() if name in groups]
    if others and used and not labelled:
        return _maybe_classes(root, used, others, rename)
    for path in (path for name in ("", *others) for path in groups.get(name, ())):
        left_out.add("outside of the folders of the splits", path)
    if not labelled:
        splits = {split: [(f"{folders[split]}/{path}", NO_LABEL) for path in parts.get("", ())] for split, parts in inside.items()}
        return Listing(root, (), splits, left_out.note())
    names = sorted({name for name in folders.values() for name in folder_names(root / name)})
    parts = {split: _class_entries(root, name, images, names, left_out) for split, name in folders.items()}
    _check_classes(root, names, (entry for entries, _ in parts.values() for entry in entries))
    note = joined(left_out.note(), *(note for _, note in parts.values()))
    return Listing(root, tuple(map(rename, names)), {split: entries for split, (entries, _) in parts.items()}, note)


def read_class_folders(root: Path, inside: str = "", rename: Rename = str, ignored: Collection[str] = ()) -> Listing:
    """One folder per class in `root`/`inside`, but for those `ignored`, and no splits: these come from a hash of each path, about 50/20/30.

    A class folder that is empty, has too few images for three splits, or is a data set of its own, is an error.
    """
    folders = [name for name in folder_names(root / inside) if name not in ignored]
    entries, note = class_images(root, inside, folders)
    _check_classes(root / inside, folders, entries)
    return Listing.hashed(root, tuple(map(rename, folders)), entries, note)


def read_photos(root: Path) -> Listing:
    """Photographs directly in a folder: no labels, and splits from a hash of each path. At least three are needed."""
    images, left_out = search(root, follow=True)
    return Listing.hashed(root, (), [(path, NO_LABEL) for path in images if "/" not in path], left_out.note())


def class_images(root: Path, inside: str, folders: Sequence[str]) -> tuple[list[Entry], str]:
    """The images of class folders in `root`/`inside` and their sub-folders, by label and path, and a note on what is not used."""
    paths, left_out = search(root / inside, follow=True)
    images = [f"{inside}/{path}" if inside else path for path in paths]
    entries, note = _class_entries(root, inside, images, folders, left_out)
    return entries, joined(left_out.note(), note)


def _split_row(row: Any) -> tuple[str, int, str]:  # noqa: ANN401 - whatever stands in the file
    path, label, name = row
    if not isinstance(path, str) or not isinstance(name, str) or isinstance(label, bool):
        raise TypeError(f"{printable(row)} is not a path, label and class name")
    return path, whole_label(str(label)), name


def _class_entries(root: Path, inside: str, images: Sequence[str], folders: Sequence[str], left_out: LeftOut) -> tuple[list[Entry], str]:
    """The images below `inside`, by the class folder that they lie in, and a note; the others are added to `left_out`."""
    label_of = numbered(folders)
    prefix = f"{inside}/" if inside else ""
    entries: list[Entry] = []
    deeper: list[str] = []
    for path in (path for path in images if path.startswith(prefix)):
        name, slash, rest = path[len(prefix) :].partition("/")
        if not slash or name not in label_of:
            left_out.add("in folders that are no class of this set" if slash else "next to class folders, in none of them", path)
            continue
        entries.append((path, label_of[name]))
        if "/" in rest:
            deeper.append(path)
            _check_no_set(root, prefix + name, rest.partition("/")[0])
    note = f"{len(deeper)} images in sub-folders of a class folder count to that class (the first: {printable(deeper[0])})" if deeper else ""
    return sorted(entries, key=lambda entry: entry[1]), note


def _check_no_set(root: Path, folder: str, below: str) -> None:
    if split_named(below) is not None:
        raise DataError(f"{root} is read as class folders, but {folder} is a data set of its own: it has {below}/; give --data {root / folder}")


def _maybe_classes(root: Path, named: Sequence[str], others: Sequence[str], rename: Rename) -> Listing:
    if len(named) > 1:
        raise DataError(
            f"{root} has {', '.join(named)} without class folders, and next to them {len(others)} folders with images, the first {others[0]!r}: "
            "these may be splits or classes; rename those that are classes, or give a CSV file with a column split"
        )
    found = read_class_folders(root, rename=rename)
    return Listing(root, found.classnames, found.splits, joined(f"the folder {named[0]} counts as a class, like those next to it", found.note))


def _check_classes(where: Path, folders: Sequence[str], entries: Iterable[Entry]) -> None:
    present = {label for _, label in entries}
    empty = [name for label, name in enumerate(folders) if label not in present]
    if empty:
        raise DataError(f"{where} has {len(empty)} class folders without an image, the first '{printable(empty[0])}'; fill them or remove them")
