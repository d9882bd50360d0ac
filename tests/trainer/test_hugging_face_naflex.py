"""SigLIP 2 NaFlex of transformers on square images: embeddings are its own, from the image to the vector."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_models import CONTEXT, PATCH, TEXT, VISION, edit, randomise, write_tokenizer
from PIL import Image
from torch.nn import functional

from prtool.errors import ModelError
from prtool.runtime.images.preprocess import prepare
from prtool.trainer.models.dual_encoder import load_model

transformers = pytest.importorskip("transformers", reason="transformers writes the checkpoints and is the reference")


def make(places: int, *, image_only: bool = False) -> Any:
    """With positions for `places` patches, and random tensors."""
    torch.manual_seed(places)
    vision = {name: value for name, value in VISION.items() if name != "image_size"} | {"num_patches": places}
    if image_only:
        model = transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision))
    else:
        text = {**TEXT, "vocab_size": 300, "bos_token_id": None, "eos_token_id": 1}
        model = transformers.Siglip2Model(transformers.Siglip2Config(text_config=text, vision_config=vision))
    randomise(model)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.copy_(torch.randn_like(tensor) * 0.2)
    return model


def write(folder: Path, model: Any, patches: int) -> str:
    model.save_pretrained(folder)
    transformers.Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=patches).save_pretrained(folder)
    write_tokenizer(folder, "siglip")
    return f"hf:{folder}"


@pytest.mark.parametrize(("places", "patches"), [(16, 16), (16, 36), (49, 16)])
@pytest.mark.parametrize("image_only", [False, True])
@torch.inference_mode()
def test_embeddings_of_square_images_are_those_of_transformers(tmp_path, caplog, places, patches, image_only):
    """At the size of the positions, at a larger and a smaller one; the processor's PIL backend makes the patches."""
    host = make(places, image_only=image_only)
    model, side = load_model(write(tmp_path, host, patches)), int(patches**0.5) * PATCH
    assert model.tower.image_size == (side, side) and model.has_text != image_only
    assert "keeps the shape of images (NaFlex); here all of them become squares" in caplog.text
    kind = getattr(transformers, "Siglip2ImageProcessorPil", None) or transformers.Siglip2ImageProcessor
    processor = kind(patch_size=PATCH, max_num_patches=patches)
    for length in (30, side, 200):
        image = Image.fromarray(np.random.default_rng(length).integers(0, 256, (length, length, 3), dtype=np.uint8))
        inputs = processor(image, return_tensors="pt")
        found = host(**inputs) if image_only else host.get_image_features(**inputs)
        found = getattr(found, "pooler_output", found)  # a tensor in transformers 4
        assert torch.allclose(model.tower(torch.from_numpy(prepare(image, model.preprocess))[None]), found, atol=1e-5)
    if not image_only:
        ids = model.tokenizer(["a cat", "two dogs"])
        texts = host.get_text_features(input_ids=ids)
        texts = getattr(texts, "pooler_output", texts)
        assert ids.shape == (2, CONTEXT) and torch.allclose(model.text(ids), functional.normalize(texts, dim=-1), atol=1e-5)


def test_what_is_rejected(tmp_path):
    name = write(tmp_path, make(16), 16)
    edit(tmp_path, "preprocessor_config.json", max_num_patches=20)
    with pytest.raises(ModelError, match=r"resizes to .*max_num_patches.*20.*only square images"):
        load_model(name)
    edit(tmp_path, architectures=["Siglip2ForImageClassification"])
    with pytest.raises(ModelError, match="only Siglip2Model is supported"):
        load_model(name)
