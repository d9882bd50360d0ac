"""Training at a smaller image size: the students read smaller images, every reference is the native encoder's of the same images."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_model import write_images, write_model
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import pixel_batches
from prtool.trainer.features import cache_tokens, cache_unpruned
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.pruned import PlainEncoder
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from prtool.trainer.runs.checkpoint import Checkpoint, load_seeded
from prtool.trainer.settings import GoldenConfig, PruneConfig
from prtool.trainer.train import run_images, train

SIDE, NATIVE = 24, 32
SETTINGS = {"image_size": SIDE, "prune.locations": [2], "device": "cpu", "distill.steps": 6, "distill.batch": 4, "phases": ["predictor"]}
SETTINGS |= {"scorer.channels": 8, "scorer.token_hidden": 4, "scorer.channel_hidden": 16, "scorer.heads": 2, "golden.precision": "fp32"}
TOKENS = {"tokens.shots": 2, "tokens.epochs": 1, "tokens.batch": 3, "tokens.visual": 2, "tokens.label": 0.0, "tokens.distill": 1.0}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sizes")


@pytest.fixture(scope="module")
def config(root: Path) -> TrainConfig:
    data = write_images(root / "data", {"train": 3, "val": 2})
    return TrainConfig.load(None, {"model": write_model(root / "model"), "data": str(data), **SETTINGS})


@pytest.fixture(scope="module")
def whole(config: TrainConfig, root: Path) -> Checkpoint:
    return train(config, root / "whole")


@pytest.fixture(scope="module")
def model(config: TrainConfig) -> DualEncoder:
    return load_seeded(config.model, "", 0, "cpu", SIDE)


def images_of(config: TrainConfig) -> ImageSet:
    found = run_images(config)
    assert found is not None
    return found.val


@torch.no_grad()
def references(model: DualEncoder, images: ImageSet) -> Tensor:
    """The embeddings of the native tower on images of its own size."""
    ((_, pixels),) = pixel_batches(images, model.native_preprocess, range(len(images)), len(images))
    assert pixels.shape[2:] == (NATIVE, NATIVE)
    return functional.normalize(model.native(pixels), dim=-1)


@torch.no_grad()
def mean_cosine(found: Checkpoint, model: DualEncoder, images: ImageSet, keep: float) -> float:
    encoder = found.pruned_encoder(model.tower)
    ((_, pixels),) = pixel_batches(images, model.preprocess, range(len(images)), len(images))
    assert pixels.shape[2:] == (SIDE, SIDE)
    embeddings = encoder.encode(pixels, encoder.spec.counts(Keep.ratio(keep)))
    return float((embeddings * references(model, images)).sum(dim=-1).mean())


def test_what_a_run_records(config: TrainConfig, whole: Checkpoint, root: Path) -> None:
    assert (whole.image_size, whole.prune.grid, whole.scorer_trained) == (SIDE, (3, 3), True)
    model = Checkpoint.load(root / "whole").load_model()
    assert (model.tower.image_size, model.native.image_size) == ((SIDE, SIDE), (NATIVE, NATIVE))
    assert whole.weights_sha256 == load_seeded(config.model, "", 0).weights_sha256


def test_the_teacher_is_the_native_encoder_on_native_pixels(config: TrainConfig, model: DualEncoder, tmp_path: Path) -> None:
    images = images_of(config)
    features = cache_tokens(model, images, 2, tmp_path)
    assert features.batch([0]).shape[1] == 1 + 9
    found = cache_unpruned(model, images, 2, features, tmp_path)
    torch.testing.assert_close(found, references(model, images))
    ((_, pixels),) = pixel_batches(images, model.preprocess, range(len(images)), len(images))
    with torch.no_grad():
        assert not torch.allclose(found, functional.normalize(model.tower(pixels), dim=-1), atol=1e-2)


def test_each_size_has_its_own_tokens_and_all_share_the_references(config: TrainConfig, model: DualEncoder, tmp_path: Path) -> None:
    images, native = images_of(config), load_seeded(config.model, "", 0)
    for each, location in ((model, 2), (model, 3), (native, 2)):
        cache_unpruned(each, images, location, cache_tokens(each, images, location, tmp_path), tmp_path)
    # Tokens three times, native references of the smaller size once; those of the native size lie next to its tokens.
    assert len(list(tmp_path.glob("*/*.safetensors"))) == 3
    assert len(list(tmp_path.glob("*/unpruned/*.safetensors"))) == 2


def test_the_best_epoch_is_judged_against_the_native_encoder(config: TrainConfig, whole: Checkpoint, model: DualEncoder) -> None:
    middle = (config.distill.keep_low + config.distill.keep_high) / 2
    found = mean_cosine(whole, model, images_of(config), middle)
    assert whole.metrics.rates[whole.metrics.best_epoch - 1] == pytest.approx(found, abs=2e-3)  # float16 tokens


def test_learnable_tokens_are_judged_against_the_native_encoder(config: TrainConfig, model: DualEncoder, tmp_path: Path) -> None:
    settings = TrainConfig.load(None, {**config.to_json(), "phases": ["predictor", "tokens"], **TOKENS})
    found = train(settings, tmp_path)
    plain = replace(found, tokens=replace(found.tokens, visual=0), prune=replace(found.prune, learnable_tokens=0, learnable_from_block=1))
    assert found.tokens.cosines[0] == pytest.approx(mean_cosine(plain, model, images_of(config), settings.tokens.keep), abs=2e-3)


def test_golden_rankings_compare_with_the_native_embedding(config: TrainConfig, model: DualEncoder, tmp_path: Path) -> None:
    """One step without groups: the score of a patch is the cosine that is left without it."""
    images = images_of(config)
    golden = GoldenConfig(score="feature", group=1, step=0, floor=0, precision="fp32")
    found = rank_images(GoldenSearch(model, 2, golden), images, tmp_path)
    ((_, pixels),) = pixel_batches(images, model.preprocess, range(len(images)), len(images))
    wanted = references(model, images)
    with torch.no_grad():
        tokens = model.tower.run_pre(pixels, 2)
        for patch in range(9):
            left = torch.cat((tokens[:, : 1 + patch], tokens[:, 2 + patch :]), dim=1)
            cosines = (functional.normalize(model.tower.run_post(left, 2), dim=-1) * wanted).sum(dim=-1)
            torch.testing.assert_close(found.scores[:, patch], cosines, atol=1e-5, rtol=1e-5)
    with pytest.raises(ConfigError, match="native"):
        GoldenSearch(model, 2, golden).rank(tokens)


def test_a_run_of_another_size_is_another_run(config: TrainConfig, whole: Checkpoint, root: Path) -> None:
    assert train(config, root / "whole") == whole
    for other, said in ((16, "16"), (0, "0"), (NATIVE, "0")):
        with pytest.raises(ConfigError, match=rf"image_size = {SIDE} there, {said} here"):
            train(replace(config, image_size=other), root / "whole")


def test_the_native_size_is_no_size(config: TrainConfig, tmp_path: Path) -> None:
    plain = replace(config, data="", phases=("none",))
    found = train(replace(plain, image_size=NATIVE), tmp_path / "a")
    assert found.image_size == 0
    assert found == train(replace(plain, image_size=0), tmp_path / "b")


@pytest.mark.parametrize("side", [20, 40, 4])
def test_a_size_that_does_not_fit_leaves_nothing(config: TrainConfig, tmp_path: Path, side: int) -> None:
    with pytest.raises(ConfigError, match=f"image_size = {side}"):
        train(replace(config, image_size=side, data=str(tmp_path)), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_tower_that_cannot_be_resized_says_so(config: TrainConfig, tmp_path: Path) -> None:
    name = write_model(tmp_path / "model", image_size=(32, 16))
    with pytest.raises(ModelError, match="32 x 16"):
        train(replace(config, model=name, image_size=8), tmp_path / "run")


def test_a_smaller_image_alone_trains_nothing(config: TrainConfig, model: DualEncoder, tmp_path: Path) -> None:
    smaller = replace(config, phases=("none",), prune=PruneConfig(method="none"))
    found = train(smaller, tmp_path / "run")
    assert (found.scorers(), found.scorer_trained, found.prune.locations, found.image_size) == ([], False, (), SIDE)
    assert found.classnames == ("blue", "green", "red")
    encoder = Checkpoint.load(tmp_path / "run").pruned_encoder(found.load_model().tower)
    assert isinstance(encoder, PlainEncoder)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(pixels, ()), functional.normalize(model.tower(pixels), dim=-1))
    for native in (0, NATIVE):
        with pytest.raises(ConfigError, match="native"):
            train(replace(smaller, image_size=native), tmp_path / "native")
