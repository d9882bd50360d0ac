"""Modules made for export: the stages of a pruned encoder and the text side, in operators that every engine runs fast."""

import copy
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from prtool.export.graphs.attention import FlatLinear, PlainAttention, TimmAttention, TorchAttention, set_flat
from prtool.export.graphs.last_block import embed_last
from prtool.trainer.models.dual_encoder import TextTower
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.tower import VisionTower

_TINY = 1e-12
Part = TypeVar("Part", bound=nn.Module)


class PreGraph(nn.Module):
    """Pixels to the tokens that enter the first location, and their scores."""

    def __init__(self, encoder: PrunedEncoder, *, flat: bool = True) -> None:
        """`flat`: linear layers work on rows; see `FlatLinear`."""
        super().__init__()
        self.encoder = _exportable(encoder, flat)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) -> tokens (batch, prefix + N + appended, D), scores (batch, N)."""
        return self.encoder.run_pre(pixels)


class MidGraph(nn.Module):
    """The tokens that stay at one location to those that enter the next, and their scores."""

    def __init__(self, encoder: PrunedEncoder, place: int, *, flat: bool = True) -> None:
        """`place`: 1 for the graph behind the first location; `flat`: see `FlatLinear`."""
        super().__init__()
        self.encoder = _exportable(encoder, flat)
        self.place = place

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, tokens, D) -> tokens of the same shape, scores (batch, patches)."""
        return self.encoder.run_mid(self.place, tokens)


class PostGraph(nn.Module):
    """The tokens that stay at the last location to the embedding."""

    def __init__(self, encoder: PrunedEncoder, *, flat: bool = True) -> None:
        """`flat`: linear layers work on rows; see `FlatLinear`."""
        super().__init__()
        self.encoder = _exportable(encoder, flat)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, D) -> (batch, E), L2-normalised."""
        encoder = self.encoder
        entering = encoder.advance(tokens, encoder.spec.locations[-1], encoder.tower.depth)
        return _normalise(embed_last(encoder.tower, entering, encoder.spec.learnable_tokens))


class FullGraph(nn.Module):
    """Pixels to the embedding of the plain tower, which knows neither pruning nor learnable tokens."""

    def __init__(self, tower: VisionTower, *, flat: bool = True) -> None:
        """`flat`: linear layers work on rows; see `FlatLinear`."""
        super().__init__()
        self.tower: VisionTower = _exportable(tower, flat)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, E), L2-normalised."""
        return _normalise(embed_last(self.tower, self.tower.run_blocks(self.tower.embed(pixels), 1, self.tower.depth - 1)))


class TextGraph(nn.Module):
    """Token ids to the text embedding."""

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        # A dual encoder also holds the image tower, which no prompt needs.
        self.host = plain_copy(text.host, leave_out=text.host.visual)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context) int64 -> (batch, E), L2-normalised."""
        return _normalise(cast(Tensor, self.host.encode_text(tokens)))


def _exportable(module: Part, flat: bool) -> Part:
    copied: Part = plain_copy(module)
    set_flat(copied, flat)
    return copied


def plain_copy(module: nn.Module, leave_out: nn.Module | None = None) -> Any:  # noqa: ANN401 - of the type given
    """A copy that shares the module's tensors, with attention and linear layers in their exportable form.

    Args:
        module: what to copy; it stays as it is.
        leave_out: a part that is not needed; an empty module stands in its place.
    """
    known: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    if leave_out is not None:
        known[id(leave_out)] = nn.Identity()
    copied = copy.deepcopy(module, known).eval()
    _replace(copied)
    return copied


def _replace(module: nn.Module) -> None:
    for name, child in module.named_children():
        plain = _plain(child)
        if plain is None:
            _replace(child)
        else:
            setattr(module, name, plain)


def _plain(module: nn.Module) -> nn.Module | None:
    """The exportable form of one layer; None where it stays as it is."""
    from timm.layers.attention import Attention

    if type(module) is nn.Linear:
        return FlatLinear.like(module)
    if type(module) is nn.MultiheadAttention:
        return _plain_multihead(module)
    if type(module) is Attention:
        return _plain_timm(cast(Any, module))
    return None


def _plain_multihead(attention: nn.MultiheadAttention) -> nn.Module | None:
    weight, output = attention.in_proj_weight, attention.out_proj
    extras = attention.bias_k is not None or attention.add_zero_attn or not attention.batch_first
    if weight is None or extras:
        return None
    return TorchAttention(PlainAttention(FlatLinear.of(weight, attention.in_proj_bias), attention.num_heads, output))


def _plain_timm(attention: Any) -> nn.Module | None:  # noqa: ANN401 - timm's class has no stub
    if attention.gate is not None or not isinstance(attention.norm, nn.Identity):
        return None
    norms = None if isinstance(attention.q_norm, nn.Identity) else (attention.q_norm, attention.k_norm)
    return TimmAttention(PlainAttention(attention.qkv, attention.num_heads, attention.proj, norms))


def _normalise(embedding: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
    return torch.div(embedding, length.clamp_min(_TINY))
