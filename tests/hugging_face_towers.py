"""Small random checkpoints of transformers' image towers without a text side, and of pairs of two towers, written by transformers itself."""

from pathlib import Path
from typing import Any

import torch
from hugging_face_models import PATCH, SIDE, TEXT, VISION, randomise, write_tokenizer
from safetensors.torch import load_file

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


def tower_processor(name: str, side: int = SIDE, shortest: int = SIDE * 9 // 8) -> Any:
    """The kind of processor that published checkpoints have: DINOv2's resizes to more than it crops, to `shortest`."""
    import transformers

    if name == "siglip":
        return transformers.SiglipImageProcessor(size={"height": side, "width": side}, resample=2)
    if name.startswith("dinov3"):
        kind = getattr(transformers, "DINOv3ViTImageProcessor", None) or transformers.DINOv3ViTImageProcessorFast
        return kind(size={"height": side, "width": side})
    if name.startswith("dinov2"):
        mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        size, crop = {"shortest_edge": shortest}, {"height": side, "width": side}
        return transformers.BitImageProcessor(size=size, crop_size=crop, image_mean=mean, image_std=std)
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


def write_dual_s14(source: Path, folder: Path) -> str:
    """Writes the model folder `dual-s14`, in open_clip's format, as a VisionTextDualEncoderModel; returns the name for `load_model`."""
    import transformers

    state = load_file(source / "open_clip_model.safetensors")
    vision = transformers.Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=196, patch_size=14)
    text = transformers.CLIPTextConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768, max_position_embeddings=32, hidden_act="gelu"
    )
    pair = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=256)
    model = transformers.VisionTextDualEncoderModel(config=pair).eval()
    _fill_vision(model.vision_model, {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")})
    _fill_text(getattr(model.text_model, "text_model", model.text_model), state)
    with torch.no_grad():
        model.visual_projection.weight.copy_(state["visual.proj"].T)
        model.text_projection.weight.copy_(state["text_projection"].T)
        model.logit_scale.copy_(state["logit_scale"])
    model.save_pretrained(folder)
    tower_processor("dinov2", 196, 196).save_pretrained(folder)
    write_tokenizer(folder, "clip")
    return f"hf:{folder}"


@torch.no_grad()
def _fill_vision(vision: Any, state: dict[str, torch.Tensor]) -> None:
    vision.embeddings.cls_token.copy_(state["class_embedding"][None, None])
    vision.embeddings.position_embeddings.copy_(state["positional_embedding"][None])
    projection = vision.embeddings.patch_embeddings.projection
    projection.weight.copy_(state["conv1.weight"])
    projection.bias.zero_()
    _fill(vision.layernorm, state, "ln_post")
    for number, layer in enumerate(vision.encoder.layer):
        block = f"transformer.resblocks.{number}"
        attention = layer.attention
        old = getattr(attention, "attention", None)  # in transformers 4
        projections = (old.query, old.key, old.value) if old is not None else (attention.q_proj, attention.k_proj, attention.v_proj)
        _fill_attention(projections, attention.output.dense if old is not None else attention.o_proj, state, block)
        for module, name in ((layer.norm1, "ln_1"), (layer.norm2, "ln_2"), (layer.mlp.fc1, "mlp.c_fc"), (layer.mlp.fc2, "mlp.c_proj")):
            _fill(module, state, f"{block}.{name}")
        layer.layer_scale1.lambda1.copy_(state[f"{block}.ls_1.gamma"])
        layer.layer_scale2.lambda1.copy_(state[f"{block}.ls_2.gamma"])


@torch.no_grad()
def _fill_text(text: Any, state: dict[str, torch.Tensor]) -> None:
    text.embeddings.token_embedding.weight.copy_(state["token_embedding.weight"])
    text.embeddings.position_embedding.weight.copy_(state["positional_embedding"])
    _fill(text.final_layer_norm, state, "ln_final")
    for number, layer in enumerate(text.encoder.layers):
        block, own = f"transformer.resblocks.{number}", layer.self_attn
        _fill_attention((own.q_proj, own.k_proj, own.v_proj), own.out_proj, state, block)
        names = ((layer.layer_norm1, "ln_1"), (layer.layer_norm2, "ln_2"), (layer.mlp.fc1, "mlp.c_fc"), (layer.mlp.fc2, "mlp.c_proj"))
        for module, name in names:
            _fill(module, state, f"{block}.{name}")


def _fill_attention(projections: tuple[Any, Any, Any], out: Any, state: dict[str, torch.Tensor], block: str) -> None:
    weights, biases = (state[f"{block}.attn.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias"))
    for module, weight, bias in zip(projections, weights, biases, strict=True):
        module.weight.copy_(weight)
        module.bias.copy_(bias)
    _fill(out, state, f"{block}.attn.out_proj")


def _fill(module: Any, state: dict[str, torch.Tensor], name: str) -> None:
    module.weight.copy_(state[f"{name}.weight"])
    module.bias.copy_(state[f"{name}.bias"])
