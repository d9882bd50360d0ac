"""The steps of one transformer block, whichever library made it: what runs before, inside and behind its attention."""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

_NAMES = {"open_clip": ("ln_1", "ls_1", "ln_2", "ls_2"), "timm": ("norm1", "ls1", "norm2", "ls2")}


@dataclass(frozen=True, slots=True, eq=False)
class BlockSteps:
    """A pre-norm block: `x + scale_1(attention(norm_1(x)))`, then `x + scale_2(mlp(norm_2(x)))`."""

    norm_1: nn.Module
    attention: nn.Module
    scale_1: nn.Module
    norm_2: nn.Module
    mlp: nn.Module
    scale_2: nn.Module

    def transform(self, tokens: Tensor) -> Tensor:
        """The MLP half of the block: (..., D) in and out."""
        return cast(Tensor, tokens + self.scale_2(self.mlp(self.norm_2(tokens))))


def block_steps(block: nn.Module) -> BlockSteps | None:
    """The steps of a plain block of open_clip or timm; None for blocks of other kinds."""
    from open_clip.transformer import ResidualAttentionBlock
    from timm.models.vision_transformer import Block

    if type(block) is ResidualAttentionBlock and not hasattr(block, "ln_1_kv"):
        names = _NAMES["open_clip"]
    elif type(block) is Block:
        names = _NAMES["timm"]
    else:
        return None
    norm_1, scale_1, norm_2, scale_2 = (getattr(block, name) for name in names)
    own = cast(Any, block)
    return BlockSteps(norm_1, own.attn, scale_1, norm_2, own.mlp, scale_2)
