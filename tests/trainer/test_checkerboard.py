"""Spreading: against a plain loop, and what it does to the choice of patches."""

import pytest
import torch
from torch import Tensor

from prtool.errors import ConfigError
from prtool.trainer.models.predictor import CheckerboardScorer, PatchScorer, ScorerConfig, make_scorer
from prtool.trainer.models.pruned import select

GRID = (3, 5)


def scorer() -> PatchScorer:
    torch.manual_seed(0)
    return make_scorer(ScorerConfig(), 16, GRID[0] * GRID[1], 1)


def tokens() -> Tensor:
    return torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("strength", [0.0, 0.7, 2.0])
@torch.no_grad()
def test_against_a_plain_loop(strength: float) -> None:
    raw = scorer()(tokens())
    expected = torch.empty_like(raw)
    for image in range(len(raw)):
        mean = sum(raw[image].tolist()) / 15
        deviation = (sum((value - mean) ** 2 for value in raw[image].tolist()) / 15) ** 0.5
        for row in range(GRID[0]):
            for column in range(GRID[1]):
                patch = row * GRID[1] + column
                raised = strength / 2 if (row + column) % 2 == 0 else -strength / 2
                expected[image, patch] = (raw[image, patch] - mean) / deviation + raised
    torch.testing.assert_close(CheckerboardScorer(scorer(), GRID, strength)(tokens()), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_no_spread_keeps_the_predicted_order() -> None:
    spread = CheckerboardScorer(scorer(), GRID, 0.0)
    for k in (1, 7, 15):
        assert torch.equal(select(spread(tokens()), k), select(scorer()(tokens()), k))


@torch.no_grad()
def test_even_regions_become_a_chessboard() -> None:
    """Where no patch stands out, half of the patches is every second one."""
    even = CheckerboardScorer(scorer(), GRID, 2.0)
    for parameter in even.scorer.parameters():
        parameter.zero_()
    kept = set(select(even(tokens()), 8)[0].tolist())
    assert kept == {patch for patch in range(15) if (patch // 5 + patch % 5) % 2 == 0}


def test_macs_are_the_scorers() -> None:
    assert CheckerboardScorer(scorer(), GRID, 2.0).macs() == scorer().macs()


@pytest.mark.parametrize("strength", [-0.1, 11.0, float("nan")])
def test_a_bad_strength_is_refused(strength: float) -> None:
    with pytest.raises(ConfigError, match="checkerboard"):
        ScorerConfig(checkerboard=strength)
