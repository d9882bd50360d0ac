"""From the names of a checkpoint of transformers to those of the modules of open_clip and timm that compute the same."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prtool.trainer.models.loading.trunks import DINOV2, DINOV2_REGISTERS, DINOV3, NAFLEX, SIGLIP

_UNUSED = (".position_ids", ".mask_token")
_TRUNK = "visual.trunk."
_POSITIONS, _CLASS, _REGISTERS = f"{_TRUNK}pos_embed", f"{_TRUNK}cls_token", f"{_TRUNK}reg_token"
_PATCHES = f"{_TRUNK}patch_embed.proj.weight"
_TRANSPOSED = ("visual.proj", "text.text_projection")
# By their beginning; the first that fits is taken.
_TEXT = {
    "text_model.embeddings.token_embedding.": "text.token_embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
    "text_projection.weight": "text.text_projection",
}
_CLIP = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
_SIGLIP = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": _POSITIONS,
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
    "visual_projection.": "visual.head.",
}
_DINO = {
    "vision_model.embeddings.cls_token": _CLASS,
    "vision_model.embeddings.register_tokens": _REGISTERS,
    "vision_model.embeddings.position_embeddings": _POSITIONS,
    "vision_model.embeddings.patch_embeddings.projection.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.patch_embeddings.": "visual.trunk.patch_embed.proj.",
    "vision_model.encoder.layer.": "visual.trunk.blocks.",
    "vision_model.model.layer.": "visual.trunk.blocks.",
    "vision_model.layer.": "visual.trunk.blocks.",
    "vision_model.layernorm.": "visual.trunk.norm.",
    "vision_model.norm.": "visual.trunk.norm.",
    "visual_projection.": "visual.head.",
}
# Inside a block: of a checkpoint's files, and of the models of transformers 5, which rename some when they load them.
_OPEN_CLIP_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_SIGLIP_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
_DINOV2_BLOCK = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "mlp.weights_in": "mlp.fc1",
    "mlp.weights_out": "mlp.fc2",
    "mlp.down_proj": "mlp.fc2",
}
_DINOV3_BLOCK = {
    "attention.o_proj": "attn.proj",
    "layer_scale1.lambda1": "gamma_1",
    "layer_scale2.lambda1": "gamma_2",
    "mlp.gate_proj": "mlp.fc1_g",
    "mlp.down_proj": "mlp.fc2",
}
_BLOCKS = {SIGLIP: _SIGLIP_BLOCK, NAFLEX: _SIGLIP_BLOCK, DINOV2: _DINOV2_BLOCK, DINOV2_REGISTERS: _DINOV2_BLOCK, DINOV3: _DINOV3_BLOCK}
_NAMES = {SIGLIP: _SIGLIP, NAFLEX: _SIGLIP, DINOV2: _DINO, DINOV2_REGISTERS: _DINO, DINOV3: _DINO}
_ATTENTION = re.compile(r"(.*?\.)(?:self_attn|attention(?:\.attention)?)\.([qkv])(?:_proj|uery|ey|alue)\.(weight|bias)")
_GATED = re.compile(r"(.*\.mlp\.)(gate|up)_proj\.(weight|bias)")


def renamed(state: Mapping[str, Tensor], vision: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names, and in the shapes, of the modules that `hugging_face.build` makes.

    `vision` is the checked `vision_cfg`. A name that is not known stays.
    """
    tower = vision["tower"]
    names = _TEXT | _NAMES.get(tower, _CLIP)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in _of_both_sides(state).items():
        start = next((old for old in names if name.startswith(old)), "")
        new = names.get(start, "") + name.removeprefix(start)
        if joined := _joined(new, tower):
            parts.setdefault(joined[0], {})[joined[1]] = tensor
        elif match := re.fullmatch(r"vision_model\.head\.attention\.in_proj_(weight|bias)", name):
            # Of the query, which is a third, and of keys and values.
            width = len(tensor) // 3
            found[f"visual.trunk.attn_pool.q.{match[1]}"], found[f"visual.trunk.attn_pool.kv.{match[1]}"] = tensor[:width], tensor[width:]
        else:
            new = _in_block(new, vision)
            found[new] = _reshaped(new, tensor)
    for name, several in parts.items():
        found |= _whole(name, several)
    if tower == NAFLEX:
        return _square(found, vision)
    return _placed(found, vision) if tower in (DINOV2, DINOV2_REGISTERS, DINOV3) else found


def _of_both_sides(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that are used, under names that begin with their side, as those of a dual encoder do."""
    used = {name: tensor for name, tensor in state.items() if not name.endswith(_UNUSED)}
    if not any(name.startswith("vision_model.") for name in used):
        return {f"vision_model.{name}": tensor for name, tensor in used.items()}
    # Of a VisionTextDualEncoderModel in transformers 4.
    return {re.sub(r"^(vision|text)_model\.\1_model\.", r"\1_model.", name): tensor for name, tensor in used.items()}


def _joined(name: str, tower: str) -> tuple[str, str] | None:
    """Of a tensor that is a part of one here: the name of that, and which part it is."""
    if match := _ATTENTION.fullmatch(name):
        prefix, part, kind = match.groups()
        if not prefix.startswith(_TRUNK):
            return f"{prefix}attn.in_proj_{kind}", part
        # timm's Eva adds the two biases that there are by themselves.
        return None if tower == DINOV3 and kind == "bias" else (f"{prefix}attn.qkv.{kind}", part)
    if tower in (DINOV2, DINOV2_REGISTERS) and (match := _GATED.fullmatch(name)):
        return f"{match[1]}fc1.{match[3]}", match[2]
    return None


def _whole(name: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One tensor of its parts; where some are missing, those that are there, under names that say so."""
    order = ("gate", "up") if ".mlp." in name else tuple("qkv")
    if set(parts) == set(order):
        return {name: torch.cat([parts[each] for each in order])}
    return {f"{name}, {each} of {', '.join(order[:-1])} and {order[-1]}": tensor for each, tensor in parts.items()}


def _in_block(name: str, vision: Mapping[str, Any]) -> str:
    """The name of a tensor of a block, from which `renamed` has renamed the beginning only."""
    if not name.startswith("visual.trunk.blocks."):
        block = _OPEN_CLIP_BLOCK if ".resblocks." in name else {}
    else:
        block = _BLOCKS[vision["tower"]]
        if vision["tower"] == DINOV3:
            name = re.sub(r"attention\.([qkv])_proj\.bias$", r"attn.\1_bias", name)
            block = block | {"mlp.up_proj": "mlp.fc1_x" if vision["gated_mlp"] else "mlp.fc1"}
    for old, new in block.items():
        name = re.sub(rf"\.{re.escape(old)}(?=\.|$)", f".{new}", name)
    return name


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name in _TRANSPOSED and tensor.dim() == 2:
        return tensor.T
    if name in ("logit_scale", "logit_bias") and tensor.numel() == 1:
        return tensor.reshape(())
    return tensor[None] if name == _POSITIONS and tensor.dim() == 2 else tensor


def _placed(state: dict[str, Tensor], vision: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a DINO with the class token's position in it, and those of the patches for the image size."""
    if vision["registers"] == 0:
        # transformers keeps an empty one.
        state = {name: tensor for name, tensor in state.items() if name != _REGISTERS or tensor.numel()}
    places, token = state.get(_POSITIONS), state.get(_CLASS)
    if places is None or token is None or places.dim() != 3 or token.shape != places[:, :1].shape:
        return state
    grid = vision["image_size"] // vision["patch_size"]
    antialias = vision["tower"] == DINOV2_REGISTERS
    return state | {_CLASS: token.float() + places[:, :1].float(), _POSITIONS: _interpolated(places[:, 1:], grid, "bicubic", antialias=antialias)}


def _square(state: dict[str, Tensor], vision: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a NaFlex tower for square images alone: its matrix on patches as a convolution, its positions for one grid."""
    weight, places = state.get(_PATCHES), state.get(_POSITIONS)
    patch, side = vision["patch_size"], vision["image_size"]
    if weight is not None and weight.dim() == 2 and weight.shape[1] == 3 * patch * patch:
        # A patch is flattened as rows, columns, channels.
        state = state | {_PATCHES: weight.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2).contiguous()}
    if places is not None and places.dim() == 3:
        state = state | {_POSITIONS: _interpolated(places, side // patch, "bilinear", antialias=True)}
    return state


def _interpolated(places: Tensor, grid: int, mode: str, *, antialias: bool) -> Tensor:
    """Positions (1, N, D) of a square grid for one of `grid` rows, as transformers interpolates them in each forward pass."""
    old = math.isqrt(places.shape[1])
    if old in (0, grid) or old * old != places.shape[1]:
        return places
    # In float64: its rounding to float32 is the same on every CPU, and so is the digest of the weights.
    table = places.double().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    table = functional.interpolate(table, (grid, grid), mode=mode, align_corners=False, antialias=antialias)
    return table.permute(0, 2, 3, 1).reshape(1, grid * grid, -1).float()
