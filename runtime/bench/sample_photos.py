"""Generated JPEG photographs, for measurements where no real ones are given."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH, HEIGHT = 500, 375
_QUALITY = 90


def sample_photos(count: int, seed: int = 0) -> list[bytes]:
    """`count` different JPEG files of 500 x 375 pixels, about 76 kB each, as web-sized photographs are.

    Each is a sum of smooth colour noise at several scales, coarse scales strongest (natural images have a
    1/f spectrum), so decoding and resizing cost what they cost for a photograph of that size.
    """
    return [_photo(np.random.default_rng((seed, number))) for number in range(count)]


def _photo(rng: np.random.Generator) -> bytes:
    scene = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for cells in (3, 8, 24, 80, 250, WIDTH):
        scene += _layer(rng, cells) * (180.0 / cells**0.3)
    stream = io.BytesIO()
    Image.fromarray((scene + 128.0).clip(0.0, 255.0).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


def _layer(rng: np.random.Generator, cells: int) -> npt.NDArray[np.float32]:
    """(height, width, 3) noise in [-0.5, 0.5] whose smallest features are `cells` to a row."""
    coarse = rng.random((max(2, cells * HEIGHT // WIDTH), cells, 3), np.float32) * 255.0
    smooth = Image.fromarray(coarse.astype(np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32) / 255.0 - 0.5
