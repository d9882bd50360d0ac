"""Data as other people keep it: every image is used, or counted and named; no label changes its meaning without a word."""

import io
import os
import re
import struct
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from prtool.errors import DataError
from prtool.trainer.data.formats.shards import members
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import available_splits, load_split, templates_for


def image() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image())
    return root


def series(folder: str, count: int = 4) -> list[str]:
    return [f"{folder}/{i}.png" for i in range(count)]


def everything(data: object) -> list[tuple[str, str]]:
    """(path, class name) of all splits."""
    found: list[ImageSet] = [load_split(str(data), split) for split in available_splits(str(data))]
    return sorted((path, part.classnames[label]) for part in found for path, label in zip(part.paths, part.labels, strict=True))


def note(data: object) -> str:
    found = load_split(str(data), available_splits(str(data))[0]).note
    assert "\n" not in found
    return found


# Folders


def test_images_in_sub_folders_of_a_class_count_to_it(tmp_path: Path) -> None:
    write(tmp_path, *series("cat"), *series("dog"), *series("dog/golden", 3))
    assert [name for _, name in everything(tmp_path)].count("dog") == 7
    assert "3 images in sub-folders of a class folder count to that class (the first: dog/golden/0.png)" in note(tmp_path)


def test_images_next_to_class_folders_are_counted(tmp_path: Path) -> None:
    write(tmp_path, *series("cat"), *series("dog"), "x.png", "y.png")
    assert len(everything(tmp_path)) == 8
    assert "2 next to class folders, in none of them (the first: x.png)" in note(tmp_path)
    write(tmp_path / "t", *series("train/cat"), *series("train/dog"), "train/x.png", "z.png")
    assert len(everything(tmp_path / "t")) == 8
    assert "1 outside of the folders of the splits (the first: z.png), 1 next to class folders" in note(tmp_path / "t")


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_other_names_of_splits(tmp_path: Path, name: str) -> None:
    write(tmp_path, *series("train/a"), *series("train/b"), *series(f"{name}/a", 2), *series(f"{name}/b", 2))
    assert available_splits(tmp_path) == ("train", "val") and len(load_split(tmp_path, "val")) == 4


def test_two_folders_of_one_split(tmp_path: Path) -> None:
    write(tmp_path, *series("train/a"), *series("val/a"), *series("valid/a"))
    with pytest.raises(DataError, match="val and valid"):
        load_split(tmp_path, "train")


def test_a_class_that_is_called_train(tmp_path: Path) -> None:
    write(tmp_path, *series("bus"), *series("car"), *series("train"))
    assert {name for _, name in everything(tmp_path)} == {"bus", "car", "train"} and "the folder train counts as a class" in note(tmp_path)
    write(tmp_path, *series("test"))
    with pytest.raises(DataError, match=r"train, test.*'bus'"):
        load_split(tmp_path, "train")


def test_folders_next_to_splits_are_counted(tmp_path: Path) -> None:
    write(tmp_path, *series("train/a"), *series("train/b"), *series("masks", 5))
    assert len(everything(tmp_path)) == 8 and "5 outside of the folders of the splits (the first: masks/0.png)" in note(tmp_path)


def test_a_folder_of_data_sets_is_no_class_folder(tmp_path: Path) -> None:
    write(tmp_path, *series("one/train/a"), *series("two/train/b"))
    with pytest.raises(DataError, match="train/"):
        load_split(tmp_path, "train")


def test_thumbnails_and_what_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, *series("cat"), *series("dog"), *series("@eaDir", 3), *series("cat/@eaDir/0.png", 2), "dog/._0.png", "dog/x.HEIC")
    os.mkfifo(tmp_path / "dog" / "pipe.jpg")
    found = everything(tmp_path)
    assert {name for _, name in found} == {"cat", "dog"} and len(found) == 8
    said = note(tmp_path)
    for part in (
        "8 files are not used",
        "5 in folders of thumbnails or deleted files",
        "1 hidden",
        "1 of a format that is not read",
        "1 named pipes",
    ):
        assert part in said


def test_a_folder_whose_images_are_all_left_out(tmp_path: Path) -> None:
    write(tmp_path, *series("@eaDir"))
    with pytest.raises(DataError, match="4"):
        load_split(tmp_path, "train")


def test_a_class_name_that_is_not_utf_8(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    write(tmp_path / "file", *series("cat"), f"dog/{odd}.png", *series("dog"))
    images = load_split(tmp_path / "file", "train")
    assert len(images.digest()) == 64 and any(odd in path for path, _ in everything(tmp_path / "file"))
    write(tmp_path / "class", *series("cat"), *series(odd))
    with pytest.raises(DataError, match=r"caf\\xe9"):
        load_split(tmp_path / "class", "train")


def test_wordnet_ids_as_class_names(tmp_path: Path) -> None:
    write(tmp_path, *series("n01440764"), *series("n01443537"))
    assert "n01440764" in note(tmp_path)


# CSV


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    write(root, *series("p", 6))
    (root / "d.csv").write_bytes(text.encode(encoding))
    return root / "d.csv"


def rows(*labels: str, separator: str = ",") -> str:
    return "".join(f"p/{i}.png{separator}{label}\n" for i, label in enumerate(labels))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("path,label,classname\n" + rows("0.0,cat", "1.0,dog", "0.,cat", "1,dog", "0.00,cat", "1.0,dog"), ["cat", "dog"] * 3),
        ("path,label,classname\n" + rows(*["n02,tench", "n01,shark"] * 3), ["tench", "shark"] * 3),
        ("path;label\n" + rows(*["salt, fine", "b"] * 3, separator=";"), ["salt, fine", "b"] * 3),
        ("path\tlabel\n" + rows(*["a", "b"] * 3, separator="\t"), ["a", "b"] * 3),
        ("Path,LABEL\n" + rows(*['"salt, pepper"', "b"] * 3), ["salt, pepper", "b"] * 3),
        ("\ufeffpath,label\n" + rows(*["a", "b"] * 3), ["a", "b"] * 3),
    ],
)
def test_tables_as_programs_write_them(tmp_path: Path, text: str, names: list[str]) -> None:
    assert [name for _, name in everything(table(tmp_path, text))] == names


def test_a_table_in_utf_16(tmp_path: Path) -> None:
    file = table(tmp_path, "path\tlabel\n" + rows(*["ä", "ö"] * 3, separator="\t"), "utf-16")
    assert {name for _, name in everything(file)} == {"ä", "ö"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\n" + rows("salt, pepper", "b"), r"line 2.*'p/0\.png', 'salt', ' pepper'"),
        ("path,label,split\np/0.png,a\n", "line 2"),
        ("path,label\n" + rows("0", "cat"), r"'0'.*'cat'"),
        ("path,label\n" + rows("0.5", "1"), r"'0\.5'"),
        ("path,label\n" + rows("-1", "1"), "'-1'"),
        ("path,label\n" + rows("9" * 5000, "1"), r"'9+ \.\.\. 9+'"),
        ("path,label,classname\n" + rows("n01,a", "n01,b"), r"n01.*'a' and 'b'"),
        ("path,label,classname\n" + rows("n01,a", "n02,"), r"'p/1\.png'.*n02"),
        ("path,label\np/0.png,a\np/0.png,b\n", r"'p/0\.png'"),
        ("path,label,label\np/0.png,a,b\n", "label"),
        ("path,label,split\np/" + "x" * 300 + "/0.png,a,train\np/1.png,b,train\n", r"1 of 2.*'train'"),
        ("path,label,split\np/0\0.png,a,train\np/1.png,b,train\n", "p/0"),
    ],
)
def test_tables_that_would_change_a_label(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_split(table(tmp_path, text), "train")
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    assert "class, width" in note(table(tmp_path, "path,class,width\n" + rows(*["a,9"] * 6)))


def test_a_table_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "d.csv")
    with pytest.raises(DataError):
        load_split(tmp_path / "d.csv", "train")
    os.mkfifo(tmp_path / "p.png")
    write(tmp_path, "q.png")
    (tmp_path / "e.csv").write_text("path,label,split\np.png,a,train\nq.png,b,train\n")
    with pytest.raises(DataError, match=r"1 of 2.*'train'.*'p\.png'"):
        load_split(tmp_path / "e.csv", "train")


@pytest.mark.parametrize(
    "content",
    [
        '{"train": [["p/0.png", Infinity, "a"]]}',
        '{"train": [["p/0.png", 1.5, "a"]]}',
        '{"train": ' + "[" * 100_000,
        '{"train": [["p/0.png", true, "a"]]}',
    ],
)
def test_split_files_with_labels_that_are_none(tmp_path: Path, content: str) -> None:
    write(tmp_path, "p/0.png")
    (tmp_path / "split_coop.json").write_text(content)
    with pytest.raises(DataError) as caught:
        load_split(tmp_path, "train")
    assert len(str(caught.value)) < 1000


# Shards


def shard(path: Path, *entries: tuple[str, bytes] | tuple[str, bytes, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content, *link in entries:
            info = tarfile.TarInfo(name)
            if link:
                info.type, info.linkname = tarfile.LNKTYPE, link[0]
            info.size = 0 if link else len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_keys_of_several_parts(tmp_path: Path) -> None:
    samples = [((f"{i}.input.png", image()), (f"{i}.output.cls", b"\xef\xbb\xbfcat" if i % 2 else b"dog")) for i in range(4)]
    shard(tmp_path / "train.tar", *(entry for sample in samples for entry in sample))
    assert [name for _, name in everything(tmp_path)] == ["dog", "cat"] * 2


def test_hard_links_have_the_bytes_of_their_file(tmp_path: Path) -> None:
    shard(tmp_path / "train.tar", ("b.png", b"", "./a.png"), ("b.cls", b"dog"), ("a.png", image()), ("a.cls", b"cat"))
    found = load_split(tmp_path, "train")
    assert found.paths == ("train.tar/b.png", "train.tar/a.png") and found.source(0) == found.source(1) == image()
    shard(tmp_path / "gone" / "train.tar", ("b.png", b"", "c.png"))
    with pytest.raises(DataError, match=r"'b\.png'.*'c\.png'"):
        load_split(tmp_path / "gone", "train")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([("0.png", image()), ("0.cls", b"a"), ("0.png", image())], r"'0\.png'"),
        ([("0.png", image()), ("0.cls", b"a"), ("0.output.cls", b"b")], r"\.cls"),
        ([("0.png", image()), ("0.txt", b"a ring\non a table")], "txt"),
        ([entry for i in range(9) for entry in ((f"{i}.png", image()), (f"{i}.txt", f"ring {i}".encode()))], r"9.*9"),
        ([("0.png", image()), ("0.json", b"[" * 100_000)], "json"),
        ([("0.png", image()), ("0.json", b'{"label": Infinity}')], "label = inf"),
        ([("0.png", image()), ("0.json", b'{"label": [1]}')], r"label = \[1\]"),
        ([("0.png", image()), ("0.cls", b"9" * 5000)], "999"),
        ([("0.png", image()), ("0.cls", b"9" * 2_000_000)], "cls"),
    ],
)
def test_samples_that_say_no_class(tmp_path: Path, entries: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_split(shard(tmp_path / "train.tar", *entries), "train")
    assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_what_a_shard_holds_and_is_not_used_is_counted(tmp_path: Path) -> None:
    labelled = [entry for i in range(2) for entry in ((f"{i}.png", image()), (f"{i}.cls", b"ab"[i : i + 1]))]
    shard(tmp_path / "train.tar", *labelled, ("7.cls", b"a"), ("._0.png", image()))
    assert re.search(r"2 .*train\.tar/\._0\.png.*train\.tar/7\.cls", note(tmp_path))
    write(tmp_path, "cat/1.png")
    with pytest.raises(DataError, match="1"):
        load_split(tmp_path, "train")


def header(name: str = "a.png", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    block = bytearray(name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind)
    block += bytes(512 - len(block))
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def pax(content: bytes, kind: bytes = b"x") -> bytes:
    return header("pax", f"{len(content):011o}\0".encode(), kind) + content.ljust(-(-len(content) // 512) * 512, b"\0")


END = bytes(1024)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(size=b"\xff" * 10 + b"\xfe\x00") + END, "-512"),
        (header(size=b"77777777777\0") + END, "8589934591"),
        (pax(b"22 GNU.sparse.major=1\n40 GNU.sparse.realsize=1000000000000000\n") + header() + END, "sparse"),
        (header(kind=b"S") + END, "sparse"),
        (pax(b"30 size=999999999999999999999\n") + header() + END, "size"),
        (pax(b"14 size=-512\n\0") + header() + END, "tar"),
        (pax(b"99999 path=a\n") + header() + END, "tar"),
        (header("long", struct.pack(">12s", b"00010000000\0"), b"L") + END, "2097152"),
        (header(), "tar"),
        (b"\x1f\x8b" + bytes(2000), "tar"),
    ],
)
def test_hostile_headers_are_one_error_each(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    began = time.monotonic()
    with pytest.raises(DataError, match=message):
        members(tmp_path / "x.tar")
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_tarfiles(tmp_path: Path, kind: int) -> None:
    names = ["a.png", "b/" * 40 + "c.png", os.fsdecode(b"caf\xe9.png") if kind != tarfile.USTAR_FORMAT else "d.png", "ä.png", "e" * 90 + "/f.png"]
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as archive:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 300 * number
            archive.addfile(info, io.BytesIO(bytes(300 * number)))
    with tarfile.open(tmp_path / "x.tar") as archive:
        expected = {item.name: (item.offset_data, item.size) for item in archive if item.isreg()}
    assert dict(members(tmp_path / "x.tar")) == expected and set(expected) >= set(names)


@pytest.mark.parametrize("name", ["split_coop.json", "split_zhou_EuroSAT.json", "zeroshot_classification_templates.txt", "classnames.txt"])
def test_a_list_that_is_a_pipe(tmp_path: Path, name: str) -> None:
    shard(tmp_path / "train.tar", *(entry for i in range(2) for entry in ((f"{i}.png", image()), (f"{i}.cls", str(i).encode()))))
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError):
        templates_for(tmp_path)
        load_split(tmp_path, "train")


READERS: list[Callable[[Path], object]] = [lambda path: load_split(path, "train"), members]


@pytest.mark.parametrize("read", READERS)
def test_a_shard_that_is_a_pipe(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "x.tar")
    with pytest.raises(DataError):
        read(tmp_path / "x.tar")
