"""Attention and linear layers in the form that every engine runs fast."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ModelError
from prtool.trainer.models.tower import split_heads


class PlainAttention(nn.Module):
    """Self-attention with separate query, key and value projections, and the query scale folded into the query weights.

    PyTorch's own modules export as one joint projection that is then split and copied five times: 6 % of
    ViT-B/16 on ONNX Runtime, at one thread and batch 4.
    """

    def __init__(self, joint: nn.Linear, heads: int, output: nn.Linear, norms: tuple[nn.Module, nn.Module] | None = None) -> None:
        """Splits a joint projection.

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
        # A norm of the queries would undo a scale before it.
        self.query_scale = scale if norms else 1.0
        self.query = _part(joint, 0, inner, 1.0 if norms else scale)
        self.key = _part(joint, 1, inner)
        self.value = _part(joint, 2, inner)
        self.output = FlatLinear.like(output)
        self.query_norm, self.key_norm = norms or (nn.Identity(), nn.Identity())

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention between two sequences.

        Args:
            queries: (batch, queries, D).
            keys, values: (batch, tokens, D).
            mask: added to the products, (queries, tokens), (batch x heads, queries, tokens) or (batch, 1, 1, tokens).

        Returns:
            (batch, queries, D).
        """
        return self._mix(queries, self.key_norm(self._by_head(self.key(keys))), values, mask)

    def attend_with_metric(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attention among (batch, tokens, D), and the mean of its keys over the heads, (batch, tokens, head width)."""
        projected = self.key(tokens)
        if isinstance(self.key_norm, nn.Identity):
            # Before the heads move to the front: the transposed keys keep one reader, as the engines' fused attention needs it.
            return self._mix(tokens, self._by_head(projected), tokens, mask), torch.unflatten(projected, -1, (self.heads, -1)).mean(dim=2)
        keys = self.key_norm(self._by_head(projected))
        return self._mix(tokens, keys, tokens, mask), keys.mean(dim=1)

    def _mix(self, queries: Tensor, key: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        query = self.query_norm(self._by_head(self.query(queries)))
        if self.query_scale != 1.0:
            query = query * self.query_scale
        products = query @ key.transpose(-1, -2)
        if mask is not None:
            products = products + (torch.unflatten(mask, 0, (-1, self.heads)) if mask.dim() == 3 else mask)
        mixed = products.softmax(dim=-1) @ self._by_head(self.value(values))
        return cast(Tensor, self.output(mixed.transpose(1, 2).flatten(2)))

    def _by_head(self, projected: Tensor) -> Tensor:
        return split_heads(projected, self.heads)


class TorchAttention(PlainAttention):
    """PlainAttention with the call of nn.MultiheadAttention."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,  # noqa: ARG002 - torch's signature
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """As nn.MultiheadAttention, batch first, without weights."""
        return self.attend(query, key, value, attn_mask), None


class TimmAttention(PlainAttention):
    """PlainAttention with the call of timm's Attention."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """As timm's Attention: (batch, tokens, D) in and out; a mask that is added, none that is causal."""
        if is_causal or (attn_mask is not None and attn_mask.dtype == torch.bool):
            raise ModelError("the image tower masks its attention, which pruning does not support; use a tower without masks")
        return self.attend(x, x, x, attn_mask)


class FlatLinear(nn.Linear):
    """A linear layer that flattens (batch, tokens, D) to rows, so that it exports as one Gemm with its bias inside.

    A MatMul with a separate Add reads and writes the activations twice: 8 % of ViT-B/16 on ONNX Runtime.
    With `flat` off it stays three-dimensional, as int8 needs it; see `prtool.export.precision.int8.to_int8`.
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


def _part(joint: nn.Linear, place: int, inner: int, scale: float = 1.0) -> FlatLinear:
    rows = slice(place * inner, (place + 1) * inner)
    weight, bias = joint.weight.detach()[rows], None if joint.bias is None else joint.bias.detach()[rows]
    if scale != 1.0:
        weight, bias = weight * scale, None if bias is None else bias * scale
    return FlatLinear.of(weight, bias)
