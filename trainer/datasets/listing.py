"""Listing: what a reader finds in a data set before one split is taken, and the checks and seeded splits that readers share."""

import os
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from prtool.errors import DataError
from prtool.trainer.datasets.images import IMAGE_SUFFIXES, NO_LABEL, SPLITS
from prtool.trainer.datasets.shards import locate

Entry = tuple[str, int]
"""An image's path, relative to the listing's root, and its label."""

SPLIT_SEED = 0
SEEDED_NOTE = "split 50/20/30 (train/val/test) of each class, drawn with a fixed seed"


@dataclass(frozen=True, slots=True)
class Listing:
    """All splits of a data set.

    Attributes:
        root: the folder that paths start from.
        classnames: in label order; empty where images have no labels.
        splits: split -> entries; a split that the data lacks is absent or empty.
        note: what a reader of results should know about these splits.
    """

    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, Sequence[Entry]]
    note: str = ""

    def missing(self, split: str) -> list[str]:
        """The paths of a split that are no file and no shard's member, in order; each folder is listed once, in place of a `stat` an image."""
        listed: dict[PurePosixPath, set[str]] = {}
        absent = []
        for text, _ in self.splits.get(split, ()):
            path = PurePosixPath(text)
            if locate(self.root, text) is not None:
                continue
            if path.parent not in listed:
                listed[path.parent] = _files(self.root / path.parent)
            if path.name not in listed[path.parent]:
                absent.append(text)
        return absent


def _files(folder: Path) -> set[str]:
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as items:
        return {item.name for item in items if not item.is_dir()}


def is_image(name: str) -> bool:
    """Whether a file's name has one of IMAGE_SUFFIXES, and is not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def image_names(folder: Path) -> list[str]:
    """The names of the image files directly in a folder, sorted.

    Raises:
        DataError: the folder cannot be listed.
    """
    return sorted(item.name for item in _scan(folder) if is_image(item.name) and item.is_file())


def folder_names(folder: Path) -> list[str]:
    """The names of the folders directly in a folder, sorted, without hidden ones.

    Raises:
        DataError: the folder cannot be listed.
    """
    return sorted(item.name for item in _scan(folder) if item.is_dir() and not item.name.startswith("."))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    # scandir knows folders from files without a stat each: ImageNet has 1.3 million.
    try:
        with os.scandir(folder) as items:
            return list(items)
    except OSError as cause:
        raise DataError(f"{folder} cannot be listed: {cause.strerror or cause}") from cause


def check_inside(paths: Iterable[str], where: Path) -> None:
    """Refuses paths that leave the data folder.

    Raises:
        DataError: a path is absolute or has "..".
    """
    for path in paths:
        if ".." in path.split("/") or Path(path).is_absolute():
            raise DataError(f"{where} names {path!r}, which leaves the data folder; use relative paths")


def names_in_order(names: Mapping[int, str], where: Path) -> tuple[str, ...]:
    """Class names by label.

    Raises:
        DataError: the labels are not 0 to their number - 1.
    """
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{where} has labels {sorted(names)[:5]}..., but they must be 0 to {len(names) - 1} without gaps")
    return tuple(names[label] for label in range(len(names)))


def seeded_split(entries: Sequence[Entry], classnames: Sequence[str], shares: tuple[float, float] = (0.5, 0.2)) -> dict[str, list[Entry]]:
    """Splits each class by CoOp's rule (50 % train, 20 % val, the rest test), with at least one image in each part.

    Each class has a generator of its own, seeded by SPLIT_SEED and its name, so a class more changes no other class.

    Args:
        entries: all images, sorted, so that the split does not depend on the file system.
        classnames: in label order.
        shares: of train and val; where they add up to 1 there is no test part.

    Raises:
        DataError: a class has fewer images than parts.
    """
    by_label: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_label[entry[1]].append(entry)
    parts: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for label, found in sorted(by_label.items()):
        name = "images without labels" if label == NO_LABEL else classnames[label]
        train, val = _sizes(len(found), shares, name)
        random.Random(f"{SPLIT_SEED} {name}").shuffle(found)
        for split, part in zip(SPLITS, (found[:train], found[train : train + val], found[train + val :]), strict=True):
            parts[split] += sorted(part)
    return parts


def _sizes(images: int, shares: tuple[float, float], name: str) -> tuple[int, int]:
    """The numbers of training and validation images of one class."""
    has_test = sum(shares) < 1
    if images < 2 + has_test:
        wanted = "train, val and test" if has_test else "train and val"
        raise DataError(f"class {name!r} has {images} images, but {wanted} need one each; add images, or name the splits yourself")
    val = max(1, round(images * shares[1]))
    if not has_test:
        return images - val, val
    test = max(1, images - round(images * shares[0]) - val)
    return images - val - test, val
