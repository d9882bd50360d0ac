"""Cached tokens: what is stored, what resumes, and what is never taken for something else."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_encoder import noise_images, tiny_encoder
from torch.nn import functional

from prtool.errors import ShapeError
from prtool.progress import SilentProgress
from prtool.trainer import features as module
from prtool.trainer.data.load import pixel_batches
from prtool.trainer.features import Features, cache_tokens, cache_unpruned


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD_IMAGES", 4)
    monkeypatch.setattr(module, "_BATCH", 2)


@pytest.fixture(scope="module")
def model():
    return tiny_encoder()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return noise_images(tmp_path_factory.mktemp("images"), 10)


class Stop(SilentProgress):
    """Raises at the given advance, as Ctrl-C would."""

    def __init__(self, after):
        self.left = after

    def advance(self, count=1):
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


class Count(SilentProgress):
    def __init__(self):
        self.done = 0

    def advance(self, count=1):
        self.done += count


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tokens_are_those_that_enter_the_location(model, images, tmp_path):
    found = cache_tokens(model, images, 3, tmp_path)
    ((_, pixels),) = pixel_batches(images, model.preprocess, range(10), 10)
    expected = model.tower.run_pre(pixels, 3)
    assert [shard.dtype for shard in found.shards] == [torch.float16] * 3
    picked = found.batch([9, 0, 5])
    assert picked.dtype == torch.float32
    torch.testing.assert_close(picked, expected[[9, 0, 5]], rtol=1e-3, atol=1e-3)


def test_a_second_call_computes_nothing(model, images, tmp_path, monkeypatch):
    before = cache_tokens(model, images, 2, tmp_path)
    monkeypatch.setattr(module, "compute_batches", None)
    progress = Count()
    after = cache_tokens(model, images, 2, tmp_path, progress)
    torch.testing.assert_close(after.batch(range(10)), before.batch(range(10)), rtol=0, atol=0)
    assert progress.done == 10


@pytest.mark.parametrize("after", [0, 3, 5, 9])
def test_stopped_anywhere_it_goes_on_to_the_same_bytes(model, images, tmp_path, after):
    cache_tokens(model, images, 2, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        cache_tokens(model, images, 2, tmp_path / "stopped", Stop(after))
    cache_tokens(model, images, 2, tmp_path / "stopped")
    assert content(tmp_path / "stopped") == content(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["tokens", "unpruned"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "flipped bit", "swapped"])
def test_a_damaged_shard_is_computed_again(model, images, tmp_path, kind, damage):
    features = cache_tokens(model, images, 2, tmp_path)
    cache_unpruned(model, images, 2, features, tmp_path)
    before = content(tmp_path)
    home = next(path for path in tmp_path.rglob("00001.safetensors") if (path.parent.name == "unpruned") == (kind == "unpruned")).parent
    shard, whole = home / "00001.safetensors", (home / "00001.safetensors").read_bytes()
    damaged = {"truncated": whole[:-7], "empty": b"", "other": b"\xff" * 500, "flipped bit": whole[:-1] + bytes([whole[-1] ^ 1])}
    shard.write_bytes({**damaged, "swapped": (home / "00000.safetensors").read_bytes()}[damage])
    cache_unpruned(model, images, 2, cache_tokens(model, images, 2, tmp_path), tmp_path)
    assert content(tmp_path) == before


def test_other_location_model_or_images_have_their_own_tokens(model, images, tmp_path):
    fewer = replace(images, paths=images.paths[:4], labels=images.labels[:4])
    for made in ((model, images, 2), (model, images, 3), (replace(model, weights_sha256="other"), images, 2), (model, fewer, 2)):
        cache_tokens(*made, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_values_beyond_float16_keep_float32(model, images, tmp_path, monkeypatch):
    compute = module.compute_batches
    monkeypatch.setattr(module, "compute_batches", lambda *arguments: 1e5 * (1 + compute(*arguments).abs()))
    found = cache_tokens(model, images, 2, tmp_path)
    assert bool(found.batch(range(10)).isfinite().all())
    assert load_file(next(tmp_path.rglob("00000.safetensors")))["tokens"].dtype == torch.float32


def test_features_in_memory():
    tokens = torch.randn(9, 3, 2)
    found = Features.of(tokens)
    assert len(found) == 9
    torch.testing.assert_close(found.batch([8, 4, 4]), tokens[[8, 4, 4]])
    with pytest.raises(ShapeError, match=r"\[1, 4, 4\]"):
        Features(found.shards[::-1], "")


def test_unpruned_embeddings_are_the_towers(model, images, tmp_path):
    features = cache_tokens(model, images, 3, tmp_path)
    found = cache_unpruned(model, images, 3, features, tmp_path)
    ((_, pixels),) = pixel_batches(images, model.preprocess, range(10), 10)
    assert (found.dtype, tuple(found.shape)) == (torch.float32, (10, model.tower.embed_dim))
    with torch.no_grad():
        torch.testing.assert_close(found, functional.normalize(model.tower(pixels), dim=-1), rtol=0, atol=3e-3)  # float16 tokens


def test_unpruned_embeddings_go_on_and_are_computed_once(model, images, tmp_path, monkeypatch):
    features = cache_tokens(model, images, 2, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache_unpruned(model, images, 2, features, tmp_path, Stop(5))
    before = cache_unpruned(model, images, 2, features, tmp_path)
    monkeypatch.setattr(module, "compute_batches", None)
    progress = Count()
    assert torch.equal(cache_unpruned(model, images, 2, features, tmp_path, progress), before)
    assert progress.done == 10
