"""Modules made for export: the graphs of a pruned encoder and the text encoder, in operators that every engine runs fast."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from prtool.export.graphs.attention import FlatLinear, TimmAttention, TorchAttention
from prtool.export.graphs.last_block import embed_last
from prtool.trainer.models.dual_encoder import TextTower
from prtool.trainer.models.pruned import PlainEncoder, PrunedEncoder
from prtool.trainer.models.tower import VisionTower, sharing_copy

_TINY = 1e-12


class ImageGraph(nn.Module):
    """A function of an exportable encoder and one tensor."""

    def __init__(self, encoder: nn.Module, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.encoder, self._function = encoder, function

    def forward(self, tensor: Tensor) -> Any:  # noqa: ANN401, D102 - as the function's
        return self._function(self.encoder, tensor)


def image_graphs(
    encoder: PrunedEncoder | PlainEncoder, native: VisionTower | None = None, *, flat: bool = True, patch_tokens: int = 0
) -> dict[str, ImageGraph]:
    """The graphs of an encoder by role, which share one exportable copy.

    Args:
        encoder: stays as it is.
        native: the unpruned tower; None is the encoder's.
        flat: linear layers work on rows; see `FlatLinear`.
        patch_tokens: the block whose patch tokens are given out as well; 0 for none.

    Returns:
        "pre": pixels (batch, 3, height, width) -> tokens (batch, prefix + N + learnable, D), scores (batch, N);
        "mid_1", ...: tokens (batch, tokens, D) -> tokens of the same shape, scores (batch, patches);
        "post": tokens (batch, tokens, D) -> (batch, E), L2-normalised;
        "full": pixels -> (batch, E), L2-normalised, of the native tower without pruning and learnable tokens.
        "post_tokens", with `patch_tokens`: as "post", and the patches' tokens (batch, patches, width of the encoder).
        Of an encoder that drops nothing: "fused", pixels -> (batch, E), L2-normalised, "full", and with `patch_tokens` "tokens".
    """
    copied = exportable(encoder, flat=flat)
    whole = copied.tower if native is None or native is encoder.tower else exportable(native, flat=flat)
    if isinstance(encoder, PlainEncoder):
        given = {"tokens": ImageGraph(copied, _plain_tokens(patch_tokens))} if patch_tokens else {}
        return {"fused": ImageGraph(copied.tower, unpruned), "full": ImageGraph(whole, unpruned), **given}
    graphs = {"pre": ImageGraph(copied, lambda own, pixels: own.run_pre(pixels))}
    for place in range(1, len(encoder.spec.locations)):
        graphs[f"mid_{place}"] = ImageGraph(copied, _mid(place))
    if patch_tokens:
        graphs["post_tokens"] = ImageGraph(copied, _post_tokens(patch_tokens))
    return {**graphs, "post": ImageGraph(copied, _post), "full": ImageGraph(whole, unpruned)}


def exportable(module: nn.Module, *, flat: bool) -> Any:  # noqa: ANN401 - of the type given
    """`plain_copy`, with linear layers that work on rows where `flat`; see `FlatLinear`."""
    copied = plain_copy(module)
    for layer in copied.modules():
        if isinstance(layer, FlatLinear):
            layer.flat = flat
    return copied


def _mid(place: int) -> Callable[[PrunedEncoder, Tensor], tuple[Tensor, Tensor]]:
    return lambda encoder, tokens: encoder.run_mid(place, tokens)


def _post(encoder: PrunedEncoder, tokens: Tensor) -> Tensor:
    entering = encoder.advance(tokens, encoder.spec.locations[-1], encoder.tower.depth)
    return normalise(embed_last(encoder.tower, entering, encoder.spec.learnable_tokens))


def _post_tokens(block: int) -> Callable[[PrunedEncoder, Tensor], tuple[Tensor, Tensor]]:
    def run(encoder: PrunedEncoder, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tower, depth = encoder.tower, encoder.tower.depth
        left = tower.run_blocks(encoder.advance(tokens, encoder.spec.locations[-1], block), block, block)
        last = encoder.advance(encoder.append(left, block + 1), block + 1, depth) if block < depth else None
        return _with_patches(tower, encoder.without_appended(left), last, encoder.spec.learnable_tokens)

    return run


def _plain_tokens(block: int) -> Callable[[PlainEncoder, Tensor], tuple[Tensor, Tensor]]:
    def run(encoder: PlainEncoder, pixels: Tensor) -> tuple[Tensor, Tensor]:
        tower, depth = encoder.tower, encoder.tower.depth
        left = tower.run_blocks(tower.embed(pixels), 1, block)
        return _with_patches(tower, left, tower.run_blocks(left, block + 1, depth - 1) if block < depth else None)

    return run


def _with_patches(tower: VisionTower, left: Tensor, last: Tensor | None, learnable_tokens: int = 0) -> tuple[Tensor, Tensor]:
    """The embedding, and the patches' tokens of those that left a block; `last` enter the last block, None where it was that one."""
    embedding = tower.head(left) if last is None else embed_last(tower, last, learnable_tokens)
    return normalise(embedding), tower.features(left[:, tower.prefix_tokens :])


def unpruned(tower: VisionTower, pixels: Tensor) -> Tensor:
    """The graph FULL of an exportable tower: pixels -> (batch, E), L2-normalised."""
    return normalise(embed_last(tower, tower.run_blocks(tower.embed(pixels), 1, tower.depth - 1)))


class TextGraph(nn.Module):
    """Token ids to the text embedding."""

    def __init__(self, text: TextTower) -> None:
        super().__init__()
        # A dual encoder also holds the image tower, which no prompt needs.
        self.host = plain_copy(text.host, leave_out=text.host.visual)

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, context) int64 -> (batch, E), L2-normalised."""
        return normalise(cast(Tensor, self.host.encode_text(tokens)))


def plain_copy(module: nn.Module, leave_out: nn.Module | None = None) -> Any:  # noqa: ANN401 - of the type given
    """A copy that shares the module's tensors, with attention and linear layers in their exportable form.

    Args:
        module: what to copy; it stays as it is.
        leave_out: a part that is not needed; an identity takes its place.
    """
    copied = sharing_copy(module, leave_out).eval()
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
    return TorchAttention(FlatLinear.of(weight, attention.in_proj_bias), attention.num_heads, output)


def _plain_timm(attention: Any) -> nn.Module | None:  # noqa: ANN401 - timm's class has no stub
    if attention.gate is not None or not isinstance(attention.norm, nn.Identity):
        return None
    norms = None if isinstance(attention.q_norm, nn.Identity) else (attention.q_norm, attention.k_norm)
    return TimmAttention(attention.qkv, attention.num_heads, attention.proj, norms)


def normalise(embedding: Tensor) -> Tensor:
    """(batch, E) at L2 norm 1."""
    length = torch.linalg.vector_norm(embedding, dim=-1, keepdim=True)
    return torch.div(embedding, length.clamp_min(_TINY))
