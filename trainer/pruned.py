"""PrunedEncoder: the PyTorch reference that every graph, engine and language is compared with."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ShapeError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.vit import VisionTower


def select(scores: Tensor, k: int) -> Tensor:
    """Indices (batch, k) int64 of the k highest scores (batch, N), falling; ties go to the lower index."""
    if not 1 <= k <= scores.shape[1]:
        raise ShapeError(f"k = {k}, but there are {scores.shape[1]} patches; give 1 to {scores.shape[1]}")
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


def gather(tokens: Tensor, indices: Tensor, prefix_tokens: int, appended_tokens: int = 0) -> Tensor:
    """Keeps the chosen patches and every prefix and appended token.

    Args:
        tokens: (batch, prefix + N + appended, D).
        indices: (batch, k) int64, patch numbers 0 to N - 1.

    Returns:
        (batch, prefix + k + appended, D), patches in the order of `indices`.
    """
    end = tokens.shape[1] - appended_tokens
    patches = tokens[:, prefix_tokens:end]
    kept = torch.gather(patches, 1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :prefix_tokens], kept, tokens[:, end:]), dim=1)


class PrunedEncoder(nn.Module):
    """A frozen tower that drops its least important patches: sequences become physically shorter.

    Args:
        tower: the image encoder.
        scorers: one scorer for each location, (batch, prefix + N, D) -> (batch, N), high = keep.
        spec: where tokens drop.
    """

    def __init__(self, tower: VisionTower, scorers: Sequence[nn.Module], spec: PruneSpec) -> None:
        super().__init__()
        if len(scorers) != len(spec.locations):
            raise ConfigError(f"{len(scorers)} scorers for {len(spec.locations)} locations; give one scorer for each")
        if len(spec.locations) != 1 or spec.appended_tokens:
            raise ConfigError(
                f"locations = {list(spec.locations)} with {spec.appended_tokens} learnable tokens, "
                "but this version prunes at one location without learnable tokens; give one location"
            )
        self.tower = tower
        self.scorers = nn.ModuleList(scorers)
        self.spec = spec

    def enter(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The PRE half: tokens (batch, prefix + N, D) that enter the location, and scores (batch, N)."""
        tokens = self.tower.enter(pixels, self.spec.locations[0])
        return tokens, cast(Tensor, self.scorers[0](tokens))

    def leave(self, tokens: Tensor) -> Tensor:
        """The POST half: (batch, tokens, D) -> embedding (batch, E), L2-normalised."""
        return functional.normalize(self.tower.leave(tokens, self.spec.locations[-1]), dim=-1)

    def forward(self, pixels: Tensor, keep: Keep) -> Tensor:
        """Embedding (batch, E), L2-normalised, with `keep` patches kept at the location."""
        tokens, scores = self.enter(pixels)
        indices = select(scores, self.spec.counts(keep)[-1])
        return self.leave(gather(tokens, indices, self.spec.prefix_tokens, self.spec.appended_tokens))
