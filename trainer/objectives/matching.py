"""Matching rate: how much of the golden ranking a prediction finds, and the rates of orders to compare it with."""

import torch
from torch import Tensor

from prtool.errors import ShapeError

_SHARES = (25, 50, 75, 100, 125, 150)
_OF = 196


def matching_rate(order: Tensor, golden: Tensor, m: int) -> float:
    """Share of the m best golden patches (1 to N) that are among the m best predicted ones, averaged over images.

    Args:
        order: (images, N) integer patch numbers, best first; or (1, N), one order for every image.
        golden: (images, N) integer, the golden ranking, most to least important.

    Raises:
        ShapeError: the shapes differ, or m is out of range.
    """
    images, patches = golden.shape
    if order.shape not in (golden.shape, (1, patches)) or images < 1:
        raise ShapeError(f"orders of shape {tuple(order.shape)} cannot be compared with golden rankings of shape {tuple(golden.shape)}")
    if not 1 <= m <= patches:
        raise ShapeError(f"matching rate @{m}, but there are {patches} patches; give 1 to {patches}")
    chosen = torch.zeros(golden.shape, dtype=torch.bool).scatter(1, order[:, :m].long().expand(images, m), True)
    return float(chosen.gather(1, golden[:, :m].long()).double().mean())


def random_rate(patches: int, m: int) -> float:
    """The matching rate @m that random orders of N patches expect: m / N."""
    if not 1 <= m <= patches:
        raise ShapeError(f"matching rate @{m}, but there are {patches} patches; give 1 to {patches}")
    return m / patches


def constant_ranking(golden: Tensor) -> Tensor:
    """One order (1, N) int64, best first, for all images of a golden ranking (images, N): patches by mean rank, ties by number."""
    ranks = torch.argsort(golden.long(), dim=1).double().mean(dim=0, keepdim=True)
    return torch.sort(ranks, dim=1, stable=True).indices


def order_of(scores: Tensor) -> Tensor:
    """Patches (images, N) int64 by falling score; ties go to the lower patch number."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices


def usual_counts(patches: int) -> tuple[int, ...]:
    """The m at which rates are reported: 25, 50, 75, 100, 125 and 150 of 196, the same shares of other N."""
    return tuple(sorted({max(1, round(share * patches / _OF)) for share in _SHARES}))


def default_count(patches: int) -> int:
    """The m that chooses the best epoch: 100 of 196 (the paper's top-100), the same share of other N."""
    return max(1, round(100 * patches / _OF))
