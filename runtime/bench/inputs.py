"""What a benchmark feeds to every variant: the same pixels and the same encoded images."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from prtool.engines.base import Array
from prtool.errors import DataError
from prtool.runtime.bench.config import END_TO_END, MAX_IMAGES, BenchConfig
from prtool.spec import Preprocess

_SAMPLE_PHOTOS = 16
_WIDTH, _HEIGHT = 500, 375
_QUALITY = 90


def make_pixels(config: BenchConfig, spec: Preprocess) -> Array:
    """Seeded noise in the range of pixels that are prepared so: (largest batch, 3, height, width) float32."""
    pixels = np.random.default_rng(config.seed).random((max(config.batches), 3, *spec.size), np.float32)
    # In place: a batch of 1024 at 336 px is 1.4 GB.
    pixels -= np.array(spec.mean, np.float32)[:, None, None]
    pixels /= np.array(spec.std, np.float32)[:, None, None]
    return pixels


def make_images(config: BenchConfig) -> tuple[list[bytes], str]:
    """The encoded files of the configuration, none where nothing is measured end to end, and where they come from."""
    if END_TO_END not in config.scopes:
        return [], "none"
    if config.images is None:
        return sample_photos(_SAMPLE_PHOTOS, config.seed), f"{_SAMPLE_PHOTOS} generated JPEGs of {_WIDTH} x {_HEIGHT}, in memory"
    images = [_read(image) for image in config.images[:MAX_IMAGES]]
    return images, f"{len(images)} given images, in memory"


def sample_photos(count: int, seed: int = 0) -> list[bytes]:
    """`count` different JPEG files of 500 x 375 pixels, about 76 kB each, as web-sized photographs are.

    Each is a sum of smooth colour noise at several scales, coarse scales strongest (natural images have a 1/f spectrum), so
    decoding and resizing cost what they cost for a photograph of that size.
    """
    photos = []
    for number in range(count):
        rng, scene = np.random.default_rng((seed, number)), np.zeros((_HEIGHT, _WIDTH, 3), np.float32)
        for cells in (3, 8, 24, 80, 250, _WIDTH):  # smallest features of each layer, to a row
            coarse = rng.random((max(2, cells * _HEIGHT // _WIDTH), cells, 3), np.float32) * 255.0
            smooth = Image.fromarray(coarse.astype(np.uint8)).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
            scene += (np.asarray(smooth, np.float32) / 255.0 - 0.5) * (180.0 / cells**0.3)
        stream = io.BytesIO()
        Image.fromarray((scene + 128.0).clip(0.0, 255.0).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
        photos.append(stream.getvalue())
    return photos


def _read(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as cause:
        raise DataError(f"{image} cannot be read: {cause.strerror}; give image files that exist") from cause
