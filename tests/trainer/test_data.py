import hashlib
import io
import json
import random
import tarfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_encoder import class_embeddings, noise_images, tiny_encoder

from prtool.errors import ConfigError, DataError, ImageError
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Preprocess
from prtool.trainer.data.address import folder_of, parse_data, split_data
from prtool.trainer.data.images import ImageSet, few_shot
from prtool.trainer.data.load import available_splits, data_exists, load_split, merge, pixel_batches, templates_for
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from prtool.trainer.train import RunImages

SPEC = Preprocess((4, 4), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def jpeg(grey: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (1, 1), (grey, grey, grey)).save(stream, "JPEG")
    return stream.getvalue()


def write(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(number % 256))
    return root


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def pairs(images: ImageSet) -> list[tuple[str, str]]:
    return [(path, images.classnames[label]) for path, label in zip(images.paths, images.labels, strict=True)]


# Forms


def test_split_folders(tmp_path: Path) -> None:
    write(tmp_path, "train/dog/a.jpg", "train/cat/b.JPG", "test/dog/c.jpg", "train/dog/.hidden.jpg", "train/dog/notes.txt")
    found = load_split(tmp_path, "train")
    assert pairs(found) == [("train/cat/b.JPG", "cat"), ("train/dog/a.jpg", "dog")]
    assert available_splits(tmp_path) == ("train", "test")
    assert found.origin == str(tmp_path.resolve()) and "train/dog/.hidden.jpg" in found.note
    with pytest.raises(DataError, match=r"'val'.*train, test"):
        load_split(tmp_path, "val")


def test_an_empty_class_folder(tmp_path: Path) -> None:
    write(tmp_path, "train/dog/a.jpg", "train/cat/b.jpg")
    (tmp_path / "train" / "bird").mkdir()
    with pytest.raises(DataError, match="'bird'"):
        load_split(tmp_path, "train")


def part_by_hash(path: str) -> str:
    """docs/data.md, written out: the first 8 bytes of the path's SHA-256 as a share of all numbers of 8 bytes."""
    share = int(hashlib.sha256(path.encode()).hexdigest()[:16], 16) / 16**16
    return "train" if share < 0.5 else "val" if share < 0.7 else "test"


def test_class_folders_are_split_by_each_path_alone(tmp_path: Path) -> None:
    names = [f"{name}/{i:03d}.jpg" for name in ("cat", "dog") for i in range(150)]
    write(tmp_path, *names)
    parts = {split: load_split(tmp_path, split) for split in ("train", "val", "test")}
    assert {path: split for split, part in parts.items() for path in part.paths} == {path: part_by_hash(path) for path in names}
    assert all("50/20/30" in part.note for part in parts.values())
    before = {path: split for split, part in parts.items() for path in part.paths}
    write(tmp_path, "cat/000-new.jpg", *(f"bird/{i}.jpg" for i in range(5)))
    after = {path: split for split in parts for path in load_split(tmp_path, split).paths}
    assert len(after) == 306 and before.items() <= after.items(), "an image or a class more moves no other"


@pytest.mark.parametrize("count", range(3, 12))
def test_no_part_of_a_tiny_class_is_empty(tmp_path: Path, count: int) -> None:
    names = [f"cat/{i}.jpg" for i in range(count)]
    write(tmp_path, *names, *(f"dog/{i}.jpg" for i in range(3)))
    found = {split: [path for path in load_split(tmp_path, split).paths if path.startswith("cat")] for split in ("train", "val", "test")}
    assert all(found.values()) and sorted(path for part in found.values() for path in part) == sorted(names)
    moved = [path for split, part in found.items() for path in part if part_by_hash(path) != split]
    empty = 3 - len({part_by_hash(path) for path in names})
    assert len(moved) <= 2 * empty


def test_class_folders_need_three_images_each(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.jpg", "cat/1.jpg", "cat/2.jpg", "dog/0.jpg", "dog/1.jpg")
    with pytest.raises(DataError, match=r"'dog'.* 2"):
        load_split(tmp_path, "train")
    write(tmp_path, "dog/2.jpg")
    assert [len(load_split(tmp_path, split)) for split in ("train", "val", "test")] == [2, 2, 2]


def test_plain_photographs_have_no_labels(tmp_path: Path) -> None:
    write(tmp_path, *(f"{i}.jpg" for i in range(10)))
    found = load_split(tmp_path, "train")
    assert (
        found.paths == tuple(f"{i}.jpg" for i in range(10) if part_by_hash(f"{i}.jpg") == "train")
        and set(found.labels) == {-1}
        and found.classnames == ()
    )
    with pytest.raises(DataError, match=r"labels.* \d of \d"):
        found.require_labels("accuracy")
    with pytest.raises(DataError, match=r"tokens\.shots.*labels"):
        few_shot(found, 1, 0)


def test_a_score_that_needs_labels(tmp_path: Path) -> None:
    images = replace(noise_images(tmp_path, 2), labels=(-1, -1))
    model = tiny_encoder()
    with pytest.raises(DataError, match=r"'label'.*2 of 2"):
        rank_images(GoldenSearch(model, 2, GoldenConfig(score="label"), class_embeddings(model)), images, None)


def test_a_run_records_what_loads_its_data_again(tmp_path: Path) -> None:
    write(tmp_path / "eurosat", "train/Forest/1.jpg", "train/River/2.jpg")
    images = load_split(f"eurosat:{tmp_path / 'eurosat'}", "train")
    recorded = RunImages(images, images, held_out=True).info()
    assert recorded.root == f"eurosat:{(tmp_path / 'eurosat').resolve()}" and load_split(recorded.root, "train") == images


def test_nothing_that_is_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="split_coop"):
        load_split(tmp_path, "train")
    with pytest.raises(DataError, match="absent"):
        load_split(tmp_path / "absent", "train")
    with pytest.raises(DataError, match=r"valid.*train, val, test"):
        load_split(tmp_path, "valid")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"\.csv.*\.tar"):
        load_split(tmp_path / "notes.txt", "train")


def coop(root: Path, train: list[list[object]], **others: list[list[object]]) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "split_coop.json").write_text(json.dumps({"train": train, "val": [], "test": [], **others}))
    return root


def test_coop_file(tmp_path: Path) -> None:
    write(tmp_path, "x/a.jpg", "x/b.jpg", "x/c.jpg")
    coop(tmp_path, [["x/b.jpg", 1, "dog"], ["x/a.jpg", 0, "cat"]], test=[["x/c.jpg", 1, "dog"]])
    assert pairs(load_split(tmp_path, "train")) == [("x/b.jpg", "dog"), ("x/a.jpg", "cat")], "the file's order stays: CoOp's sampling depends on it"
    assert available_splits(tmp_path) == ("train", "test")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["../a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]], r"'\.\./a\.jpg'"),
        ([["/a.jpg", 0, "cat"], ["b.jpg", 1, "dog"]], r"a\.jpg"),
        ([["b.jpg", 0, "cat"], ["c.jpg", 2, "dog"]], r"\[0, 2\].*0 to 1"),
        ([["b.jpg", 0, "cat"], ["c.jpg", 0, "dog"]], "'cat' and 'dog'"),
        ([["b.jpg", 0, "cat"]], "cat"),
        ([["b.jpg", 0]], "split_coop"),
        (
            [["b.jpg", 0, "cat"], ["gone.jpg", 1, "dog"], ["gone/2.jpg", 1, "dog"]],
            r"2 of 3.*'train'.*'gone\.jpg'",
        ),
    ],
)
def test_a_bad_coop_file(tmp_path: Path, rows: list[list[object]], message: str) -> None:
    write(tmp_path, "b.jpg", "c.jpg")
    with pytest.raises(DataError, match=message):
        load_split(coop(tmp_path, rows), "train")


# CSV


def test_csv_with_names_and_splits(tmp_path: Path) -> None:
    write(tmp_path, "p/1.jpg", "p/2.jpg", "p/3.jpg")
    (tmp_path / "d.csv").write_text("\ufeffpath, label ,split,extra\np/1.jpg,dog,train,x\np/2.jpg,cat,train,\np/3.jpg,dog,test,\n", encoding="utf-8")
    found = load_split(tmp_path / "d.csv", "train")
    assert pairs(found) == [("p/1.jpg", "dog"), ("p/2.jpg", "cat")] and found.classnames == ("cat", "dog")
    assert available_splits(tmp_path / "d.csv") == ("train", "test")
    assert load_split(found.origin, "test").paths == ("p/3.jpg",)


def test_csv_with_numbers(tmp_path: Path) -> None:
    write(tmp_path, *(f"{i}.jpg" for i in range(8)))
    (tmp_path / "d.csv").write_text("path,label\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in range(8)))
    with pytest.raises(DataError, match=r"'0\.jpg'"):
        load_split(tmp_path / "d.csv", "train")
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    found = load_split(tmp_path / "d.csv", "train")
    assert all(name == ("cat", "dog")[int(Path(path).stem) % 2] for path, name in pairs(found))
    (tmp_path / "d.csv").write_text("path,label,classname\n" + "".join(f"{i}.jpg,{i % 2},{'ab'[i % 2]}\n" for i in range(8)))
    (tmp_path / "classnames.txt").unlink()
    assert load_split(tmp_path / "d.csv", "val").classnames == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.jpg,cat\n", r"\['file', 'label'\].*path"),
        ("path,label\na.jpg,cat\n,dog\n", r"line 3.*path"),
        ("path,label,split\na.jpg,cat,train\nb.jpg,dog,dev\n", r"line 3.*split = 'dev'.*train, val, test"),
        ("path,label\na.jpg,cat\nb.jpg,\n", r"1 of 2.*'b\.jpg'"),
        ("path,label,classname\na.jpg,0,cat\nb.jpg,0,dog\n", r"cat.*dog"),
        ("path,label,split\n../a.jpg,cat,train\nb.jpg,dog,train\n", r"a\.jpg"),
    ],
)
def test_a_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path / "d.csv", "train")


def test_csv_without_labels(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "d.csv").write_text("path,split\na.jpg,train\n")
    assert load_split(tmp_path / "d.csv", "train").labels == (-1,)


CAPTIONED = 'path,caption,split\na.jpg,a dog,train\nb.jpg,a cat,train\na.jpg,"a dog, asleep",train\nc.jpg,a bird,test\n'


def test_csv_with_captions(tmp_path: Path) -> None:
    """An image has a row for each caption; parts and merged sets keep them with their images."""
    write(tmp_path, "a.jpg", "b.jpg", "c.jpg", "more/d.jpg")
    (tmp_path / "d.csv").write_text(CAPTIONED)
    found = load_split(tmp_path / "d.csv", "train")
    assert (found.paths, found.labels, found.note) == (("a.jpg", "b.jpg"), (-1, -1), "")
    assert found.captions == (("a dog", "a dog, asleep"), ("a cat",))
    assert found.subset([1]).captions == (("a cat",),)
    assert load_split(tmp_path / "d.csv", "test").captions == (("a bird",),)
    (tmp_path / "more" / "e.csv").write_text("path,split\nd.jpg,train\n")
    both = load_split(f"{tmp_path / 'd.csv'},{tmp_path / 'more' / 'e.csv'}", "train")
    assert both.captions == (*found.captions, ())
    assert found.digest() != replace(found, captions=(("a dog",), ("a cat",))).digest()
    assert replace(found, captions=()).digest() != found.digest()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,caption\na.jpg,a dog\nb.jpg,\n", r"1 of 2.*line 3.*'b\.jpg'"),
        ("path,label\na.jpg,cat\nb.jpg,cat\na.jpg,cat\n", r"line 4.*'a\.jpg'"),
        ("path,label,caption\na.jpg,cat,x\nb.jpg,dog,y\na.jpg,dog,z\n", r"line 4.*'a\.jpg'.*label.*'cat'.*'dog'"),
        ("path,caption,split\na.jpg,x,train\na.jpg,y,test\n", r"line 3.*split.*'train'.*'test'"),
        ("path,caption,caption\na.jpg,x,y\n", "caption"),
    ],
)
def test_bad_captions(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load_split(tmp_path / "d.csv", "train")


# Tar shards


def samples(start: int, count: int, suffix: str, text: str = "{}") -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for i in range(start, start + count):
        found[f"./{i:04d}.jpg"] = jpeg(20 * i % 256)
        found[f"./{i:04d}.{suffix}"] = text.format(i % 2).encode()
    return found


def test_shards_give_the_bytes_that_were_put_in(tmp_path: Path) -> None:
    first, second = samples(0, 4, "cls"), samples(4, 3, "cls")
    write_tar(tmp_path / "train-0.tar", first)
    write_tar(tmp_path / "train-1.tar", second)
    write_tar(tmp_path / "test" / "0.tar", samples(7, 2, "cls"))
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    found = load_split(tmp_path, "train")
    assert found.paths == tuple(f"train-{i // 4}.tar/{i:04d}.jpg" for i in range(7)) and found.labels == (0, 1, 0, 1, 0, 1, 0)
    for index in range(7):
        assert found.source(index) == (first | second)[f"./{index:04d}.jpg"]
    assert load_split(tmp_path, "test").paths == ("test/0.tar/0007.jpg", "test/0.tar/0008.jpg")
    lines = "".join(f"{path}\0{label}\0{len(found.source(i))}\n" for i, (path, label) in enumerate(zip(found.paths, found.labels, strict=True)))
    assert found.digest() == hashlib.sha256(lines.encode()).hexdigest()
    with pytest.raises(DataError, match="tar"):
        found.file(0)


@pytest.mark.parametrize(
    ("suffix", "text", "names"),
    [
        ("txt", "kind {}", ("kind 0", "kind 1")),
        ("json", '{{"label": {0}, "classname": "kind {0}"}}', ("kind 0", "kind 1")),
        ("json", '{{"label": "kind {0}"}}', ("kind 0", "kind 1")),
    ],
)
def test_other_labels_in_shards(tmp_path: Path, suffix: str, text: str, names: tuple[str, ...]) -> None:
    write_tar(tmp_path / "x.tar", samples(0, 8, suffix, text))
    found = load_split(tmp_path / "x.tar", "train")
    assert found.classnames == names and "hash" in found.note
    assert all(int(path[-8:-4]) % 2 == label for path, label in zip(found.paths, found.labels, strict=True))
    assert load_split(tmp_path, "train").paths == found.paths


def test_bad_shards(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a" / "train-0.tar", samples(0, 4, "cls"))
    with pytest.raises(DataError, match=r"train-0.tar"):
        load_split(tmp_path / "a", "train")
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"train-0.tar"):
        load_split(tmp_path / "a", "train")
    write_tar(tmp_path / "b" / "train.tar", {"1.jpg": jpeg(), "1.png": jpeg()})
    with pytest.raises(DataError, match="'1'"):
        load_split(tmp_path / "b", "train")
    write_tar(tmp_path / "c" / "train.tar", {"1.jpg": jpeg()})
    write_tar(tmp_path / "c" / "other.tar", {"1.jpg": jpeg()})
    with pytest.raises(DataError, match=r"other\.tar"):
        load_split(tmp_path / "c", "train")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.tar.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"train\.tar\.gz"):
        load_split(tmp_path / "d", "train")
    write_tar(tmp_path / "e" / "train.tar", {"1.jpg": jpeg(), "1.json": b"[]"})
    with pytest.raises(DataError, match="json"):
        load_split(tmp_path / "e", "train")


def test_a_folder_called_like_a_shard(tmp_path: Path) -> None:
    write(tmp_path, "train/a.tar/1.jpg", "train/b/1.jpg")
    found = load_split(tmp_path, "train")
    assert found.source(0) == found.file(0) == tmp_path / "train/a.tar/1.jpg"


def test_templates_beside_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "train.tar", samples(0, 2, "txt"))
    assert templates_for(tmp_path) == ("a photo of a {}.",)
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\nthe {c}.\n")
    assert templates_for(tmp_path) == ("a {}.", "the {}.")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {}.\n")
    with pytest.raises(DataError, match=r"\{c\}"):
        templates_for(tmp_path)


# Pixels


def test_pixels_of_files_and_members(tmp_path: Path) -> None:
    content = jpeg(90)
    (tmp_path / "a.jpg").write_bytes(content)
    write_tar(tmp_path / "s.tar", {"b.jpg": content, "c.jpg": jpeg(200)})
    images = ImageSet(tmp_path, ("s.tar/c.jpg", "a.jpg", "s.tar/b.jpg"), (0, 1, 1), ("x", "y"))
    ((chunk, pixels),) = pixel_batches(images, SPEC, [0, 1, 2], 3)
    assert chunk == [0, 1, 2] and torch.equal(pixels[1], pixels[2])
    assert np.array_equal(pixels[0].numpy(), prepare(jpeg(200), SPEC)) and not torch.equal(pixels[0], pixels[1])


def test_a_member_that_is_no_image_is_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "s.tar", {"b.jpg": b"no image"})
    with pytest.raises(ImageError, match=r"s\.tar/b\.jpg: "):
        list(pixel_batches(ImageSet(tmp_path, ("s.tar/b.jpg",), (0,), ("x", "y")), SPEC, [0], 1))


# Few-shot


def dassl_few_shot(items: list[tuple[str, int]], shots: int, seed: int) -> set[str]:
    """Dassl's generate_fewshot_dataset, written out, with the global generator that CoOp seeds."""
    random.seed(seed)
    tracker = defaultdict(list)
    for item in items:
        tracker[item[1]].append(item)
    return {path for found in tracker.values() for path, _ in random.sample(found, shots)}


@pytest.mark.parametrize("shots", [1, 2, 4, 8])
def test_few_shot_draws_what_coop_draws(shots: int) -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [8, 9, 10, 11, 12])).tolist()
    images = ImageSet(Path("/nowhere"), tuple(f"{i}.jpg" for i in range(len(labels))), tuple(labels), tuple("abcde"))
    for seed in (1, 2, 3):
        found = few_shot(images, shots, seed)
        assert set(found.paths) == dassl_few_shot(list(zip(images.paths, labels, strict=True)), shots, seed)
        assert [found.labels.count(label) for label in range(5)] == [shots] * 5
        assert list(found.paths) == sorted(found.paths, key=lambda path: int(path[:-4])), "in order"
    assert few_shot(images, 0, 1) is images


def test_too_few_shots() -> None:
    images = ImageSet(Path("/nowhere"), ("a", "b", "c"), (0, 0, 1), ("cat", "dog"))
    with pytest.raises(DataError, match=r"'dog'.* 1 .* 2 "):
        few_shot(images, 2, 0)
    with pytest.raises(DataError, match="'bird'"):
        few_shot(ImageSet(images.root, images.paths, images.labels, ("cat", "dog", "bird")), 1, 0)
    with pytest.raises(ConfigError, match="shots = -1"):
        few_shot(images, -1, 0)


# Several sets


def test_several_sets_as_one(tmp_path: Path) -> None:
    write(tmp_path / "one", "train/cat/a.jpg", "train/dog/b.jpg", "val/cat/c.jpg", "val/dog/d.jpg")
    write_tar(tmp_path / "deep" / "two" / "train-0.tar", {"1.jpg": jpeg(9), "1.txt": b"dog", "2.jpg": jpeg(8), "2.txt": b"emu"})
    text = f"{tmp_path / 'one'},{tmp_path / 'deep' / 'two'}"
    found = load_split(text, "train")
    assert found.root == tmp_path.resolve() and found.classnames == ("cat", "dog", "dog", "emu") and found.labels == (0, 1, 2, 3)
    assert found.paths == ("one/train/cat/a.jpg", "one/train/dog/b.jpg", "deep/two/train-0.tar/1.jpg", "deep/two/train-0.tar/2.jpg")
    assert found.file(0).read_bytes() == (tmp_path / "one/train/cat/a.jpg").read_bytes() and found.source(3) == jpeg(8)
    assert load_split(found.origin, "train") == found
    assert available_splits(text) == ("train",), "only what all of them have"
    before = found.digest()
    (tmp_path / "one/train/dog/b.jpg").write_bytes(b"longer or shorter")
    assert found.digest() != before
    assert templates_for(text) == ("a photo of a {}.",)
    with pytest.raises(DataError, match="one"):
        load_split(f"{tmp_path / 'one'},{tmp_path / 'one'}", "train")
    with pytest.raises(DataError):
        load_split(f"{tmp_path / 'one'},", "train")


@pytest.mark.parametrize("names", [("a,b/s1", "a,b/s2"), ("a,", "b"), ("x,,y", ",z,"), ("one ", " two")])
def test_commas_of_paths_are_read_back(tmp_path: Path, names: tuple[str, str]) -> None:
    for name in names:
        write(tmp_path / name, "train/River/1.jpg", "train/Forest/2.jpg")
    single = load_split(tmp_path / names[0], "train")
    assert load_split(single.origin, "train") == single
    for known in ("", "eurosat:"):
        text = ",".join(known + str(tmp_path / name).replace(",", ",,") for name in names)
        found = load_split(text, "train")
        assert len(found) == 4 and load_split(found.origin, "train") == found
    given = f"eurosat:{tmp_path / names[0]}"
    assert load_split(given, "train").paths == single.paths and parse_data(given)[0].path == tmp_path / names[0], "as the user typed it"


def test_a_list_of_data_for_studies_is_separated_in_the_same_way(tmp_path: Path) -> None:
    write(tmp_path, "a,b/eurosat/train/River/1.jpg", "c/train/x/1.jpg")
    whole = str(tmp_path / "a,b")
    assert split_data(whole) == split_data(whole.replace(",", ",,")) == (whole,)
    assert split_data(f"eurosat:{whole},{tmp_path / 'c'}".replace("a,b", "a,,b")) == (f"eurosat:{whole}", str(tmp_path / "c"))
    assert folder_of(f"eurosat:{whole}") == folder_of(whole) == Path(whole) and folder_of("dtd:/nowhere") == Path("/nowhere")


def test_a_text_that_may_mean_two_things(tmp_path: Path) -> None:
    write(tmp_path, "a,,b/train/x/1.jpg", "a,b/train/x/1.jpg")
    with pytest.raises(DataError, match="a,,b"):
        parse_data(tmp_path / "a,,b")
    assert parse_data(str(tmp_path / "a,b"))[0].path == tmp_path / "a,b"
    with pytest.raises(DataError, match="c,"):
        parse_data(f"eurosat:{tmp_path / 'c,,d'}")


def test_merging_keeps_missing_labels_missing(tmp_path: Path) -> None:
    plain = ImageSet(tmp_path / "p", ("x.jpg",), (-1,), ())
    named = ImageSet(tmp_path / "n", ("y.jpg",), (1,), ("a", "b"))
    assert merge([named, plain, named]).labels == (1, -1, 3)
    assert merge([named]) is named
    with pytest.raises(DataError):
        merge([])


def test_data_exists(tmp_path: Path) -> None:
    assert data_exists(tmp_path) and data_exists(f"dtd:{tmp_path}")
    assert not data_exists(f"{tmp_path},{tmp_path / 'gone'}") and not data_exists("")
