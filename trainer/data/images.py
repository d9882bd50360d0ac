"""ImageSet: the images of one split, as files or as members of tar shards, with their labels and class names; few-shot parts of it."""

import hashlib
import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from prtool.errors import ConfigError, DataError
from prtool.trainer.data.formats.shards import locate, member_span, read_member

SPLITS = ("train", "val", "test")
NO_LABEL = -1
"""The label of an image without one."""

SHOTS = (1, 2, 4, 8, 16)
"""Images per class in the paper's and CoOp's experiments; any other number works too."""

_SPLIT_NAMES = {**{split: split for split in SPLITS}, "valid": "val", "validation": "val"}


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One split: where its images lie, their labels, and the class names in label order. A shard that cannot be read raises DataError.

    Attributes:
        root: the folder that `paths` start from.
        paths: one POSIX path an image; one that leads into a tar shard ("train-0.tar/0001.jpg") is a member of it.
        labels: one an image, 0 to len(classnames) - 1, or NO_LABEL.
        classnames: in label order; merged sets may repeat a name.
        origin: the absolute `--data` text that loads this set again; "" for a set made in code.
        note: what a reader of results should know about the split; "" for none.
        captions: the texts of each image, for retrieval; () for a set without captions.
    """

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classnames: tuple[str, ...]
    origin: str = ""
    note: str = ""
    captions: tuple[tuple[str, ...], ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """The image file with this index; a member of a tar shard has none, and raises DataError."""
        if locate(self.root, self.paths[index]) is not None:
            raise DataError(f"{self.paths[index]} is a member of a tar shard and has no file; read it with ImageSet.source, or unpack the shard")
        return self.root / self.paths[index]

    def source(self, index: int) -> Path | bytes:
        """What `prepare` takes: the path of a file, or the bytes of a shard's member."""
        place = locate(self.root, self.paths[index])
        return self.root / self.paths[index] if place is None else read_member(*place)

    def span(self, index: int) -> tuple[Path, int, int | None]:
        """Where an image's bytes lie: a file, the offset in it, and their number; None for all of the file."""
        place = locate(self.root, self.paths[index])
        return (self.root / self.paths[index], 0, None) if place is None else (place[0], *member_span(*place))

    def digest(self) -> str:
        """SHA-256 over the paths, sizes in bytes, labels and captions, which identifies the data of a cache."""
        digest = hashlib.sha256()
        for index, (path, label) in enumerate(zip(self.paths, self.labels, strict=True)):
            file, _, length = self.span(index)
            size = file.stat().st_size if length is None else length
            digest.update(f"{path}\0{label}\0{size}\n".encode("utf-8", "surrogateescape"))
        if self.captions:
            digest.update(json.dumps(self.captions).encode())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> "ImageSet":
        """The images with these indices, in this order."""
        captions = tuple(self.captions[i] for i in indices) if self.captions else ()
        return replace(self, paths=tuple(self.paths[i] for i in indices), labels=tuple(self.labels[i] for i in indices), captions=captions)

    def take(self, images: int, seed: int = 0) -> "ImageSet":
        """At most `images` of the set, drawn without replacement and kept in order; 0 takes all."""
        if images <= 0 or images >= len(self):
            return self
        return self.subset(np.sort(np.random.RandomState(seed).permutation(len(self))[:images]).tolist())

    def require_labels(self, what: str) -> None:
        """Raises DataError if an image has no label; `what` says for the message what needs them: "accuracy", "the score 'label'"."""
        missing = [path for path, label in zip(self.paths, self.labels, strict=True) if label == NO_LABEL]
        if missing:
            raise DataError(
                f"{what} needs labels, but {len(missing)} of {len(self)} images of {self.origin or self.root} have none, the first {missing[0]!r}; "
                "give class folders, a split file, a CSV file with a column label, or shards with .cls"
            )


def equally_spaced(images: int, most: int) -> list[int]:
    """The indices of at most `most` of the images, 0 for all, at equal distances: a set may be sorted by class."""
    count = min(images, most or images)
    return [place * images // count for place in range(count)]


def split_named(name: str) -> str | None:
    """The split that a folder or a value of a column names, in any case; None if it names none."""
    return _SPLIT_NAMES.get(name.lower())


def few_shot(images: ImageSet, shots: int, seed: int) -> ImageSet:
    """Draws `shots` images of each class and keeps their order.

    Classes are taken in the order of their first image, and each gives `random.sample` of one generator with the seed. On a
    training part in the order of CoOp's split file, these are the images that CoOp draws with the same seed. CoOp repeats
    images of a class that has too few; here that is an error.

    Args:
        images: the training part.
        shots: images per class; 0 takes the whole set.
        seed: seed of the generator.

    Raises:
        ConfigError: `shots` is below 0.
        DataError: an image has no label, or a class has fewer than `shots` images.
    """
    if shots < 0:
        raise ConfigError(f"shots = {shots}, but it must be 0 (all images) or more; usual are {', '.join(map(str, SHOTS))}")
    if shots == 0:
        return images
    images.require_labels("few-shot sampling (tokens.shots; 0 takes all images and needs none)")
    by_label: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(images.labels):
        by_label[label].append(index)
    counts = [len(by_label.get(label, ())) for label in range(len(images.classnames))]
    fewest = min(counts)
    if fewest < shots:
        raise DataError(
            f"class {images.classnames[counts.index(fewest)]!r} has {fewest} training images in {images.origin or images.root}, but shots = {shots} "
            f"({sum(count < shots for count in counts)} of {len(counts)} classes have fewer); at most {fewest} shots are possible"
        )
    generator = random.Random(seed)
    return images.subset(sorted(index for found in by_label.values() for index in generator.sample(found, shots)))
