"""Decodes images to upright 8-bit RGB, or raises an error that says why not (docs/bad-input.md lists every case)."""

import contextlib
import io
import os
import select
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageFile, JpegImagePlugin

from prtool.errors import ConfigError, ImageError, ShapeError
from prtool.runtime.images.memory import MAX_BYTES, decoding_bytes, memory_for, turning_bytes
from prtool.strict import open_regular
from prtool.text_safety import printable

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image | npt.NDArray[np.uint8]
"""A file's path, its bytes, an open binary file (BytesIO), a PIL image, or an array (height, width, 3) uint8 in RGB order."""

MAX_PIXELS = 256_000_000
"""Maximum number of pixels, 1 GB as RGB in PIL; larger images count as decompression bombs, as do those that take more than MAX_BYTES."""

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""Formats that are read. Pillow knows more, but some of those start programs (EPS) or are recognised by guesswork (TGA)."""

_PIPE_BYTES = 256_000_000
_WRITER_MS, _SILENCE_MS = 1_000, 60_000
_BAND_PIXELS = 1_000_000
_NAME_CHARACTERS = 300

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TRANSPOSED, _MIRRORED, _UPSIDE_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
"""Orientations by what turning them upright does: swap the axes, then reverse columns, reverse rows."""

# What Pillow's decoders raise on damaged data: their own errors, and Python's. Warnings count where the caller made them errors.
_DECODER_ERRORS = (OSError, ValueError, EOFError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError, Warning)
_DAMAGE = (*_DECODER_ERRORS, SyntaxError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError)


def open_image(source: ImageSource) -> Image.Image:
    """Decodes one image completely, turns it as its EXIF orientation says, and converts it to RGB.

    Grey, palette, CMYK and 1-bit images are converted as PIL's `convert("RGB")` does; alpha is dropped. 16-bit grey keeps its
    high byte, as in Pillow's 16-bit colour. 32-bit integer and float images declare no range, so their lowest value becomes
    0 and their highest 255. The first frame of an animation is read. A path may be a pipe, which is read to its end. Safe from
    many threads; no global setting of PIL is read or changed.

    Returns:
        A loaded image of mode "RGB"; `source` itself if that is an upright RGB image.

    Raises:
        ImageError: the file cannot be read, is empty, truncated, damaged, of an unknown format, or above MAX_PIXELS.
        ShapeError: an array is not (height, width, 3) uint8.
        ConfigError: `source` is none of these types.
    """
    with opened(source) as found:
        return found.image


LeastSize = Callable[[tuple[int, int]], tuple[int, int]]
"""From the width and height of an upright image to the least that are needed of it."""


@dataclass(frozen=True, slots=True)
class Upright:
    """A loaded RGB image, and the box (left, top, right, bottom) that the picture fills: a part of a JPEG's size can be no whole number."""

    image: Image.Image
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, image: Image.Image) -> "Upright":
        """All of the image."""
        return cls(image, (0, 0, *image.size))


@contextlib.contextmanager
def opened(source: ImageSource, least: LeastSize | None = None) -> Iterator[Upright]:
    """`open_image` as a context manager: no other thread decodes a large image until the body has finished with this one.

    Args:
        source: as for `open_image`.
        least: a JPEG that has this size at 1/2, 1/4 or 1/8 of its own is decoded so, to ceil(width / 2) x ceil(height / 2) pixels and
            so on (libjpeg's scaled decoding; a PIL image is not). None takes all pixels.
    """
    with contextlib.ExitStack() as memory:
        if isinstance(source, np.ndarray):
            yield Upright.whole(_from_array(source))
        elif isinstance(source, Image.Image):
            yield _finish(source, "the PIL image", memory)
        elif isinstance(source, (str, os.PathLike)):
            yield _read_file(Path(source), memory, least)
        else:
            content = _content(source)
            yield _read(io.BytesIO(content), f"image of {len(content)} bytes", memory, least)


def _content(source: object) -> bytes:
    """The bytes of an image in memory or in an open file, which is read from its start as PIL does."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if not hasattr(source, "read"):
        kinds = "a path, a file's bytes, a file opened with 'rb', a PIL image or a (height, width, 3) uint8 array"
        raise ConfigError(f"an image is {printable(repr(source))}, a {type(source).__name__}, but it must be {kinds}")
    stream = cast(IO[Any], source)
    try:
        if hasattr(stream, "seekable") and stream.seekable():
            stream.seek(0)
        content = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as cause:
        raise ImageError(f"an open file cannot be read: {printable(cause)}") from cause
    if not isinstance(content, bytes):
        raise ConfigError("an image is a file that was opened as text; open it with mode 'rb'")
    if len(content) > MAX_BYTES:
        raise ImageError(f"an open file has more than {MAX_BYTES:,} bytes, but at most that many are read")
    return content


def _open(path: Path) -> BinaryIO:
    """Opens a regular file, or a pipe such as /dev/stdin or the shell's process substitution."""
    if stat.S_ISFIFO(path.stat().st_mode):
        return io.BytesIO(_read_pipe(path))
    stream = open_regular(path)
    size = os.fstat(stream.fileno()).st_size
    if size > MAX_BYTES:
        stream.close()
        raise ValueError(f"it has {size:,} bytes, but at most {MAX_BYTES:,} are read")
    return stream


def _read_pipe(path: Path) -> bytes:
    """The content of a pipe; waits a limited time for a writer, and for a silent one."""
    parts: list[bytes] = []
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while sum(map(len, parts)) <= _PIPE_BYTES:
            try:
                part = os.read(descriptor, 1 << 20)
            except BlockingIOError:
                if not poll.poll(_SILENCE_MS):
                    raise ValueError(f"the pipe gave nothing for {_SILENCE_MS // 1000} s") from None
                continue
            if part:
                parts.append(part)
            elif parts or not any(event & select.POLLIN for _, event in poll.poll(_WRITER_MS)):
                return b"".join(parts)
    finally:
        os.close(descriptor)
    raise ValueError(f"the pipe gives more than {_PIPE_BYTES:,} bytes")


def _read_file(path: Path, memory: contextlib.ExitStack, least: LeastSize | None) -> Upright:
    name = printable(path, _NAME_CHARACTERS)
    try:
        stream = _open(path)
    except (OSError, ValueError) as cause:
        raise ImageError(f"{name} cannot be opened: {getattr(cause, 'strerror', None) or cause}") from cause
    with stream:
        return _read(stream, name, memory, least)


def _read(stream: IO[bytes], name: str, memory: contextlib.ExitStack, least: LeastSize | None) -> Upright:
    with _image_errors(name):
        prefix = stream.read(16)
    if not prefix:
        raise ImageError(f"{name} is empty (0 bytes)")
    return _finish(_identify(stream, prefix, name), name, memory, least)


def _identify(stream: IO[bytes], prefix: bytes, name: str) -> ImageFile.ImageFile:
    """Reads the header only.

    Image.open is not used: its bomb check has a limit (89 megapixels) and a warning filter that are global to the process.
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


def _finish(image: Image.Image, name: str, memory: contextlib.ExitStack, least: LeastSize | None = None) -> Upright:
    """Checks the size, decodes, and returns an upright RGB image; `memory` holds the lock of a large one until it is closed."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels, but at most {MAX_PIXELS:,} are decoded; make it smaller first")
    with _image_errors(name):
        needed = decoding_bytes(image)
    _check_memory(image, needed, name)
    box: tuple[float, float, float, float] = (0, 0, width, height)
    if least is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
        box = _scale_down(image, name, least)
    try:
        memory.enter_context(memory_for(needed))
        with _image_errors(name):
            _allocate(image)
            image.load()
            kind, orientation = image.format, _orientation(image)
            if orientation in _UPRIGHT:
                _check_memory(image, turning_bytes(image), name)
                image = image.transpose(_UPRIGHT[orientation])
                box = _turned(box, image.size, orientation)
            return Upright(image if image.mode == "RGB" else _in_bands(image, _converter(image, kind)), box)
    except MemoryError as cause:
        raise ImageError(f"{name} has {width} x {height} pixels, and there is not enough memory to decode it") from cause


def _scale_down(image: JpegImagePlugin.JpegImageFile, name: str, least: LeastSize) -> tuple[float, float, float, float]:
    """Has the decoder make a part of the pixels, and returns their box; the same files are accepted as otherwise."""
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        _check_memory(image, turning_bytes(image), name)
    turned = orientation in _TRANSPOSED
    width, height = image.size
    needed = least((height, width) if turned else (width, height))
    found = image.draft(None, (needed[1], needed[0]) if turned else needed)
    return found[1] if found else (0, 0, *image.size)


def _turned(box: tuple[float, float, float, float], size: tuple[int, int], orientation: int) -> tuple[float, float, float, float]:
    """The box of an image that was turned to this size; before, it began at (0, 0)."""
    right, bottom = box[2:][::-1] if orientation in _TRANSPOSED else box[2:]
    left = size[0] - right if orientation in _MIRRORED else 0
    top = size[1] - bottom if orientation in _UPSIDE_DOWN else 0
    return left, top, left + right, top + bottom


def _check_memory(image: Image.Image, size: int, name: str) -> None:
    if size > MAX_BYTES:
        what = f"{image.width} x {image.height} pixels of mode {image.mode}"
        raise ImageError(f"{name} has {what}, which take {size:,} bytes to decode, but at most {MAX_BYTES:,} are allowed; make it smaller first")


def _allocate(image: Image.Image) -> None:
    """Allocates a large TIFF in advance: otherwise Pillow checks its global limit again."""
    size = getattr(image, "_tile_size", None)
    if image.format == "TIFF" and size is not None and size[0] * size[1] > 80_000_000:
        image.im = Image.new(image.mode, size).im


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none or it is damaged."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


def _bands(image: Image.Image) -> list[tuple[int, int, int, int]]:
    """Boxes of some rows each: to convert a whole large image would hold it several times over."""
    rows = max(1, _BAND_PIXELS // image.width)
    return [(0, top, image.width, min(top + rows, image.height)) for top in range(0, image.height, rows)]


def _in_bands(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    boxes = _bands(image)
    if len(boxes) == 1:
        return convert(image)
    rgb = Image.new("RGB", image.size)
    for box in boxes:
        rgb.paste(convert(image.crop(box)), box)
    return rgb


def _converter(image: Image.Image, kind: str | None) -> Callable[[Image.Image], Image.Image]:
    """The function that converts rows of a decoded image to RGB; `kind` is the format that it was read from."""
    if image.mode.startswith("I;16"):
        return lambda rows: Image.fromarray((np.asarray(rows) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "I" and kind in ("PNG", "PPM"):
        # Pillow reads these 16-bit formats as 32-bit integers, depending on its version.
        return lambda rows: Image.fromarray((np.asarray(rows) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return _stretcher(image)
    if image.mode == "P" and "transparency" in image.info:
        # The same colours as the direct way, which warns when the palette has several transparent entries.
        return lambda rows: rows.convert("RGBA").convert("RGB")
    return lambda rows: rows.convert("RGB")


def _stretcher(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Lowest finite value to 0, highest to 255; values that are not finite, and images of one value, to 0."""
    low, high = np.inf, -np.inf
    for box in _bands(image):
        values = np.asarray(image.crop(box), np.float64)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, finite.min()), max(high, finite.max())
    scale = 255.0 / (high - low) if high > low else 0.0
    zero = low if np.isfinite(low) else 0.0

    def stretch(part: Image.Image) -> Image.Image:
        values = np.array(part, np.float64)
        values[~np.isfinite(values)] = zero
        values -= zero
        return Image.fromarray(np.rint(values * scale).astype(np.uint8)).convert("RGB")

    return stretch


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
