"""Reads any photograph as upright 8-bit RGB, or says why it cannot (docs/bad-input.md lists every case)."""

import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile

from prtool.errors import DataError, ImageError, ShapeError

ImageSource = str | Path | bytes | Image.Image | npt.NDArray[np.uint8]
"""A file's path, a file's bytes, a PIL image, or an array (height, width, 3) uint8 in RGB order."""

MAX_PIXELS = 256_000_000
"""Most pixels that are decoded, 1 GB as RGB in PIL; larger ones are taken for decompression bombs."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""What is read. Pillow knows more, but some of those start programs (EPS) or are recognised by guesswork (TGA)."""

_PLAIN_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
SUFFIXES = frozenset((*_PLAIN_SUFFIXES, ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif"))
"""File names that `find_images` takes, compared in lower case."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise on damaged data. Warnings count where the caller made them errors.
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    TypeError,
    LookupError,
    EOFError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


def open_image(source: ImageSource) -> Image.Image:
    """Decodes one image completely, turns it as its EXIF orientation says, and makes it RGB.

    Grey, palette, CMYK and 1-bit images become RGB as PIL's `convert("RGB")` does; alpha is dropped.
    16-bit grey keeps its high byte, as Pillow does for 16-bit colour. 32-bit integer and float images
    declare no range, so their lowest value becomes 0 and their highest 255. Of an animation, the first
    frame is read. May be called from many threads; no global setting of PIL is read or changed.

    Returns:
        A loaded image of mode "RGB"; it is `source` itself when that is an upright RGB image.

    Raises:
        ImageError: the file cannot be read, is empty, truncated, damaged, of an unknown format, or above MAX_PIXELS.
        ShapeError: an array is not (height, width, 3) uint8.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _finish(source, "the PIL image")
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), f"image of {len(source)} bytes")
    path = Path(source)
    try:
        stream = path.open("rb")
    except (OSError, ValueError) as cause:
        raise ImageError(f"{path} cannot be opened: {getattr(cause, 'strerror', None) or cause}") from cause
    with stream:
        return _read(stream, str(path))


def find_images(folder: str | Path) -> list[Path]:
    """Every file under `folder` with one of SUFFIXES (in any case), sorted by path.

    Hidden files and folders (".name") are left out, and links to folders are not followed.

    Raises:
        DataError: `folder`, or a folder in it, cannot be listed.
    """

    def stop(cause: OSError) -> None:
        raise DataError(f"{cause.filename} cannot be listed: {cause.strerror}; give a folder of images") from cause

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in names if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")]
    return sorted(found)


def expand_images(paths: Iterable[str | Path]) -> list[Path]:
    """Files as given, whatever their suffix, and each folder's images in its place; the order of `paths` stays.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        files += find_images(path) if path.is_dir() else [path]
    return files


def _read(stream: IO[bytes], name: str) -> Image.Image:
    with _image_errors(name):
        prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty (0 bytes)")
    return _finish(_identify(stream, prefix, name), name)


def _identify(stream: IO[bytes], prefix: bytes, name: str) -> ImageFile.ImageFile:
    """Reads the header only.

    Image.open is not used because its bomb check has a limit (89 megapixels) and a warning filter that are
    global to the process, so neither can be changed for one call while other threads run.
    """
    Image.init()
    for kind in FORMATS:
        factory, accept = Image.OPEN.get(kind, (None, None))
        # A decoder that this Pillow was built without answers with a text in place of True.
        if factory is not None and accept is not None and accept(prefix) is True:
            with _image_errors(name):
                stream.seek(0)
                return factory(stream, "")
    raise ImageError(f"{name} is not an image of a known format ({', '.join(kind for kind in FORMATS if kind in Image.OPEN)})")


def _finish(image: Image.Image, name: str) -> Image.Image:
    """Checks the size, decodes, and gives an upright RGB image."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels, but at most {MAX_PIXELS:,} are decoded; make it smaller first")
    try:
        with _image_errors(name):
            _allocate(image)
            image.load()
            method = _UPRIGHT.get(_orientation(image))
            rgb = _rgb(image)
            return rgb if method is None else rgb.transpose(method)
    except MemoryError as cause:
        raise ImageError(f"{name} has {width} x {height} pixels, for which the memory does not suffice") from cause


def _allocate(image: Image.Image) -> None:
    """Gives a large TIFF its memory in advance: where it has none, Pillow asks its global limit once more."""
    size = getattr(image, "_tile_size", None)
    if image.format == "TIFF" and size is not None and size[0] * size[1] > 80_000_000:
        image.im = Image.new(image.mode, size).im


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) where there is none; damaged EXIF data does not make pixels unreadable."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB":
        return image
    if mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if mode == "I" and image.format in ("PNG", "PPM"):
        # Pillow reads these 16-bit formats as 32-bit integers, depending on its version.
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        return Image.fromarray(_stretch(np.asarray(image))).convert("RGB")
    if mode == "P" and "transparency" in image.info:
        # The same colours as the direct way, which warns when the palette has several transparent entries.
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _stretch(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Lowest finite value to 0, highest to 255; what is not finite, and an image of one value, to 0."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        return np.zeros(wide.shape, np.uint8)
    low, high = wide[finite].min(), wide[finite].max()
    wide[~finite] = low
    wide -= low
    wide *= 255.0 / (high - low) if high > low else 0.0
    return np.rint(wide).astype(np.uint8)


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ShapeError(f"an image array has shape {array.shape} and dtype {array.dtype}, but it must be (height, width, 3) uint8 in RGB order")
    return Image.fromarray(np.ascontiguousarray(array))


@contextlib.contextmanager
def _image_errors(name: str) -> Iterator[None]:
    """Maps what a decoder raises to an ImageError that names the image."""
    try:
        yield
    except _DAMAGE as cause:
        raise ImageError(f"{name} is damaged, truncated or unsupported: {cause or type(cause).__name__}") from cause
