"""The ranking objective: the scorer learns the order of the golden ranking (the paper's), by one of several losses."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.trainer.loop import Examples, Objective, predict
from prtool.trainer.models.predictor import PatchScorer
from prtool.trainer.models.pruned import gather
from prtool.trainer.objectives.matching import default_count, matching_rate, order_of
from prtool.trainer.settings import FitConfig

Loss = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(scores, ranking, generator) -> scalar.

scores: (batch, N) float32, the scorer's, high = keep.
ranking: (batch, N) int64, the golden ranking, most to least important.
generator: where a loss draws its samples from.
"""

WORST_SHARE = 50 / 196
"""Share of the patches that the research code's target pushes down: 50 of 196."""
MARGIN = 1.0
PAIRS = 1000


def research_kl(scores: Tensor, ranking: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """KL(softmax(target) || softmax(scores)), the paper's loss, averaged over the batch.

    The target is 0 for kept patches and -5 - 0.1 rank for the worst 50 of 196 (rank from 0), the share scaled to N.
    """
    return functional.kl_div(torch.log_softmax(scores, dim=1), kl_target(ranking), reduction="batchmean")


def kl_target(ranking: Tensor) -> Tensor:
    """The target distribution of `research_kl`: (batch, N) int64 ranking -> (batch, N) float32 by patch, rows sum to 1."""
    patches = ranking.shape[1]
    rank = torch.arange(patches, dtype=torch.float32, device=ranking.device)
    worst = round(WORST_SHARE * patches)
    by_rank = torch.where(rank >= patches - worst, -5.0 - 0.1 * rank, torch.zeros_like(rank))
    return torch.softmax(_by_patch(ranking, by_rank), dim=1)


def margin_ranking(scores: Tensor, ranking: Tensor, generator: torch.Generator) -> Tensor:
    """mean(max(0, 1 - (better - worse))) over 1,000 pairs of ranks, drawn without replacement; the research code has it unused."""
    ordered = torch.gather(scores, 1, ranking)
    better, worse = torch.triu_indices(ranking.shape[1], ranking.shape[1], offset=1)
    drawn = torch.randperm(len(better), generator=generator)[:PAIRS]
    difference = ordered[:, better[drawn]] - ordered[:, worse[drawn]]
    return functional.relu(MARGIN - difference).mean()


def listmle(scores: Tensor, ranking: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Negative log-likelihood of the golden order under Plackett-Luce, a patch (ListMLE, Xia et al., ICML 2008)."""
    ordered = torch.gather(scores, 1, ranking)
    remaining = torch.logcumsumexp(ordered.flip(1), dim=1).flip(1)
    return (remaining - ordered).mean()


def rank_regression(scores: Tensor, ranking: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """Mean squared error to the normal quantile of each patch's rank: every image has the same target distribution."""
    patches = ranking.shape[1]
    share = (torch.arange(patches, dtype=torch.float32, device=scores.device) + 0.5) / patches
    return functional.mse_loss(scores, _by_patch(ranking, torch.special.ndtri(1.0 - share)))


LOSSES: dict[str, Loss] = {"kl": research_kl, "margin": margin_ranking, "listmle": listmle, "regression": rank_regression}
"""The losses of `prtool.trainer.settings.LOSS_NAMES`."""


class RankingObjective(Objective):
    """One of `LOSSES`, judged by the matching rate @m.

    Args:
        train, val: images, with golden rankings as targets.
        config: loss, noise, and m.
        subsets: each step shows a random part of every image's patches, so that the scorer learns to order any that are left;
            for scorers that treat their tokens as a set, as those of later locations do.

    Attributes:
        match_at: m, `config.match_at` or the default for this number of patches.

    Raises:
        ConfigError: m is above N.
    """

    def __init__(self, train: Examples, val: Examples, config: FitConfig, *, subsets: bool = False) -> None:
        patches = train.targets.shape[1]
        self.match_at = config.match_at or default_count(patches)
        if self.match_at > patches:
            raise ConfigError(f"fit.match_at = {self.match_at}, but there are {patches} patches; give 1 to {patches}, or 0 for the default")
        super().__init__(train, val, subsets, self.match_at)
        self._noise, self._loss, self._subsets = config.noise, LOSSES[config.loss], subsets

    def loss(self, scorer: PatchScorer, chosen: Tensor, generator: torch.Generator) -> Tensor:  # noqa: D102 - as declared
        device = next(scorer.parameters()).device
        tokens = noisy(self._train.features.batch(chosen.tolist()), self._noise, generator)
        ranking = self._train.targets[chosen].long()
        if self._subsets:
            tokens, ranking = some_ranked(tokens, ranking, generator)
        return self._loss(scorer(tokens.to(device)), ranking.to(device), generator)

    def judge(self, scorer: PatchScorer) -> float:
        """The matching rate @m."""
        return matching_rate(order_of(predict(scorer, self._val.features)), self._val.targets, self.match_at)


def noisy(tokens: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Tokens with Gaussian noise of `noise` times their standard deviation; none is drawn for 0."""
    return tokens + noise * tokens.std() * torch.randn(tokens.shape, generator=generator) if noise else tokens


def some_ranked(tokens: Tensor, ranking: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same number of random patches of each image, from a quarter of them to all, in their order and numbered from 0.

    `tokens` are (batch, prefix + N, D), `ranking` (batch, N) int64, most to least important.
    """
    batch, patches = ranking.shape
    count = int(torch.randint(max(1, patches // 4), patches + 1, (), generator=generator))
    shown = torch.rand(batch, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values
    number = torch.full((batch, patches), -1).scatter_(1, shown, torch.arange(count).expand(batch, -1))
    renumbered = number.gather(1, ranking)
    return gather(tokens, shown, tokens.shape[1] - patches), renumbered[renumbered >= 0].view(batch, count)


def _by_patch(ranking: Tensor, by_rank: Tensor) -> Tensor:
    """Values by rank (N,) -> values by patch (batch, N)."""
    return torch.zeros(ranking.shape, device=ranking.device).scatter(1, ranking, by_rank.expand(ranking.shape))
