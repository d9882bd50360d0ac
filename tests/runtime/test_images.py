"""Every kind of image that may come, and what becomes of it (docs/bad-input.md)."""

import io
import os
import pickle
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin

from prtool.errors import DataError, ImageError, ShapeError
from prtool.runtime.images import decode as images
from prtool.runtime.images.decode import MAX_PIXELS, open_image
from prtool.runtime.images.files import expand_images, search
from prtool.runtime.images.memory import decoding_bytes, memory_for


def noise(height: int = 23, width: int = 31, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def opened(content: bytes) -> npt.NDArray[np.uint8]:
    image = open_image(content)
    assert image.mode == "RGB"
    return np.asarray(image)


def png_of(width: int, height: int, colour: int = 2) -> bytes:
    """A PNG whose header declares a size, with no pixels behind it."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IEND\xaeB`\x82"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
def test_lossless_formats_give_their_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(opened(encoded(Image.fromarray(noise()), kind, **options)), noise())


def test_every_kind_of_source_gives_the_same_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    for source in (path, str(path), path.read_bytes(), Image.open(path), noise(), np.asfortranarray(noise())):
        assert np.array_equal(np.asarray(open_image(source)), noise())


def test_a_jpeg_equals_pillows() -> None:
    content = encoded(Image.fromarray(noise()), "JPEG", progressive=True)
    assert np.array_equal(opened(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (noise().astype(np.float32), "float32"),
        (noise()[..., 0], r"\(23, 31\)"),
        (noise()[..., :2], r"\(23, 31, 2\)"),
        (noise()[:0], r"\(0, 31, 3\)"),
    ],
)
def test_other_arrays_are_refused(array: npt.NDArray[np.uint8], reason: str) -> None:
    with pytest.raises(ShapeError, match=reason):
        open_image(array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"hello, this is a text", "not an image of a known format"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "damaged"),
        (pickle.dumps({"a": 1}), "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        (encoded(Image.fromarray(noise()), "JPEG")[:-200], "truncated"),
        (encoded(Image.fromarray(noise()), "PNG")[:-200], "truncated"),
        (encoded(Image.fromarray(noise()), "BMP")[:-200], "truncated"),
        (encoded(Image.fromarray(noise()), "WEBP")[:-50], "damaged"),
    ],
)
def test_what_is_no_whole_image_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=rf"bad\.jpg.*{reason}"):
        open_image(path)
    with pytest.raises(ImageError, match=rf"{len(content)} bytes.*{reason}"):
        open_image(content)


def test_a_path_that_cannot_be_opened_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg"):
        open_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError):
        open_image(tmp_path)
    with pytest.raises(ImageError):
        open_image("a\0b.jpg")


def test_a_file_that_fails_while_it_is_read_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(noise()), "PNG"))

    def broken(image: ImageFile.ImageFile) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ImageFile.ImageFile, "load", broken)
    with pytest.raises(ImageError, match=r"a\.png"):
        open_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own remarks on damaged TIFF and EXIF data
def test_damaged_files_of_every_format_give_an_image_or_an_image_error() -> None:
    source = random.Random(0)
    picture = Image.fromarray(noise())
    contents = [encoded(picture, kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")]
    refused = 0
    for _ in range(600):
        damaged = bytearray(source.choice(contents))
        for _ in range(3):
            damaged[int(len(damaged) * source.random() ** 2)] = source.randrange(256)
        try:
            assert open_image(bytes(damaged)).mode == "RGB"
        except ImageError:
            refused += 1
    assert 100 < refused < 590


def test_cmyk_converts_as_in_pillow() -> None:
    planes = np.dstack([noise(), noise(seed=1)[..., 0]])
    cmyk = Image.merge("CMYK", [Image.fromarray(planes[..., i]) for i in range(4)])
    content = encoded(cmyk, "TIFF")
    assert np.array_equal(opened(content), np.asarray(cmyk.convert("RGB")))
    jpeg = encoded(cmyk, "JPEG")
    assert np.array_equal(opened(jpeg), np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")))


def test_grey_and_bilevel_become_equal_channels() -> None:
    grey = noise()[..., 0]
    assert np.array_equal(opened(encoded(Image.fromarray(grey), "PNG")), np.repeat(grey[..., None], 3, axis=2))
    black_white = Image.fromarray(grey).point(lambda value: 255 * (value > 99), "1")
    assert np.array_equal(opened(encoded(black_white, "PNG")), np.repeat(255 * (grey > 99)[..., None], 3, axis=2))


def test_alpha_is_dropped() -> None:
    rgba = np.dstack([noise(), noise(seed=1)[..., 0]])
    assert np.array_equal(opened(encoded(Image.fromarray(rgba), "PNG")), noise())
    grey_alpha = Image.merge("LA", [Image.fromarray(rgba[..., i]) for i in (2, 3)])
    assert np.array_equal(opened(encoded(grey_alpha, "PNG")), np.repeat(rgba[..., 2:3], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 3, bytes(range(256))])
def test_a_palette_gives_its_colours(transparency: int | bytes | None) -> None:
    palette, indices = noise(16, 16).reshape(-1, 3), noise()[..., 0]
    image = Image.fromarray(indices).convert("P")
    image.putpalette(palette.tobytes())
    image.putdata(indices.reshape(-1).tolist())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(opened(encoded(image, "PNG", **options)), palette[indices])


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_high_byte(kind: str) -> None:
    values = np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)
    expected = np.array([[value // 256 for value in row] for row in values.tolist()])
    for order in ("<u2", ">u2") if kind == "TIFF" else ("<u2",):
        shown = opened(encoded(Image.fromarray(values.astype(order)), kind))
        assert np.array_equal(shown, np.repeat(expected[..., None], 3, axis=2))


def test_16_bit_colour_keeps_its_high_byte() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (5, 6, 3)).astype(">u2")
    header = b"IHDR" + struct.pack(">IIBBBBB", 6, 5, 16, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"".join(b"\0" + row.tobytes() for row in values))
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, rows, b"IEND")]
    assert np.array_equal(opened(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)), values // 256)


def test_a_16_bit_netpbm_keeps_its_high_byte() -> None:
    values = np.linspace(0, 65535, 12).astype(np.uint16).reshape(3, 4)
    assert np.array_equal(opened(b"P5 4 3 65535 " + values.astype(">u2").tobytes())[..., 0], values // 256)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_images_without_a_declared_range_are_stretched_to_it(dtype: type[np.generic]) -> None:
    values = np.array([[-1000, 0, 1000], [2000, 3000, 4000]]).astype(dtype)
    assert opened(encoded(Image.fromarray(values), "TIFF"))[..., 0].tolist() == [[0, 51, 102], [153, 204, 255]]
    assert opened(encoded(Image.fromarray(np.full((2, 2), 7, dtype)), "TIFF")).max() == 0


def test_float_values_that_are_not_finite_are_black() -> None:
    values = np.array([[np.nan, np.inf, 1.0], [-np.inf, 0.5, 0.0]], np.float32)
    assert opened(encoded(Image.fromarray(values), "TIFF"))[..., 0].tolist() == [[0, 0, 255], [0, 128, 0]]
    assert opened(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF")).max() == 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(noise()), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    assert np.array_equal(opened(content), np.asarray(expected))
    assert opened(content).shape == ((31, 23, 3) if orientation >= 5 else (23, 31, 3))
    assert np.array_equal(np.asarray(open_image(Image.open(io.BytesIO(content)))), np.asarray(expected))


def test_a_16_bit_image_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint16).reshape(2, 3) * 256
    assert np.array_equal(opened(encoded(Image.fromarray(values), "PNG", exif=exif))[..., 0], np.rot90(values // 256, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # Pillow's own remark
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0*\0\0\0\x08\0\xff", b"Exif\0\0nonsense", b"Exif\0\0"])
def test_damaged_exif_data_counts_as_upright(exif: bytes) -> None:
    assert opened(encoded(Image.fromarray(noise()), "JPEG", exif=exif)).shape == (23, 31, 3)


def test_of_an_animation_the_first_frame_is_read() -> None:
    frames = [Image.fromarray(noise(seed=seed)).quantize(16) for seed in range(3)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.array_equal(opened(content), np.asarray(frames[0].convert("RGB")))


def test_one_pixel() -> None:
    assert opened(encoded(Image.new("RGB", (1, 1), (9, 8, 7)), "PNG")).tolist() == [[[9, 8, 7]]]


def test_a_hundred_megapixels_are_read_without_warning() -> None:
    content = encoded(Image.new("P", (10_000, 10_000), 1), "PNG", compress_level=1)
    assert open_image(content).size == (10_000, 10_000)


def test_a_large_tiff_is_read_without_warning() -> None:
    content = encoded(Image.new("1", (10_000, 10_000), 1), "TIFF", compression="group4")
    image = open_image(content)
    assert image.size == (10_000, 10_000) and image.getpixel((9_999, 9_999)) == (255, 255, 255)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(ImageError, match=r"65535 x 65535.*256,000,000"):
        open_image(png_of(65_535, 65_535))
    assert MAX_PIXELS == 256_000_000
    with pytest.raises(ImageError, match="truncated"):  # allowed by its size, so its pixels are looked for
        open_image(png_of(16, 16))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_memory_that_does_not_suffice_is_an_image_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(image: ImageFile.ImageFile) -> None:
        raise MemoryError

    monkeypatch.setattr(ImageFile.ImageFile, "load", exhausted)
    with pytest.raises(ImageError, match="31 x 23"):
        open_image(encoded(Image.fromarray(noise()), "PNG"))


def test_many_threads_read_at_once() -> None:
    contents = [encoded(Image.fromarray(noise(seed=seed)), kind) for seed, kind in enumerate(("PNG", "BMP", "TIFF", "PPM"))]
    start = threading.Barrier(8)

    def work(turn: int) -> bool:
        start.wait()
        return all(np.array_equal(opened(contents[(turn + i) % 4]), noise(seed=(turn + i) % 4)) for i in range(20))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


# Memory


def tiff_of(width: int, height: int, bits: int, sample: int) -> bytes:
    """A deflated TIFF of zeros in one strip per 100 rows; `sample` is 2 for integers, 3 for floats."""
    packed = zlib.compress(bytes(width * 100 * bits // 8), 9)
    strips = height // 100
    offset = 8 + len(packed)
    lists = struct.pack(f"<{strips}I", *[8] * strips) + struct.pack(f"<{strips}I", *[len(packed)] * strips)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, bits), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, strips, offset), (277, 3, 1, 1)]
    tags += [(278, 4, 1, 100), (279, 4, strips, offset + 4 * strips), (339, 3, 1, sample)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, offset + len(lists)) + packed + lists + directory


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff_of(15_900, 16_000, 32, 3), r"15900 x 16000.*2,035,456,000"),
        (tiff_of(15_900, 16_000, 32, 2), "15900 x 16000"),
        (png_of(1, 200_000_000), r"1 x 200000000.*2,400,000,000"),
        (png_of(16_000, 16_000, 6), r"16000 x 16000.*2,048,256,000"),
    ],
)
def test_an_image_that_takes_too_much_memory_is_rejected_by_its_header(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        open_image(content)


def test_a_tile_larger_than_its_image_counts() -> None:
    stream = io.BytesIO()
    tile = {322: 40_000, 323: 40_000, 258: (8, 8, 8)}
    Image.fromarray(noise()).save(stream, "TIFF", compression="tiff_deflate", tiffinfo={322: 48, 323: 48})
    image = Image.open(stream)
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    for tag, value in tile.items():
        image.tag_v2[tag] = value
    assert decoding_bytes(image) > 4_800_000_000


@pytest.mark.parametrize(("scans", "progressive"), [("all", False), ("all", True), ("each", False)])
def test_a_jpeg_in_several_scans_takes_more(scans: str, progressive: bool) -> None:
    content = bytearray(encoded(Image.fromarray(noise()), "JPEG", progressive=progressive))
    if scans == "each":  # a first scan of one channel
        place = content.index(b"\xff\xda\0\x0c\3")
        content[place : place + 14] = b"\xff\xda\0\x08\1\1\0\0\x3f\0"
    image = Image.open(io.BytesIO(bytes(content)))
    rows = 23 * (31 * 4 + 8)
    assert decoding_bytes(image) == rows + (0 if scans == "all" and not progressive else 23 * 31 * 6)


PEAK = """
import resource, sys
from prtool.runtime.images.decode import open_image
open_image(b"P6 1 1 255 abc")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = open_image(sys.argv[1])
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(1024 * grown / (image.width * image.height))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize(
    ("mode", "kind", "most"), [("RGB", "PNG", 4.6), ("RGBA", "PNG", 8.6), ("I;16", "PNG", 6.8), ("F", "TIFF", 9.6), ("P", "PNG", 5.6)]
)
def test_peak_memory_of_a_large_image(tmp_path: Path, mode: str, kind: str, most: float) -> None:
    path = tmp_path / "a"
    options = {"compression": "tiff_deflate"} if kind == "TIFF" else {"compress_level": 1}
    Image.new(mode, (6_000, 5_000), 7).save(path, kind, **options)
    output = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, text=True, check=True).stdout
    assert float(output) < most, "bytes a pixel"


def test_large_images_are_decoded_one_at_a_time() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def work(size: int) -> None:
        nonlocal inside, most
        with memory_for(size):
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with lock:
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, [10**9] * 4))
    assert most == 1


# Files that are no regular files


def test_a_pipe_that_is_named_is_read(tmp_path: Path) -> None:
    content = encoded(Image.fromarray(noise()), "PNG")
    reader, writer = os.pipe()
    os.write(writer, content)
    os.close(writer)
    assert np.array_equal(np.asarray(open_image(f"/dev/fd/{reader}")), noise())
    os.close(reader)
    os.mkfifo(tmp_path / "late.png")
    with ThreadPoolExecutor(1) as pool:
        written = pool.submit((tmp_path / "late.png").write_bytes, content)
        assert np.array_equal(np.asarray(open_image(tmp_path / "late.png")), noise())
        written.result()


def test_a_pipe_without_a_writer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_WRITER_MS", 20)
    monkeypatch.setattr(images, "_SILENCE_MS", 20)
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png"):
        open_image(tmp_path / "a.png")
    silent = os.open(tmp_path / "a.png", os.O_RDWR)
    with pytest.raises(ImageError, match="0 s"):
        open_image(tmp_path / "a.png")
    monkeypatch.setattr(images, "_PIPE_BYTES", 2)
    os.write(silent, b"abc")
    with pytest.raises(ImageError, match="2 bytes"):
        open_image(tmp_path / "a.png")
    os.close(silent)


def test_devices_and_sockets_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="/dev/zero"):
        open_image("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a.png"))
        with pytest.raises(ImageError, match=r"a\.png"):
            open_image(tmp_path / "a.png")
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(10**10)
    with pytest.raises(ImageError, match=r"huge\.png.*10,000,000,000"):
        open_image(tmp_path / "huge.png")


# Folders


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_search_lists_known_suffixes_in_order(tmp_path: Path) -> None:
    touched(tmp_path, "b.JPG", "a.png", "notes.txt", "sub/c.webp", "sub/deep/d.tif", "sub-1/e.jp2", "jpg")
    (tmp_path / "folder.jpg").mkdir()
    paths, left_out = search(tmp_path)
    assert paths == ["a.png", "b.JPG", "sub/c.webp", "sub/deep/d.tif", "sub-1/e.jp2"] and left_out.note() == ""
    assert search(str(tmp_path / "folder.jpg"))[0] == []


def test_search_counts_and_names_what_it_leaves_out(tmp_path: Path) -> None:
    touched(tmp_path, "a.png", ".hidden.jpg", ".cache/e.jpg", "@eaDir/a.png/x.jpg", "s/@eaDir/y.jpg", "__MACOSX/._a.png", "Thumbs/a.png", "b.HEIC")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "lost.png").symlink_to("nowhere")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "up").symlink_to("..")
    paths, left_out = search(tmp_path)
    assert paths == ["a.png"]
    assert {reason: count for reason, (count, _) in left_out.found.items()} == {
        "hidden": 2,
        "in folders of thumbnails or deleted files": 4,
        "of a format that is not read": 1,
        "named pipes, sockets or devices": 1,
        "links to nothing": 2,
        "links to folders, which are not followed": 1,
    }
    note = left_out.note()
    assert note.startswith("11 ") and "\n" not in note and "b.HEIC" in note


def test_search_follows_links_but_in_no_circle(tmp_path: Path) -> None:
    touched(tmp_path, "far/x.jpg", "data/cat/a.jpg")
    (tmp_path / "data" / "dog").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "data")
    paths, left_out = search(tmp_path / "data", follow=True)
    assert paths == ["cat/a.jpg", "dog/x.jpg"] and "1 links to folders" in left_out.note()
    assert search(tmp_path / "data")[0] == ["cat/a.jpg"]


def test_search_rejects_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    for path in (tmp_path / "none", tmp_path / "a.png"):
        with pytest.raises(DataError, match=path.name):
            search(path)


def test_expand_images_keeps_files_and_order(tmp_path: Path) -> None:
    touched(tmp_path, "z/b.png", "a.strange", "z/.c.png")
    given = [tmp_path / "z", str(tmp_path / "a.strange"), tmp_path / "none.jpg"]
    files, left_out = expand_images(given)
    assert files == [tmp_path / "z" / "b.png", tmp_path / "a.strange", tmp_path / "none.jpg"]
    assert left_out.found == {"hidden": (1, str(tmp_path / "z" / ".c.png"))}
