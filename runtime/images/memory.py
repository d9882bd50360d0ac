"""The memory that decoding an image takes, estimated from its header; large images are decoded one at a time."""

import contextlib
import threading
from collections.abc import Iterator

from PIL import Image, ImageFile, TiffImagePlugin

MAX_BYTES = 1_700_000_000
"""Maximum memory for decoding one image and converting it to RGB: 256 megapixels of RGB, 100 of WebP."""

_LARGE_BYTES = 256_000_000
_NARROW = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
# Bytes a pixel that Pillow's decoders hold next to the image; measured, for 8-bit images without tiles.
_EXTRA = {"WEBP": 12.0, "AVIF": 12.0, "GIF": 1.0}
_EXTRA_JPEG2000_BAND = 5.2
_EXTRA_JPEG_BAND = 2.0
_EXTRA_PYTHON_DECODER = 8.0
_ROWS_PER_STRIP, _COMPRESSION, _BITS, _TILE_WIDTH, _TILE_LENGTH = 278, 259, 258, 322, 323
_UNCOMPRESSED = 1
_gate = threading.Lock()


def plane_bytes(size: tuple[int, int], mode: str) -> int:
    """What Pillow holds for an image: rows of whole 4 bytes, and a pointer to each row."""
    width, height = size
    return height * (-(-width * _NARROW.get(mode, 4) // 4) * 4 + 8)


def decoding_bytes(image: Image.Image) -> int:
    """The maximum memory for decoding an image with this header and converting it to RGB, without turning it."""
    own = plane_bytes(image.size, image.mode)
    rgb = 0 if image.mode == "RGB" else plane_bytes(image.size, "RGB")
    return own + max(rgb, _extra(image))


def turning_bytes(image: Image.Image) -> int:
    """The memory of an image and of its turned copy."""
    return plane_bytes(image.size, image.mode) + plane_bytes((image.height, image.width), image.mode)


@contextlib.contextmanager
def memory_for(size: int) -> Iterator[None]:
    """If `size` bytes are many, waits until this process decodes no other large image."""
    with _gate if size > _LARGE_BYTES else contextlib.nullcontext():
        yield


def _extra(image: Image.Image) -> int:
    """What the decoder holds next to the image, in bytes."""
    if not isinstance(image, ImageFile.ImageFile):
        return 0
    bands, pixels = len(image.getbands()), image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _strip_bytes(image)
    if image.format == "JPEG2000":
        return int(_EXTRA_JPEG2000_BAND * bands * pixels)
    if image.format == "JPEG":
        return int(_EXTRA_JPEG_BAND * bands * pixels) if _has_scans(image) else 0
    if any(tile[0] in ("ppm", "ppm_plain", "bmp_rle") for tile in image.tile):
        return int(_EXTRA_PYTHON_DECODER * pixels)
    return int(_EXTRA.get(image.format or "", 0.0) * pixels)


def _strip_bytes(image: TiffImagePlugin.TiffImageFile) -> int:
    """libtiff decodes a whole strip or tile at once, and a tile may be larger than its image."""
    tags = image.tag_v2
    if tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
        return 0
    bits = tags.get(_BITS, (1,))
    depth = sum(bits) if isinstance(bits, tuple) else int(bits)
    rows = min(int(tags.get(_ROWS_PER_STRIP, image.height)), image.height)
    strip = (image.width, rows)
    width, length = int(tags.get(_TILE_WIDTH, strip[0])), int(tags.get(_TILE_LENGTH, strip[1]))
    return width * length * depth // 8


def _has_scans(image: Image.Image) -> bool:
    """Whether a JPEG comes in several scans, so that libjpeg holds all coefficients: its first scan lacks a channel, or it is progressive."""
    stream, bands = getattr(image, "fp", None), len(image.getbands())
    if "progressive" in image.info or stream is None:
        return "progressive" in image.info
    # Pillow stops right behind the header of the first scan, whose length follows from its channels.
    length = 6 + 2 * bands
    place = stream.tell()
    stream.seek(max(0, place - length - 2))
    header = stream.read(length + 2)
    stream.seek(place)
    return bytes(header[:4]) != b"\xff\xda" + length.to_bytes(2, "big")
