"""Listing: all images that a reader finds in a data set, before one split is taken, and the hashed split of data without splits."""

import bisect
import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prtool.errors import DataError
from prtool.text_safety import printable
from prtool.trainer.data.formats.shards import locate
from prtool.trainer.data.images import NO_LABEL, SPLITS

Entry = tuple[str, int]
"""An image's path, relative to the listing's root, and its label."""

_HASHED_NOTE = "split into about 50/20/30 % (train/val/test) of each class by a hash of each image's path"


@dataclass(frozen=True, slots=True)
class Listing:
    """All splits of a data set.

    Attributes:
        root: the folder that paths start from.
        classnames: in label order; empty where images have no labels.
        splits: split -> entries; a split that the data lacks is absent or empty.
        note: what a reader of results should know about these splits.
        captions: path -> the texts of that image; empty for data without captions.
    """

    root: Path
    classnames: tuple[str, ...]
    splits: Mapping[str, Sequence[Entry]]
    note: str = ""
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def hashed(cls, root: Path, classnames: tuple[str, ...], entries: Iterable[Entry], *notes: str) -> "Listing":
        """The listing of data without splits, split by `hashed_split`."""
        return cls(root, classnames, hashed_split(entries, classnames), joined(_HASHED_NOTE, *notes))

    def missing(self, split: str) -> list[str]:
        """The paths of a split that are neither a regular file nor a shard's member, in order."""
        # Listing each folder once is faster than a `stat` per image.
        listed: dict[str, set[str]] = {}
        absent = []
        for path, _ in self.splits.get(split, ()):
            if locate(self.root, path) is not None:
                continue
            folder, _, name = path.rpartition("/")
            if folder not in listed:
                listed[folder] = _files(self.root / folder)
            if name not in listed[folder]:
                absent.append(path)
        return absent


def _files(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as items:
            return {item.name for item in items if item.is_file()}
    except OSError:
        # No such folder, a name that is too long, or no permission: its images are missing.
        return set()


def joined(*notes: str) -> str:
    """Notes as one line."""
    return "; ".join(note for note in notes if note)


def numbered(classnames: Iterable[str]) -> dict[str, int]:
    """Class name -> label."""
    return {name: label for label, name in enumerate(classnames)}


def names_in_order(names: Mapping[int, str], where: Path, first: int = 0) -> tuple[str, ...]:
    """Class names by their number; DataError, which names the file `where`, if the numbers have gaps or do not begin with `first`."""
    numbers, expected = sorted(names), range(first, first + len(names))
    if numbers != list(expected):
        raise DataError(f"{where} has labels {numbers[:5]}..., but they must be {first} to {expected.stop - 1} without gaps")
    return tuple(names[number] for number in numbers)


def hashed_split(entries: Iterable[Entry], classnames: Sequence[str], shares: tuple[float, float] = (0.5, 0.2)) -> dict[str, list[Entry]]:
    """Splits each class by a hash of each image's path: by default about 50 % train, 20 % val, the rest test.

    The split of an image depends on its path alone, so adding an image moves no other. Only a split that would stay empty
    takes the image whose hash is nearest to its bounds. There is no test split if the shares of train and val add up to 1.

    Raises:
        DataError: a class has fewer images than there are splits.
    """
    by_label: dict[int, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_label[entry[1]].append(entry)
    parts: dict[str, list[Entry]] = {split: [] for split in SPLITS}
    for label, found in sorted(by_label.items()):
        name = "images without labels" if label == NO_LABEL else classnames[label]
        values, ordered = zip(*sorted((path_hash(entry[0]), entry) for entry in found), strict=True)
        first, second = _cuts(values, shares, name)
        for split, part in zip(SPLITS, (ordered[:first], ordered[first:second], ordered[second:]), strict=True):
            parts[split] += sorted(part)
    return parts


def path_hash(path: str, salt: str = "") -> float:
    """A number in [0, 1) that depends only on a path and a salt."""
    content = f"{salt}{path}".encode("utf-8", "surrogateescape")
    # 53 bits: more could be rounded up to 1.
    return (int.from_bytes(hashlib.sha256(content).digest()[:8], "big") >> 11) / 2**53


def _cuts(values: Sequence[float], shares: tuple[float, float], name: str) -> tuple[int, int]:
    """Where val and test begin among the sorted hashes of a class; each part has at least one."""
    has_test = sum(shares) < 1
    images = len(values)
    if images < 2 + has_test:
        wanted = "train, val and test" if has_test else "train and val"
        raise DataError(f"class '{printable(name)}' has {images} images, but {wanted} need one each; add images, or define the splits yourself")
    first = min(max(1, bisect.bisect_left(values, shares[0])), images - 1 - has_test)
    if not has_test:
        return first, images
    return first, min(max(first + 1, bisect.bisect_left(values, sum(shares))), images - 1)
