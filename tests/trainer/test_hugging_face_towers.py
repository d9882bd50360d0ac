"""transformers' image towers without a text side: embeddings and pixels are its own; what is not supported is rejected by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_models import SIDE, edit
from hugging_face_towers import TOWERS, make_tower, reference, tower_processor, write_tower
from local_model import write_images
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.errors import ConfigError, ModelError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.dual_encoder import DualEncoder, load_model
from prtool.trainer.models.loading.hugging_face import model_config
from prtool.trainer.models.loading.tensor_names import renamed
from prtool.trainer.train import train

pytest.importorskip("transformers", reason="transformers writes the checkpoints and is the reference")


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, Path]:
    """The checkpoints of all towers; tests that change one write their own."""
    root = tmp_path_factory.mktemp("towers")
    for name in TOWERS:
        write_tower(root / name.replace(" ", "-").replace(",", ""), name)
    return {name: root / name.replace(" ", "-").replace(",", "") for name in TOWERS}


@pytest.mark.parametrize("name", TOWERS)
@torch.inference_mode()
def test_embeddings_are_those_of_transformers(written, name):
    model, pixels = load_model(f"hf:{written[name]}"), torch.randn(3, 3, SIDE, SIDE)
    expected = reference(make_tower(name), pixels)
    assert torch.allclose(model.tower(pixels), expected, atol=1e-5)
    assert float((expected[0] - expected[1]).abs().max()) > 0.1
    assert not model.has_text and model.native.image_size == (SIDE, SIDE)


@pytest.mark.parametrize("name", TOWERS)
def test_a_loaded_model_has_the_same_tensors(written, name):
    """transformers 5 renames some while it loads a checkpoint."""
    model, host = load_model(f"hf:{written[name]}"), make_tower(name)
    vision = model_config(host)["vision_cfg"] | {"image_size": SIDE}
    found = renamed(host.state_dict(), vision)
    own: dict[str, torch.Tensor] = model.native.host.state_dict()
    assert {f"visual.{each}" for each in own} == set(found)
    assert all(torch.equal(tensor, found[f"visual.{each}"]) for each, tensor in own.items())


def pil_processor(name: str) -> Any:
    """The processor of a tower with its PIL backend, in transformers 4 and 5."""
    import transformers

    kind = {"clip": "CLIP", "siglip": "Siglip"}.get(name, "Bit")
    own = tower_processor(name).to_dict()
    for field in ("image_processor_type", "processor_class"):
        own.pop(field, None)
    return (getattr(transformers, f"{kind}ImageProcessorPil", None) or getattr(transformers, f"{kind}ImageProcessor"))(**own)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2"])
def test_pixels_are_those_of_the_pil_backend(written, name):
    """Also of DINOv2's processor, which resizes to more than it crops."""
    spec, processor = load_model(f"hf:{written[name]}").preprocess, pil_processor(name)
    assert spec.resize_ratio == (1.125 if name == "dinov2" else 1.0)
    nearest = 0
    for size in [(SIDE, SIDE), (SIDE, SIDE + 1), (54, 57), (SIDE + 7, SIDE), (97, 61), (200, 333), (31, 20)]:
        image = noise(*size)
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        assert np.array_equal(prepare(image, spec), expected), size
        nearest += not np.array_equal(prepare(image, replace(spec, crop_rounding="nearest")), expected)
    assert bool(nearest) == (name != "siglip")


def test_pixels_of_dinov3_are_within_one_of_255(written, caplog):
    """Its processor resizes in floating point and has no PIL backend; a note says so."""
    spec, processor = load_model(f"hf:{written['dinov3']}").preprocess, tower_processor("dinov3")
    assert "resizes in floating point" in caplog.text
    for size in [(SIDE, SIDE), (200, 333), (97, 61), (31, 20)]:
        image = noise(*size)
        expected = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
        far = np.abs(prepare(image, spec) - expected) * np.array(spec.std, np.float32)[:, None, None] * 255
        assert float(far.max()) <= 1.01, size


@pytest.mark.parametrize("name", ["dinov2, other size", "dinov3"])
def test_smaller_images(written, name):
    model = load_model(f"hf:{written[name]}", image_size=24)
    assert model.tower.grid == (2, 2) and model.native.grid == (4, 4) and model.preprocess.size == (24, 24)
    assert model.tower(torch.randn(2, 3, 24, 24)).shape == (2, model.tower.embed_dim)
    with pytest.raises(ConfigError, match="image_size = 60"):
        load_model(f"hf:{written[name]}", image_size=60)


@pytest.mark.parametrize(
    "name", ["dinov3, gated", *(pytest.param(name, marks=pytest.mark.slow) for name in ("clip", "dinov2 registers", "dinov2, gated"))]
)
def test_train_export_and_encode(written, tmp_path, name):
    data = write_images(tmp_path / "data", {"train": 12, "val": 2})
    settings = {"model": f"hf:{written[name]}", "data": str(data), "prune.locations": [2], "distill.steps": 2, "recover.steps": 2}
    found = train(TrainConfig.load(None, settings | {"distill.batch": 4, "recover.batch": 4}), tmp_path / "run")
    export_run(tmp_path / "run", tmp_path / "bundle", ExportOptions(Keep.ratio(0.5), ("fp32",)))
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.text is None and manifest.preprocess == found.load_model().preprocess
    image = noise(60, 51)
    with Encoder.load(tmp_path / "bundle", mode="full") as encoder, torch.inference_mode():
        pixels = torch.from_numpy(prepare(image, manifest.preprocess))[None]
        expected = functional.normalize(reference(make_tower(name), pixels), dim=-1)
        assert np.allclose(encoder.encode_images([image]), expected.numpy(), atol=1e-5)


def rejected(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("siglip", {"vision_use_head": False}, "vision_use_head = false"),
        ("clip", {"architectures": ["CLIPVisionModel"]}, r"checkpoint of \[\"CLIPVisionModel\"\].* only CLIPVisionModelWithProjection"),
        ("dinov2", {"architectures": ["Dinov2ForImageClassification"]}, "only Dinov2Model is supported"),
        ("dinov2", {"auto_map": {"AutoModel": "evil.Model"}}, "brings code of its own .*evil.Model.*, which is not run"),
        ("dinov2", {"model_type": "vit"}, "model_type = 'vit', but it must be one of clip"),
        ("dinov2", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("dinov2", {"num_attention_heads": 3}, "hidden_size = 32 with 3 attention heads"),
        ("dinov2", {"mlp_ratio": 3}, "other sizes in"),
        ("dinov2 registers", {"num_register_tokens": 10**6}, "registers = 1000000"),
        ("dinov3", {"key_bias": True}, "key_bias = True, but only False"),
        ("dinov3", {"value_bias": False}, "value_bias = False, but only True"),
        ("dinov3", {"mlp_bias": False}, "mlp_bias = False"),
        ("dinov3", {"hidden_act": "silu"}, "hidden_act = 'silu', but only 'gelu'"),
        ("dinov3, gated", {"hidden_act": "gelu"}, "hidden_act = 'gelu', but only 'silu'"),
        ("dinov3", {"num_attention_heads": 16}, "multiple of 4 channels a head"),
        ("dinov3", {"rope_theta": -1.0}, r"rope_temperature = -1\.0"),
        ("dinov3", {"num_channels": 4}, None),
    ],
)
def test_configurations_that_are_rejected(tmp_path, name, values, message):
    write_tower(tmp_path, name)
    if message is None:
        del values["num_channels"]
        state = load_file(tmp_path / "model.safetensors")
        state["embeddings.patch_embeddings.weight"] = torch.zeros(32, 4, 12, 12)
        save_file(state, tmp_path / "model.safetensors")
        message = r"other sizes in visual\.trunk\.patch_embed"
    edit(tmp_path, **values)
    rejected(tmp_path, message)


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov3"])
def test_missing_files_and_tensors(tmp_path, name):
    write_tower(tmp_path, name)
    state = load_file(tmp_path / "model.safetensors")
    query = next(each for each in state if each.endswith(("q_proj.weight", "query.weight")))
    for missing, said in ((query, r"lacks visual.*(qkv|in_proj)"), (max(state), r"lacks visual.*(norm|proj)")):
        save_file({each: tensor for each, tensor in state.items() if each != missing}, tmp_path / "model.safetensors")
        rejected(tmp_path, said)
    index = {"weight_map": {each: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, each in enumerate(state)}}
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    rejected(tmp_path, r"lacks model-00002-of-00002\.safetensors, which .* download it again")
    (tmp_path / "preprocessor_config.json").unlink()
    rejected(tmp_path, "how its images are resized is unknown")
    (tmp_path / "config.json").write_text("{")
    rejected(tmp_path, r"config\.json cannot be read")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("dinov2", {"do_center_crop": False}, "resizes to .*shortest_edge.*only square images of one size"),
        ("dinov2", {"crop_size": {"height": 48, "width": 36}}, "crops to .*only square images"),
        ("dinov2", {"size": {"shortest_edge": 40}}, "resizes to .*40.* and crops to .*48.*not supported"),
        ("dinov2", {"size": {"height": 54, "width": 54}}, "resizes to .*54.*not supported"),
        ("dinov2", {"do_rescale": False}, "do_rescale off"),
        ("dinov3", {"size": {"height": 48, "width": 60}}, "resizes to .*only square images"),
        ("clip", {"crop_size": {"height": 40, "width": 40}}, "crops to .*, but the image tower reads 48 x 48"),
    ],
)
def test_processors_that_are_rejected(tmp_path, name, values, message):
    write_tower(tmp_path, name)
    edit(tmp_path, "preprocessor_config.json", **values)
    rejected(tmp_path, message)


def test_it_needs_no_tokenizer_and_says_so_where_texts_are_asked_for(written):
    model: DualEncoder = load_model(f"hf:{written['dinov2']}")
    with pytest.raises(ModelError, match="has no text side"):
        model.class_embeddings(["cat"], ["a {}"])
