"""Checkpoints of transformers: embeddings, token ids and pixels are transformers' own; what is not supported is rejected."""

import json
import shutil
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging_face_models import CONTEXT, FAMILIES, SIDE, edit, make_checkpoint, processor_of, write_checkpoint
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
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.models.loading.source import canonical_name
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import input_paths
from prtool.trainer.train import train

pytest.importorskip("transformers", reason="transformers writes the checkpoints and is the reference")

PROMPTS = ["a photo of a cat", "Two dogs, running!", "x"]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """The checkpoints of all families; tests copy what they change."""
    root = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        write_checkpoint(root / family, family)
    return root


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written / "clip", tmp_path / "clip"))


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_embeddings_are_those_of_transformers(written, family):
    from transformers import AutoTokenizer

    model, host = load_model(f"hf:{written / family}"), make_checkpoint(family)
    pixels = torch.randn(3, 3, SIDE, SIDE)
    images = host.get_image_features(pixels)
    images = getattr(images, "pooler_output", images)  # a tensor in transformers 4
    assert torch.allclose(model.tower(pixels), images, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(written / family)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(model.tokenizer(PROMPTS), ids)
    # Without a mask: SigLIP's padding takes part, as in its training.
    texts = host.get_text_features(input_ids=ids)
    texts = getattr(texts, "pooler_output", texts)
    assert torch.allclose(model.text(ids), functional.normalize(texts, dim=-1), atol=1e-5)
    assert float((texts[0] - texts[1]).abs().max()) > 0.01
    assert model.logit_scale == pytest.approx(float(host.logit_scale.exp()))
    assert model.logit_bias == (-7.0 if family == "siglip" else 0.0)


@torch.inference_mode()
def test_each_side_has_its_own_activation(tmp_path):
    changes = {"vision": {"hidden_act": "gelu_pytorch_tanh"}, "text": {"hidden_act": "gelu"}}
    model, host = load_model(write_checkpoint(tmp_path, **changes)), make_checkpoint("clip", **changes)
    pixels, ids = torch.randn(2, 3, SIDE, SIDE), model.tokenizer(PROMPTS)
    images, texts = host.get_image_features(pixels), host.get_text_features(input_ids=ids)
    images, texts = getattr(images, "pooler_output", images), getattr(texts, "pooler_output", texts)
    assert torch.allclose(model.tower(pixels), images, atol=1e-5)
    assert torch.allclose(model.text(ids), functional.normalize(texts, dim=-1), atol=1e-5)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_pixels_are_those_of_the_pil_backend(written, family):
    """Also where half a pixel is over, which torchvision rounds to even."""
    import transformers

    spec = load_model(f"hf:{written / family}").preprocess
    own = processor_of(family).to_dict()
    for name in ("image_processor_type", "processor_class"):
        own.pop(name, None)
    kind = "SiglipImageProcessorPil" if family == "siglip" else "CLIPImageProcessorPil"
    processor = getattr(transformers, kind, None) or getattr(transformers, kind.removesuffix("Pil"))
    reference = processor(**own)
    nearest = 0
    for size in [(SIDE, SIDE), (SIDE, SIDE + 1), (SIDE, SIDE + 3), (SIDE + 7, SIDE), (97, 61), (200, 333), (31, 20)]:
        image = noise(*size)
        expected = np.asarray(reference(image, return_tensors="np")["pixel_values"][0])
        assert np.array_equal(prepare(image, spec), expected), size
        nearest += not np.array_equal(prepare(image, replace(spec, crop_rounding="nearest")), expected)
    assert bool(nearest) == (family == "clip")


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_smaller_images(written, family):
    model = load_model(f"hf:{written / family}", image_size=24)
    assert model.tower.grid == (2, 2) and model.native.grid == (4, 4)
    assert model.tower(torch.randn(2, 3, 24, 24)).shape == (2, model.tower.embed_dim)
    with pytest.raises(ConfigError, match="image_size = 25"):
        load_model(f"hf:{written / family}", image_size=25)


@pytest.mark.parametrize("family", ["clip", pytest.param("siglip", marks=pytest.mark.slow)])
def test_train_export_and_encode(written, tmp_path, family):
    data = write_images(tmp_path / "data", {"train": 12, "val": 2})
    settings = {"model": f"hf:{written / family}", "data": str(data), "prune.locations": [2], "distill.steps": 2, "recover.steps": 2}
    config = TrainConfig.load(None, settings | {"distill.batch": 4, "recover.batch": 4})
    found = train(config, tmp_path / "run")
    assert found.scorer_trained and Checkpoint.load(tmp_path / "run").model == f"hf:{written / family}"
    export_run(tmp_path / "run", tmp_path / "bundle", ExportOptions(Keep.ratio(0.5), ("fp32",)))
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.model.name == f"hf:{family}" and manifest.text is not None and manifest.preprocess.crop_rounding == "floor"
    image = noise(60, 51)
    model = found.load_model()
    with Encoder.load(tmp_path / "bundle", mode="full") as encoder, torch.inference_mode():
        expected = functional.normalize(model.tower(torch.from_numpy(prepare(image, model.preprocess))[None]), dim=-1)
        assert np.allclose(encoder.encode_images([image]), expected.numpy(), atol=1e-5)
        assert np.allclose(encoder.encode_text(PROMPTS), model.text(model.tokenizer(PROMPTS)).numpy(), atol=1e-5)


def test_weights_in_parts_and_in_pytorchs_format(folder):
    state, expected = load_file(folder / "model.safetensors"), load_model(f"hf:{folder}").weights_sha256
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, held in parts.items():
        save_file({name: state[name] for name in held}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_model(f"hf:{folder}").weights_sha256 == expected
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors, which"):
        load_model(f"hf:{folder}")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="names no files of its folder"):
        load_model(f"hf:{folder}")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"holds none of model\.safetensors"):
        load_model(f"hf:{folder}")
    torch.save(state | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}, folder / "pytorch_model.bin")
    assert load_model(f"hf:{folder}").weights_sha256 == expected
    torch.save({"state": object()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not unpickled"):
        load_model(f"hf:{folder}")


def test_half_precision_weights_become_float32(folder):
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in state.items()}, folder / "model.safetensors")
    tower = load_model(f"hf:{folder}").tower
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}


def test_names(folder, monkeypatch):
    name = f"hf:{folder}"
    monkeypatch.chdir(folder.parent)
    assert {canonical_name(each) for each in (name, str(folder), "hf:clip", "hf:./clip", "clip")} == {name}
    assert canonical_name("hf:openai/clip-vit-base-patch32") == "hf:openai/clip-vit-base-patch32"
    assert input_paths(name, "", None) == (folder,) and input_paths("hf:openai/clip", "", None) == ()
    for wrong in ("hf:", "hf:../nothing", "hf:/nothing", "hf:a/b/c"):
        with pytest.raises(ModelError, match=r"no folder with a config\.json"):
            canonical_name(wrong)
    with pytest.raises(ModelError, match=f"give 'hf:{folder}'"):
        canonical_name(f"local-dir:{folder}")
    with pytest.raises(ModelError, match="brings its own weights"):
        load_model(name, "openai")


def test_a_repository_is_downloaded_without_what_is_not_needed(folder, monkeypatch):
    """Safetensors where there are some, else PyTorch's file; nothing else of the repository."""
    asked: list[list[str]] = []

    def download(repository, allow_patterns):
        assert repository == "org/name"
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_model("hf:org/name")
    assert (model.name, model.weights_sha256) == ("hf:org/name", load_model(f"hf:{folder}").weights_sha256)
    assert len(asked) == 1 and not any(
        fnmatch(name, pattern) for name in ("model.py", "pytorch_model.bin", "onnx/model.onnx") for pattern in asked[0]
    )
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert load_model("hf:org/name").weights_sha256 == model.weights_sha256
    assert len(asked) == 3 and "pytorch_model*" in asked[2]

    def fail(repository, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match="model 'hf:org/name' cannot be downloaded: no network"):
        load_model("hf:org/name")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type = 'bert', but it must be one of clip"),
        ({"model_type": "siglip2"}, "only Siglip2Model is supported"),
        ({"model_type": "clip_vision_model"}, "only CLIPVisionModelWithProjection is supported"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "brings code of its own .*evil.Model.*, which is not run"),
        ({"projection_dim": 10**6}, "embed_dim = 1000000, but it must be a whole number"),
        ({"projection_dim": 23}, "other sizes in"),
    ],
)
def test_configurations_that_are_rejected(folder, values, message):
    edit(folder, **values)
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_config", {"hidden_act": "relu"}, "hidden_act = 'relu', but it must be one of quick_gelu"),
        ("text_config", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("vision_config", {"patch_size": [12, 6]}, "only square ones"),
        ("vision_config", {"num_hidden_layers": 3}, "has unknown visual.transformer.resblocks.3"),
        ("text_config", {"eos_token_id": [1, 2]}, "eos_token_id"),
        ("text_config", {"vocab_size": 49000}, "token ids up to|other sizes in"),
    ],
)
def test_parts_that_are_rejected(folder, part, values, message):
    edit(folder, **{part: json.loads((folder / "config.json").read_text())[part] | values})
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"do_resize": False}, "do_resize off"),
        ({"rescale_factor": 1.0}, "rescale_factor = 1.0"),
        ({"crop_size": {"height": 40, "width": 40}}, "crops to .*, but the image tower reads 48 x 48"),
        ({"size": {"shortest_edge": 40}}, "resizes to"),
        ({"image_std": [0.0, 0.5, 0.5]}, "std"),
    ],
)
def test_processors_that_are_rejected(folder, values, message):
    edit(folder, "preprocessor_config.json", **values)
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{folder}")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("preprocessor_config.json", "how its images are resized is unknown"), ("[tv]o*", "holds no tokenizer")],
)
def test_missing_files(folder, missing, message):
    for file in folder.glob(missing):
        file.unlink()
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{folder}")


def test_settings_of_a_whole_processor(folder):
    """What `CLIPProcessor.save_pretrained` writes."""
    from transformers import AutoTokenizer, CLIPProcessor

    processor, expected = CLIPProcessor(processor_of("clip"), AutoTokenizer.from_pretrained(folder)), load_model(f"hf:{folder}").preprocess
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    processor.save_pretrained(folder)
    assert load_model(f"hf:{folder}").preprocess == expected


def test_without_transformers(folder, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"needs transformers|not installed; .*\[hf\]"):
        load_model(f"hf:{folder}")
