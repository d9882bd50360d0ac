"""Writes the small images from which fuzzing of the decoders starts: `python fuzz/make_corpus.py [FOLDER]`."""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (19, 13)


def picture(channels: int = 3) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def jpegs() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker of cameras"
    xmp = b'<x tiff:Orientation="7"/>'
    cmyk = picture(4).convert("RGB").convert("CMYK")
    ycck = bytearray(encoded(cmyk, "JPEG"))
    ycck[ycck.find(b"Adobe") + 11] = 2
    return {
        "baseline": encoded(picture(), "JPEG", exif=exif, quality=50),
        "progressive": encoded(picture(), "JPEG", progressive=True, subsampling=2, quality=50),
        "restarts": encoded(picture(), "JPEG", restart_marker_blocks=1, subsampling=0, quality=50),
        "subsampled": encoded(picture(), "JPEG", subsampling=1, xmp=xmp, quality=50),
        "grey": encoded(picture(1), "JPEG", quality=50),
        "rgb": encoded(picture(), "JPEG", keep_rgb=True, quality=50),
        "cmyk": encoded(cmyk, "JPEG", quality=50),
        "ycck": bytes(ycck),
    }


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(depth: int, colour: int, extra: bytes = b"", interlaced: bool = False) -> bytes:
    """Random filters and bytes in place of pixels, more than any layout needs; the decoder stops where the image is full."""
    header = struct.pack(">IIBBBBB", *SIZE, depth, colour, 0, 0, interlaced)
    rows = np.random.default_rng(depth + colour).integers(0, 5, 60, dtype=np.uint8).tobytes() * 50
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pngs() -> dict[str, bytes]:
    palette = chunk(b"PLTE", bytes(range(48))) + chunk(b"tRNS", b"\xff\x00\xff")
    tiff = b"II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"
    profile = b"\nexif\n 26\n" + tiff.hex().encode()
    texts = (
        chunk(b"tEXt", b"Raw profile type exif\0" + profile)
        + chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile))
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation='3'>tiff:Orientation>3")
        + chunk(b"iCCP", b"name\0\0" + zlib.compress(b"profile"))
    )
    frames = encoded(picture(), "PNG", save_all=True, append_images=[picture(3).rotate(180)])
    named = {f"{depth}-bit-{colour}": png(depth, colour) for depth, colour in [(1, 0), (4, 0), (16, 0), (8, 2), (16, 2), (8, 4), (16, 6)]}
    return named | {
        "palette": png(4, 3, palette),
        "interlaced": png(8, 6, interlaced=True),
        "interlaced-bits": png(2, 0, interlaced=True),
        "exif": png(8, 0, chunk(b"eXIf", tiff)),
        "texts": png(8, 0, texts),
        "animation": frames,
    }


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "corpus")
    folder.mkdir(parents=True, exist_ok=True)
    for kind, files in (("jpg", jpegs()), ("png", pngs())):
        for name, content in files.items():
            (folder / f"{name}.{kind}").write_bytes(content)


if __name__ == "__main__":
    main()
