"""Pixels equal those of open_clip's inference transform, bit for bit."""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from support import shared_dir

from prtool.errors import ConfigError, ImageError, ShapeError
from prtool.runtime.images import preprocess
from prtool.runtime.images.preprocess import prepare, prepare_batch, view
from prtool.spec import Preprocess

torch = pytest.importorskip("torch", reason="open_clip's transform is the reference")
transform = pytest.importorskip("open_clip.transform", reason="open_clip's transform is the reference")

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPECS = [
    Preprocess(size, *norm, interpolation, mode, fill if mode == "longest" else 0)
    for (size, norm), interpolation, (mode, fill) in itertools.product(
        [((224, 224), CLIP), ((196, 196), HALF), ((224, 160), HALF), ((97, 131), CLIP)],
        ["bicubic", "bilinear"],
        [("shortest", 0), ("longest", 0), ("longest", 127), ("squash", 0)],
    )
]
# What open_clip's models ask for: OpenAI and LAION, SigLIP, and letterboxed CLIPA-like ones.
MODELS = [
    Preprocess((224, 224), *CLIP),
    Preprocess((256, 256), *HALF, resize_mode="squash"),
    Preprocess((224, 224), *CLIP, resize_mode="longest"),
]
NAMES = [f"{spec.size[0]}x{spec.size[1]}-{spec.interpolation}-{spec.resize_mode}-{spec.fill}" for spec in SPECS]

Reference = Callable[[Image.Image], npt.NDArray[np.float32]]


pytestmark = pytest.mark.usefixtures("one_thread")


def reference(spec: Preprocess) -> Reference:
    steps = transform.image_transform(spec.size, False, spec.mean, spec.std, spec.resize_mode, spec.interpolation, fill_color=spec.fill)
    return lambda image: steps(image).numpy()


@functools.cache
def photographs() -> list[Path]:
    return sorted(shared_dir("data").rglob("*.jpg"))


def noise(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def differing(paths: Sequence[Path], spec: Preprocess) -> list[Path]:
    expected = reference(spec)
    return [path for path in paths if not np.array_equal(prepare(path, spec), expected(Image.open(path)))]


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_photographs_equal_open_clip(spec: Preprocess) -> None:
    assert differing(random.Random(NAMES[SPECS.index(spec)]).sample(photographs(), 7), spec) == []


@pytest.mark.slow
@pytest.mark.parametrize("spec", MODELS, ids=lambda spec: spec.resize_mode)
def test_every_photograph_equals_open_clip(spec: Preprocess) -> None:
    paths = photographs()
    assert len(paths) > 3_000
    assert differing(paths, spec) == []


@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_noise_of_many_sizes_equals_open_clip(spec: Preprocess) -> None:
    sizes = random.Random(1)
    expected = reference(spec)
    shapes = [(sizes.randrange(1, 300), sizes.randrange(1, 300)) for _ in range(6)]
    for seed, (height, width) in enumerate([*shapes, spec.size, (spec.size[0], 400), (400, spec.size[1])]):
        image = noise(height, width, seed)
        assert np.array_equal(prepare(image, spec), expected(Image.fromarray(image))), (height, width)


@pytest.mark.parametrize("spec", SPECS[::3], ids=NAMES[::3])
def test_grey_photographs_equal_open_clip_which_makes_them_rgb_last(spec: Preprocess) -> None:
    grey = Image.fromarray(noise(150, 211)[..., 0])
    assert grey.mode == "L"
    assert np.array_equal(prepare(grey, spec), reference(spec)(grey))


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_images_of_one_pixel_or_one_line(shape: tuple[int, int], mode: str) -> None:
    spec = Preprocess((32, 32), *CLIP, resize_mode=mode)
    pixels = prepare(noise(*shape), spec)
    if max(shape) == 40 and mode == "longest":  # open_clip fails here: it asks for a height or width of 0
        assert view(noise(*shape), spec).size == (32, 32) and np.isfinite(pixels).all()
    else:
        assert np.array_equal(pixels, reference(spec)(Image.fromarray(noise(*shape))))


@pytest.mark.parametrize("shape", [(1, 200), (200, 1), (3, 170)])
def test_a_long_strip_is_not_resized_whole(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Preprocess((64, 64), *CLIP)
    exact = np.asarray(view(noise(*shape), spec)).astype(int)
    monkeypatch.setattr(preprocess, "_LARGEST_RESIZE", 64 * 64)
    assert np.abs(np.asarray(view(noise(*shape), spec)).astype(int) - exact).max() <= 1


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_the_longest_strips_take_little_memory(shape: tuple[int, int]) -> None:
    """The exact way would take 12 GB."""
    assert prepare(noise(*shape), Preprocess((224, 224), *CLIP)).shape == (3, 224, 224)


@pytest.mark.parametrize("norm", [CLIP, HALF])
def test_every_value_is_normalised_as_in_torch(norm: tuple[tuple[float, float, float], tuple[float, float, float]]) -> None:
    values = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    functional = pytest.importorskip("torchvision.transforms.functional")
    expected = functional.normalize(functional.to_tensor(values), *norm).numpy()
    assert np.array_equal(prepare(values, Preprocess((16, 16), *norm)), expected)


def test_nearest_takes_pixels_as_they_are() -> None:
    image = noise(20, 20)
    doubled = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    assert np.array_equal(np.asarray(view(image, Preprocess((40, 40), *HALF, interpolation="nearest"))), doubled)


def test_a_palette_is_resized_as_the_colours_it_shows() -> None:
    palette = Image.fromarray(noise(90, 120)).quantize(32)
    spec = Preprocess((64, 64), *CLIP)
    assert np.array_equal(prepare(palette, spec), reference(spec)(palette.convert("RGB")))


def test_a_turned_photograph_is_seen_upright() -> None:
    image, exif = Image.fromarray(noise(60, 80)), Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    spec = Preprocess((32, 48), *CLIP)
    assert np.array_equal(prepare(image, spec), prepare(np.rot90(noise(60, 80), -1), spec))


def test_a_batch_is_its_images_in_order() -> None:
    spec = Preprocess((32, 24), *CLIP)
    images = [noise(50, 40, seed) for seed in range(3)]
    batch = prepare_batch(images, spec)
    assert batch.shape == (3, 3, 32, 24) and batch.dtype == np.float32 and batch.flags["C_CONTIGUOUS"]
    assert np.array_equal(batch, np.stack([prepare(image, spec) for image in images]))
    assert prepare_batch([], spec).shape == (0, 3, 32, 24)


def test_what_the_encoder_sees_prepares_to_the_same_pixels() -> None:
    for spec in SPECS:
        assert np.array_equal(prepare(view(noise(90, 130), spec), spec), prepare(noise(90, 130), spec))


def test_errors_name_the_image_or_value(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg"):
        prepare(tmp_path / "none.jpg", MODELS[0])
    with pytest.raises(ShapeError, match="float64"):
        prepare_batch([np.zeros((4, 4, 3))], MODELS[0])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"std = 0\.0"):
        prepare(noise(4, 4), Preprocess((8, 8), (0.5, 0.5, 0.5), (0.5, 0.0, 0.5)))
