"""Losses against plain loops over their definitions."""

import math

import numpy as np
import pytest
import torch

from prtool.trainer.objectives.ranking import LOSSES, MARGIN, PAIRS, kl_target

BATCH, PATCHES = 3, 12


def example(patches=PATCHES):
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(BATCH, patches, generator=generator)
    golden = torch.rand(BATCH, patches, generator=generator)
    return scores, torch.argsort(golden, dim=1)


def value(name, scores, ranking, seed=0):
    return float(LOSSES[name](scores, ranking, torch.Generator().manual_seed(seed)))


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]


def test_kl_target_is_the_research_codes():
    _, ranking = example(196)
    for row, target in zip(ranking.tolist(), kl_target(ranking).tolist(), strict=True):
        expected = [0.0] * 196
        for index, patch in enumerate(row):
            expected[patch] = -5 - 0.1 * index if index >= 196 - 50 else 0.0
        np.testing.assert_allclose(target, softmax(expected), rtol=1e-5)


def test_kl():
    scores, ranking = example()
    targets = kl_target(ranking).tolist()
    total = 0.0
    for target, row in zip(targets, scores.tolist(), strict=True):
        total += sum(p * (math.log(p) - math.log(q)) for p, q in zip(target, softmax(row), strict=True))
    assert value("kl", scores, ranking) == pytest.approx(total / BATCH, rel=1e-5)
    assert sum(1 for p in targets[0] if p < 0.01) == round(PATCHES * 50 / 196)


def test_margin_over_all_pairs():
    scores, ranking = example()
    assert PATCHES * (PATCHES - 1) // 2 < PAIRS
    terms = []
    for row, order in zip(scores.tolist(), ranking.tolist(), strict=True):
        for i in range(PATCHES):
            for j in range(i + 1, PATCHES):
                terms.append(max(0.0, MARGIN - (row[order[i]] - row[order[j]])))
    assert value("margin", scores, ranking) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_margin_samples_by_its_seed():
    scores, ranking = example(60)
    assert value("margin", scores, ranking, seed=1) == value("margin", scores, ranking, seed=1)
    assert value("margin", scores, ranking, seed=1) != value("margin", scores, ranking, seed=2)


def test_listmle():
    scores, ranking = example()
    total = 0.0
    for row, order in zip(scores.tolist(), ranking.tolist(), strict=True):
        for place, patch in enumerate(order):
            total -= math.log(math.exp(row[patch]) / sum(math.exp(row[other]) for other in order[place:]))
    assert value("listmle", scores, ranking) == pytest.approx(total / BATCH / PATCHES, rel=1e-5)


def test_regression():
    from statistics import NormalDist

    scores, ranking = example()
    terms = []
    for row, order in zip(scores.tolist(), ranking.tolist(), strict=True):
        for place, patch in enumerate(order):
            terms.append((row[patch] - NormalDist().inv_cdf(1 - (place + 0.5) / PATCHES)) ** 2)
    assert value("regression", scores, ranking) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_the_golden_order_beats_its_reverse(name):
    _, ranking = example()
    falling = torch.zeros(BATCH, PATCHES).scatter(1, ranking, torch.linspace(3, -3, PATCHES).expand(BATCH, PATCHES))
    assert value(name, falling, ranking) < value(name, -falling, ranking)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_finite(name):
    scores, ranking = example()
    scores.requires_grad_()
    LOSSES[name](scores, ranking, torch.Generator().manual_seed(0)).backward()
    assert scores.grad is not None
    assert bool(scores.grad.isfinite().all())
    assert float(scores.grad.abs().sum()) > 0
