"""The C++ library's decoding and preprocessing equal Python's in every bit, and JPEGs are rejected where Python rejects them."""

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from cpp_programs import SAME_PILLOW, ImageProbe
from PIL import Image
from support import shared_dir

from prtool.spec import Preprocess

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # Pillow's own remarks on damaged files
    SAME_PILLOW,
]

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SPECS = [
    Preprocess((224, 224), *CLIP),
    Preprocess((64, 64), *HALF, interpolation="bilinear"),
    Preprocess((48, 80), *HALF, interpolation="bilinear"),
    Preprocess((97, 131), *CLIP, resize_mode="squash"),
    Preprocess((384, 384), *HALF, resize_mode="longest", fill=127),
    Preprocess((56, 40), *CLIP, interpolation="bilinear", resize_mode="longest"),
    Preprocess((60, 60), *HALF, interpolation="nearest"),
    Preprocess((60, 90), *HALF, interpolation="nearest", resize_mode="squash"),
    Preprocess((64, 64), *CLIP, crop_rounding="floor"),
    Preprocess((56, 56), *CLIP, crop_rounding="floor", resize_ratio=64 / 56),
    Preprocess((48, 80), *HALF, resize_ratio=1.1),
]
SMALL = SPECS[1]


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[[Preprocess], ImageProbe]]:
    """Gives one running probe a spec."""
    probes: dict[Preprocess, ImageProbe] = {}

    def probe(spec: Preprocess) -> ImageProbe:
        if spec not in probes:
            probes[spec] = ImageProbe(spec)
        return probes[spec]

    yield probe
    for running in probes.values():
        running.close()


@pytest.fixture
def same(start: Callable[[Preprocess], ImageProbe], tmp_path: Path) -> Callable[..., None]:
    """Checks that a file's bytes give the same in both languages."""

    def check(content: bytes, spec: Preprocess = SMALL, label: object = "", rejections: bool = True) -> None:
        path = tmp_path / "image"
        path.write_bytes(content)
        assert start(spec).differs(path, rejections) is None, label

    return check


def noise(height: int, width: int, channels: int = 3, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> Image.Image:
    """A picture with the spectrum of a photograph, roughly."""
    small = Image.fromarray(noise(max(1, height // 16), max(1, width // 16)))
    grain = Image.fromarray(noise(height, width, seed=1))
    return Image.blend(small.resize((width, height), Image.Resampling.BICUBIC), grain, 0.1)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def cmyk(height: int, width: int) -> Image.Image:
    planes = np.dstack([np.asarray(smooth(height, width)), noise(height, width, 1)])
    return Image.merge("CMYK", [Image.fromarray(planes[..., i]) for i in range(4)])


@pytest.mark.parametrize("spec", SPECS[:2], ids=["clip", "bilinear"])
def test_every_photograph(start: Callable[[Preprocess], ImageProbe], spec: Preprocess) -> None:
    probe = start(spec)
    paths = sorted(shared_dir("data").rglob("*.jpg"))
    paths = paths if spec is SPECS[0] else paths[::20]
    assert paths
    assert {path: how for path in paths if (how := probe.differs(path))} == {}


SIZES = [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (3, 5), (8, 8), (9, 17), (60, 60), (60, 61), (131, 97), (223, 500), (640, 427), (500, 200)]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.resize_mode}-{spec.interpolation}-{spec.size[0]}x{spec.size[1]}")
def test_every_size(same: Callable[..., None], spec: Preprocess) -> None:
    for height, width in (*SIZES, spec.size):
        same(encoded(Image.fromarray(noise(height, width)), "PNG", compress_level=1), spec, (height, width))


@pytest.mark.parametrize("spec", [SPECS[0], SPECS[3], SPECS[5]], ids=lambda spec: spec.resize_mode)
def test_random_sizes(same: Callable[..., None], spec: Preprocess) -> None:
    """Whether the width or the height is resized first depends on the sizes."""
    source = random.Random(spec.resize_mode)
    for _ in range(60):
        height, width = source.randrange(1, 400), source.randrange(1, 300)
        same(encoded(Image.fromarray(noise(height, width)), "PNG", compress_level=1), spec, (height, width))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(1, 65_000), (65_000, 1), (3, 20_000)])
def test_long_strips(same: Callable[..., None], shape: tuple[int, int], mode: str) -> None:
    same(encoded(Image.fromarray(noise(*shape)), "PNG", compress_level=1), Preprocess((224, 224), *CLIP, resize_mode=mode))
    same(encoded(Image.fromarray(noise(*shape)), "PNG", compress_level=1), Preprocess((224, 200), *CLIP, "nearest", mode))


def test_twelve_megapixels(same: Callable[..., None]) -> None:
    photo = smooth(3000, 4000)
    same(encoded(photo, "JPEG", quality=90), SPECS[0])
    same(encoded(photo.rotate(90, expand=True), "JPEG", progressive=True, subsampling=0), SPECS[3])
    same(encoded(photo, "PNG", compress_level=1), SPECS[4])


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (16, 16), (65, 50), (203, 305)])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpegs(same: Callable[..., None], subsampling: int, size: tuple[int, int]) -> None:
    for options in ({}, {"progressive": True}, {"quality": 100}, {"quality": 3}, {"restart_marker_blocks": 2}, {"optimize": True}):
        content = encoded(smooth(*size), "JPEG", subsampling=subsampling, **options)
        same(content, label=options)
        same(encoded(smooth(*size).convert("L"), "JPEG", **options), label=options)
        same(encoded(cmyk(*size), "JPEG", subsampling=subsampling, **options), label=options)
    same(encoded(smooth(*size), "JPEG", keep_rgb=True))


def resampled(content: bytes, factors: int, width: int, height: int) -> bytes:
    """The same blocks under another header: the first component's sampling factors (two hexadecimal digits) and the size."""
    at = next(i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2))
    changed = bytearray(content)
    changed[at + 5 : at + 9] = struct.pack(">HH", height, width)
    changed[at + 11] = factors
    return bytes(changed)


@pytest.mark.parametrize("progressive", [False, True])
def test_rare_subsamplings(same: Callable[..., None], progressive: bool) -> None:
    """A unit of 4:2:2 has as many blocks as one of 4:4:0, and one of 4:2:0 as many as one of 4:1:1."""
    for units in (1, 5):
        two = encoded(smooth(8 * units, 16 * units), "JPEG", subsampling=1, progressive=progressive)
        four = encoded(smooth(16 * units, 16 * units), "JPEG", subsampling=2, progressive=progressive)
        for cut in (0, 1, 3):
            same(resampled(two, 0x12, 8 * units - cut, 16 * units - cut), label="4:4:0")
            same(resampled(four, 0x41, 32 * units - cut, 8 * units - cut), label="4:1:1")
            same(resampled(four, 0x14, 8 * units - cut, 32 * units - cut), label="4:4:0 twice")


@pytest.mark.parametrize("transform", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", ["CMYK", "RGB"])
def test_every_adobe_transform(same: Callable[..., None], transform: int, mode: str) -> None:
    image = cmyk(40, 50) if mode == "CMYK" else smooth(40, 50)
    content = bytearray(encoded(image, "JPEG", **({"keep_rgb": True} if mode == "RGB" else {})))
    at = content.find(b"Adobe")
    content[at + 11] = transform
    same(bytes(content))
    same(bytes(content[: at - 4] + content[at + 12 :]))  # without Adobe's segment


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


PASSES = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
LAYOUTS = [
    (depth, colour) for colour, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items() for depth in depths
]


def png(width: int, height: int, layout: tuple[int, int], extra: bytes = b"", interlaced: bool = False) -> bytes:
    """Random rows with random filters, which any bytes are."""
    depth, colour = layout
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    source = np.random.default_rng(width * height + bits + interlaced)
    rows = b""
    for left, top, across, down in PASSES if interlaced else [(0, 0, 1, 1)]:
        row_bytes = (-(-(width - left) // across) * bits + 7) // 8
        for _ in range(top, height if row_bytes > 0 else 0, down):
            rows += bytes([source.integers(0, 5)]) + source.bytes(row_bytes)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout[0]}-bit-{layout[1]}")
def test_every_layout_of_pngs(same: Callable[..., None], layout: tuple[int, int]) -> None:
    palette = chunk(b"PLTE", noise(1, min(200, 1 << layout[0])).tobytes()) if layout[1] == 3 else b""
    for interlaced in (False, True):
        for width, height in [(1, 1), (1, 9), (9, 1), (3, 2), (5, 5), (8, 8), (33, 21), (130, 70)]:
            same(png(width, height, layout, palette, interlaced), label=(width, height, interlaced))
    for data in (b"", b"\0", bytes(2), bytes(6), b"\xff" * 5, b"\xff\0\xff", bytes(range(256)), b"\xff" * 200 + b"\0", bytes(257)):
        same(png(21, 20, layout, palette + chunk(b"tRNS", data)), label=data, rejections=False)


def test_images_as_pillow_writes_them(same: Callable[..., None]) -> None:
    photo = smooth(70, 90)
    alpha = Image.fromarray(noise(70, 90, 4))
    indexed = photo.quantize(100)
    for image in (photo, alpha, indexed, photo.convert("L"), alpha.convert("LA"), photo.convert("1")):
        same(encoded(image, "PNG"))
    for transparency in (0, 3, 99, bytes(range(100))):
        same(encoded(indexed, "PNG", transparency=transparency))
    same(encoded(photo, "PNG", transparency=(1, 2, 3)))
    same(encoded(photo.convert("L"), "PNG", transparency=255))
    same(encoded(Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10), "PNG"))
    for colours in (2, 4, 16):
        same(encoded(photo.quantize(colours), "PNG"))
    frames = [Image.fromarray(noise(40, 50, seed=seed)) for seed in range(3)]
    for default in (False, True):
        same(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default))


def test_palettes_that_do_not_fit(same: Callable[..., None]) -> None:
    for entries in (1, 5, 256):
        same(png(20, 20, (8, 3), chunk(b"PLTE", noise(1, entries).tobytes())), label=entries)
    for data in (b"", noise(1, 257).tobytes(), noise(1, 256).tobytes() + b"ab"):
        same(png(20, 20, (8, 3), chunk(b"PLTE", data)), rejections=False)
    same(png(20, 20, (8, 3)), rejections=False)
    same(png(20, 20, (8, 2), chunk(b"PLTE", noise(1, 300).tobytes())), rejections=False)


def tiff(value: bytes, kind: int, count: int, order: str, tag: int = 0x0112) -> bytes:
    head = {"<": b"II*\0\x08\0\0\0", ">": b"MM\0*\0\0\0\x08"}[order]
    field = value if len(value) <= 4 else struct.pack(order + "I", 26)
    entry = struct.pack(order + "HHHI", 1, tag, kind, count) + field.ljust(4, b"\0") + bytes(4)
    return head + entry + (value if len(value) > 4 else b"")


TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q", 99: "I"}
XMP = b'<rdf:Description tiff:Orientation="5"/><tiff:Orientation>6</tiff:Orientation>'


def orientations() -> Iterator[bytes]:
    """EXIF blocks without their first six bytes: right ones, odd ones and broken ones."""
    for order in "<>":
        for value in range(10):
            yield tiff(struct.pack(order + "H", value), 3, 1, order)
        for kind, letters in TYPES.items():
            for count in (0, 1, 2, 5):
                value = struct.pack(order + letters * count, *[6] * (len(letters) * count))
                yield tiff(value, kind, count, order)
                yield tiff(value, kind, count, order, 0x0113)
        right = tiff(struct.pack(order + "H", 6), 3, 1, order)
        yield from (right[:size] for size in range(0, len(right), 3))
        yield tiff(bytes(9), 3, 60_000, order)
        yield right[:2] + right[3:1:-1] + right[4:]
        yield from (right[:2] + mark + right[4:] for mark in (b"+\0", b"\0+", b"\0\0"))
        far = tiff(b"x" * 8, 2, 8, order, 0x010F)
        two = far[:8] + struct.pack(order + "H", 2) + far[10:22] + right[10:22] + bytes(4)
        yield from (two + bytes(size) for size in (0, 6, 8, 30))
    yield b"Exif\0\0" + right
    yield from (b"nonsense", b"MM\0*\0\0\0\x08\0\xff", b"II*\0\xff\xff\xff\xff")


@pytest.mark.parametrize("xmp", [b"", XMP], ids=["exif", "exif-and-xmp"])
def test_every_orientation(same: Callable[..., None], xmp: bytes) -> None:
    photo = encoded(Image.fromarray(noise(10, 14)), "JPEG")
    bare = photo[:2] + photo[20:]  # without JFIF's resolution, for which Pillow asks EXIF
    app1 = struct.pack(">HH", 0xFFE1, 2 + 29 + len(xmp)) + b"http://ns.adobe.com/xap/1.0/\0" + xmp if xmp else b""
    itxt = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp) if xmp else b""
    for block in orientations():
        exif = struct.pack(">HH", 0xFFE1, 8 + len(block)) + b"Exif\0\0" + block
        for whole in (photo, bare):
            same(whole[:2] + exif + app1 + whole[2:], label=block)
        if block.startswith((b"II*\0", b"MM\0*")):  # libspng passes over other chunks of that name
            same(png(10, 14, (8, 2), chunk(b"eXIf", block) + itxt), label=block)
        profile = b"\nexif\n   %d\n" % len(block) + block.hex().encode() + b"\n"
        same(png(10, 14, (8, 2), chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(profile)) + itxt), label=block)


def test_xmp_alone(same: Callable[..., None]) -> None:
    photo = encoded(Image.fromarray(noise(10, 14)), "JPEG")
    for text in (XMP, XMP[30:], b"tiff:Orientation", b"tiff:Orientation>x tiff:Orientation>8", b'tiff:Orientation="9"', b"\xfftiff:Orientation>7"):
        segment = b"http://ns.adobe.com/xap/1.0/\0" + text
        same(photo[:2] + struct.pack(">HH", 0xFFE1, 2 + len(segment)) + segment + photo[2:], label=text)
        same(png(10, 14, (8, 2), chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)), label=text)
        same(png(10, 14, (8, 2), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(text))), label=text)
        same(png(10, 14, (8, 2), chunk(b"tEXt", b"XML:com.adobe.xmp\0" + text)), label=text)


def small_files() -> dict[str, bytes]:
    photo = smooth(20, 24)
    thin = encoded(Image.fromarray(noise(3, 30_000)), "PNG")  # image data of more than one block of reading
    first = encoded(photo, "PNG", save_all=True, append_images=[Image.fromarray(noise(20, 24))])
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "A maker of cameras"
    return {
        "baseline": encoded(photo, "JPEG", exif=exif),
        "progressive": encoded(photo, "JPEG", progressive=True, subsampling=2),
        "restarts": encoded(photo, "JPEG", restart_marker_blocks=1, subsampling=0),
        "grey": encoded(photo.convert("L"), "JPEG"),
        "inks": encoded(cmyk(20, 24), "JPEG"),
        "png": encoded(photo, "PNG", exif=exif),
        "palette": encoded(photo.quantize(30), "PNG", transparency=3),
        "interlaced": png(24, 20, (8, 6), chunk(b"gAMA", bytes(4)) + chunk(b"pHYs", bytes(9)), interlaced=True),
        "animated": first,
        "wide": thin,
        "texts": png(9, 9, (4, 0), chunk(b"tEXt", b"a\0b") + chunk(b"zTXt", b"c\0\0" + zlib.compress(b"d"))),
    }


def is_jpeg(content: bytes) -> bool:
    """Of damaged PNGs, libspng accepts others than Pillow."""
    return content.startswith(b"\xff\xd8")


@pytest.mark.parametrize("kind", small_files())
def test_truncated_files(same: Callable[..., None], kind: str) -> None:
    content = small_files()[kind]
    step = max(1, len(content) // 400)
    for size in (*range(0, len(content), step), *range(max(0, len(content) - 40), len(content))):
        same(content[:size], label=size, rejections=is_jpeg(content))
        # libjpeg-turbo before 3.0.1 smooths an unfinished progressive image otherwise at its edges.
        if kind != "progressive":
            same(content[:size] + b"\xff\xd9", label=(size, "closed"), rejections=is_jpeg(content))


@pytest.mark.parametrize("kind", small_files())
def test_damaged_files(same: Callable[..., None], kind: str) -> None:
    content = small_files()[kind]
    source = random.Random(kind)
    for turn in range(300):
        damaged = bytearray(content)
        for _ in range(source.randint(1, 3)):
            damaged[int(len(damaged) * source.random() ** 2)] = source.randrange(256)
        same(bytes(damaged), label=turn, rejections=is_jpeg(content))


def test_what_stands_behind_an_image(same: Callable[..., None]) -> None:
    for kind, content in small_files().items():
        for behind in (b"", b"\0", b"garbage" * 20_000, content, b"\xff\xd8\xff", b"\xff\xda\0\0"):
            same(content + behind, label=(kind, behind[:9]))


def test_other_files(same: Callable[..., None]) -> None:
    for content in (b"", b"x", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"hello, this is a text", b"%PDF-1.4"):
        same(content)
