"""The last block computes only what the head reads.

With CLS pooling only the class token needs a query; the others contribute keys and values. The result is the same with 7 % fewer
multiply-accumulates in ViT-B/16, unpruned and pruned alike.
"""

from typing import Any, cast

from torch import Tensor, nn

from prtool.export.graphs.attention import TimmAttention, TorchAttention
from prtool.trainer.models.tower import VisionTower

# The names of two norms and two layer scales in the blocks whose steps are known.
_STEPS = {"open_clip": ("ln_1", "ln_2", "ls_1", "ls_2"), "timm": ("norm1", "norm2", "ls1", "ls2")}


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
    return tower.head(_run(cast(Any, tower.blocks[-1]), tokens, queries))


def num_query_tokens(tower: VisionTower) -> int:
    """How many tokens, from the front, the last block computes; 0 where it must compute all of them."""
    return tower.head_reads if _kind(tower.blocks[-1]) else 0


def kv_token_macs(tower: VisionTower) -> int:
    """MACs of keys and values in one block, for each token."""
    attention = cast(Any, tower.blocks[-1]).attn
    joint = attention.in_proj_weight if isinstance(attention, nn.MultiheadAttention) else attention.qkv.weight
    return 2 * int(joint.numel()) // 3


def _kind(block: nn.Module) -> str:
    """ "open_clip" or "timm" where the block is one whose steps are known, exportable or not yet; else ""."""
    from open_clip.transformer import ResidualAttentionBlock
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block

    attention = cast(Any, block).attn if hasattr(block, "attn") else None
    if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv") and isinstance(attention, (TorchAttention, nn.MultiheadAttention)):
        return "open_clip"
    if type(block) is Block and isinstance(attention, (TimmAttention, Attention)):
        return "timm"
    return ""


def _run(block: Any, tokens: Tensor, queries: int) -> Tensor:  # noqa: ANN401 - two libraries' blocks
    """The first `queries` tokens (batch, queries, D) of the block's output."""
    norm_1, norm_2, scale_1, scale_2 = (getattr(block, name) for name in _STEPS[_kind(block)])
    normed = norm_1(tokens)
    first = tokens[:, :queries] + scale_1(block.attn.attend(normed[:, :queries], normed, normed, None))
    return cast(Tensor, first + scale_2(block.mlp(norm_2(first))))
