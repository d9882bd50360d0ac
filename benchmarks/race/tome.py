"""A token-merging encoder (ToMe: Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023), on the towers of open_clip.

In every block, between attention and MLP, the patches are split alternately into two sets; each patch of the first
set proposes to join the patch of the second set whose key is most alike, and the `r` most alike pairs merge into
their mean, weighted by the patches that each stands for (section 3, bipartite soft matching). Attention adds the
logarithm of that number to the logits (proportional attention, equation 1). The class token never merges.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.trainer.hosts import OpenClipTower
from prtool.trainer.vit import VisionTower, matrix_weights, split_heads


class MergedEncoder(nn.Module):
    """A frozen tower whose sequences shrink by `merges[i]` tokens inside block i; with zeros it is the unpruned tower.

    Args:
        tower: an open_clip vision transformer with a class token that is its pooling.
        merges: r of each block.
    """

    def __init__(self, tower: VisionTower, merges: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(tower, OpenClipTower) or tower.host.attn_pool is not None or tower.host.pool_type != "tok":
            raise ModelError("the merged encoder is written for open_clip's own vision transformers with CLS pooling; give ViT-B-16, ViT-L-14, ...")
        if len(merges) != tower.depth:
            raise ConfigError(f"{len(merges)} numbers of merges for {tower.depth} blocks; give one for each")
        self.tower = tower
        self.merges = tuple(merges)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, E), L2-normalised."""
        tokens = self.tower.embed(pixels)
        sizes: Tensor | None = None
        for layer, r in zip(self.tower.blocks, self.merges, strict=True):
            tokens, sizes = _block(cast(Any, layer), tokens, sizes, r)
        return functional.normalize(self.tower.head(tokens), dim=-1)


def match(keys: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bipartite soft matching; token 0 is the class token and stays.

    Args:
        keys: (batch, tokens, channels), the attention's keys, averaged over the heads.
        r: pairs to merge, at most half of the patches.

    Returns:
        Indices into the even tokens that stay (batch, evens - r), rising; into those that merge (batch, r); and into
        the odd tokens that those join (batch, r).
    """
    unit = functional.normalize(keys, dim=-1)
    alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    alike = torch.cat((torch.full_like(alike[:, :1], -torch.inf), alike[:, 1:]), dim=1)
    best, partner = alike.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    merging = order[:, :r]
    return order[:, r:].sort(dim=-1).values, merging, partner.gather(1, merging)


def merge(tokens: Tensor, sizes: Tensor | None, matched: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Replaces each matched pair by its weighted mean.

    Args:
        tokens: (batch, tokens, D).
        sizes: (batch, tokens) patches that each token stands for; None for one each.
        matched: as `match` gives it.

    Returns:
        (batch, tokens - r, D), even tokens before odd ones, and their sizes.
    """
    if sizes is None:
        sizes = tokens.new_ones(tokens.shape[:2])
    staying, merging, partner = matched
    # One more channel carries the size through the same gathers and sums.
    weighted = torch.cat((tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)), dim=-1)
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    joined = odd.scatter_add(1, _wide(partner, odd), even.gather(1, _wide(merging, even)))
    summed = torch.cat((even.gather(1, _wide(staying, even)), joined), dim=1)
    return summed[..., :-1] / summed[..., -1:], summed[..., -1]


def schedule(tower: VisionTower, gmacs: float) -> tuple[int, ...]:
    """The number of merges of each block, all equal or one more in the first ones, whose cost is nearest to `gmacs`."""
    depth = tower.depth
    tried = []
    for total in range(depth * (tower.patches // 2)):
        merges = tuple(total // depth + (block < total % depth) for block in range(depth))
        if not _possible(tower, merges):
            break
        tried.append(merges)
    return min(tried, key=lambda merges: abs(merged_gmacs(tower, merges) - gmacs))


def merged_gmacs(tower: VisionTower, merges: Sequence[int]) -> float:
    """10^9 multiply-accumulates of one image, matching included."""
    cost, length, total = tower.cost(), tower.prefix_tokens + tower.patches, 0
    for block, r in enumerate(merges):
        layer = cast(Any, tower.blocks[block])
        attention = matrix_weights(layer.attn)
        total += length * attention + length * length * cost.attention_macs
        if r:
            total += ((length + 1) // 2) * (length // 2) * (tower.width // layer.attn.num_heads)
        length -= r
        total += length * (cost.token_macs - attention)
    return (cost.embed_macs + total + cost.head_macs) / 1e9


def _possible(tower: VisionTower, merges: Sequence[int]) -> bool:
    """Whether each block has that many pairs to merge: the class token is one of the even tokens and stays."""
    length = tower.prefix_tokens + tower.patches
    for r in merges:
        if r > (length - 1) // 2:
            return False
        length -= r
    return True


def _block(layer: Any, tokens: Tensor, sizes: Tensor | None, r: int) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - open_clip has no types
    attended, keys = _attention(layer.attn, layer.ln_1(tokens), sizes)
    tokens = tokens + layer.ls_1(attended)
    if r:
        tokens, sizes = merge(tokens, sizes, match(keys.mean(dim=1), r))
    return tokens + layer.ls_2(layer.mlp(layer.ln_2(tokens))), sizes


def _attention(layer: nn.MultiheadAttention, tokens: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Proportional attention: the output (batch, tokens, D) and the keys (batch, heads, tokens, head width)."""
    projected = functional.linear(tokens, cast(Tensor, layer.in_proj_weight), layer.in_proj_bias)
    queries, keys, values = (split_heads(part, layer.num_heads) for part in projected.chunk(3, dim=-1))
    mask = None if sizes is None else sizes.log()[:, None, None, :]
    attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return layer.out_proj(attended.transpose(1, 2).flatten(2)), keys


def _wide(indices: Tensor, like: Tensor) -> Tensor:
    """(batch, items) -> (batch, items, channels of `like`), for gather and scatter."""
    return indices.unsqueeze(-1).expand(-1, -1, like.shape[-1])
