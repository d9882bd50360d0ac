"""The cache of golden rankings: identical after any interruption, never taken for another's, ranked again where it is damaged."""

import errno
import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import REPO
from tiny_encoder import class_embeddings, noise_images, tiny_encoder

from prtool.errors import ConfigError, DataError, ImageError, StorageError
from prtool.trainer.data.images import ImageSet
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
from prtool.trainer.objectives.golden_store import SHARD_IMAGES, GoldenRanking, rank_images

LOCATION = 3
CONFIG = GoldenConfig(group=2, precision="fp32")
IMAGES = 2 * SHARD_IMAGES + 5

# One thread, so that there is no pool of threads that a fork would lose; each child is then a fresh process without
# the seconds that importing torch takes.
KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from prtool.progress import SilentProgress
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from tiny_encoder import noise_images, tiny_encoder

torch.set_num_threads(1)
data, whole, broken, images = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
model, found = tiny_encoder(), noise_images(data, images)

class Tell(SilentProgress):
    def advance(self, count=1):
        os.write(writer, b"." * count)

def rank(cache):
    rank_images(GoldenSearch(model, 3, GoldenConfig(group=2, precision="fp32")), found, cache, progress=Tell())
    os._exit(0)

def child(cache):
    process = os.fork()
    if process == 0:
        rank(cache)
    return process

random.seed(9)
reader, writer = os.pipe()
for done in (random.randint(1, 60), 64, random.randint(65, 127), 128):
    process, seen = child(broken), 0
    while seen < done:
        seen += len(os.read(reader, 4096))
    time.sleep(random.uniform(0, 0.01))
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    os.set_blocking(reader, False)
    try:
        while os.read(reader, 4096):
            pass
    except BlockingIOError:
        os.set_blocking(reader, True)
for cache in (whole, broken):
    assert os.waitpid(child(cache), 0)[1] == 0, cache
"""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return noise_images(tmp_path_factory.mktemp("images"), IMAGES)


@pytest.fixture(scope="module")
def cached(images: ImageSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GoldenRanking]:
    cache = tmp_path_factory.mktemp("cache")
    return cache, rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, cache)


@pytest.fixture
def copied(cached: tuple[Path, GoldenRanking], tmp_path: Path) -> Path:
    """A copy of the finished cache that a test may damage."""
    for file in cached[0].rglob("*.*"):
        if file.is_file():
            target = tmp_path / file.relative_to(cached[0])
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    return tmp_path


class Counter:
    def __init__(self) -> None:
        self.told: list[object] = []

    def start(self, what: str, total: int) -> None:
        self.told += [what, total]

    def advance(self, count: int = 1) -> None:
        self.told.append(count)

    def finish(self) -> None:
        self.told.append("finish")


def shards(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.safetensors"))


def digests(cache: Path) -> dict[str, str]:
    return {file.relative_to(cache).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in cache.rglob("*.*") if file.is_file()}


def same(one: GoldenRanking, other: GoldenRanking) -> bool:
    return torch.equal(one.ranking, other.ranking) and torch.equal(one.scores, other.scores)


def test_what_comes_back(cached: tuple[Path, GoldenRanking]) -> None:
    cache, found = cached
    assert (found.location, found.config) == (LOCATION, CONFIG)
    assert (found.ranking.dtype, found.scores.dtype) == (torch.int16, torch.float32)
    assert found.ranking.shape == found.scores.shape == (IMAGES, 16)
    assert [len(load_file(shard)["ranking"]) for shard in shards(cache)] == [64, 64, 5]


def test_one_image_is_ranked_as_by_itself(images: ImageSet, cached: tuple[Path, GoldenRanking]) -> None:
    from prtool.runtime.images.preprocess import prepare

    model = tiny_encoder()
    pixels = torch.from_numpy(prepare(images.file(70), model.preprocess))[None]
    with torch.no_grad():
        tokens = model.tower.run_pre(pixels, 3)
    torch.testing.assert_close(cached[1].scores[70], GoldenSearch(model, LOCATION, CONFIG).rank(tokens)[1][0], atol=2e-6, rtol=0)


def test_a_finished_cache_is_read_and_not_made_again(images: ImageSet, cached: tuple[Path, GoldenRanking], monkeypatch: pytest.MonkeyPatch) -> None:
    cache, found = cached
    before = digests(cache)
    monkeypatch.setattr("prtool.trainer.objectives.golden_store._rank", None)
    counter = Counter()
    assert same(rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, cache, progress=counter), found)
    assert counter.told == ["ranking patches (images)", IMAGES, 64, 64, 5, "finish"]
    assert digests(cache) == before


def test_without_a_cache_the_ranking_is_the_same(images: ImageSet, cached: tuple[Path, GoldenRanking]) -> None:
    assert same(rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, None), cached[1])


def test_killed_at_any_moment_the_files_come_out_identical(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    path = {"PYTHONPATH": f"{REPO / 'tests'}", "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", KILLER, str(tmp_path / "images"), str(whole), str(broken), str(IMAGES)]
    done = subprocess.run(command, env=path, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    expected = digests(whole)
    assert len(expected) == 3
    assert digests(broken) == expected


def test_other_settings_model_data_or_classes_lie_side_by_side(images: ImageSet, tmp_path: Path) -> None:
    model, few = tiny_encoder(), images.take(3)
    labelled = replace(CONFIG, score="label")
    variants = [
        (model, few, LOCATION, CONFIG, None),
        (model, few, 2, CONFIG, None),
        (model, few, LOCATION, replace(CONFIG, group=1), None),
        (model, images.take(3, seed=1), LOCATION, CONFIG, None),
        (tiny_encoder("average"), few, LOCATION, CONFIG, None),
        (tiny_encoder("siglip"), few, LOCATION, CONFIG, None),
        (model, few, LOCATION, labelled, class_embeddings(model)),
        (model, few, LOCATION, labelled, class_embeddings(model, 6)),
        (replace(model, logit_scale=9.0), few, LOCATION, labelled, class_embeddings(model)),
    ]
    for encoder, some, location, config, classes in variants:
        rank_images(GoldenSearch(encoder, location, config, classes), some, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(variants)
    rank_images(GoldenSearch(model, LOCATION, CONFIG, class_embeddings(model)), few, tmp_path)
    assert len(list(tmp_path.iterdir())) == len(variants), "what the ranking does not depend on must not rank again"


def test_labels_reach_the_score(images: ImageSet) -> None:
    model, few = tiny_encoder(), images.take(9)
    other = replace(few, labels=tuple((label + 1) % 5 for label in few.labels))
    config = replace(CONFIG, score="label")
    assert not same(*(rank_images(GoldenSearch(model, LOCATION, config, class_embeddings(model)), some, None) for some in (few, other)))
    with pytest.raises(ConfigError, match="class embeddings"):
        rank_images(GoldenSearch(model, LOCATION, config), few, None)
    with pytest.raises(DataError, match="2"):
        rank_images(GoldenSearch(model, LOCATION, config, class_embeddings(model, 2)), few, None)


def test_auto_is_recorded_as_what_it_became(images: ImageSet) -> None:
    assert rank_images(GoldenSearch(tiny_encoder(), LOCATION, replace(CONFIG, precision="auto")), images.take(2), None).config.precision in (
        "fp32",
        "bf16",
    )


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "empty", "header", "swapped"])
def test_a_damaged_shard_is_ranked_again_with_a_note(
    images: ImageSet, copied: Path, cached: tuple[Path, GoldenRanking], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second, _ = shards(copied)
    content = bytearray(second.read_bytes())
    if damage == "cut":
        content = content[:-10]
    elif damage == "flipped bit":
        content[-3] ^= 4
    elif damage == "empty":
        content = bytearray()
    elif damage == "header":
        content[9] ^= 255
    else:
        content = bytearray(first.read_bytes())
    second.write_bytes(content)
    assert same(rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, copied), cached[1])
    assert digests(copied) == digests(cached[0])
    # A shard of another place is whole, and belongs to another key.
    assert [str(second) in record.getMessage() for record in caplog.records] == [True] * (damage != "swapped")


def test_a_deleted_shard_is_made_again_to_the_same_bits(images: ImageSet, copied: Path, cached: tuple[Path, GoldenRanking]) -> None:
    shards(copied)[1].unlink()
    assert same(rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, copied), cached[1])
    assert digests(copied) == digests(cached[0])


def test_an_unreadable_image_stops_the_work_and_finished_shards_stay(images: ImageSet, tmp_path: Path) -> None:
    spoiled = noise_images(tmp_path / "images", SHARD_IMAGES + 9)
    spoiled.file(SHARD_IMAGES + 3).write_bytes(b"no image")
    with pytest.raises(ImageError, match=f"{SHARD_IMAGES + 3:04d}.png"):
        rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), spoiled, tmp_path / "cache")
    assert [shard.name for shard in shards(tmp_path / "cache")] == ["00000.safetensors"]


def test_a_full_disk_is_reported_and_finished_shards_stay(
    images: ImageSet, cached: tuple[Path, GoldenRanking], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if "00001" in path.name:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patched, pytest.raises(StorageError):
        patched.setattr(Path, "write_bytes", full)
        rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, tmp_path)
    assert [file.name for file in sorted(tmp_path.rglob("*.*")) if file.is_file()] == ["00000.safetensors"]
    assert same(rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), images, tmp_path), cached[1])


def test_an_empty_set_is_refused(images: ImageSet) -> None:
    with pytest.raises(DataError):
        rank_images(GoldenSearch(tiny_encoder(), LOCATION, CONFIG), replace(images, paths=(), labels=()), None)
