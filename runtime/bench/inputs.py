"""What a benchmark feeds: the same pixels and the same encoded images to every configuration."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prtool.engines.base import Array
from prtool.errors import DataError
from prtool.manifest import Manifest
from prtool.runtime.bench.config import END_TO_END, MAX_IMAGES, BenchConfig
from prtool.runtime.bench.sample_photos import sample_photos

_SAMPLE_PHOTOS = 16


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """The same input for every configuration.

    Attributes:
        pixels: (largest batch, 3, height, width) float32.
        images: encoded files; none where nothing is measured end to end.
        origin: where the images come from, in words.
    """

    pixels: Array
    images: Sequence[bytes]
    origin: str

    def files(self, number: int, batch: int) -> list[bytes]:
        """The images of one round; later rounds take the next ones, and begin again after the last."""
        return [self.images[place % len(self.images)] for place in range(number * batch, (number + 1) * batch)]


def make_inputs(config: BenchConfig, manifest: Manifest) -> Inputs:
    """Seeded noise in the range of prepared pixels, and the images of the configuration.

    Raises:
        DataError: an image cannot be read.
    """
    spec = manifest.preprocess
    shape = (max(config.batches), 3, *spec.size)
    pixels = np.random.default_rng(config.seed).random(shape, np.float32)
    # In place: a batch of 1024 at 336 px is 1.4 GB.
    pixels -= np.array(spec.mean, np.float32)[:, None, None]
    pixels /= np.array(spec.std, np.float32)[:, None, None]
    return Inputs(pixels, *_images(config))


def _images(config: BenchConfig) -> tuple[list[bytes], str]:
    """Encoded images and where they come from; none when nothing is measured end to end."""
    if END_TO_END not in config.scopes:
        return [], "none"
    if config.images is None:
        return sample_photos(_SAMPLE_PHOTOS, config.seed), f"{_SAMPLE_PHOTOS} generated JPEGs of 500 x 375, in memory"
    images = [_read(image) for image in config.images[:MAX_IMAGES]]
    return images, f"{len(images)} given images, in memory"


def _read(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as cause:
        raise DataError(f"{image} cannot be read: {cause.strerror}; give image files that exist") from cause
