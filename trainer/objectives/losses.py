"""Losses of a scorer against an order of patches, by name."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

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


def _by_patch(ranking: Tensor, by_rank: Tensor) -> Tensor:
    """Values by rank (N,) -> values by patch (batch, N)."""
    return torch.zeros(ranking.shape, device=ranking.device).scatter(1, ranking, by_rank.expand(ranking.shape))
