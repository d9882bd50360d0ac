"""VisionTextDualEncoderModel of transformers: an image tower of any supported kind with CLIP's text side, and dual-s14 as one."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging_face_models import CONTEXT, SIDE, edit
from hugging_face_towers import make_pair, write_dual_s14, write_pair
from local_model import write_images
from PIL import Image
from support import shared_dir
from torch.nn import functional

from prtool.errors import ModelError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.train import train

pytest.importorskip("transformers", reason="transformers writes the checkpoints and is the reference")

PROMPTS = ["a photo of a cat", "Two dogs, running!", "x", "a bird " * 40]


@pytest.mark.parametrize("name", ["clip", "siglip", "dinov2", "dinov2 registers", "dinov3, gated"])
@torch.inference_mode()
def test_embeddings_are_those_of_transformers(tmp_path, name):
    from transformers import AutoTokenizer

    model, host, pixels = load_model(write_pair(tmp_path, name)), make_pair(name), torch.randn(3, 3, SIDE, SIDE)
    images = host.get_image_features(pixels)
    images = getattr(images, "pooler_output", images)  # a tensor in transformers 4
    assert torch.allclose(model.tower(pixels), images, atol=1e-5) and float((images[0] - images[1]).abs().max()) > 0.1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer(PROMPTS, padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(model.tokenizer(PROMPTS), ids)
    # Not get_text_features, which fails in transformers 4: it passes token_type_ids on, which CLIP does not take.
    texts = host.text_projection(host.text_model(input_ids=ids).pooler_output)
    assert torch.allclose(model.text(ids), functional.normalize(texts, dim=-1), atol=1e-5)
    assert float((texts[0] - texts[1]).abs().max()) > 0.01
    assert model.logit_scale == pytest.approx(float(host.logit_scale.exp())) and model.logit_bias == 0.0


def test_train_export_and_encode(tmp_path):
    name, data = write_pair(tmp_path / "pair", "dinov2"), write_images(tmp_path / "data", {"train": 12, "val": 2})
    settings = {"model": name, "data": str(data), "prune.locations": [2], "distill.steps": 2, "recover.steps": 2}
    model = train(TrainConfig.load(None, settings | {"distill.batch": 4, "recover.batch": 4}), tmp_path / "run").load_model()
    export_run(tmp_path / "run", tmp_path / "bundle", ExportOptions(Keep.ratio(0.5), ("fp32",)))
    image = Image.fromarray(np.random.default_rng(5).integers(0, 256, (60, 51, 3), dtype=np.uint8))
    with Encoder.load(tmp_path / "bundle", mode="full") as encoder, torch.inference_mode():
        expected = functional.normalize(model.tower(torch.from_numpy(prepare(image, model.preprocess))[None]), dim=-1)
        assert np.allclose(encoder.encode_images([image]), expected.numpy(), atol=1e-5)
        assert np.allclose(encoder.encode_text(PROMPTS[:3]), model.text(model.tokenizer(PROMPTS[:3])).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("vision_config", {"model_type": "vit"}, "image side of model_type 'vit', but it must be one of clip_vision_model"),
        ("text_config", {"model_type": "bert"}, "text side of model_type 'bert', but only clip_text_model"),
        ("text_config", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("vision_config", {"use_swiglu_ffn": True}, "does not fit the model"),
    ],
)
def test_sides_that_are_rejected(tmp_path, part, values, message):
    write_pair(tmp_path, "dinov2")
    edit(tmp_path, **{part: json.loads((tmp_path / "config.json").read_text())[part] | values})
    with pytest.raises(ModelError, match=message):
        load_model(f"hf:{tmp_path}")


def test_a_missing_tokenizer(tmp_path):
    write_pair(tmp_path, "dinov2")
    for file in (*tmp_path.glob("tokenizer*"), *tmp_path.glob("vocab*")):
        file.unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_model(f"hf:{tmp_path}")


@torch.inference_mode()
def test_dual_s14_as_a_checkpoint_of_transformers(tmp_path):
    """The embeddings are those of the same weights in open_clip's format; the tokenizers pad with different tokens."""
    source: Path = shared_dir("models", "dual-s14")
    own, found = load_model(f"local-dir:{source}"), load_model(write_dual_s14(source, tmp_path))
    pixels = torch.randn(4, 3, 196, 196)
    assert torch.allclose(found.tower(pixels), own.tower(pixels), atol=1e-5)  # values to 13
    texts = [prompt for prompt in PROMPTS if len(prompt) < 40]
    ids, own_ids = found.tokenizer(texts), own.tokenizer(texts)
    assert ids.shape == own_ids.shape and not torch.equal(ids, own_ids)
    assert torch.allclose(found.text(ids), own.text(own_ids), atol=1e-5)
    assert found.logit_scale == pytest.approx(own.logit_scale)
    assert found.preprocess == replace(own.preprocess, crop_rounding="floor")
