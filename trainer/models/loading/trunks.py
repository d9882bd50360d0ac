"""Image towers of transformers as trunks of timm that compute the same: SigLIP, also NaFlex on squares, DINOv2, DINOv3."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from timm.layers.mlp import SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from prtool.errors import ModelError
from prtool.text_safety import printable
from prtool.trainer.models.loading.image_only import TrunkVision

SIGLIP, DINOV2, DINOV2_REGISTERS, DINOV3 = "siglip_vision_model", "dinov2", "dinov2_with_registers", "dinov3_vit"
NAFLEX = "siglip2_vision_model"
"""As `model_type` names them."""
ANY_SIZE = (NAFLEX, DINOV2, DINOV2_REGISTERS, DINOV3)
"""Those that read images of any size, as their positions are interpolated, or rotate; the image processor decides."""
_ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


def hidden_width(vision: Any) -> int:  # noqa: ANN401 - transformers' classes change by version
    """Channels inside the MLPs of a configuration of transformers."""
    if vision.model_type not in (DINOV2, DINOV2_REGISTERS):
        return int(vision.intermediate_size)
    hidden = int(vision.hidden_size * vision.mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if vision.use_swiglu_ffn else hidden


def trunk_settings(vision: Any, origin: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    """What a configuration of transformers says of a trunk besides what every tower has; `origin` is for messages.

    Raises:
        ModelError: a value that timm's modules do not compute.
    """
    if vision.model_type == DINOV3:
        return _dinov3_settings(vision, origin)
    if vision.model_type in (DINOV2, DINOV2_REGISTERS):
        registers = vision.num_register_tokens if vision.model_type == DINOV2_REGISTERS else 0
        return {"registers": registers, "gated_mlp": vision.use_swiglu_ffn, "qkv_bias": vision.qkv_bias}
    if vision.model_type in (SIGLIP, NAFLEX) and not getattr(vision, "vision_use_head", True):
        raise ModelError(f"{origin} has vision_use_head = false, so its image tower gives no embedding; give a checkpoint with its head")
    return {}


def _dinov3_settings(vision: Any, origin: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    activation = "silu" if vision.use_gated_mlp else "gelu"
    wanted = {"hidden_act": activation, "key_bias": False, "value_bias": vision.query_bias, "proj_bias": True, "mlp_bias": True}
    for name, value in wanted.items():
        if getattr(vision, name) != value:
            raise ModelError(f"{origin} has {name} = {printable(repr(getattr(vision, name)))}, but only {value!r} is supported")
    if vision.hidden_size // vision.num_attention_heads % 4:
        raise ModelError(
            f"{origin} has hidden_size = {vision.hidden_size} with {vision.num_attention_heads} attention heads, but rotary positions need "
            "a multiple of 4 channels a head"
        )
    return {
        "registers": vision.num_register_tokens,
        "gated_mlp": vision.use_gated_mlp,
        "qkv_bias": vision.query_bias,
        "rope_temperature": vision.rope_theta,
    }


def build_trunk_visual(config: Mapping[str, Any]) -> TrunkVision:
    """The image tower of a checked configuration with one of the kinds above, with random weights."""
    vision = config["vision_cfg"]
    trunk = _TRUNKS[vision["tower"]](vision, _shared(vision))
    return TrunkVision(trunk, nn.Linear(vision["width"], config["embed_dim"], bias=False) if vision["projected"] else None)


def _shared(vision: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that both of timm's classes have."""
    return {
        "img_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "num_classes": 0,
        "embed_dim": vision["width"],
        "depth": vision["layers"],
        "num_heads": vision["width"] // vision["head_width"],
        "mlp_ratio": vision["mlp_ratio"],
        "norm_layer": partial(nn.LayerNorm, **vision["norm_kwargs"]),
    }


def _siglip(vision: Mapping[str, Any], shared: dict[str, Any]) -> nn.Module:
    made = VisionTransformer(**shared, class_token=False, global_pool="map", act_layer=_ACTIVATIONS[vision["activation"]])
    return cast(nn.Module, made)


def _dinov2(vision: Mapping[str, Any], shared: dict[str, Any]) -> nn.Module:
    gated = vision["gated_mlp"]
    if gated:
        # Both of its first matrices count, which are one here.
        shared |= {"mlp_layer": SwiGLUPacked, "mlp_ratio": (2 * int(vision["width"] * vision["mlp_ratio"]) + 0.5) / vision["width"]}
    made = VisionTransformer(
        **shared,
        global_pool="token",
        reg_tokens=vision["registers"],
        no_embed_class=True,  # the class token's position is added to it while the weights are read
        init_values=1.0,
        qkv_bias=vision["qkv_bias"],
        act_layer=nn.SiLU if gated else _ACTIVATIONS[vision["activation"]],
    )
    return cast(nn.Module, made)


def _dinov3(vision: Mapping[str, Any], shared: dict[str, Any]) -> nn.Module:
    made = Eva(
        **shared,
        global_pool="token",
        num_reg_tokens=vision["registers"],
        init_values=1.0,
        qkv_bias=vision["qkv_bias"],
        swiglu_mlp=vision["gated_mlp"],
        swiglu_align_to=1,  # gives the form with two matrices, as the checkpoint has it
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=vision["rope_temperature"],
        rope_rotate_half=True,
        use_fc_norm=False,
    )
    return cast(nn.Module, made)


_TRUNKS: dict[str, Callable[[Mapping[str, Any], dict[str, Any]], nn.Module]] = {
    SIGLIP: _siglip,
    NAFLEX: _siglip,
    DINOV2: _dinov2,
    DINOV2_REGISTERS: _dinov2,
    DINOV3: _dinov3,
}
