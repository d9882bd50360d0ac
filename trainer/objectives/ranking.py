"""The ranking objective: the scorer learns the order of the golden ranking (the paper's)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from prtool.errors import ConfigError, ShapeError
from prtool.store import digest
from prtool.trainer.features import Features
from prtool.trainer.loop import predict
from prtool.trainer.models.predictor import PatchScorer
from prtool.trainer.models.pruned import gather
from prtool.trainer.objectives.losses import LOSSES
from prtool.trainer.objectives.matching import default_count, matching_rate, order_of
from prtool.trainer.settings import FitConfig
from prtool.trainer.store import tensors_digest


@dataclass(frozen=True, slots=True)
class Examples:
    """What a scorer learns from.

    Attributes:
        features: the tokens of each image.
        ranking: (images, N) integer, golden ranking, most to least important.
        subsets: each step shows a random part of every image's patches, so that the scorer learns to order any that are left;
            for scorers that treat their tokens as a set, as those of later locations do.
    """

    features: Features
    ranking: Tensor
    subsets: bool = False

    def __post_init__(self) -> None:
        if len(self.features) != len(self.ranking) or not len(self.ranking):
            raise ShapeError(f"tokens of {len(self.features)} images and {len(self.ranking)} rankings; give one for each image, at least one")


class RankingObjective:
    """One of the losses of `prtool.trainer.objectives.losses`; judged by the matching rate @m.

    Args:
        train, val: images to learn from and to choose the best epoch by.
        config: loss, noise, and m.

    Attributes:
        match_at: m, `config.match_at` or the default for this number of patches.

    Raises:
        ConfigError: m is above N.
    """

    def __init__(self, train: Examples, val: Examples, config: FitConfig) -> None:
        patches = train.ranking.shape[1]
        self._train, self._val, self._config, self._loss = train, val, config, LOSSES[config.loss]
        self.match_at = config.match_at or default_count(patches)
        if self.match_at > patches:
            raise ConfigError(f"fit.match_at = {self.match_at}, but there are {patches} patches; give 1 to {patches}, or 0 for the default")

    def __len__(self) -> int:
        return len(self._train.ranking)

    def digest(self) -> str:
        """See `prtool.trainer.loop.Objective`."""
        data = [[part.features.digest, tensors_digest({"ranking": part.ranking})] for part in (self._train, self._val)]
        return digest(data, self._train.subsets, self.match_at)

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """See `prtool.trainer.loop.Objective`."""
        device = next(scorer.parameters()).device
        tokens = noisy(self._train.features.batch(chosen.tolist()), self._config.noise, generator)
        ranking = self._train.ranking[chosen].long()
        if self._train.subsets:
            tokens, ranking = some_ranked(tokens, ranking, generator)
        return self._loss(scorer(tokens.to(device)), ranking.to(device), generator)

    def judge(self, scorer: PatchScorer) -> float:
        """The matching rate @m."""
        return matching_rate(order_of(predict(scorer, self._val.features)), self._val.ranking, self.match_at)


def noisy(tokens: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Tokens with Gaussian noise of `noise` times their standard deviation; none is drawn for 0."""
    return tokens + noise * tokens.std() * torch.randn(tokens.shape, generator=generator) if noise else tokens


def some_ranked(tokens: Tensor, ranking: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same number of random patches of each image, from a quarter of them to all, in their order and numbered from 0.

    Args:
        tokens: (batch, prefix + N, D).
        ranking: (batch, N) int64, most to least important.
        generator: draws the number and the patches.
    """
    batch, patches = ranking.shape
    count = int(torch.randint(max(1, patches // 4), patches + 1, (), generator=generator))
    shown = torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
    number = torch.full((batch, patches), -1).scatter_(1, shown, torch.arange(count).expand(batch, -1))
    renumbered = number.gather(1, ranking)
    return gather(tokens, shown, tokens.shape[1] - patches), renumbered[renumbered >= 0].view(batch, count)
