"""Labelled images on disk, in every form of data set, and the pixels of their batches."""

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.errors import DataError, ImageError
from prtool.runtime.images.decode import open_image
from prtool.runtime.images.preprocess import Pixels, prepare
from prtool.spec import Preprocess
from prtool.text_safety import printable
from prtool.trainer.data.address import Address, parse_data
from prtool.trainer.data.copies import Copies
from prtool.trainer.data.formats.detect import known_set, read_listing, templates_of
from prtool.trainer.data.formats.known import DEFAULT_TEMPLATES
from prtool.trainer.data.images import NO_LABEL, SPLITS, ImageSet
from prtool.trainer.data.listing import Listing, joined

if TYPE_CHECKING:
    from torch import Tensor

_WORDNET = re.compile(r"n\d{8}")


def load_split(data: str | Path, split: str) -> ImageSet:
    """Reads one split of a data set, or of several as one set; docs/data.md lists every form.

    Args:
        data: FOLDER, FILE.csv, SHARD.tar, NAME:FOLDER for a known set, or several of them separated by commas.
        split: "train", "val" or "test".

    Raises:
        DataError: no such data or split, no images, fewer than two classes, or an entry without a file; for a known
            set, the message states the expected files.
    """
    if split not in SPLITS:
        raise DataError(f"split = {split!r}, but it must be one of {', '.join(SPLITS)}")
    return merge([_load(address, split) for address in parse_data(data)])


def available_splits(data: str | Path) -> tuple[str, ...]:
    """The splits, of `SPLITS`, that a data set has images for; of several sets, those that all of them have.

    Raises:
        DataError: the data cannot be read.
    """
    listings = [read_listing(address) for address in parse_data(data)]
    return tuple(split for split in SPLITS if all(listing.splits.get(split) for listing in listings))


def templates_for(data: str | Path) -> tuple[str, ...]:
    """The prompt templates for data whose user gave none: CoOp's for a known set, else "a photo of a {}.".

    A set is known by the name that was given, by the files of its layout, or by its folder's name. Several sets with
    different templates take the default, which fits all classes.

    Raises:
        DataError: the data cannot be found, or a templates file cannot be read.
    """
    found = {templates_of(address) for address in parse_data(data)}
    return found.pop() if len(found) == 1 else DEFAULT_TEMPLATES


def data_exists(data: str | Path) -> bool:
    """Whether every folder and file that `data` names exists; a run's may be missing on another machine."""
    try:
        parse_data(data)
    except DataError:
        return False
    return True


def merge(sets: Sequence[ImageSet]) -> ImageSet:
    """One set of all images, in order, for a predictor that is trained on all of them.

    Its root is the nearest folder that holds all roots. Class names are concatenated and labels shifted: two sets that both
    have "lotus" keep two classes. Images without a label stay without one.

    Raises:
        DataError: there is no set, or the roots have no folder in common (on different drives).
    """
    if not sets:
        raise DataError("there are no sets to merge; give at least one")
    if len(sets) == 1:
        return sets[0]
    roots = [item.root.resolve() for item in sets]
    try:
        common = Path(os.path.commonpath(roots))
    except ValueError as cause:
        raise DataError(f"the sets {', '.join(map(str, roots))} have no folder in common ({cause}); put them on one drive") from cause
    paths: list[str] = []
    labels: list[int] = []
    names: list[str] = []
    for root, item in zip(roots, sets, strict=True):
        paths += [(root.relative_to(common) / path).as_posix() for path in item.paths]
        labels += [label if label == NO_LABEL else label + len(names) for label in item.labels]
        names += item.classnames
    origin = ",".join(item.origin for item in sets) if all(item.origin for item in sets) else ""
    note = "; ".join(f"{item.origin or item.root}: {item.note}" for item in sets if item.note)
    captions = tuple(texts for item in sets for texts in item.captions or ((),) * len(item)) if any(item.captions for item in sets) else ()
    return ImageSet(common, tuple(paths), tuple(labels), tuple(names), origin, note, captions)


def pixel_batches(
    images: ImageSet, preprocess: Preprocess, indices: Sequence[int], batch: int, workers: int = 2, copies: Copies | None = None
) -> Iterator[tuple[list[int], "Tensor"]]:
    """Decodes and prepares images ahead of the consumer, in the order of `indices`, which are items of `copies` where those are given.

    Yields:
        The indices of one batch, and its pixels (batch, 3, height, width) float32.

    Raises:
        ImageError: an image cannot be decoded; the message names it.
    """
    import torch  # here: listing data needs no PyTorch

    chunks = [list(indices[i : i + batch]) for i in range(0, len(indices), batch)]

    def load(index: int) -> "Tensor":
        return torch.from_numpy(_prepared(images, index, preprocess, copies))

    with ThreadPoolExecutor(workers) as pool:
        waiting = [(chunk, [pool.submit(load, i) for i in chunk]) for chunk in chunks[:2]]
        upcoming = iter(chunks[2:])
        while waiting:
            chunk, futures = waiting.pop(0)
            yield chunk, torch.stack([future.result() for future in futures])
            waiting += [(later, [pool.submit(load, i) for i in later]) for later in islice(upcoming, 1)]


def _prepared(images: ImageSet, item: int, preprocess: Preprocess, copies: Copies | None) -> Pixels:
    index = item if copies is None else copies.image(item)
    source = images.source(index)
    try:
        return prepare(source if copies is None else copies.view(open_image(source), item), preprocess)
    except ImageError as cause:
        if isinstance(source, Path):
            raise
        raise ImageError(f"{images.root / images.paths[index]}: {cause}") from cause


def _load(address: Address, split: str) -> ImageSet:
    listing = read_listing(address)
    entries = listing.splits.get(split, ())
    if not entries:
        there = ", ".join(name for name in SPLITS if listing.splits.get(name)) or "none with images"
        raise DataError(joined(f"{address.path} has no images in its split {split!r}; its splits: {there}", listing.note))
    names = listing.classnames
    if len(names) == 1:
        raise DataError(f"{address.path} has one class ({names[0]}), but classification needs at least two")
    paths, labels = zip(*entries, strict=True)
    _check_names(address, names)
    _check_paths(address, listing, split, paths)
    captions = tuple(listing.captions.get(path, ()) for path in paths) if listing.captions else ()
    return ImageSet(listing.root, paths, labels, names, address.text(), joined(listing.note, _wordnet_note(names)), captions)


def _check_names(address: Address, names: Sequence[str]) -> None:
    """Class names go into prompts, so they must be text."""
    for name in names:
        if not name.isascii() and name != name.encode("utf-8", "replace").decode():
            raise DataError(
                f"{printable(address.path, 300)}: the class name '{printable(name)}' is not valid UTF-8; rename it (convmv renames folders)"
            )


def _check_paths(address: Address, listing: Listing, split: str, paths: Sequence[str]) -> None:
    for path in paths:
        # Path(path).is_absolute() is 20 times as slow.
        if ".." in path.split("/") or os.path.isabs(path) or "\0" in path:  # noqa: PTH117
            raise DataError(f"{address.path} names '{printable(path)}', which leaves the data folder; use relative paths")
    missing = listing.missing(split)
    if missing:
        known = known_set(address)
        advice = known.explain(address.path) if known else "copy the data set again"
        count = f"{len(missing)} of {len(paths)} images of the split {split!r}"
        raise DataError(f"{listing.root}: {count} are missing or not regular files, the first '{printable(missing[0])}'; {advice}")


def _wordnet_note(names: Sequence[str]) -> str:
    if not names or not all(_WORDNET.fullmatch(name) for name in names):
        return ""
    return f"the class names are WordNet ids, such as {names[0]}, which make meaningless prompts; give a CSV file with a column classname"
