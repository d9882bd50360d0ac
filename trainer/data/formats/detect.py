"""The form of a data set and its reader: one order of preference for all commands."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from prtool.errors import DataError
from prtool.runtime.images.files import LeftOut, search
from prtool.text_safety import printable
from prtool.trainer.data.address import Address
from prtool.trainer.data.formats.folders import (
    SPLIT_FILE,
    Rename,
    find_split_folders,
    read_class_folders,
    read_photos,
    read_split_file,
    read_split_folders,
)
from prtool.trainer.data.formats.known import DEFAULT_TEMPLATES, KNOWN, named_like, recognise
from prtool.trainer.data.formats.layouts import KnownSet
from prtool.trainer.data.formats.shards import SHARD_SUFFIX
from prtool.trainer.data.formats.tables import read_csv, read_lines
from prtool.trainer.data.formats.webdataset import find_shards, read_shards
from prtool.trainer.data.listing import Listing, joined

TEMPLATES_FILE = "zeroshot_classification_templates.txt"
"""Prompt templates next to tar shards, one a line with {c} for the class name, as CLIP benchmark writes them."""


def read_listing(address: Address) -> Listing:
    """Lists all splits of one data set, in the first form that is found.

    A file is CSV (.csv) or a shard (.tar). A folder is tried as: split_coop.json; the layout of the known set that was
    named, or that its files identify; tar shards; train/, val/ and test/; and, unless a set was named, class folders, then
    photographs. If there is none of these, or a known set is incomplete, the error states the expected files.
    """
    path = address.path
    if not path.is_dir():
        return _read_file(path)
    if (path / SPLIT_FILE).exists():
        return read_split_file(path, path / SPLIT_FILE)
    known = address.known or recognise(path)
    place = known.find(path) if known else None
    if known and place:
        home, read = place
        return read(home, known)
    shards = find_shards(path)
    if shards:
        return _read_shard_folder(path, shards)
    folders = find_split_folders(path)
    if folders:
        return read_split_folders(path, folders, _rename(known or named_like(path)))
    if known:
        raise DataError(f"{path} does not hold {known.name}: no known layout is complete there; {known.explain(path)}")
    return _read_unsplit(path)


def known_set(address: Address) -> KnownSet | None:
    """The known set that an address is: named by the user, or identified by its files or by the name of its folder."""
    if address.known is not None or not address.path.is_dir():
        return address.known
    return recognise(address.path) or named_like(address.path)


def templates_of(address: Address) -> tuple[str, ...]:
    """The prompt templates of one data set: those of a known set, those of a file next to tar shards (with {c} in each line), or the default."""
    known = known_set(address)
    if known is not None:
        return (known.template,)
    file = (address.path if address.path.is_dir() else address.path.parent) / TEMPLATES_FILE
    if not file.exists():
        return DEFAULT_TEMPLATES
    lines = read_lines(file)
    wrong = [line for line in lines if line.count("{c}") != 1]
    if wrong or not lines:
        raise DataError(f"{file}: each line must hold {{c}} once, where the class name goes, but there is {wrong[0] if wrong else 'no line'!r}")
    return tuple(line.replace("{c}", "{}") for line in lines)


def _rename(known: KnownSet | None) -> Rename:
    return known.rename if known else str


def _read_file(path: Path) -> Listing:
    if path.suffix.lower() == ".csv":
        return read_csv(path)
    if path.suffix.lower() == SHARD_SUFFIX:
        return read_shards(path.parent, {"": [path]}, LeftOut())
    raise DataError(f"{path} is a file, but only .csv files and .tar shards can be data; give a folder otherwise")


def _read_shard_folder(path: Path, shards: Mapping[str, Sequence[Path]]) -> Listing:
    images, left_out = search(path)
    if images:
        first = printable(images[0])
        raise DataError(f"{path} has tar shards and {len(images)} images outside of them, the first {first!r}; move either to another folder")
    return read_shards(path, shards, left_out)


def _read_unsplit(path: Path) -> Listing:
    inside = [f"{known.name}:{path}" for known in KNOWN.values() if known.find(path)]
    if inside:
        raise DataError(f"{path} is not a data set: it holds known sets; give --data {', '.join(inside)}")
    images, left_out = search(path, follow=True)
    if any("/" in image for image in images):
        return read_class_folders(path, rename=_rename(named_like(path)))
    if images:
        return read_photos(path)
    why = joined(f"expected {path}/train/CLASS/IMAGE.jpg, or one of the forms in docs/data.md", left_out.note())
    raise DataError(
        f"{path} is not a data set: it has no {SPLIT_FILE}, no train/, val/ or test/, no tar shards and no class folders with images; {why}"
    )
