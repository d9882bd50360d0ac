"""Image towers without a text side: from their name in timm to a bundle, and accuracy by nearest neighbours."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from local_model import write_images
from PIL import Image
from torch import Tensor
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.errors import BundleError, ConfigError, ModelError, ShapeError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare
from prtool.runtime.verify import verify
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.report import NEIGHBOURS
from prtool.trainer.evaluation.retrieval import Neighbours
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.models.loading.source import canonical_name
from prtool.trainer.train import train

SMALL = "timm:test_vit"
QUICK = {"distill.steps": 2, "distill.batch": 4, "recover.steps": 2, "recover.batch": 4, "prune.locations": [3], "image_size": 96}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("image-only")
    write_images(root / "data", {"train": 12, "val": 2, "test": 8})
    train(TrainConfig.load(None, QUICK | {"model": SMALL, "data": str(root / "data"), "seed": 3}), root / "run")
    return root


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_vit3", "timm:vit_small_patch14_reg4_dinov2"])
@torch.inference_mode()
def test_embeddings_are_those_of_timm(name):
    torch.manual_seed(5)
    model = load_model(name, image_size=56 if "14" in name else 0)
    torch.manual_seed(5)
    trunk = timm.create_model(name.removeprefix("timm:"), num_classes=0).eval()
    pixels = torch.randn(2, 3, *model.native.image_size) if "14" not in name else None
    if pixels is not None:
        assert torch.allclose(model.native(pixels), trunk(pixels), atol=1e-5)
    small = torch.randn(2, 3, *model.tower.image_size)
    if model.tower is not model.native:
        trunk.set_input_size(img_size=model.tower.image_size)
        assert torch.allclose(model.tower(small), trunk(small), atol=1e-5)
    assert model.tower.embed_dim == trunk.num_features and not model.has_text
    config = timm.data.resolve_model_data_config(trunk)
    assert (model.preprocess.mean, model.preprocess.std) == (tuple(config["mean"]), tuple(config["std"]))


def test_pixels_are_those_of_timm():
    """Which resizes to more than it crops: 0.95 of the side here."""
    model = load_model(SMALL)
    trunk = timm.create_model("test_vit", num_classes=0)
    config = timm.data.resolve_model_data_config(trunk)
    assert config["crop_pct"] == 0.95 and model.preprocess.resize_ratio > 1.0
    transform = timm.data.create_transform(**config, is_training=False)
    for size in [(160, 160), (200, 333), (401, 171), (90, 120)]:
        image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8))
        assert np.array_equal(prepare(image, model.preprocess), transform(image).numpy()), size


def test_weights_of_a_file(tmp_path):
    """With the classifier that it was trained with, in timm's names; what does not fit is rejected."""
    torch.manual_seed(6)
    whole = timm.create_model("test_vit", num_classes=5)
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    model, pixels = load_model(SMALL, str(tmp_path / "weights.pt")), torch.randn(2, 3, 160, 160)
    with torch.inference_mode():
        assert torch.allclose(model.tower(pixels), whole.eval().forward_head(whole.forward_features(pixels), pre_logits=True), atol=1e-5)
    torch.save({name: tensor for name, tensor in whole.state_dict().items() if name != "norm.weight"}, tmp_path / "part.pt")
    with pytest.raises(ModelError, match=r"lacks norm\.weight|lacks fc_norm\.weight"):
        load_model(SMALL, str(tmp_path / "part.pt"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:", "no name of timm"),
        ("timm:../vit", "no name of timm"),
        ("timm:vit_nothing", "near names in timm: .*vit_"),
        ("timm:test_vit.nothing", "no weights 'nothing' of test_vit; known: "),
        ("timm:test_resnet", "vision transformers only"),
        ("timm:vit_small_patch16_rope_mixed_224", "rotates by a RotaryEmbeddingMixed"),
    ],
)
def test_names_that_are_rejected(name, message):
    with pytest.raises(ModelError, match=message):
        load_model(name)


def test_names():
    assert canonical_name("timm:vit_small_patch14_dinov2.lvd142m") == "timm:vit_small_patch14_dinov2.lvd142m"
    with pytest.raises(ModelError, match="unknown pretrained tag"):
        load_model(SMALL, "openai")


def test_what_needs_texts_is_rejected(trained):
    model = load_model(SMALL)
    with pytest.raises(ModelError, match="timm:test_vit has no text side"):
        model.class_embeddings(["cat"], ["a {}"])
    with pytest.raises(ModelError, match="no text side"):
        model.token_ids(["cat"])
    settings = QUICK | {"model": SMALL, "data": str(trained / "data"), "seed": 3, "phases": ["tokens"], "tokens.shots": 2}
    with pytest.raises(ConfigError, match=r"tokens.label = 0\.5 learns from class prompts, but .* give tokens.label = 0"):
        train(TrainConfig.load(None, settings), trained / "run")


def loop_classified(queries: Tensor, index: Tensor, labels: list[int], voters: int) -> list[bool]:
    """The vote as a plain loop."""
    right = []
    for place, query in enumerate(queries.double()):
        similar = [(float(query @ other), number) for number, other in enumerate(index.double()) if number != place]
        votes: dict[int, float] = {}
        for cosine, number in sorted(similar, reverse=True)[:voters]:
            votes[labels[number]] = votes.get(labels[number], 0.0) + math.exp(cosine / 0.07)
        best = max(votes.values())
        right.append(min(label for label, vote in votes.items() if vote == best) == labels[place])
    return right


@pytest.mark.parametrize("images", [2, 9, 60])
def test_neighbours_vote_as_in_a_loop(images):
    generator = torch.Generator().manual_seed(images)
    index = functional.normalize(torch.randn(images, 6, generator=generator), dim=-1)
    queries = functional.normalize(index + 0.4 * torch.randn(images, 6, generator=generator), dim=-1)
    labels = torch.randint(0, 3, (images,), generator=generator)
    found = Neighbours(index).classified(queries, labels)
    assert found.tolist() == loop_classified(queries, index, labels.tolist(), 20)
    with pytest.raises(ShapeError, match="at least two images"):
        Neighbours(index).classified(queries[:1], labels)


def test_evaluation_by_neighbours(trained):
    report = evaluate_run(trained / "run", None, EvalConfig(keeps=(Keep.ratio(0.6),)))
    assert report.accuracy_by == NEIGHBOURS and report.texts == ""
    row = report.of("patch-ranking")[0]
    assert row.accuracy is not None and row.lost is not None and row.text_to_image is None and row.overlap_cross is not None
    assert any("has no text side: an accuracy is that of the 20 nearest" in note for note in report.notes)
    images = load_split(str(trained / "data"), "test")
    model = load_model_of(trained)
    with torch.inference_mode():
        own = torch.stack([torch.from_numpy(prepare(str(images.root / path), model.native_preprocess)) for path in images.paths])
        index = functional.normalize(model.native(own), dim=-1)
    right = loop_classified(index, index, list(images.labels), 20)
    assert report.unpruned.accuracy == pytest.approx(100 * sum(right) / len(right))
    assert json.loads(json.dumps(report.to_json()))["accuracy_by"] == NEIGHBOURS


def load_model_of(root: Path):
    from prtool.trainer.runs.checkpoint import Checkpoint

    return Checkpoint.load(root / "run").load_model()


def test_export_and_encode(trained, tmp_path):
    export_run(trained / "run", tmp_path / "bundle", ExportOptions(Keep.ratio(0.5), ("fp32",)))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.text is None and bundle.manifest.classes is None and "text" not in bundle.manifest.graphs["fp32"]
    image, model = Image.fromarray(np.random.default_rng(1).integers(0, 256, (120, 90, 3), dtype=np.uint8)), load_model_of(trained)
    with Encoder.load(tmp_path / "bundle", mode="full") as encoder:
        with torch.inference_mode():
            wanted = functional.normalize(model.native(torch.from_numpy(prepare(image, model.native_preprocess))[None]), dim=-1)
        assert np.allclose(encoder.encode_images([image]), wanted.numpy(), atol=1e-5)
        with pytest.raises(BundleError, match="no text side"):
            encoder.encode_text(["a cat"])
    assert all(case.mode != "text" for case in verify(bundle).cases)


@pytest.mark.slow
def test_a_rotary_tower_from_training_to_the_bundle(trained, tmp_path):
    """DINOv3, without absolute positions, at a quarter of its size: predictor, recovery, evaluation, bundle."""
    settings = QUICK | {"model": "timm:vit_tiny_patch16_dinov3_qkvb", "data": str(trained / "data"), "image_size": 64, "seed": 1}
    found = train(TrainConfig.load(None, settings), tmp_path / "run")
    keeps, methods = (Keep.ratio(0.5),), ("patch-ranking", "cls-attention", "random", "smaller-image")
    assert evaluate_run(tmp_path / "run", None, EvalConfig(keeps=keeps, methods=methods)).methods == methods
    for name in ("evit", "avit", "tome"):
        with pytest.raises((ConfigError, ModelError), match=r"rotary positions|cannot merge"):
            evaluate_run(tmp_path / "run", None, EvalConfig(keeps=keeps, methods=(name,)))
    assert "patch-ranking" in evaluate_run(tmp_path / "run", None, EvalConfig(keeps=keeps)).methods
    export_run(tmp_path / "run", tmp_path / "bundle", ExportOptions(Keep.ratio(0.5), ("fp32",)))
    encoder, pixels = found.pruned_encoder(found.load_model().tower), torch.randn(2, 3, 64, 64)
    with Encoder.load(tmp_path / "bundle") as loaded, torch.inference_mode():
        wanted = encoder.encode(pixels, encoder.spec.counts(8))
        assert np.allclose(loaded.encode_pixels(pixels.numpy(), keep=8), wanted.numpy(), atol=1e-5)
