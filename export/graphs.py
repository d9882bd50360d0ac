"""Modules made for export: the halves of a pruned encoder and the text side, in operators that every engine runs fast."""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ModelError
from prtool.trainer.model import TextTower
from prtool.trainer.pruned import PrunedEncoder
from prtool.trainer.vit import split_heads

_TINY = 1e-12


class PreGraph(nn.Module):
    """Pixels to the tokens that enter the pruning location, and their scores."""

    def __init__(self, encoder: PrunedEncoder, *, flat: bool = True) -> None:
        """`flat`: linear layers work on rows; see `FlatLinear`."""
        super().__init__()
        self.encoder = plain_copy(encoder)
        set_flat(self, flat)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, height, width) -> tokens (batch, prefix + N, D), scores (batch, N)."""
        return cast(tuple[Tensor, Tensor], self.encoder.enter(pixels))


class PostGraph(nn.Module):
    """The tokens that stay to the embedding."""

    def __init__(self, encoder: PrunedEncoder, *, flat: bool = True) -> None:
        """`flat`: linear layers work on rows; see `FlatLinear`."""
        super().__init__()
        self.tower = plain_copy(encoder.tower)
        set_flat(self, flat)
        self.location = encoder.spec.locations[-1]

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, tokens, D) -> (batch, E), L2-normalised."""
        return _normalise(self.tower.leave(tokens, self.location))


class TextGraph(nn.Module):
    """Token ids to the text embedding."""

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        # A dual encoder also holds the image tower, which no prompt needs.
        self.host = plain_copy(text.host, leave_out=text.host.visual)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context) int64 -> (batch, E), L2-normalised."""
        return _normalise(cast(Tensor, self.host.encode_text(tokens)))


class PlainAttention(nn.Module):
    """Self-attention as three products, a softmax and a product, with the query scale inside the query weights.

    PyTorch's own modules export as one joint projection that is then cut and copied five times: 6 % of
    ViT-B/16 on ONNX Runtime, at one thread and batch 4.
    """

    def __init__(self, joint: nn.Linear, heads: int, output: nn.Linear, norms: tuple[nn.Module, nn.Module] | None = None) -> None:
        """Cuts a joint projection in three.

        Args:
            joint: D -> 3 x inner: queries, keys, values, each head after head.
            heads: number of heads.
            output: inner -> D.
            norms: norms of queries and keys by head.
        """
        super().__init__()
        inner = joint.out_features // 3
        self.heads = heads
        scale = (inner // heads) ** -0.5
        # A norm of the queries would undo a scale put before it.
        self.query_scale = scale if norms else 1.0
        self.query = _part(joint, 0, inner, 1.0 if norms else scale)
        self.key = _part(joint, 1, inner)
        self.value = _part(joint, 2, inner)
        self.output = FlatLinear.like(output)
        self.query_norm, self.key_norm = norms or (nn.Identity(), nn.Identity())

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention between two sequences.

        Args:
            queries: (batch, asking tokens, D).
            keys, values: (batch, tokens, D).
            mask: added to the products, (asking tokens, tokens) or (batch x heads, asking tokens, tokens).

        Returns:
            (batch, asking tokens, D).
        """
        query = self.query_norm(self._by_head(self.query(queries)))
        key = self.key_norm(self._by_head(self.key(keys)))
        if self.query_scale != 1.0:
            query = query * self.query_scale
        products = query @ key.transpose(-1, -2)
        if mask is not None:
            products = products + (mask if mask.dim() == 2 else torch.unflatten(mask, 0, (-1, self.heads)))
        mixed = products.softmax(dim=-1) @ self._by_head(self.value(values))
        return cast(Tensor, self.output(mixed.transpose(1, 2).flatten(2)))

    def _by_head(self, projected: Tensor) -> Tensor:
        return split_heads(projected, self.heads)


class TorchAttention(nn.Module):
    """PlainAttention with the call of nn.MultiheadAttention."""

    def __init__(self, plain: PlainAttention) -> None:
        super().__init__()
        self.plain = plain

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,  # noqa: ARG002 - torch's signature
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As nn.MultiheadAttention, batch first, without weights."""
        return self.plain.attend(query, key, value, attn_mask), None


class TimmAttention(nn.Module):
    """PlainAttention with the call of timm's Attention."""

    def __init__(self, plain: PlainAttention) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's Attention: (batch, tokens, D) in and out; a mask that is added, none that is causal."""
        if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise ModelError("the image tower masks its attention, which a pruned sequence has no use for; use a tower without masks")
        return self.plain.attend(x, x, x, attn_mask)


class FlatLinear(nn.Linear):
    """A linear layer that flattens (batch, tokens, D) to rows, so that it exports as one Gemm with its bias inside.

    A product with a separate addition reads and writes the activations twice: 8 % of ViT-B/16 on ONNX Runtime.
    With `flat` off it stays three-dimensional, as int8 needs it; see `prtool.export.quantise.to_int8`.
    """

    flat: bool = True

    @classmethod
    def like(cls, linear: nn.Linear) -> "FlatLinear":
        """Shares the tensors of `linear`."""
        return cls.of(linear.weight, linear.bias)

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> "FlatLinear":
        """A layer with a weight (out, in) and a bias (out,)."""
        made = cls(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        made.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            made.bias = nn.Parameter(bias, requires_grad=False)
        return made

    def forward(self, input: Tensor) -> Tensor:  # noqa: D102 - as torch's
        if not self.flat or self.bias is None or input.dim() != 3:
            return functional.linear(input, self.weight, self.bias)
        rows = functional.linear(input.reshape(-1, self.in_features), self.weight, self.bias)
        return rows.reshape(input.shape[0], input.shape[1], self.out_features)


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


def set_flat(module: nn.Module, flat: bool) -> None:
    """Sets the form of every linear layer inside an exportable copy."""
    for layer in module.modules():
        if isinstance(layer, FlatLinear):
            layer.flat = flat


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


def _part(joint: nn.Linear, place: int, inner: int, scale: float = 1.0) -> FlatLinear:
    rows = slice(place * inner, (place + 1) * inner)
    weight, bias = joint.weight.detach()[rows], None if joint.bias is None else joint.bias.detach()[rows]
    if scale != 1.0:
        weight, bias = weight * scale, None if bias is None else bias * scale
    return FlatLinear.of(weight, bias)


def _normalise(embedding: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
    return torch.div(embedding, length.clamp_min(_TINY))
