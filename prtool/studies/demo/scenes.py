"""The demonstration's images: one coloured shape on a cluttered background, drawn from a seed, with the true mask of the shape."""

import colorsys
import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from prtool.errors import ConfigError, DataError, ShapeError
from prtool.files import new_directory

IMAGE_SIZE = 96
"""Height and width of every scene, in pixels."""
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple")
CLASS_NAMES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Class names in the order of their labels."""
SPLITS = ("train", "val", "test")

_HUES = {"red": 0.0, "orange": 0.078, "yellow": 0.155, "green": 0.36, "blue": 0.61, "purple": 0.79}
_HUE_JITTER = 0.014
_OBJECT_SHARE = (0.08, 0.22)
_TILT = np.pi / 7  # radians either way from upright
_SCALE = 4  # shapes are drawn this much larger and averaged down: smooth edges
_UNIT_PIXELS = 512

Points = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True, slots=True)
class Scene:
    """One drawn image.

    Attributes:
        image: RGB, IMAGE_SIZE x IMAGE_SIZE pixels.
        mask: (IMAGE_SIZE, IMAGE_SIZE) bool, true where the object covers at least half of the pixel.
        label: index into CLASS_NAMES.
    """

    image: Image.Image
    mask: NDArray[np.bool_]
    label: int


@dataclass(frozen=True, slots=True)
class SceneCounts:
    """Images of each class in each split."""

    train: int
    val: int
    test: int

    def __post_init__(self) -> None:
        if min(self.train, self.val, self.test) < 1:
            raise ConfigError(f"scene counts = {self.train}, {self.val}, {self.test}, but every split needs at least 1 image of each class")


def draw_scene(seed: int, label: int) -> Scene:
    """Draws the scene that belongs to (seed, label); the same pair gives the same pixels.

    Args:
        seed: 0 or above.
        label: index into CLASS_NAMES.

    Raises:
        ConfigError: the seed is negative, or the label is not one of CLASS_NAMES.
    """
    if seed < 0 or not 0 <= label < len(CLASS_NAMES):
        raise ConfigError(f"scene (seed {seed}, label {label}), but seeds start at 0 and labels go from 0 to {len(CLASS_NAMES) - 1}")
    random = np.random.default_rng((seed, label))
    colour, shape = CLASS_NAMES[label].split()
    alpha = _object_alpha(random, shape)
    background = _background(random)
    weight = alpha[..., None] / 255.0
    blended = background * (1.0 - weight) + _object_paint(random, colour) * weight
    pixels = np.clip(np.rint(blended), 0, 255).astype(np.uint8)
    return Scene(Image.fromarray(pixels), alpha >= 128, label)


def patch_coverage(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float64]:
    """The share of each patch that the object covers.

    Args:
        mask: (height, width) bool.
        grid: rows and columns of patches; they divide height and width.

    Returns:
        (rows * columns,) float64 in [0, 1], row by row, as patches are numbered in a ViT.

    Raises:
        ShapeError: the mask is not two-dimensional, or the grid does not divide it.
    """
    rows, columns = grid
    if mask.ndim != 2 or min(grid) < 1 or mask.shape[0] % rows or mask.shape[1] % columns:
        raise ShapeError(f"mask of shape {mask.shape} with a grid of {rows} x {columns}; the grid must divide height and width")
    cells = mask.reshape(rows, mask.shape[0] // rows, columns, mask.shape[1] // columns)
    share: NDArray[np.float64] = cells.mean(axis=(1, 3)).reshape(-1)
    return share


def write_dataset(folder: Path, counts: SceneCounts, seed: int) -> None:
    """Writes scenes as PNG, their masks, and `split_coop.json` in CoOp's form; the folder appears whole or not at all.

    Images lie in `<split>/<colour>_<shape>/0001.png`, masks (0 and 255) under `masks/` by the same names.

    Args:
        folder: missing or empty.
        counts: images of each class in each split.
        seed: 0 or above; no image occurs in two splits.

    Raises:
        ConfigError: something stands at `folder`.
        StorageError: the folder cannot be written.
    """
    splits: dict[str, list[tuple[str, int, str]]] = {split: [] for split in SPLITS}
    with new_directory(folder) as temporary:
        for number, split in enumerate(SPLITS):
            for label, name in enumerate(CLASS_NAMES):
                place = f"{split}/{name.replace(' ', '_')}"
                (temporary / place).mkdir(parents=True)
                (temporary / "masks" / place).mkdir(parents=True)
                for index in range(1, getattr(counts, split) + 1):
                    scene = draw_scene(_image_seed(seed, number, index), label)
                    image_name = f"{place}/{index:04d}.png"
                    scene.image.save(temporary / image_name)
                    Image.fromarray(scene.mask).save(mask_path(temporary / image_name))
                    splits[split].append((image_name, label, name))
        (temporary / "split_coop.json").write_text(json.dumps(splits, indent=0) + "\n", encoding="utf-8")


def mask_path(image: Path) -> Path:
    """Where the mask of a data set's image lies: `FOLDER/test/red_star/0001.png` -> `FOLDER/masks/test/red_star/0001.png`."""
    folder = image.parents[2]
    return folder / "masks" / image.relative_to(folder)


def read_mask(image: Path) -> NDArray[np.bool_]:
    """The true object mask (height, width) of one of the data set's images.

    Raises:
        DataError: the image has no readable mask, so `write_dataset` did not make it.
    """
    try:
        with Image.open(mask_path(image)) as mask:
            return np.asarray(mask.convert("1"), dtype=np.bool_)
    except OSError as cause:
        raise DataError(
            f"{mask_path(image)} cannot be read ({cause}), but every image of the demo has a mask; delete it and run 'prtool demo' again"
        ) from cause


def _image_seed(seed: int, split: int, index: int) -> int:
    return int(np.random.SeedSequence((seed, split, index)).generate_state(1, np.uint64)[0])


def _object_alpha(random: Random, shape: str) -> NDArray[np.uint8]:
    """(IMAGE_SIZE, IMAGE_SIZE) coverage 0 to 255 of a shape at a random place, size and angle, wholly inside the image.

    The area is drawn, not the radius: else rings and moons would cover fewer patches than squares.
    """
    share = random.uniform(*_OBJECT_SHARE)
    radius = IMAGE_SIZE * np.sqrt(share / _unit_area(shape))
    angle = random.uniform(-_TILT, _TILT)
    centre = random.uniform(radius + 1.0, IMAGE_SIZE - radius - 1.0, size=2)
    large = _draw_shape(shape, IMAGE_SIZE * _SCALE, radius * _SCALE, centre * _SCALE, angle)
    return np.asarray(large.reduce(_SCALE))


def _draw_shape(shape: str, size: int, radius: float, centre: Points, angle: float) -> Image.Image:
    canvas = Image.new("L", (size, size))
    draw = ImageDraw.Draw(canvas)
    for points, fill in zip(_outlines(shape), (255, 0), strict=False):
        draw.polygon([(float(x), float(y)) for x, y in points @ _turn(angle) * radius + centre], fill=fill)
    return canvas


@functools.cache
def _unit_area(shape: str) -> float:
    """Area of the shape with radius 1, so a circle has pi."""
    radius = _UNIT_PIXELS * 0.49
    canvas = _draw_shape(shape, _UNIT_PIXELS, radius, np.full(2, _UNIT_PIXELS / 2), 0.0)
    return float(np.count_nonzero(np.asarray(canvas)) / radius**2)


@functools.cache
def _outlines(shape: str) -> tuple[Points, ...]:
    """The outline of an upright shape in the unit circle, and where there is one, the hole in it; each (points, 2), y down."""
    arm, half = 0.95, 0.31
    corner = ((arm, -half), (arm, half), (half, half))
    upright = _turn(-np.pi / 2)  # a regular shape's first corner points up
    t = np.linspace(0.0, 2.0 * np.pi, 64, endpoint=False)
    lobes = 2.5 + 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    outlines: dict[str, tuple[Points, ...]] = {
        "circle": (_regular(64, 1.0),),
        "square": (_regular(4, 1.0) @ _turn(np.pi / 4),),
        "triangle": (_regular(3, 1.0) @ upright,),
        "star": (_regular(10, 1.0) * np.where(np.arange(10) % 2, 0.42, 1.0)[:, None] @ upright,),
        "cross": (np.array([_quarter_turns(point, turns) for turns in range(4) for point in corner]),),
        "ring": (_regular(64, 1.0), _regular(64, 0.6)),
        "heart": (np.stack([16 * np.sin(t) ** 3, lobes], axis=1) / -17.2,),
        "moon": (_regular(64, 1.0), _regular(64, 0.85) + np.array([0.55, 0.0])),
    }
    return outlines[shape]


def _turn(angle: float) -> Points:
    """(2, 2) rotation of row vectors, clockwise on screen."""
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def _regular(corners: int, radius: float) -> Points:
    angles = np.arange(corners) * (2.0 * np.pi / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _quarter_turns(point: tuple[float, float], turns: int) -> tuple[float, float]:
    x, y = point
    for _ in range(turns):
        x, y = -y, x
    return x, y


def _object_paint(random: Random, colour: str) -> NDArray[np.float64]:
    """(IMAGE_SIZE, IMAGE_SIZE, 3) float in [0, 255]: a strong colour, slightly shaded and grainy."""
    hue = (_HUES[colour] + random.uniform(-_HUE_JITTER, _HUE_JITTER)) % 1.0
    rgb = np.array(colorsys.hsv_to_rgb(hue, random.uniform(0.8, 1.0), random.uniform(0.75, 1.0)))
    shade = 1.0 + random.uniform(0.0, 0.12) * _ramp(random)
    return 255.0 * rgb * shade[..., None] + _grain(random, 5.0)


def _background(random: Random) -> NDArray[np.float64]:
    """(IMAGE_SIZE, IMAGE_SIZE, 3) float in [0, 255]: a gradient, blobs and lines in greys and pastels, soft and fine noise."""
    first, second = (np.array(_pale(random)) for _ in range(2))
    mix = (_ramp(random)[..., None] + 1.0) / 2.0
    canvas = Image.fromarray((first * mix + second * (1.0 - mix)).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    for _ in range(random.integers(6, 14)):
        _draw_blob(random, draw)
    for _ in range(random.integers(2, 7)):
        ends = [tuple(end) for end in random.uniform(0.0, IMAGE_SIZE, size=(2, 2)).tolist()]
        draw.line(ends, fill=_pale(random), width=int(random.integers(1, 4)))
    return np.asarray(canvas, dtype=np.float64) + _soft_noise(random) + _grain(random, 6.0)


def _draw_blob(random: Random, draw: ImageDraw.ImageDraw) -> None:
    """An ellipse or a triangle-to-hexagon of uneven sides: clutter with edges, but none of the class shapes' colours."""
    x, y = random.uniform(0.0, IMAGE_SIZE, size=2).tolist()
    radius = random.uniform(3.0, 11.0)
    fill = _pale(random)
    if random.random() < 0.5:
        flat = random.uniform(0.5, 1.0) * radius
        draw.ellipse((x - radius, y - flat, x + radius, y + flat), fill=fill)
        return
    angles = np.sort(random.uniform(0.0, 2.0 * np.pi, size=random.integers(3, 7)))
    draw.polygon([(x + radius * float(np.cos(a)), y + radius * float(np.sin(a))) for a in angles], fill=fill)


def _pale(random: Random) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(random.uniform(0.0, 1.0), random.uniform(0.0, 0.3), random.uniform(0.2, 0.95))
    return int(255 * red), int(255 * green), int(255 * blue)


def _ramp(random: Random) -> NDArray[np.float64]:
    """(IMAGE_SIZE, IMAGE_SIZE) from -1 to 1 along a random direction."""
    angle = random.uniform(0.0, 2.0 * np.pi)
    axis = np.linspace(-1.0, 1.0, IMAGE_SIZE)
    plane: NDArray[np.float64] = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    plane /= abs(np.cos(angle)) + abs(np.sin(angle))
    return plane


def _soft_noise(random: Random) -> NDArray[np.float64]:
    coarse = random.normal(0.0, random.uniform(4.0, 16.0), size=(12, 12)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC), dtype=np.float64)[..., None]


def _grain(random: Random, amplitude: float) -> NDArray[np.float64]:
    return random.uniform(-amplitude, amplitude, size=(IMAGE_SIZE, IMAGE_SIZE, 1))
