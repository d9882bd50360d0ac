"""Fits VisionTower to the image towers of open_clip and timm."""

import copy
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ModelError
from prtool.spec import Cost
from prtool.trainer.models.tower import PLACE, VisionTower, matrix_weights, sharing_copy, split_heads

_BASE = 128
"""Of the two digits of a patch's number: each is exact in bfloat16 too, up to 32,767 patches."""


def tower_of(visual: nn.Module) -> VisionTower:
    """The VisionTower of an open_clip model's `visual`.

    Raises:
        ModelError: the tower is no plain vision transformer (a ResNet, ConvNeXt, ...).
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    from prtool.trainer.models.loading.image_only import TrunkVision

    if isinstance(visual, VisionTransformer):
        return OpenClipTower(visual)
    if isinstance(visual, (TimmModel, TrunkVision)):
        return (TimmTower if getattr(visual.trunk, "rope", None) is None else RotaryTower)(visual)
    kind = type(visual).__name__
    raise ModelError(f"the image tower is a {kind}, but tokens can be pruned in vision transformers only (ViT-*, SigLIP, DINOv2, EVA)")


class OpenClipTower(VisionTower):
    """open_clip's own VisionTransformer: CLS, average or attentional pooling."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        host = cast(Any, visual)
        if not host.transformer.batch_first:
            raise ModelError("the image tower keeps tokens first, which this version of open_clip no longer makes; use open_clip 3 or later")
        if host.attn_pool is not None and (host.attn_pool_contrastive is not None or host.pool_type == "none"):
            raise ModelError("the image tower pools in two stages, which is not supported; use one with CLS or average pooling")
        if host.pool_type == "none":
            raise ModelError("the image tower has pool_type 'none' and gives no embedding; use one with CLS or average pooling")
        self.host = host
        self.grid = cast(tuple[int, int], tuple(host.grid_size))
        self.prefix_tokens = 1
        self.has_cls = True
        self.width = int(host.conv1.out_channels)
        self.embed_dim = int(host.proj.shape[1])
        self.image_size = cast(tuple[int, int], tuple(host.image_size))
        self.patch_size = cast(tuple[int, int], tuple(host.patch_size))
        self.head_reads = int(host.attn_pool is None and host.pool_type == "tok")

    @property
    def blocks(self) -> Sequence[nn.Module]:  # noqa: D102 - as declared
        return cast(Sequence[nn.Module], self.host.transformer.resblocks)

    def embed(self, pixels: Tensor) -> Tensor:  # noqa: D102
        return cast(Tensor, self.host._embeds(pixels))

    def pre_norm(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return cast(Tensor, self.host.ln_pre(tokens))

    def head(self, tokens: Tensor) -> Tensor:  # noqa: D102
        pooled, _ = self.host._pool(tokens)
        return cast(Tensor, pooled @ self.host.proj)

    def queries_keys(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        layer = cast(Any, self.blocks[index])
        attention = layer.attn
        if not isinstance(attention, nn.MultiheadAttention):
            raise ModelError(f"attention of kind {type(attention).__name__} gives no queries and keys; use another method")
        query, key, _ = functional.linear(layer.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias).chunk(3, dim=-1)
        queries = split_heads(query, attention.num_heads)
        return queries * queries.shape[-1] ** -0.5, split_heads(key, attention.num_heads)

    def block(self, index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        layer = cast(Any, self.blocks[index])
        if mask is None:
            return cast(Tensor, layer(tokens))
        heads, length = layer.attn.num_heads, tokens.shape[1]
        # nn.MultiheadAttention takes a mask of every image and head, with no axis left to broadcast.
        whole = mask[:, None, None, :].expand(-1, heads, length, -1).reshape(-1, length, length)
        return cast(Tensor, layer(tokens, attn_mask=whole))

    def at_size(self, side: int) -> VisionTower:  # noqa: D102
        from open_clip.model import resize_pos_embed

        host, name = sharing_copy(self.host), "visual.positional_embedding"
        host.image_size = (side, side)
        host.grid_size = tuple(side // patch for patch in host.patch_size)
        state = {name: host.positional_embedding.detach()}
        resize_pos_embed(state, cast(Any, SimpleNamespace(visual=host)))
        host.positional_embedding = nn.Parameter(state[name], requires_grad=host.positional_embedding.requires_grad)
        return OpenClipTower(host).eval()

    def own_cost(self) -> Cost:  # noqa: D102
        pool = self.host.attn_pool
        head, head_token = self.host.proj.numel(), 0
        if pool is not None:
            queries, inner = pool.query.shape
            head_token = 2 * self.width * inner + 2 * queries * inner
            head += 2 * queries * inner * inner
        return _cost(self, self.host.conv1.weight.numel() * self.patches, head, head_token)


class TimmTower(VisionTower):
    """A timm trunk with a head, as in open_clip's TimmModel: SigLIP, DINOv2, EVA, MobileCLIP-B and plain ViT."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        from timm.models.eva import Eva
        from timm.models.vision_transformer import VisionTransformer
        from timm.models.vision_transformer_hybrid import ConvStem

        host = cast(Any, visual)
        trunk = host.trunk
        if not isinstance(trunk, (VisionTransformer, Eva)):
            raise ModelError(f"the image tower's trunk is a {type(trunk).__name__}, but only timm's VisionTransformer and Eva can be pruned")
        backbone = getattr(trunk.patch_embed, "backbone", None)
        if backbone is not None and not isinstance(backbone, ConvStem):
            raise ModelError(
                f"the image tower begins with a convolutional network of its own ({type(backbone).__name__}), whose operators are not exported; "
                "use a tower whose blocks begin at the patches, or with a plain stem (MobileCLIP-B)"
            )
        if trunk.attn_pool is not None and getattr(trunk.attn_pool, "pos_embed", None) is not None:
            raise ModelError("the image tower adds positions again in its pooling, and a pruned token would lose its place; use a tower without")
        self.host = host
        self.trunk = cast(Any, trunk)
        self.grid = cast(tuple[int, int], tuple(trunk.patch_embed.grid_size))
        self.prefix_tokens = int(trunk.num_prefix_tokens)
        self.has_cls = trunk.cls_token is not None
        self.width = int(trunk.embed_dim)
        self.image_size = cast(tuple[int, int], tuple(cast(Any, trunk.patch_embed).img_size))
        self.patch_size = cast(tuple[int, int], tuple(cast(Any, trunk.patch_embed).feat_ratio(as_scalar=False)))
        self.head_reads = int(trunk.attn_pool is None and trunk.global_pool == "token")
        projection = [module for module in host.head.modules() if isinstance(module, nn.Linear)]
        self.embed_dim = int(projection[-1].out_features) if projection else int(trunk.num_classes or trunk.num_features)

    @property
    def blocks(self) -> Sequence[nn.Module]:  # noqa: D102
        return cast(Sequence[nn.Module], self.trunk.blocks)

    def embed(self, pixels: Tensor) -> Tensor:  # noqa: D102
        placed = self.trunk._pos_embed(self.trunk.patch_embed(pixels))
        # Eva returns its rotary table with the tokens.
        tokens = placed[0] if isinstance(placed, tuple) else placed
        return cast(Tensor, self.trunk.norm_pre(tokens))

    def pre_norm(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return cast(Tensor, self.trunk.norm_pre(tokens))

    def head(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return cast(Tensor, self.host.head(self.trunk.forward_head(self.trunk.norm(tokens))))

    def queries_keys(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        layer = cast(Any, self.blocks[index])
        queries, keys = _projected(layer.attn, layer.norm1(tokens))
        return queries * layer.attn.scale, keys

    def block(self, index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        layer = cast(Any, self.blocks[index])
        return cast(Tensor, layer(tokens) if mask is None else layer(tokens, attn_mask=mask[:, None, None, :]))

    def at_size(self, side: int) -> VisionTower:  # noqa: D102
        host = sharing_copy(self.host)
        host.set_input_size(side)
        return type(self)(host).eval()

    def own_cost(self) -> Cost:  # noqa: D102
        pool = self.trunk.attn_pool
        head, head_token = matrix_weights(self.host.head) + matrix_weights(self.trunk.head), 0
        if pool is not None:
            head_token = pool.kv.weight.numel() + 2 * self.width
            head += matrix_weights(pool) - pool.kv.weight.numel()
        return _cost(self, layer_macs(self.trunk.patch_embed, self.image_size), head, head_token)


class RotaryTower(TimmTower):
    """The same with rotary positions, alone or next to absolute ones: EVA-02, PE-Core, DINOv3."""

    def __init__(self, visual: nn.Module) -> None:
        from timm.layers.pos_embed_sincos import RotaryEmbeddingCat, RotaryEmbeddingDinoV3

        super().__init__(visual)
        rope = self.trunk.rope
        if not isinstance(rope, (RotaryEmbeddingCat, RotaryEmbeddingDinoV3)):
            kind = type(rope).__name__
            raise ModelError(f"the image tower rotates by a {kind}, which is not supported; use one that has one table for all blocks and heads")
        with torch.no_grad():
            sines_cosines = rope.get_embed(list(self.grid))
        # The last row rotates by nothing: for tokens without a place.
        still = torch.zeros_like(sines_cosines[:1])
        still[:, still.shape[1] // 2 :] = 1.0
        numbers = torch.cat((torch.full((self.prefix_tokens,), self.patches), torch.arange(self.patches)))
        self.table: Tensor
        self.places: Tensor
        self.register_buffer("table", torch.cat((sines_cosines, still)), persistent=False)
        self.register_buffer("places", _written(numbers)[None].to(sines_cosines.device), persistent=False)

    @property
    def token_width(self) -> int:  # noqa: D102
        return self.width + PLACE

    def features(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return tokens[..., : self.width]

    def without_place(self, values: Tensor) -> Tensor:  # noqa: D102
        nowhere = _written(torch.tensor(self.patches, device=values.device)).to(values.dtype)
        return torch.cat((values, nowhere.expand(*values.shape[:-1], -1)), dim=-1)

    def embed(self, pixels: Tensor) -> Tensor:  # noqa: D102
        tokens = super().embed(pixels)
        return torch.cat((tokens, self.places.expand(tokens.shape[0], -1, -1).to(tokens.dtype)), dim=-1)

    def through(self, blocks: Iterable[nn.Module], tokens: Tensor) -> Tensor:  # noqa: D102
        return self._rotated(blocks, tokens, None)

    def block(self, index: int, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return self._rotated([self.blocks[index]], tokens, None if mask is None else mask[:, None, None, :])

    def head(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return super().head(self.features(tokens))

    def queries_keys(self, index: int, tokens: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        from timm.layers.pos_embed_sincos import apply_rot_embed_cat

        layer, rope, prefix = cast(Any, self.blocks[index]), self._rope(tokens), self.prefix_tokens
        half = bool(getattr(layer.attn, "rotate_half", False))
        turned = [
            torch.cat((part[:, :, :prefix], apply_rot_embed_cat(part[:, :, prefix:], rope, half=half)), dim=2)
            for part in _projected(layer.attn, layer.norm1(self.features(tokens)))
        ]
        return turned[0] * layer.attn.scale, turned[1]

    def _rope(self, tokens: Tensor) -> Tensor:
        """The rows of the table for what is behind the prefix: (batch, 1, tokens - prefix, 2 x head width)."""
        high, low = (tokens[:, self.prefix_tokens :, self.width + part].long() for part in (0, 1))
        return functional.embedding(high * _BASE + low, self.table).unsqueeze(1)

    def _rotated(self, blocks: Iterable[nn.Module], tokens: Tensor, mask: Tensor | None) -> Tensor:
        rope, own = self._rope(tokens), self.features(tokens)
        for block in blocks:
            own = block(own, rope=rope, attn_mask=mask)
        return torch.cat((own, tokens[..., self.width :].to(own.dtype)), dim=-1)


def _written(numbers: Tensor) -> Tensor:
    """Numbers (...,) of patches as the channels (..., PLACE) float32 that tokens carry."""
    digits = torch.stack((numbers // _BASE, numbers % _BASE), dim=-1).float()
    return functional.pad(digits, (0, PLACE - 2))


def _projected(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - timm's classes have no stubs
    """Queries and keys (batch, heads, tokens, head width) of one of timm's attention layers, before they are scaled or rotated."""
    if getattr(attention, "qkv", None) is not None:
        bias = attention.qkv.bias
        if bias is None and getattr(attention, "q_bias", None) is not None:  # EVA's, in three parts
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        query, key, _ = functional.linear(normed, attention.qkv.weight, bias).chunk(3, dim=-1)
    elif getattr(attention, "q_proj", None) is not None:
        query, key = attention.q_proj(normed), attention.k_proj(normed)
    else:
        raise ModelError(f"attention of kind {type(attention).__name__} gives no queries and keys; use another method")
    queries, keys = split_heads(query, attention.num_heads), split_heads(key, attention.num_heads)
    if getattr(attention, "q_norm", None) is not None:
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return queries, keys


def _cost(tower: VisionTower, embed: int, head: int, head_token: int) -> Cost:
    attention = cast(Any, tower.blocks[0]).attn
    return Cost(
        embed_macs=embed,
        token_macs=matrix_weights(tower.blocks[0]),
        attention_macs=2 * tower.width,
        head_macs=head,
        head_token_macs=head_token,
        attention_token_macs=matrix_weights(attention),
        pair_macs=tower.width // int(attention.num_heads),
    )


def layer_macs(module: nn.Module, image_size: tuple[int, int]) -> int:
    """Multiply-accumulates of the convolutions and linear layers that one image (3, *image_size) passes through; nothing is computed."""
    found: list[int] = []

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        found.append(output.numel() * cast(Tensor, layer.weight)[0].numel())

    outline = copy.deepcopy(module).to("meta")
    for layer in outline.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        outline(torch.empty(1, 3, *image_size, device="meta", dtype=next(outline.parameters()).dtype))
    return sum(found)
