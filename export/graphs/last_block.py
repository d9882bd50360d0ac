"""The last block computes only what the head reads.

With CLS pooling only the class token needs a query; the others contribute keys and values. The result is the same with 7 % fewer
multiply-accumulates in ViT-B/16, unpruned and pruned alike.
"""

from typing import Any, cast

from torch import Tensor, nn

from prtool.export.graphs.attention import PlainAttention
from prtool.trainer.models.blocks import BlockSteps, block_steps
from prtool.trainer.models.tower import VisionTower


def embed_last(tower: VisionTower, tokens: Tensor, learnable_tokens: int = 0) -> Tensor:
    """The last block and the head of an exportable copy, without what the head never reads.

    Args:
        tower: an exportable copy; see `prtool.export.graphs.modules.plain_copy`.
        tokens: (batch, tokens, D) that enter the last block.
        learnable_tokens: learnable tokens at the end, which no head reads.

    Returns:
        (batch, E), not normalised.
    """
    queries = num_query_tokens(tower)
    if not queries:
        left = tower.run_blocks(tokens, tower.depth, tower.depth)
        return tower.head(left[:, : left.shape[1] - learnable_tokens] if learnable_tokens else left)
    return tower.head(run_queries(tower.blocks[-1], tokens, queries))


def run_queries(block: nn.Module, tokens: Tensor, queries: int, mask: Tensor | None = None) -> Tensor:
    """The first `queries` tokens (batch, queries, D) of the output of an exportable block whose steps are known.

    `mask` (batch, 1, 1, tokens) is added to the products of attention.
    """
    steps = cast(BlockSteps, block_steps(block))
    normed = steps.norm_1(tokens)
    attended = cast(PlainAttention, steps.attention).attend(normed[:, :queries], normed, normed, mask)
    return steps.transform(tokens[:, :queries] + steps.scale_1(attended))


def num_query_tokens(tower: VisionTower) -> int:
    """How many tokens, from the front, the last block computes; 0 where it must compute all of them."""
    steps = block_steps(tower.blocks[-1])
    return tower.head_reads if steps is not None and _is_plain(steps.attention) else 0


def kv_token_macs(tower: VisionTower) -> int:
    """MACs of keys and values in one block, for each token."""
    attention = cast(Any, tower.blocks[-1]).attn
    joint = attention.in_proj_weight if isinstance(attention, nn.MultiheadAttention) else attention.qkv.weight
    return 2 * int(joint.numel()) // 3


def _is_plain(attention: nn.Module) -> bool:
    """Whether a plain block's attention is one that exports, exportable already or not yet."""
    from timm.layers.attention import Attention

    return isinstance(attention, (PlainAttention, nn.MultiheadAttention, Attention))
