"""Matching rates against sets in a plain loop."""

import numpy as np
import pytest
import torch

from prtool.errors import ShapeError
from prtool.trainer.objectives.matching import constant_ranking, default_count, matching_rate, order_of, random_rate, usual_counts


def orders(images, patches, seed):
    random = np.random.RandomState(seed)
    return torch.from_numpy(np.stack([random.permutation(patches) for _ in range(images)]))


@pytest.mark.parametrize("m", [1, 7, 20])
def test_rate_is_the_share_of_common_patches(m):
    order, golden = orders(5, 20, 0), orders(5, 20, 1).short()
    shares = [len(set(a[:m]) & set(b[:m])) / m for a, b in zip(order.tolist(), golden.tolist(), strict=True)]
    assert matching_rate(order, golden, m) == pytest.approx(sum(shares) / 5)


def test_rate_of_the_golden_order_is_one():
    golden = orders(4, 20, 2)
    assert matching_rate(golden, golden, 9) == 1.0


def test_random_rate_is_what_random_orders_reach():
    found = np.mean([matching_rate(orders(50, 30, seed), orders(50, 30, seed + 100), 12) for seed in range(20)])
    assert found == pytest.approx(random_rate(30, 12), abs=0.01)


def test_constant_ranking_sorts_by_mean_rank():
    golden = orders(6, 15, 3).short()
    places = [[row.index(patch) for patch in range(15)] for row in golden.tolist()]
    expected = sorted(range(15), key=lambda patch: (sum(row[patch] for row in places), patch))
    constant = constant_ranking(golden)
    assert constant.tolist() == [expected]
    alone = [matching_rate(constant, golden[i : i + 1], 5) for i in range(6)]
    assert matching_rate(constant, golden, 5) == pytest.approx(sum(alone) / 6)


def test_order_breaks_ties_by_lower_patch():
    assert order_of(torch.tensor([[1.0, 3.0, 1.0, 3.0]])).tolist() == [[1, 3, 0, 2]]


def test_counts_scale_with_the_patches():
    assert usual_counts(196) == (25, 50, 75, 100, 125, 150)
    assert usual_counts(49) == (6, 12, 19, 25, 31, 38)
    assert usual_counts(1) == (1,)
    assert (default_count(196), default_count(49), default_count(1)) == (100, 25, 1)


@pytest.mark.parametrize("m", [0, 21])
def test_m_out_of_range(m):
    with pytest.raises(ShapeError, match="1 to 20"):
        matching_rate(orders(2, 20, 0), orders(2, 20, 1), m)
    with pytest.raises(ShapeError, match="1 to 20"):
        random_rate(20, m)


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        matching_rate(orders(2, 20, 0), orders(3, 20, 1), 5)
