"""Image towers of every supported kind, at reduced size, with seeded random weights."""

from typing import Any

import torch
from torch import nn

CLIP = {"image_size": 64, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16}
OPEN_CLIP: dict[str, dict[str, Any]] = {
    "cls": {},
    "patch32": {"patch_size": 32},
    "patch14": {"patch_size": 14, "image_size": 56},
    "not square": {"image_size": (64, 96)},
    "average": {"pool_type": "avg"},
    "average, final norm after": {"pool_type": "avg", "final_ln_after_pool": True},
    "attentional": {"attentional_pool": True, "attn_pooler_queries": 4, "attn_pooler_heads": 2},
    "layer scale, no first norm": {"ls_init_value": 1e-1, "no_ln_pre": True},
    "sin cos positions": {"pos_embed_type": "sin_cos_2d"},
}
ROTARY: dict[str, tuple[str, str, str]] = {
    "eva02": ("eva02_base_patch16_clip_224", "token", "linear"),
    "pe core": ("vit_pe_core_base_patch16_224", "map", "linear"),
    "dinov3": ("vit_small_patch16_dinov3", "token", "linear"),
    "dinov3 plus": ("vit_small_plus_patch16_dinov3_qkvb", "token", "linear"),
}
"""Positions that rotate queries and keys, alone or next to absolute ones."""
TIMM: dict[str, tuple[str, str, str]] = {
    # name: trunk, pool and projection as open_clip's model configurations name them
    "siglip": ("vit_base_patch16_siglip_224", "map", "none"),
    "dinov2 registers": ("vit_small_patch14_reg4_dinov2", "token", "linear"),
    "plain, average": ("vit_tiny_patch16_224", "avg", "linear"),
    "eva": ("eva_giant_patch14_224", "token", "linear"),
    "mobileclip": ("vit_base_mci_224", "token", ""),
    **ROTARY,
}
FIXED_WIDTH = ("vit_base_mci_224",)
"""Trunks whose convolutions in front of the blocks fix the width."""


def open_clip_visual(kind: str, quick_gelu: bool = False) -> nn.Module:
    """open_clip's own VisionTransformer of one kind."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower

    torch.manual_seed(0)
    config = CLIPVisionCfg(**{**CLIP, **OPEN_CLIP[kind]})
    return _scramble(_build_vision_tower(32, config, quick_gelu))


def timm_visual(kind: str, size: int = 0) -> nn.Module:
    """A timm trunk inside open_clip's TimmModel, with few blocks and a small image (of `size` pixels, where given)."""
    import timm
    from open_clip.timm_model import TimmModel

    trunk, pool, projection = TIMM[kind]
    torch.manual_seed(0)
    size = size or (56 if "14" in trunk else 64)
    small = {"img_size": size, "depth": 3, "num_heads": 2, **({} if trunk in FIXED_WIDTH else {"embed_dim": 64})}
    created = timm.create_model

    def reduced(name: str, **options: Any) -> nn.Module:
        return created(name, **{**options, **small})

    timm.create_model = reduced
    try:
        visual = TimmModel(trunk, embed_dim=64 if projection == "none" else 32, image_size=size, pool=pool, proj=projection)
    finally:
        timm.create_model = created
    return _scramble(visual)


def _scramble(visual: nn.Module) -> nn.Module:
    """Gives every tensor a random value: many start at zero or one, where a forgotten one would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return visual.eval().requires_grad_(False)
