"""JPEGs that are decoded at a part of their size: when, how close to all pixels, and the same in C++ in every bit."""

import io
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_programs import SAME_PILLOW, ImageProbe, built_file, run
from models import TinyModel, tiny_bundle
from PIL import ExifTags, Image

from prtool.runtime.embed import embed_folder
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.decode import opened
from prtool.runtime.images.preprocess import least_size, prepare, view
from prtool.spec import Preprocess

HALF = (0.5, 0.5, 0.5)
SPECS = {mode: Preprocess((64, 64), HALF, HALF, resize_mode=mode, fill=9) for mode in ("shortest", "longest", "squash")}
SPECS["wide"] = Preprocess((40, 96), HALF, HALF, interpolation="bilinear")
SQUARE = SPECS["shortest"]


def picture(width: int, height: int, channels: int = 3) -> Image.Image:
    """Waves and noise: something to lose at a smaller scale."""
    rows, columns = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(rows / 40), np.cos(columns / 30), np.sin((rows + columns) / 50), np.cos(rows / 70)][:channels], axis=-1)
    noise = np.random.default_rng(width).normal(0, 8, waves.shape)
    values = (128 + 90 * waves + noise).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values[..., 0] if channels == 1 else values, "CMYK" if channels == 4 else None)


def jpeg(width: int, height: int, *, orientation: int = 1, channels: int = 3, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stream = io.BytesIO()
    picture(width, height, channels).save(stream, "JPEG", exif=exif, quality=92, **options)
    return stream.getvalue()


def size_of(content: object, spec: Preprocess) -> tuple[int, int]:
    with opened(content, partial(least_size, spec=spec)) as found:  # type: ignore[arg-type]
        return found.image.size


@pytest.mark.parametrize(
    ("size", "part"), [((255, 301), 1), ((256, 301), 2), ((511, 513), 2), ((512, 513), 4), ((1023, 1025), 4), ((1027, 1024), 8), ((2100, 2050), 8)]
)
def test_twice_what_is_resized_to_is_left(size: tuple[int, int], part: int) -> None:
    wanted = tuple(-(-side // part) for side in size)
    assert size_of(jpeg(*size), SQUARE) == wanted
    assert size_of(jpeg(*size, orientation=6), SQUARE) == wanted[::-1]
    assert size_of(jpeg(*size, progressive=True), SPECS["squash"]) == wanted


def test_only_what_is_decoded_here_is_decoded_smaller() -> None:
    stream = io.BytesIO()
    picture(600, 500).save(stream, "PNG")
    assert size_of(stream.getvalue(), SQUARE) == (600, 500)
    given = Image.open(io.BytesIO(jpeg(600, 500)))
    assert size_of(given, SQUARE) == given.size == (600, 500)
    assert size_of(jpeg(600, 500), Preprocess((64, 64), HALF, HALF, interpolation="nearest")) == (600, 500)
    array = np.asarray(picture(600, 500))
    np.testing.assert_array_equal(prepare(array, SQUARE, jpeg_scaling=True), prepare(array, SQUARE))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_pixels_are_close_to_those_of_all(spec: Preprocess) -> None:
    content = jpeg(1201, 903, orientation=8)
    exact, scaled = (np.asarray(view(content, spec, jpeg_scaling=scaling)).astype(int) for scaling in (False, True))
    assert exact.shape == scaled.shape
    assert 0 < np.abs(exact - scaled).mean() < 1.5


def files() -> Iterator[bytes]:
    for size in ((1201, 903), (530, 519), (260, 777), (120, 90)):
        for subsampling in (0, 1, 2):
            yield jpeg(*size, subsampling=subsampling)
        yield jpeg(*size, progressive=True)
        yield jpeg(*size, channels=1)
        yield jpeg(*size, channels=4)
        yield from (jpeg(*size, orientation=orientation) for orientation in range(2, 9))
    yield jpeg(1201, 903)[:-3000]


def test_an_encoder_that_was_asked_to(tmp_path: Path) -> None:
    """Files, folders and C++ alike, and not without being asked; a photograph's sides are no multiple of 8."""
    bundle = tiny_bundle(tmp_path / "bundle", TinyModel())
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(jpeg(403, 301, orientation=6))
    rows = {}
    for scaling in (False, True):
        with Encoder.load(bundle, jpeg_scaling=scaling) as encoder:
            rows[scaling] = encoder.encode_images([photo])
            pixels = prepare(photo, encoder.preprocess, jpeg_scaling=scaling)[None]
            np.testing.assert_array_equal(rows[scaling], encoder.encode_pixels(pixels))
            np.testing.assert_array_equal(rows[scaling], embed_folder(encoder, [photo]).embeddings)
            assert pickle.loads(pickle.dumps(encoder)).jpeg_scaling == scaling
    assert 0.9 < float(rows[True][0] @ rows[False][0]) < 1 - 1e-7
    for scaling, row in rows.items():
        out = tmp_path / "out.npy"
        found = run(built_file("programs/prtool-run"), "embed", bundle.path, photo, "-o", out, *(["--jpeg-scaling"] if scaling else []))
        assert found.returncode == 0, found.stderr
        np.testing.assert_allclose(np.load(out), row, atol=1e-6)


@SAME_PILLOW
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_in_cpp(spec: Preprocess, tmp_path: Path) -> None:
    probe = ImageProbe(spec, jpeg_scaling=True)
    for number, content in enumerate(files()):
        path = tmp_path / f"{number}.jpg"
        path.write_bytes(content)
        assert probe.differs(path) is None, number
    probe.close()
