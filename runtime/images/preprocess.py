"""From an image to the encoder's pixels, bit-identical to what open_clip and transformers do, with PIL and numpy alone."""

import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from prtool.errors import ConfigError
from prtool.runtime.images.decode import ImageSource, Upright, opened
from prtool.spec import Preprocess
from prtool.text_safety import printable

Pixels = npt.NDArray[np.float32]

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
_LARGEST_RESIZE = 64_000_000


def prepare(image: ImageSource, spec: Preprocess, *, jpeg_scaling: bool = False) -> Pixels:
    """One image as the encoder takes it.

    Bit-identical to `open_clip.transform.image_transform(..., is_train=False)`, and with `crop_rounding` "floor" to the PIL backend of
    transformers' image processors, for upright images; both ignore the EXIF orientation, and this does not.

    Args:
        image: as for `open_image`.
        spec: size, resize and normalisation.
        jpeg_scaling: decode a JPEG at 1/2, 1/4 or 1/8 of its size where twice what it is resized to is left (`least_size`);
            docs/cpp.md says how fast and how close.

    Returns:
        (3, height, width) float32, RGB, normalised with the spec's mean and std.

    Raises:
        ImageError: the image cannot be read.
        ShapeError: an array is not (height, width, 3) uint8.
    """
    pixels: Pixels = prepare_batch([image], spec, jpeg_scaling=jpeg_scaling)[0]
    return pixels


def prepare_batch(images: Sequence[ImageSource], spec: Preprocess, *, jpeg_scaling: bool = False) -> Pixels:
    """Several images, in order, as `prepare` gives them.

    Returns:
        (batch, 3, height, width) float32, C-contiguous.

    Raises:
        ImageError, ShapeError: as for `prepare`.
    """
    tables = _tables(spec.mean, spec.std)
    pixels = np.empty((len(images), 3, *spec.size), np.float32)
    for row, image in zip(pixels, images, strict=True):
        values = np.asarray(view(image, spec, jpeg_scaling=jpeg_scaling))
        for channel, table in enumerate(tables):
            # A look-up takes 0.21 ms for 224 x 224, torch's three passes 0.64 ms for the same bits.
            # mode="clip" writes straight to `out`; the default would go through a buffer.
            np.take(table, values[..., channel], out=row[channel], mode="clip")
    return pixels


def largest_value(spec: Preprocess) -> float:
    """A limit for normalised pixels: four times their largest value, at least 16. Noise stays below it, 8-bit values do not."""
    return max(16.0, 4.0 * float(np.abs([table[[0, -1]] for table in _tables(spec.mean, spec.std)]).max()))


def image_list(images: object) -> list[ImageSource]:
    """The images of a caller, who gave an iterable of them or a single one.

    Raises:
        ConfigError: there is no image, or the value is neither. Items are checked when they are opened.
    """
    if isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, "read"):
        return [cast(ImageSource, images)]
    if isinstance(images, np.ndarray) and images.ndim == 3:
        return [images]
    if isinstance(images, Mapping) or not isinstance(images, Iterable):
        raise ConfigError(f"images = {printable(repr(images))}, but it must be an image or a list of at least one image")
    found = list(images)
    if not found:
        raise ConfigError("images hold nothing; give a list of at least one image")
    return found


def view(image: ImageSource, spec: Preprocess, *, jpeg_scaling: bool = False) -> Image.Image:
    """What the encoder sees of an image, before values are normalised: resized, then cropped or padded.

    Returns:
        A PIL image of mode "RGB" and the spec's size.

    Raises:
        ImageError, ShapeError: as for `prepare`.
    """
    # open_clip converts to RGB last. RGB and grey photographs are bit-identical either way; PIL would resize palette and
    # 1-bit images by nearest neighbour, and weight away hidden colours under transparent pixels.
    with opened(image, functools.partial(least_size, spec=spec) if jpeg_scaling else None) as found:
        left, top, right, bottom = found.box
        scaled = _scaled((right - left, bottom - top), spec)
        if spec.resize_mode == "shortest":
            return _resize_and_crop(found, scaled, spec)
        return _pad(_resize(found, scaled, spec), spec)


def least_size(size: tuple[int, int], spec: Preprocess) -> tuple[int, int]:
    """The least width and height of an image of this width and height: twice what it is resized to, so that the filter has what it averages.

    What nearest-neighbour resizing takes from an image depends on its exact size, so there all pixels are needed.
    """
    width, height = _scaled(size, spec)
    return size if spec.interpolation == "nearest" else (2 * width, 2 * height)


def _scaled(size: tuple[float, float], spec: Preprocess) -> tuple[int, int]:
    """Width and height after the resize, rounded as torchvision and timm do where it keeps the aspect ratio."""
    width, height = size
    target_height, target_width = (round(side * spec.resize_ratio) for side in spec.size)
    if spec.resize_mode == "squash":
        return target_width, target_height
    if spec.resize_mode == "shortest" and target_height == target_width:
        # torchvision's Resize truncates the longer side, timm's ResizeKeepRatio below rounds it.
        longer = int(target_height * max(size) / min(size))
        return (target_width, longer) if width <= height else (longer, target_height)
    ratios = height / target_height, width / target_width
    ratio = max(ratios) if spec.resize_mode == "longest" else min(ratios)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _resize(found: Upright, size: tuple[int, int], spec: Preprocess) -> Image.Image:
    return found.image if found.image.size == size else found.image.resize(size, _filter(spec), box=found.box)


def _filter(spec: Preprocess) -> Image.Resampling:
    # open_clip hands its filter on in every case but this one, where ResizeKeepRatio takes its default.
    if spec.resize_mode == "shortest" and spec.size[0] != spec.size[1] and spec.interpolation == "bilinear":
        return Image.Resampling.BICUBIC
    return _FILTERS[spec.interpolation]


def _resize_and_crop(found: Upright, scaled: tuple[int, int], spec: Preprocess) -> Image.Image:
    """The centre of the resized image."""
    height, width = spec.size
    rounded = math.floor if spec.crop_rounding == "floor" else round
    left, top = rounded((scaled[0] - width) / 2.0), rounded((scaled[1] - height) / 2.0)
    if scaled[0] * scaled[1] > _LARGEST_RESIZE:
        # A strip of more than about 1,200:1 would take gigabytes: only the centre is computed, within 1 of 255 of the exact way.
        first, above, last, below = found.box
        across, down = (last - first) / scaled[0], (below - above) / scaled[1]
        end = min((left + width) * across, last - first), min((top + height) * down, below - above)
        box = (first + left * across, above + top * down, first + end[0], above + end[1])
        return found.image.resize((width, height), _filter(spec), box=box)
    resized = _resize(found, scaled, spec)
    return resized if scaled == (width, height) else resized.crop((left, top, left + width, top + height))


def _pad(image: Image.Image, spec: Preprocess) -> Image.Image:
    height, width = spec.size
    if image.size == (width, height):
        return image
    canvas = Image.new("RGB", (width, height), (spec.fill,) * 3)
    canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return canvas


@functools.lru_cache(maxsize=16)
def _tables(mean: tuple[float, ...], std: tuple[float, ...]) -> Pixels:
    """(3, 256): the normalised value of every 8-bit value, in the order of operations of ToTensor and Normalize."""
    if min(std) <= 0.0:
        raise ConfigError(f"std = {std}, but each value must be above 0")
    values = np.arange(256, dtype=np.float32) / np.float32(255)
    tables = (values - np.array(mean, np.float32)[:, None]) / np.array(std, np.float32)[:, None]
    tables.setflags(write=False)
    return tables
