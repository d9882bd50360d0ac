"""`prtool.apply`: open_clip's and transformers' own calls give the run's embeddings, not normalised."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_models import SIDE, make_checkpoint, write_checkpoint
from hugging_face_towers import make_pair, make_tower, reference, write_tower
from local_model import write_images, write_model
from PIL import Image
from torch import Tensor
from torch.nn import functional

import prtool
from prtool.errors import CheckpointError, KeepError, ModelError, ShapeError
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.train import train

open_clip = pytest.importorskip("open_clip", reason="open_clip makes the models")

QUICK = {"distill.steps": 2, "distill.batch": 4, "recover.steps": 40, "recover.batch": 4, "recover.lr": 3e-3}
METHODS: dict[str, dict[str, object]] = {
    "rank": {"prune.locations": [2]},
    "merge": {"prune.method": "merge", "prune.locations": [1]},
    "smaller image": {"prune.method": "none", "image_size": 24},
    "ranking of a smaller image": {"prune.locations": [2], "image_size": 24},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("drop-in")
    write_model(root / "model")
    write_images(root / "data", {"train": 12, "val": 2})
    for name, settings in METHODS.items():
        train(TrainConfig.load(None, QUICK | settings | {"model": f"local-dir:{root / 'model'}", "data": str(root / "data")}), root / name)
    return root


def host(root: Path) -> Any:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{root / 'model'}")
    return model.eval()


def pixels_of(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))


def usual_of(run: Path) -> Keep:
    """In the middle of what its recovery, which each run has, allows."""
    checkpoint = Checkpoint.load(run)
    assert checkpoint.recovery.kept is not None
    low, high = checkpoint.keep_range
    return Keep.count((low + high) // 2)


@pytest.mark.parametrize("method", METHODS)
@torch.inference_mode()
def test_encode_image_gives_the_runs_embeddings(made, method):
    model, plain, keep = host(made), host(made), usual_of(made / method)
    found = prtool.apply(model, made / method, keep)
    assert found is model
    pixels = pixels_of(model.visual.image_size[0])
    checkpoint = Checkpoint.load(made / method)
    encoder = checkpoint.pruned_encoder(checkpoint.load_model().tower)
    wanted = encoder.encode(pixels, encoder.spec.counts(keep))
    embeddings = model.encode_image(pixels)
    assert not torch.allclose(embeddings, plain.encode_image(pixels_of(32)), atol=1e-3)
    assert torch.allclose(functional.normalize(embeddings, dim=-1), wanted, atol=1e-6)
    assert float((embeddings.norm(dim=-1) - 1.0).abs().max()) > 1e-3, "as the host gives them: not normalised"
    assert torch.allclose(model.encode_image(pixels, normalize=True), wanted, atol=1e-6)
    ids = open_clip.get_tokenizer(f"local-dir:{made / 'model'}")(["a photo of a cat"])
    assert torch.equal(model.encode_text(ids), plain.encode_text(ids))


@torch.inference_mode()
def test_keep_as_attribute_and_of_one_call(made):
    model, pixels, checkpoint = host(made), pixels_of(32), Checkpoint.load(made / "rank")
    low, high = checkpoint.keep_range
    prtool.apply(model, made / "rank", high)
    at_high = model.encode_image(pixels)
    at_low = model.visual(pixels, keep=Keep.count(low))
    assert not torch.allclose(at_high, at_low)
    model.visual.keep = Keep.count(low)
    assert torch.equal(model.encode_image(pixels), at_low) and model.visual.keep == Keep.count(low)
    for wrong in (0, 17, 1.5, Keep.count(low - 1)):
        with pytest.raises(KeepError):
            model.visual.keep = wrong
        with pytest.raises(KeepError):
            model.visual(pixels, keep=wrong)
    assert torch.equal(model.encode_image(pixels), at_low), "what could not be set changed nothing"


def test_gradients_training_mode_and_frozen_weights(made):
    model = host(made).train()
    prtool.apply(model, made / "rank", usual_of(made / "rank"))
    assert model.visual.training
    model.encode_image(pixels_of(32)).square().sum().backward()
    assert all(parameter.grad is not None for name, parameter in model.visual.named_parameters() if "tower.host.transformer" in name)
    frozen = host(made).requires_grad_(False)
    prtool.apply(frozen, made / "rank", usual_of(made / "rank"))
    assert not any(parameter.requires_grad for parameter in frozen.visual.parameters())
    pixels = pixels_of(32).requires_grad_()
    frozen.encode_image(pixels).sum().backward()
    assert float(pixels.grad.abs().sum()) > 0.0


@pytest.mark.parametrize("method", ["rank", "merge"])
def test_compile_autocast_and_half_precision(made, method):
    model, pixels = host(made), pixels_of(32)
    prtool.apply(model, made / method, usual_of(made / method))
    with torch.inference_mode():
        wanted = model.encode_image(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            assert functional.cosine_similarity(model.encode_image(pixels).float(), wanted).min() > 0.98
        compiled = torch.compile(model.visual, backend="aot_eager", fullgraph=True)
        assert torch.allclose(compiled(pixels), wanted, atol=1e-5)
        assert functional.cosine_similarity(model.bfloat16().encode_image(pixels.bfloat16()).float(), wanted).min() > 0.9


@pytest.mark.parametrize("family", ["clip", "metaclip_2", "siglip"])
def test_models_of_transformers(tmp_path, family):
    """Their own calls, and the embeddings of the bundle's reference."""
    pytest.importorskip("transformers", reason="transformers makes the models")
    name, data = write_checkpoint(tmp_path / family, family), write_images(tmp_path / "data", {"train": 12, "val": 2})
    train(TrainConfig.load(None, QUICK | METHODS["rank"] | {"model": name, "data": str(data)}), tmp_path / "run")
    keep, pixels, host_model = usual_of(tmp_path / "run"), pixels_of(SIDE), make_checkpoint(family)
    ids = torch.tensor([[5, 6, 49407 if family != "siglip" else 1]])
    with torch.inference_mode():
        before = pooled(host_model.get_text_features(input_ids=ids))
        full = pooled(host_model.get_image_features(pixels))
        prtool.apply(host_model, tmp_path / "run", keep)
        checkpoint = Checkpoint.load(tmp_path / "run")
        encoder = checkpoint.pruned_encoder(checkpoint.load_model().tower)
        wanted = encoder.encode(pixels, encoder.spec.counts(keep))
        found = pooled(host_model.get_image_features(pixels))
        assert torch.allclose(functional.normalize(found, dim=-1), wanted, atol=1e-6)
        assert not torch.allclose(functional.normalize(full, dim=-1), wanted, atol=1e-3)
        assert torch.equal(pooled(host_model.get_text_features(input_ids=ids)), before)
        outputs = host_model(input_ids=ids, pixel_values=pixels)
        assert torch.allclose(outputs.image_embeds, wanted, atol=1e-6)
        assert outputs.logits_per_image.shape == (2, 1)
        with pytest.raises(ModelError, match="output_hidden_states"):
            host_model.vision_model(pixels, output_hidden_states=True)


def test_an_image_tower_of_transformers(tmp_path):
    pytest.importorskip("transformers", reason="transformers makes the models")
    name, data = write_tower(tmp_path / "tower", "clip"), write_images(tmp_path / "data", {"train": 12, "val": 2})
    train(TrainConfig.load(None, QUICK | METHODS["rank"] | {"model": name, "data": str(data)}), tmp_path / "run")
    keep, pixels, model = usual_of(tmp_path / "run"), pixels_of(SIDE), make_tower("clip")
    with torch.inference_mode():
        full = reference(model, pixels)
        assert prtool.apply(model, tmp_path / "run", keep) is model
        checkpoint = Checkpoint.load(tmp_path / "run")
        encoder = checkpoint.pruned_encoder(checkpoint.load_model().tower)
        wanted, found = encoder.encode(pixels, encoder.spec.counts(keep)), functional.normalize(reference(model, pixels), dim=-1)
        assert torch.allclose(found, wanted, atol=1e-6) and not torch.allclose(functional.normalize(full, dim=-1), wanted, atol=1e-3)
    for other in (make_tower("siglip"), make_tower("dinov2"), make_tower("dinov3"), make_pair("dinov2")):
        with pytest.raises(ModelError, match=rf"{type(other).__name__} has no image tower .* CLIPVisionModelWithProjection; .*prtool\.Encoder"):
            prtool.apply(other, tmp_path / "run", keep)


def pooled(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def test_what_is_rejected(made, tmp_path):
    model = host(made)
    with pytest.raises(CheckpointError, match="no finished run"):
        prtool.apply(model, tmp_path / "nothing", 0.5)
    other = host(made)
    with torch.no_grad():
        other.visual.proj.add_(1.0)
    with pytest.raises(CheckpointError, match=r"was trained for local-dir:.*; give that model, in float32"):
        prtool.apply(other, made / "rank", 0.5)
    with pytest.raises(ModelError, match="Linear has no image tower"):
        prtool.apply(torch.nn.Linear(2, 2), made / "rank", 0.5)
    before = model.visual
    with pytest.raises(KeepError):
        prtool.apply(model, made / "rank", 3.5)
    assert model.visual is before
    prtool.apply(model, made / "ranking of a smaller image")
    with pytest.raises(ShapeError, match="32 x 32 pixels, but the run's encoder reads 24 x 24"):
        model.encode_image(pixels_of(32))
    with pytest.raises(ModelError, match="is a run's encoder already"):
        prtool.apply(model, made / "rank", 0.5)


def test_the_runs_own_preprocessing_fits(made):
    """open_clip's transform made for `model.visual.image_size`."""
    model = prtool.apply(host(made), made / "smaller image")
    spec = Checkpoint.load(made / "smaller image").load_model().preprocess
    transform = open_clip.image_transform(model.visual.image_size, False, spec.mean, spec.std)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 41, 3), dtype=np.uint8))
    assert np.array_equal(transform(image).numpy(), prepare(image, replace(spec, crop_rounding="nearest")))
