"""MergedEncoder: gradual token merging in PyTorch, the reference of every graph that merges.

Token merging (ToMe, Bolya et al. 2023): in some blocks, between attention and MLP, the r most alike pairs of tokens become
their weighted mean (its section 3, bipartite soft matching), and attention counts a token as often as it stands for patches
(proportional attention, equation 1). Class token and registers never merge. Nothing is trained.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ModelError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.models.blocks import BlockSteps, block_steps
from prtool.trainer.models.tower import TowerEncoder, VisionTower, split_heads


class Matched(NamedTuple):
    """What becomes of the even tokens of one sequence; indices are int64, rising in `staying`.

    Attributes:
        staying: (batch, evens - r) indices into the even tokens.
        merging: (batch, r) indices into the even tokens.
        partner: (batch, r) indices into the odd tokens that those join.
    """

    staying: Tensor
    merging: Tensor
    partner: Tensor


class MergedEncoder(TowerEncoder):
    """A frozen tower whose patches become fewer inside each of the blocks `spec.locations`.

    It runs in stages, with a merging (`merge`) between them: `run_pre` up to the first, `run_mid` to each further one, and
    `run_post`.

    Args:
        tower: a vision transformer of open_clip or timm with a class token that is its pooling.
        spec: in which blocks patches merge.

    Raises:
        ModelError: the tower cannot merge; the message says why.
    """

    def __init__(self, tower: VisionTower, spec: PruneSpec) -> None:
        super().__init__()
        self._steps = merging_steps(tower)
        self.tower = tower
        self.spec = spec

    def encode(self, pixels: Tensor, counts: Sequence[int]) -> Tensor:
        """The embedding (batch, E), L2-normalised.

        Args:
            pixels: (batch, 3, height, width).
            counts: patches left behind the merging of each location.

        Raises:
            KeepError: there is not one count for each location, they rise, or a block has fewer pairs than merge in it.
        """
        return self.encode_from(self.tower.embed(pixels), 1, counts)

    def encode_from(self, tokens: Tensor, block: int, counts: Sequence[int]) -> Tensor:
        """`encode` from the tokens (batch, prefix + N, D) that enter a block, the first in which patches merge or an earlier one."""
        return self.finish(*self.run_pre_from(tokens, block), counts)

    def finish(self, tokens: Tensor, metric: Tensor, counts: Sequence[int]) -> Tensor:
        """Everything behind `run_pre`, which several `counts` can share: embedding (batch, E), L2-normalised."""
        self.spec.check_counts(tuple(counts))
        sizes = None
        for place, k in enumerate(counts):
            if place:
                tokens, metric = self.run_mid(place, tokens, cast(Tensor, sizes))
            tokens, sizes = self.merge(tokens, metric, sizes, k)
        return self.run_post(tokens, cast(Tensor, sizes))

    def forward(self, pixels: Tensor, keep: Keep) -> Tensor:
        """Embedding (batch, E), L2-normalised, with `keep` patches left behind the last location."""
        return self.encode(pixels, self.spec.counts(keep))

    def run_pre(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (batch, prefix + N, D) behind the attention of the first location, and their metric (batch, prefix + N, head width)."""
        return self.run_pre_from(self.tower.embed(pixels))

    def run_pre_from(self, tokens: Tensor, block: int = 1) -> tuple[Tensor, Tensor]:
        """`run_pre` from the tokens (batch, prefix + N, D) that enter a block, the first in which patches merge or an earlier one."""
        first = self.spec.locations[0]
        return self._attend(first, self.tower.run_blocks(tokens, block, first - 1), None)

    def run_mid(self, place: int, tokens: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """From the merging at location number `place` (1 for the first) to the next: tokens behind its attention, and their metric.

        `tokens` (batch, tokens, D) and `sizes` (batch, tokens) are what `merge` gave.
        """
        start, end = self.spec.locations[place - 1], self.spec.locations[place]
        return self._attend(end, self._advance(tokens, sizes, start, end - 1), sizes)

    def run_post(self, tokens: Tensor, sizes: Tensor) -> Tensor:
        """From the last merging on: embedding (batch, E), L2-normalised."""
        return self._embedding(self._advance(tokens, sizes, self.spec.locations[-1], self.tower.depth))

    def merge(self, tokens: Tensor, metric: Tensor, sizes: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
        """Merges until `k` patches are left, and puts the tokens in their new order, also where none merges.

        Args:
            tokens: (batch, prefix + patches, D).
            metric: (batch, prefix + patches, head width), the mean over the heads of the attention's keys.
            sizes: (batch, prefix + patches) patches that each token stands for; None for one each.
            k: at least half of the patches, rounded up.

        Returns:
            Tokens (batch, prefix + k, D): [class token | registers | even ones that stay | odd ones]; and their sizes.
        """
        prefix = self.spec.prefix_tokens
        if sizes is None:
            sizes = tokens.new_ones(tokens.shape[:2])
        matched = match(_without(metric, prefix), tokens.shape[1] - prefix - k)
        merged, counted = merge(_without(tokens, prefix), _without(sizes, prefix), matched)
        if prefix == 1:
            return merged, counted
        # Registers, which stand behind the class token, stay aside.
        together = [torch.cat((new[:, :1], old[:, 1:prefix], new[:, 1:]), dim=1) for new, old in ((merged, tokens), (counted, sizes))]
        return together[0], together[1]

    def margin(self, metric: Tensor, r: int) -> Tensor:
        """How clearly `merge` decides on `r` pairs: the smallest difference of two cosines that would change one, (batch,).

        `metric` is (batch, prefix + patches, head width); infinite where nothing merges.
        """
        return matching_margin(_without(metric, self.spec.prefix_tokens), r)

    def _advance(self, tokens: Tensor, sizes: Tensor, first: int, last: int) -> Tensor:
        """The MLP of block `first`, and the blocks behind it up to `last`."""
        tokens = self._steps[first - 1].transform(tokens)
        for block in range(first + 1, last + 1):
            tokens = self._steps[block - 1].transform(self._attend(block, tokens, sizes)[0])
        return tokens

    def _attend(self, block: int, tokens: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
        """The attention half of a 1-based block: tokens behind its residual, and their metric."""
        steps = self._steps[block - 1]
        attended, keys = _attention(cast(Any, steps.attention), steps.norm_1(tokens), sizes)
        return tokens + steps.scale_1(attended), keys.mean(dim=1)


def merging_steps(tower: VisionTower) -> list[BlockSteps]:
    """The steps of a tower's blocks.

    Raises:
        ModelError: the tower cannot merge.
    """
    kind, other = type(cast(Any, tower).host).__name__, "give a plain ViT with CLS pooling (ViT-B-16, ViT-L-14, DINOv2), or another prune.method"
    if tower.rotary:
        raise ModelError(
            f"tokens cannot merge in this {kind}: it rotates queries and keys by the place of a patch, and a merged one has none; {other}"
        )
    if tower.head_reads != 1:
        raise ModelError(
            f"tokens cannot merge in this {kind}: it pools over all tokens, where a merged one would count once for all its patches; {other}"
        )
    steps = [block_steps(block) for block in tower.blocks]
    for number, found in enumerate(steps, start=1):
        if found is None or not _gives_keys(found.attention):
            block = type(tower.blocks[number - 1]).__name__
            inner = "" if found is None else f" with attention of kind {type(found.attention).__name__}"
            raise ModelError(f"tokens cannot merge in this {kind}: block {number} is a {block}{inner}, whose keys are not accessible; {other}")
    return cast(list[BlockSteps], steps)


def match(metric: Tensor, r: int) -> Matched:
    """Bipartite soft matching (section 3 of ToMe); token 0 is the class token and stays.

    Args:
        metric: (batch, tokens, channels); tokens at even places are compared by cosine with those at odd ones.
        r: pairs to merge, at most half of the patches.

    Returns:
        The r even tokens that are most like an odd one merge with it. Ties: of equal odd ones the first is the partner, of equal
        even ones the first stays.
    """
    # In no less than float32, also where the encoder is trained in bfloat16: it decides.
    with torch.autocast(metric.device.type, enabled=False):
        unit = functional.normalize(metric.to(torch.promote_types(metric.dtype, torch.float32)), dim=-1)
        alike = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    best, partner = alike.max(dim=-1)
    best = torch.cat((torch.full_like(best[:, :1], -torch.inf), best[:, 1:]), dim=1)
    order = best.sort(dim=-1, stable=True).indices
    stays = order.shape[1] - r
    return Matched(order[:, :stays].sort(dim=-1).values, order[:, stays:], partner.gather(1, order[:, stays:]))


def matching_margin(metric: Tensor, r: int) -> Tensor:
    """The smallest difference of cosines that decides `match`: between what merges and what stays, and between two partners; (batch,)."""
    unit = functional.normalize(metric, dim=-1)
    alike = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2))[:, 1:]
    if not r:
        return alike.new_full((len(alike),), torch.inf)
    first = alike.topk(min(2, alike.shape[2]), dim=-1).values
    best, order = first[..., 0].sort(dim=-1, descending=True)
    partners = (first[..., 0] - first[..., -1] if first.shape[-1] > 1 else torch.full_like(best, torch.inf)).gather(1, order[:, :r]).amin(dim=1)
    return torch.minimum(partners, best[:, r - 1] - best[:, r]) if r < best.shape[1] else partners


def merge(tokens: Tensor, sizes: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
    """Replaces each matched pair by its weighted mean.

    Args:
        tokens: (batch, tokens, D).
        sizes: (batch, tokens) patches that each token stands for.
        matched: as `match` gives it.

    Returns:
        (batch, tokens - r, D), even tokens that stay before odd ones, and their sizes.
    """
    staying, merging, partner = matched
    # One more channel carries the size through the same gathers and sums.
    weighted = torch.cat((tokens * sizes.unsqueeze(-1), sizes.unsqueeze(-1)), dim=-1)
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    joined = odd.scatter_add(1, _wide(partner, odd), even.gather(1, _wide(merging, even)))
    summed = torch.cat((even.gather(1, _wide(staying, even)), joined), dim=1)
    return summed[..., :-1] / summed[..., -1:], summed[..., -1]


def _gives_keys(attention: nn.Module) -> bool:
    from timm.layers.attention import Attention

    if type(attention) is nn.MultiheadAttention:
        return attention.in_proj_weight is not None and attention.bias_k is None and not attention.add_zero_attn and attention.batch_first
    return type(attention) is Attention and getattr(attention, "gate", None) is None


def _attention(attention: Any, tokens: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ANN401 - hosts have no types
    """Proportional attention: (batch, tokens, D), and the keys (batch, heads, tokens, head width)."""
    if isinstance(attention, nn.MultiheadAttention):
        joint, heads = functional.linear(tokens, attention.in_proj_weight, attention.in_proj_bias), attention.num_heads
        queries, keys, values = (split_heads(part, heads) for part in joint.chunk(3, dim=-1))
        return cast(Tensor, attention.out_proj(_attend(queries, keys, values, sizes))), keys
    queries, keys, values = (split_heads(part, attention.num_heads) for part in attention.qkv(tokens).chunk(3, dim=-1))
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    return cast(Tensor, attention.proj(attention.norm(_attend(queries, keys, values, sizes)))), keys


def _attend(queries: Tensor, keys: Tensor, values: Tensor, sizes: Tensor | None) -> Tensor:
    """(batch, heads, tokens, head width) each -> (batch, tokens, D); the log of a token's size is added to its products."""
    mask = None if sizes is None else sizes.log()[:, None, None, :]
    return functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2).flatten(2)


def _without(tokens: Tensor, prefix: int) -> Tensor:
    """(batch, tokens, ...) without the registers at 1 to prefix - 1."""
    return tokens if prefix == 1 else torch.cat((tokens[:, :1], tokens[:, prefix:]), dim=1)


def _wide(indices: Tensor, like: Tensor) -> Tensor:
    """(batch, items) -> (batch, items, channels of `like`), for gather and scatter."""
    return indices.unsqueeze(-1).expand(-1, -1, like.shape[-1])
