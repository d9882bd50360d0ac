"""PrunedEncoder: the PyTorch reference that every graph, engine and language is compared with."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from prtool.errors import ConfigError, ShapeError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.tower import TowerEncoder, VisionTower


def select(scores: Tensor, k: int) -> Tensor:
    """Indices (batch, k) int64 of the k highest scores (batch, N), falling; ties go to the lower index."""
    if not 1 <= k <= scores.shape[1]:
        raise ShapeError(f"k = {k}, but there are {scores.shape[1]} patches; give 1 to {scores.shape[1]}")
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :k]


def gather(tokens: Tensor, indices: Tensor, prefix_tokens: int, learnable_tokens: int = 0) -> Tensor:
    """Keeps every prefix and appended token, and the selected patches in the order of `indices`.

    `tokens` (batch, prefix + N + appended, D) and `indices` (batch, k) int64, 0 to N - 1, give (batch, prefix + k + appended, D).
    """
    end = tokens.shape[1] - learnable_tokens
    patches = tokens[:, prefix_tokens:end]
    kept = torch.gather(patches, 1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[2]))
    return torch.cat((tokens[:, :prefix_tokens], kept, tokens[:, end:]), dim=1)


class FirstOrder(nn.Module):
    """The scorer of a later location that keeps the order of the first: patches arrive best first, so their position is their rank."""

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, prefix + patches, D) -> (batch, patches) float32, falling."""
        # A running sum rather than a range: it follows a dynamic axis in every exporter.
        ones = torch.ones_like(tokens[:, self.prefix_tokens :, 0])
        return -ones.cumsum(dim=1)


class PrunedEncoder(TowerEncoder):
    """A frozen tower that drops its least important patches: sequences become physically shorter.

    It runs in stages, with a selection (`drop`) between them: `run_pre` (PRE), `run_mid` (MID) for each further location,
    `run_post` (POST).

    Args:
        tower: the image encoder.
        scorers: one for each location, (batch, prefix + patches, D) -> (batch, patches), high = keep; those behind the
            first get whichever patches are left, in descending order of the scores before.
        spec: where tokens drop.
        visual: learnable tokens, as many as the spec's and from the same block on; None where there are none.
    """

    def __init__(self, tower: VisionTower, scorers: Sequence[nn.Module], spec: PruneSpec, visual: VisualTokens | None = None) -> None:
        super().__init__()
        if len(scorers) != len(spec.locations):
            raise ConfigError(f"{len(scorers)} scorers for {len(spec.locations)} locations; give one scorer for each")
        found = (0, 1) if visual is None else (visual.count, visual.first)
        if found != (spec.learnable_tokens, spec.learnable_from_block):
            raise ConfigError(
                f"{found[0]} learnable tokens from block {found[1]} on, but the spec says {spec.learnable_tokens} "
                f"from block {spec.learnable_from_block} on"
            )
        self.tower = tower
        self.scorers = nn.ModuleList(scorers)
        self.spec = spec
        self.visual = visual

    def run_pre(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """PRE: tokens (batch, prefix + N + appended, D) that enter the first location, and scores (batch, N)."""
        return self.run_pre_from(self.tower.embed(pixels))

    def run_pre_from(self, tokens: Tensor, block: int = 1) -> tuple[Tensor, Tensor]:
        """`run_pre` from the tower's tokens (batch, prefix + N, D) that enter a block, at which learnable tokens start or later."""
        tokens = self.advance(self.append(tokens, block), block, self.spec.locations[0])
        return tokens, self._score(0, tokens)

    def run_mid(self, place: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """MID: from location number `place` (1 for the first) to the next.

        `tokens` (batch, prefix + patches + appended, D) were selected at that location; returns those that enter the next one, of the
        same shape, and scores (batch, patches).
        """
        tokens = self.advance(tokens, self.spec.locations[place - 1], self.spec.locations[place])
        return tokens, self._score(place, tokens)

    def run_post(self, tokens: Tensor) -> Tensor:
        """POST: (batch, tokens, D) selected at the last location -> embedding (batch, E), L2-normalised."""
        depth = self.tower.depth
        tokens = self.tower.run_blocks(self.advance(tokens, self.spec.locations[-1], depth), depth, depth)
        return self._embedding(self.without_appended(tokens))

    def encode_from(self, tokens: Tensor, block: int, counts: Sequence[int]) -> Tensor:
        """`encode` from the tower's tokens (batch, prefix + N, D) that enter a block, as `run_pre_from` takes them."""
        return self.finish(*self.run_pre_from(tokens, block), counts)

    def finish(self, tokens: Tensor, scores: Tensor, counts: Sequence[int]) -> Tensor:
        """Everything behind `run_pre`, with `counts` patches kept at each location: embedding (batch, E), L2-normalised."""
        return self.finish_selected(self.drop(tokens, scores, counts[0]), counts)

    def finish_selected(self, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """`finish` from the tokens (batch, prefix + counts[0] + appended, D) selected at the first location."""
        for place, k in enumerate(counts[1:], start=1):
            tokens = self.drop(*self.run_mid(place, tokens), k)
        return self.run_post(tokens)

    def forward(self, pixels: Tensor, keep: Keep) -> Tensor:
        """Embedding (batch, E), L2-normalised, with `keep` patches left behind the last location."""
        return self.encode(pixels, self.spec.counts(keep))

    def encode(self, pixels: Tensor, counts: Sequence[int]) -> Tensor:
        """Embedding (batch, E), L2-normalised, of (batch, 3, height, width) with `counts` patches kept at each location."""
        return self.finish(*self.run_pre(pixels), counts)

    def drop(self, tokens: Tensor, scores: Tensor, k: int) -> Tensor:
        """The tokens without all but the `k` best patches, which are in descending order of their scores."""
        return gather(tokens, select(scores, k), self.spec.prefix_tokens, self.spec.learnable_tokens)

    def advance(self, tokens: Tensor, first: int, last: int) -> Tensor:
        """Tokens that enter block `first` -> tokens that enter block `last`; learnable ones are appended and replaced on the way."""
        if self.visual is None:
            return self.tower.run_blocks(tokens, first, last - 1)
        for block in range(first, last):
            tokens = self.append(self.tower.run_blocks(tokens, block, block), block + 1)
        return tokens

    def append(self, tokens: Tensor, block: int) -> Tensor:
        """The tokens that enter a block, with the learnable ones that are appended or replaced there."""
        return tokens if self.visual is None else cast(Tensor, self.visual(self.tower, tokens, block))

    def patch_tokens(self, tokens: Tensor, block: int) -> Tensor:
        """The patches' tokens (batch, k, D) as they leave a block, of tokens (batch, tokens, D) that were selected at the last location."""
        left = self.tower.run_blocks(self.advance(tokens, self.spec.locations[-1], block), block, block)
        return self.tower.features(self.without_appended(left)[:, self.spec.prefix_tokens :])

    def without_appended(self, tokens: Tensor) -> Tensor:
        """The tokens without the learnable ones at the end."""
        # No slice where nothing is cut off: it would be an operator of the exported graph.
        return tokens[:, : tokens.shape[1] - self.spec.learnable_tokens] if self.spec.learnable_tokens else tokens

    def _score(self, place: int, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.scorers[place](self.without_appended(tokens)))


class PlainEncoder(TowerEncoder):
    """A frozen tower that drops nothing; its images may be smaller than those that it was trained on.

    Args:
        tower: the image encoder.
        spec: without locations, method "none".
    """

    def __init__(self, tower: VisionTower, spec: PruneSpec) -> None:
        super().__init__()
        if spec.locations:
            raise ConfigError(f"locations {list(spec.locations)}, but a plain encoder drops nothing; give a spec of method 'none'")
        self.tower, self.spec = tower, spec

    def encode(self, pixels: Tensor, counts: Sequence[int] = ()) -> Tensor:
        """Embedding (batch, E), L2-normalised, of (batch, 3, height, width)."""
        return self.encode_from(self.tower.embed(pixels), 1, counts)

    def encode_from(self, tokens: Tensor, block: int, counts: Sequence[int] = ()) -> Tensor:  # noqa: ARG002 - there is no location
        """`encode` from the tokens (batch, prefix + N, D) that enter a block."""
        return self._embedding(self.tower.run_blocks(tokens, block, self.tower.depth))

    def patch_tokens(self, pixels: Tensor, block: int) -> Tensor:
        """The patches' tokens (batch, N, D) as they leave a block, of (batch, 3, height, width)."""
        left = self.tower.run_blocks(self.tower.embed(pixels), 1, block)
        return self.tower.features(left[:, self.spec.prefix_tokens :])
