"""Auxiliary features of a patch scorer: position, norm and similarity to the class token (ours, not the paper's)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError

POSITION = "position"
_CLS = "cls"
_EPSILON = 1e-6


class AuxiliaryFeatures(nn.Module):
    """Some features of each token besides its channels, projected to the scorer's channels.

    Args:
        names: some of `prtool.trainer.settings.AUXILIARY`, each once.
        channels: of the reduced tokens that the features are added to.
        patches: number of patches N.
        prefix_tokens: tokens before the patches, the class token first.

    Raises:
        ConfigError: a model without prefix tokens has no class token to compare with.
    """

    def __init__(self, names: tuple[str, ...], channels: int, patches: int, prefix_tokens: int) -> None:
        super().__init__()
        if _CLS in names and not prefix_tokens:
            raise ConfigError("scorer.auxiliary has cls, but this model has no class token; leave cls out")
        self.measures = tuple(_MEASURES[name] for name in names if name != POSITION)
        self.project = nn.Linear(len(self.measures), channels) if self.measures else None
        # Zeros: a position means nothing until the images give it a meaning.
        self.position = nn.Parameter(torch.zeros(prefix_tokens + patches, channels)) if POSITION in names else None

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to the reduced tokens: (batch, prefix + N, D) float32 -> (batch or 1, prefix + N, channels) float32."""
        found = tokens.new_zeros(()) if self.position is None else self.position.unsqueeze(0)
        if self.project is not None:
            found = found + self.project(torch.stack([measure(tokens) for measure in self.measures], dim=-1))
        return found

    def macs(self, tokens: int) -> int:
        """Multiply-accumulates of one image of so many tokens in matrix products."""
        return 0 if self.project is None else tokens * self.project.weight.numel()


def _norm(tokens: Tensor) -> Tensor:
    """(batch, tokens): logarithm of each token's length, standardised in each image."""
    return _standardised(tokens.square().sum(dim=-1).clamp_min(_EPSILON).log())


def _cls(tokens: Tensor) -> Tensor:
    """(batch, tokens): cosine to the first token, standardised in each image."""
    # The tokens of an image share a large mean, in whose direction all are similar.
    unit = functional.normalize(tokens - tokens.mean(dim=1, keepdim=True), dim=-1)
    return _standardised((unit * unit[:, :1]).sum(dim=-1))


def _standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + _EPSILON).sqrt()


_MEASURES: dict[str, Callable[[Tensor], Tensor]] = {"norm": _norm, _CLS: _cls}
