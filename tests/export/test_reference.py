"""How a graph's choice of patches is judged where scores nearly tie, and which counts and images prove a bundle."""

import pytest
import torch
from export_sources import make_source

from prtool.errors import ShapeError
from prtool.export.probe import Probe, keep_counts
from prtool.export.reference import Reference, overlap

SCORES = torch.tensor([[0.9, 0.5, 0.5 - 1e-7, 0.1], [0.9, 0.5, 0.4, 0.1]])


def reference() -> Reference:
    source = make_source("cls")
    return Reference(source.pruned, torch.zeros(2, 3, 64, 64), torch.zeros(2, 5, 64), SCORES)


def test_a_tie_within_rounding_takes_the_graphs_choice() -> None:
    found = torch.tensor([[0, 2], [0, 1]])
    assert reference().accepted(found, score_error=1e-7).tolist() == [[0, 2], [0, 1]]


def test_a_real_difference_keeps_torchs_choice() -> None:
    found = torch.tensor([[0, 2], [0, 2]])
    assert reference().accepted(found, score_error=1e-7).tolist() == [[0, 2], [0, 1]]
    assert reference().accepted(found, score_error=0.0).tolist() == [[0, 1], [0, 1]]


def test_order_alone_is_no_difference() -> None:
    assert reference().accepted(torch.tensor([[1, 0], [1, 0]]), score_error=1e-7).tolist() == [[0, 1], [0, 1]]


def test_overlap() -> None:
    assert overlap(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 0]])) == 0.75


@pytest.mark.parametrize(
    ("default", "patches", "expected"), [(118, 196, (196, 118, 49)), (196, 196, (196, 49, 98)), (4, 16, (16, 4, 8)), (1, 3, (3, 1, 2))]
)
def test_keep_counts_are_three_different_ones(default: int, patches: int, expected: tuple[int, int, int]) -> None:
    assert keep_counts(default, patches) == expected


def test_too_few_patches_to_compare() -> None:
    with pytest.raises(ShapeError, match="2 patches"):
        keep_counts(1, 2)


def test_the_probe_takes_the_clearest_images() -> None:
    source = make_source("cls")
    pixels = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    probe = Probe.choose(source, pixels, default_keep=10)
    assert (probe.images, probe.counts, tuple(probe.pixels.shape)) == ("given", (16, 10, 4), (3, 3, 64, 64))

    def gap(image: torch.Tensor) -> float:
        ranked = sorted(source.pruned.enter(image[None])[1][0].tolist(), reverse=True)
        return min(ranked[k - 1] - ranked[k] for k in (10, 4))

    chosen = sorted((gap(image) for image in probe.pixels), reverse=True)
    assert chosen == pytest.approx(sorted((gap(image) for image in pixels), reverse=True)[:3], rel=1e-4)
