"""ToMe (Bolya et al., Token Merging: Your ViT But Faster, ICLR 2023): in each block the patches that are most alike merge.

In every block, between attention and MLP, the patches are split alternately into two sets; each patch of the first
set proposes to join the patch of the second set whose key is most alike, and the `r` most alike pairs merge into
their mean, weighted by the patches that each stands for (section 3, bipartite soft matching). Attention adds the
logarithm of that number to the logits (proportional attention, equation 1). Class token and registers never merge.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.spec import Cost, PruneSpec
from prtool.trainer.evaluation.baselines.base import Counts, Entered, Method, encoder_gmacs
from prtool.trainer.models.hosts import OpenClipTower, TimmTower
from prtool.trainer.models.tower import VisionTower, matrix_weights, split_heads

Matched = tuple[Tensor, Tensor, Tensor]
"""Indices into the even tokens that stay (batch, evens - r), into those that merge (batch, r), and into the odd ones these join (batch, r)."""


class ToMe(Method):
    """Merging as a method: equal numbers in every block, so that all MACs, matching included, are the budget's.

    It has no location: it starts in block 1 and ends in the last.

    Raises:
        ConfigError: the tower is not one that `MergedEncoder` is written for.
    """

    name = "tome"

    def __init__(self, tower: VisionTower) -> None:
        try:
            self._tower = MergedEncoder(tower, (0,) * tower.depth).tower
        except ModelError as cause:
            raise ConfigError(f"method 'tome' does not suit this image tower: {cause}; or leave tome out of --method") from cause
        self._schedules: dict[tuple[PruneSpec, Counts], tuple[int, ...]] = {}

    def encode(self, entered: Entered, counts: Counts) -> Tensor:
        """The embedding (batch, E) float32, L2-normalised, of the merged tokens."""
        if entered.keeps_all(counts):
            return entered.unpruned
        return MergedEncoder(self._tower, self._merges(entered.spec, counts)).encode(entered.embedded)

    def gmacs(self, cost: Cost, spec: PruneSpec, counts: Counts) -> float:  # noqa: ARG002 - the tower's own is the same
        """Cost of one image in 10^9 MAC, matching included."""
        return merged_gmacs(self._tower, self._merges(spec, counts))

    def _merges(self, spec: PruneSpec, counts: Counts) -> tuple[int, ...]:
        if (spec, counts) not in self._schedules:
            self._schedules[spec, counts] = schedule(self._tower, encoder_gmacs(self._tower.cost(), spec, counts))
        return self._schedules[spec, counts]


class MergedEncoder(nn.Module):
    """A frozen tower whose sequences shrink by `merges[i]` tokens inside block i; with zeros it is the unpruned tower.

    Args:
        tower: a vision transformer of open_clip or timm with a class token that is its pooling.
        merges: r of each block.

    Raises:
        ModelError: the tower pools otherwise, or its attention gives no keys.
        ConfigError: there is not one number for each block.
    """

    def __init__(self, tower: VisionTower, merges: Sequence[int]) -> None:
        super().__init__()
        if not _has_keys(tower) or tower.head_reads != 1:
            raise ModelError(
                "tokens can be merged in plain vision transformers of open_clip and timm with CLS pooling; give ViT-B-16, ViT-L-14, a DINOv2, ..."
            )
        if len(merges) != tower.depth:
            raise ConfigError(f"{len(merges)} numbers of merges for {tower.depth} blocks; give one for each")
        self.tower = tower
        self.merges = tuple(merges)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, E), L2-normalised."""
        return self.encode(self.tower.embed(pixels))

    def encode(self, embedded: Tensor) -> Tensor:
        """Tokens (batch, prefix + N, D) that enter block 1 -> (batch, E), L2-normalised."""
        tokens, prefix = embedded, self.tower.prefix_tokens
        sizes: Tensor | None = None
        run = _open_clip_block if isinstance(self.tower, OpenClipTower) else _timm_block
        for layer, r in zip(self.tower.blocks, self.merges, strict=True):
            tokens, sizes = run(cast(Any, layer), tokens, sizes, r, prefix)
        return functional.normalize(self.tower.head(tokens), dim=-1)


def match(keys: Tensor, r: int) -> Matched:
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


def merge(tokens: Tensor, sizes: Tensor | None, matched: Matched) -> tuple[Tensor, Tensor]:
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
    """The number of merges of each block whose cost is nearest to `gmacs`.

    All are equal or one more in the first blocks; a block with fewer pairs than that merges all it has.

    Raises:
        ConfigError: merging every pair costs more than `gmacs`.
    """
    attention = _attention_weights(tower)
    most = tower.depth * (tower.patches // 2)
    tried = [_capped(tower, total) for total in range(most + 1)]
    costs = [_gmacs(tower, merges, attention) for merges in tried]
    if min(costs) > gmacs:
        raise ConfigError(f"merging all pairs in every block costs {min(costs):.3f} GMAC an image, but the budget is {gmacs:.3f}; keep more patches")
    nearest = min(range(len(tried)), key=lambda total: abs(costs[total] - gmacs))
    return tried[nearest]


def merged_gmacs(tower: VisionTower, merges: Sequence[int]) -> float:
    """10^9 multiply-accumulates of one image, matching included."""
    return _gmacs(tower, merges, _attention_weights(tower))


def _gmacs(tower: VisionTower, merges: Sequence[int], attention: int) -> float:
    cost, length, total = tower.cost(), tower.prefix_tokens + tower.patches, 0
    head_width = tower.width // cast(Any, tower.blocks[0]).attn.num_heads
    for r in merges:
        total += length * attention + length * length * cost.attention_macs
        if r:
            matched = length - (tower.prefix_tokens - 1)
            total += ((matched + 1) // 2) * (matched // 2) * head_width
        length -= r
        total += length * (cost.token_macs - attention)
    return (cost.embed_macs + total + cost.head_macs) / 1e9


def _attention_weights(tower: VisionTower) -> int:
    return matrix_weights(cast(Any, tower.blocks[0]).attn)


def _capped(tower: VisionTower, total: int) -> tuple[int, ...]:
    """`total` merges in equal numbers, each at most the pairs that its block has: the class token is one of the even tokens and stays."""
    length, merges = 1 + tower.patches, []
    for block in range(tower.depth):
        r = min(total // tower.depth + (block < total % tower.depth), (length - 1) // 2)
        merges.append(r)
        length -= r
    return tuple(merges)


def _has_keys(tower: VisionTower) -> bool:
    if isinstance(tower, OpenClipTower):
        return all(isinstance(cast(Any, layer).attn, nn.MultiheadAttention) for layer in tower.blocks)
    if not isinstance(tower, TimmTower):
        return False
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    layers = [cast(Any, layer) for layer in tower.blocks]
    return all(type(layer) is Block and type(layer.attn) is Attention and getattr(layer.attn, "gate", None) is None for layer in layers)


def _open_clip_block(layer: Any, tokens: Tensor, sizes: Tensor | None, r: int, prefix: int) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401 - hosts have no types
    attention = layer.attn
    projected = functional.linear(layer.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys, values = (split_heads(part, attention.num_heads) for part in projected.chunk(3, dim=-1))
    tokens = tokens + layer.ls_1(attention.out_proj(_attend(queries, keys, values, sizes)))
    tokens, sizes = _shrink(tokens, sizes, keys, r, prefix)
    return tokens + layer.ls_2(layer.mlp(layer.ln_2(tokens))), sizes


def _timm_block(layer: Any, tokens: Tensor, sizes: Tensor | None, r: int, prefix: int) -> tuple[Tensor, Tensor | None]:  # noqa: ANN401
    attention = layer.attn
    queries, keys, values = (split_heads(part, attention.num_heads) for part in attention.qkv(layer.norm1(tokens)).chunk(3, dim=-1))
    keys = attention.k_norm(keys)
    attended = _attend(attention.q_norm(queries), keys, values, sizes)
    tokens = tokens + layer.ls1(attention.proj(attention.norm(attended)))
    tokens, sizes = _shrink(tokens, sizes, keys, r, prefix)
    return tokens + layer.ls2(layer.mlp(layer.norm2(tokens))), sizes


def _attend(queries: Tensor, keys: Tensor, values: Tensor, sizes: Tensor | None) -> Tensor:
    """Proportional attention: (batch, heads, tokens, head width) each -> (batch, tokens, D)."""
    mask = None if sizes is None else sizes.log()[:, None, None, :]
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def _shrink(tokens: Tensor, sizes: Tensor | None, keys: Tensor, r: int, prefix: int) -> tuple[Tensor, Tensor | None]:
    """Merges r pairs; registers, which stand behind the class token, stay aside."""
    if not r:
        return tokens, sizes
    if prefix == 1:
        return merge(tokens, sizes, match(keys.mean(dim=1), r))
    if sizes is None:
        sizes = tokens.new_ones(tokens.shape[:2])
    matched = match(_without(keys.mean(dim=1), prefix), r)
    merged, counted = merge(_without(tokens, prefix), _without(sizes, prefix), matched)
    together = [torch.cat((new[:, :1], old[:, 1:prefix], new[:, 1:]), dim=1) for new, old in ((merged, tokens), (counted, sizes))]
    return together[0], together[1]


def _without(tokens: Tensor, prefix: int) -> Tensor:
    """(batch, tokens, ...) without the registers at 1 to prefix - 1."""
    return torch.cat((tokens[:, :1], tokens[:, prefix:]), dim=1)


def _wide(indices: Tensor, like: Tensor) -> Tensor:
    """(batch, items) -> (batch, items, channels of `like`), for gather and scatter."""
    return indices.unsqueeze(-1).expand(-1, -1, like.shape[-1])
