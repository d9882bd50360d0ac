"""The pixels of C++ equal Python's in every bit at each image size that a patch of 14, 16 or 32 pixels divides, up to 224."""

from pathlib import Path

import numpy as np
import pytest
from cpp_programs import SAME_PILLOW, ImageProbe
from PIL import Image

from prtool.spec import RESIZE_MODES, Preprocess

pytestmark = SAME_PILLOW

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = sorted({*range(98, 225, 14), *range(96, 225, 16), *range(96, 225, 32)})


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise and gradients in odd sizes, larger and smaller than the encoder's, of each kind of file that C++ reads."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(6)
    for number, (width, height) in enumerate([(501, 333), (301, 227), (61, 47), (224, 168), (33, 397), (224, 224), (1, 1)]):
        rows, columns = np.mgrid[0:height, 0:width]
        smooth = np.stack([rows * 255 // height, columns * 255 // width, (rows + columns) % 256], axis=-1)
        image = Image.fromarray((smooth // 2 + random.integers(0, 128, (height, width, 3))).astype(np.uint8))
        if number % 2:
            image.save(folder / f"{number}.png")
        else:
            image.save(folder / f"{number}.jpg", quality=90, progressive=number % 4 == 0)
    return sorted(folder.iterdir())


@pytest.mark.parametrize("mode", RESIZE_MODES)
@pytest.mark.parametrize("side", SIZES)
def test_pixels_are_pythons(images: list[Path], side: int, mode: str) -> None:
    for size in ((side, side), (side, side // 2)):
        probe = ImageProbe(Preprocess(size, MEAN, STD, resize_mode=mode, fill=3))
        assert [probe.differs(path) for path in images] == [None] * len(images)
        probe.close()
