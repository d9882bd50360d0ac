"""The images that a run has seen, as fingerprints, so that an evaluation recognises images of the run's training or validation.

An image that cannot be read raises DataError.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from prtool.errors import CheckpointError, DataError
from prtool.strict import open_regular
from prtool.text_safety import printable
from prtool.trainer.data.images import ImageSet

Fingerprints = npt.NDArray[np.uint64]
_END_BYTES = 1 << 16
_THREADS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """Sorted fingerprints, each once.

    Attributes:
        train: (n,) uint64, of the images that the run was trained on.
        val: (m,) uint64, of the images on which its best state was chosen.
    """

    train: Fingerprints
    val: Fingerprints

    @classmethod
    def of(cls, train: ImageSet, val: ImageSet) -> "Seen":
        """The fingerprints of two sets."""
        return cls(np.unique(fingerprints(train)), np.unique(fingerprints(val)))

    def joined(self, other: "Seen") -> "Seen":
        """The union of two runs' fingerprints."""
        return Seen(np.union1d(self.train, other.train), np.union1d(self.val, other.val))

    def find(self, images: ImageSet) -> tuple[list[int], list[int]]:
        """The indices of a set's images that were trained on, and of the others that were validated on."""
        found = fingerprints(images)
        trained = np.isin(found, self.train)
        return np.flatnonzero(trained).tolist(), np.flatnonzero(np.isin(found, self.val) & ~trained).tolist()

    def to_bytes(self) -> bytes:
        """A safetensors file."""
        return save({"train": self.train, "val": self.val})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Seen":
        """Reads what `to_bytes` wrote; empty content is a run that has seen nothing.

        Raises:
            CheckpointError: it is damaged.
        """
        if not content:
            return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))
        try:
            parts = load(content)
            return cls(parts["train"], parts["val"])
        except (SafetensorError, KeyError) as cause:
            raise CheckpointError(f"the fingerprints of the images that the run has seen are damaged ({printable(cause)}); train again") from cause


def fingerprints(images: ImageSet) -> Fingerprints:
    """Eight bytes of the SHA-256 over each image's size, first and last 64 KiB, which also match moved and renamed files.

    Returns:
        (images,) uint64, in order.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        return np.fromiter(pool.map(lambda index: _fingerprint(*images.span(index)), range(len(images))), np.uint64, len(images))


def _fingerprint(path: Path, offset: int, length: int | None) -> int:
    try:
        with open_regular(path) as stream:
            size = os.fstat(stream.fileno()).st_size if length is None else length
            stream.seek(offset)
            head = stream.read(min(size, _END_BYTES))
            rest = min(size - len(head), _END_BYTES)
            stream.seek(offset + size - rest)
            content = head + stream.read(rest)
    except (OSError, ValueError) as cause:
        raise DataError(f"{printable(path, 300)} cannot be read: {getattr(cause, 'strerror', None) or cause}") from cause
    return int.from_bytes(hashlib.sha256(f"{size} ".encode() + content).digest()[:8], "big")
