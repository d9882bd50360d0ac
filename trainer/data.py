"""Labelled images on disk: CoOp split files and class folders, and the pixels of their batches."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prtool.errors import DataError
from prtool.runtime.preprocess import prepare
from prtool.spec import Preprocess

SPLIT_FILE = "split_coop.json"
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """One split: relative image paths, their labels, and the class names in label order."""

    root: Path
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    classnames: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """The image file with this index."""
        return self.root / self.paths[index]

    def digest(self) -> str:
        """SHA-256 over the paths, file sizes and labels: a cache made for other data is not taken for this one's."""
        digest = hashlib.sha256()
        for index, (path, label) in enumerate(zip(self.paths, self.labels, strict=True)):
            digest.update(f"{path}\0{label}\0{self.file(index).stat().st_size}\n".encode())
        return digest.hexdigest()

    def take(self, images: int, seed: int = 0) -> "ImageSet":
        """At most `images` of the set, drawn without replacement and kept in order; 0 takes all."""
        if images <= 0 or images >= len(self):
            return self
        chosen = np.sort(np.random.RandomState(seed).permutation(len(self))[:images])
        return replace(self, paths=tuple(self.paths[i] for i in chosen), labels=tuple(self.labels[i] for i in chosen))


def load_split(root: str | Path, split: str) -> ImageSet:
    """Reads one split of a data folder: `split_coop.json` beside the images, or `train/val/test` folders of class folders.

    Raises:
        DataError: no such folder or split, no images, fewer than two classes, or an entry without a file.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist; give --data a folder with {SPLIT_FILE} or with train/, val/ and test/")
    if split not in SPLITS:
        raise DataError(f"split = {split!r}, but it must be one of {', '.join(SPLITS)}")
    found = _read_coop(folder, split) if (folder / SPLIT_FILE).is_file() else _read_folders(folder, split)
    if not found.paths:
        raise DataError(f"{folder} has no images in its split {split!r}; known suffixes: {' '.join(IMAGE_SUFFIXES)}")
    if len(found.classnames) < 2:
        raise DataError(f"{folder} has one class ({', '.join(found.classnames)}), but telling classes apart needs at least two")
    missing = [path for path in found.paths if not (folder / path).is_file()]
    if missing:
        raise DataError(f"{folder / SPLIT_FILE} names {len(missing)} images that are missing, the first {missing[0]!r}; copy the data set again")
    return found


def available_splits(root: str | Path) -> tuple[str, ...]:
    """The splits that a data folder has images for, of `SPLITS`; what is wrong with it, `load_split` says."""
    folder = Path(root)
    path = folder / SPLIT_FILE
    if not path.is_file():
        return tuple(split for split in SPLITS if (folder / split).is_dir())
    try:
        parts = json.loads(path.read_bytes())
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} cannot be read as JSON: {cause}") from cause
    return tuple(split for split in SPLITS if isinstance(parts, dict) and parts.get(split))


def pixel_batches(
    images: ImageSet, preprocess: Preprocess, indices: Sequence[int], batch: int, workers: int = 2
) -> Iterator[tuple[list[int], Tensor]]:
    """Decodes and prepares images ahead of the consumer, in the order of `indices`.

    Yields:
        The indices of one batch, and its pixels (batch, 3, height, width) float32.

    Raises:
        ImageError: an image cannot be decoded; the message names it.
    """
    chunks = [list(indices[i : i + batch]) for i in range(0, len(indices), batch)]

    def load(index: int) -> Tensor:
        return torch.from_numpy(prepare(images.file(index), preprocess))

    with ThreadPoolExecutor(workers) as pool:
        waiting = [(chunk, [pool.submit(load, i) for i in chunk]) for chunk in chunks[:2]]
        upcoming = iter(chunks[2:])
        while waiting:
            chunk, futures = waiting.pop(0)
            yield chunk, torch.stack([future.result() for future in futures])
            waiting += [(later, [pool.submit(load, i) for i in later]) for later in islice(upcoming, 1)]


def _read_coop(folder: Path, split: str) -> ImageSet:
    path = folder / SPLIT_FILE
    try:
        parts = json.loads(path.read_bytes())
        names = {int(label): str(name) for part in parts.values() for _, label, name in part}
        entries = [(str(file), int(label)) for file, label, _ in parts[split]]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as cause:
        raise DataError(f"{path} is not of the form {{train, val, test: [[path, label, class name], ...]}} ({cause!r})") from cause
    if sorted(names) != list(range(len(names))):
        raise DataError(f"{path} has labels {sorted(names)[:5]}..., but they must be 0 to {len(names) - 1} without gaps")
    outside = [file for file, _ in entries if Path(file).is_absolute() or ".." in Path(file).parts]
    if outside:
        raise DataError(f"{path} names {outside[0]!r}, which leaves the data folder; use relative paths")
    return ImageSet(folder, tuple(f for f, _ in entries), tuple(label for _, label in entries), tuple(names[i] for i in range(len(names))))


def _read_folders(folder: Path, split: str) -> ImageSet:
    base = folder / split
    if not base.is_dir():
        raise DataError(f"{folder} has neither {SPLIT_FILE} nor a folder {split}/; expected {folder}/{split}/CLASS/IMAGE.jpg")
    classnames = sorted({item.name for part in SPLITS if (folder / part).is_dir() for item in (folder / part).iterdir() if item.is_dir()})
    if not classnames:
        raise DataError(f"{base} has no class folders; expected {base}/CLASS/IMAGE.jpg")
    label_of = {name: label for label, name in enumerate(classnames)}
    files = sorted(f for f in base.glob("*/*") if f.suffix.lower() in IMAGE_SUFFIXES)
    return ImageSet(folder, tuple(f.relative_to(folder).as_posix() for f in files), tuple(label_of[f.parent.name] for f in files), tuple(classnames))
