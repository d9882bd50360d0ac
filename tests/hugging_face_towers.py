"""Small random checkpoints of transformers' image towers without a text side, and of pairs of two towers, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from hugging_face_models import PATCH, SIDE, TEXT, VISION, randomise, write_tokenizer

_DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": PATCH}
NATIVE = 84
"""Pixels that DINOv2's positions are for, 7 x 7 patches, where its processor gives 48."""
TOWERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    # name: model, configuration and its values
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**VISION, "projection_dim": 24}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", VISION),
    "dinov2": ("Dinov2Model", "Dinov2Config", {**_DINO, "image_size": SIDE}),
    "dinov2, other size": ("Dinov2Model", "Dinov2Config", {**_DINO, "image_size": NATIVE}),
    "dinov2, gated": ("Dinov2Model", "Dinov2Config", {**_DINO, "image_size": SIDE, "use_swiglu_ffn": True, "qkv_bias": False}),
    "dinov2 registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**_DINO, "image_size": NATIVE}),
    "dinov2 no registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {**_DINO, "image_size": SIDE, "num_register_tokens": 0}),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_DINO, "intermediate_size": 70, "num_register_tokens": 4}),
    "dinov3, gated": ("DINOv3ViTModel", "DINOv3ViTConfig", {**_DINO, "intermediate_size": 70, "use_gated_mlp": True, "hidden_act": "silu"}),
    "dinov3, no biases": (
        "DINOv3ViTModel",
        "DINOv3ViTConfig",
        {**_DINO, "intermediate_size": 64, "num_register_tokens": 1, "query_bias": False, "value_bias": False, "rope_theta": 30.0},
    ),
}


def make_tower(name: str, **changes: Any) -> Any:
    """The model in evaluation mode, with random tensors; `changes` are of its configuration."""
    import transformers

    model, config, values = TOWERS[name]
    torch.manual_seed(1)
    return _spread(randomise(getattr(transformers, model)(getattr(transformers, config)(**{**values, **changes}))))


def tower_processor(name: str, side: int = SIDE) -> Any:
    """The kind of processor that published checkpoints have: DINOv2's resizes to more than it crops."""
    import transformers

    if name == "siglip":
        return transformers.SiglipImageProcessor(size={"height": side, "width": side}, resample=2)
    if name.startswith("dinov3"):
        kind = getattr(transformers, "DINOv3ViTImageProcessor", None) or transformers.DINOv3ViTImageProcessorFast
        return kind(size={"height": side, "width": side})
    if name.startswith("dinov2"):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        size = {"shortest_edge": side * 8 // 7}
        return transformers.BitImageProcessor(size=size, crop_size={"height": side, "width": side}, image_mean=mean, image_std=std)
    return transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def write_tower(folder: Path, name: str, side: int = SIDE, **changes: Any) -> str:
    """Writes model and image processor; returns the name for `load_model`."""
    make_tower(name, **changes).save_pretrained(folder)
    tower_processor(name, side).save_pretrained(folder)
    return f"hf:{folder}"


@torch.no_grad()
def reference(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """The embeddings (batch, E) that transformers gives, not normalised."""
    found = model(pixel_values=pixels)
    return found.image_embeds if hasattr(found, "image_embeds") else found.pooler_output


def make_pair(name: str, **changes: Any) -> Any:
    """A VisionTextDualEncoderModel of one of `TOWERS` and CLIP's text side, whose activation differs from most towers'."""
    import transformers

    _, config, values = TOWERS[name]
    vision, text = getattr(transformers, config)(**values), transformers.CLIPTextConfig(**{**TEXT, **changes})
    torch.manual_seed(2)
    pair = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=24)
    return _spread(randomise(transformers.VisionTextDualEncoderModel(config=pair)))


@torch.no_grad()
def _spread(model: Any) -> Any:
    """Larger matrices and positions than a new model has, whose attention is nearly the mean and would hide a wrong rotation."""
    for tensor in model.parameters():
        if tensor.dim() > 1:
            tensor.copy_(torch.randn_like(tensor) * 0.2)
    return model


def write_pair(folder: Path, name: str, **changes: Any) -> str:
    """Writes model, image processor and tokenizer; returns the name for `load_model`."""
    make_pair(name, **changes).save_pretrained(folder)
    tower_processor(name).save_pretrained(folder)
    write_tokenizer(folder, "clip")
    return f"hf:{folder}"
