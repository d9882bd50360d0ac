"""How a graph's selection is judged where scores nearly tie, and which counts and images a bundle is compared on."""

import pytest
import torch
from export_sources import Progressive, make_source, progressive_source

from prtool.errors import ShapeError
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.probe import Probe, keep_counts
from prtool.export.validation.reference import Reference, accepts, overlap
from prtool.spec import Keep
from prtool.trainer.models.pruned import gather, select

SCORES = torch.tensor([[0.9, 0.5, 0.5 - 1e-7, 0.1], [0.9, 0.5, 0.4, 0.1]])


def test_a_tie_within_rounding_takes_the_graphs_choice() -> None:
    assert accepts(SCORES, torch.tensor([[0, 2], [0, 1]]), score_error=1e-7).tolist() == [True, True]


def test_a_real_difference_keeps_torchs_choice() -> None:
    found = torch.tensor([[0, 2], [0, 2]])
    assert accepts(SCORES, found, score_error=1e-7).tolist() == [True, False]
    assert accepts(SCORES, found, score_error=0.0).tolist() == [False, False]


def test_the_order_counts() -> None:
    """A later location that keeps the order of the first would drop other patches."""
    assert accepts(SCORES, torch.tensor([[1, 0], [0, 1]]), score_error=1e-7).tolist() == [False, True]
    assert accepts(SCORES, torch.tensor([[0, 2, 1], [0, 2, 1]]), score_error=1e-7).tolist() == [True, False]
    assert accepts(SCORES, torch.tensor([[0, 1, 2, 3]] * 2), score_error=0.0).tolist() == [True, True]


@pytest.fixture(scope="module")
def progressive() -> ExportSource:
    return progressive_source("cls", Progressive((2, 3, 4), ("first", "own"), tokens=2, layers=2))


def test_the_own_path_is_the_pruned_encoder(progressive: ExportSource) -> None:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    path = Reference(progressive.pruned, pixels).route((12, 8, 4))
    torch.testing.assert_close(path.embedding, progressive.pruned(pixels, Keep.count(4)))
    assert [tuple(tokens.shape[:2]) for tokens in path.kept] == [(3, 15), (3, 11), (3, 7)]
    assert path.score_errors == (0.0, 0.0, 0.0)
    # The second location keeps the order of the first, so the best 8 of its scores arrive at the third.
    best = path.scores[0].argsort(dim=1, descending=True, stable=True)[:, :8]
    third = path.scores[2].argsort(dim=1, descending=True, stable=True)[:, :4]
    assert path.patches.tolist() == [[row[place] for place in chosen] for row, chosen in zip(best.tolist(), third.tolist(), strict=True)]


def test_a_graph_is_followed_through_a_tie_and_left_behind_a_real_difference(progressive: ExportSource) -> None:
    """Image 0 swaps the last patch that stays and the first that drops, which score alike; image 1 does so without a tie."""
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    plain = Reference(progressive.pruned, pixels)
    order = plain.scores.argsort(dim=1, descending=True, stable=True)
    scores = plain.scores.clone()
    scores[0, order[0, 12]] = scores[0, order[0, 11]] - 1e-6
    reference = Reference(progressive.pruned, pixels)
    reference.scores = scores
    swapped = torch.cat((order[:, :11], order[:, 12:13]), dim=1)
    arrived = progressive.pruned.run_mid(1, gather(plain.tokens, swapped, 1, 2))
    second = progressive.pruned.run_mid(2, progressive.pruned.drop(*arrived, 8))
    third = select(second[1], 4)
    choices = [(scores + 1e-6, swapped), (arrived[1], torch.arange(8).expand(2, -1)), (second[1], third)]
    found, own = reference.route((12, 8, 4), choices), reference.route((12, 8, 4))
    wanted = progressive.pruned.run_post(progressive.pruned.drop(*second, 4))
    torch.testing.assert_close(found.embedding[0], wanted[0])
    torch.testing.assert_close(found.embedding[1], own.embedding[1])
    assert found.patches[0].tolist() == [int(swapped[0, place]) for place in third[0]]
    assert found.score_errors[0] == pytest.approx(1e-6, rel=0.2)
    assert found.score_errors[1:] == (0.0, 0.0)


def test_overlap() -> None:
    assert overlap(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 0]])).tolist() == [1.0, 0.5]


@pytest.mark.parametrize(
    ("default", "patches", "expected"), [(118, 196, (196, 118, 49)), (196, 196, (196, 49, 98)), (4, 16, (16, 4, 8)), (1, 3, (3, 1, 2))]
)
def test_keep_counts_are_three_different_ones(default: int, patches: int, expected: tuple[int, int, int]) -> None:
    assert keep_counts(default, (1, patches)) == expected


def test_keep_counts_are_within_the_range_and_one_where_there_is_no_other() -> None:
    assert keep_counts(10, (6, 16)) == (16, 10, 6) and keep_counts(16, (6, 16)) == (16, 6, 8)
    assert keep_counts(118, (69, 147)) == (147, 118, 69) and keep_counts(69, (69, 147)) == (147, 69, 73)
    assert keep_counts(16, (16, 16)) == (16,)


@pytest.mark.parametrize("least", [1, 2])
def test_too_few_patches_to_compare(least: int) -> None:
    with pytest.raises(ShapeError, match=f"keep {least} to {least + 1} patches"):
        keep_counts(least, (least, least + 1))


def test_the_probe_takes_the_clearest_images() -> None:
    source = make_source("cls")
    pixels = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    probe = Probe.choose(source, Pixels(pixels), default_keep=10)
    assert (probe.images, probe.counts, tuple(probe.pixels.own.shape)) == ("given", (16, 10, 4), (3, 3, 64, 64))

    def gap(image: torch.Tensor) -> float:
        ranked = sorted(source.pruned.run_pre(image[None])[1][0].tolist(), reverse=True)
        return min(ranked[k - 1] - ranked[k] for k in (10, 4))

    chosen = sorted((gap(image) for image in probe.pixels.own), reverse=True)
    assert chosen == pytest.approx(sorted((gap(image) for image in pixels), reverse=True)[:3], rel=1e-4)


def test_the_probe_looks_at_every_location() -> None:
    """With the order of the first location kept, each cut lies in its scores; the clearest image is the one whose least gap is largest."""
    source = progressive_source("cls", Progressive((2, 3), ("first",)))
    pixels = torch.randn(9, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    probe = Probe.choose(source, Pixels(pixels), default_keep=10)

    def gap(image: torch.Tensor) -> float:
        ranked = sorted(source.pruned.run_pre(image[None])[1][0].tolist(), reverse=True)
        return min(ranked[k - 1] - ranked[k] for k in (13, 10, 10, 4))

    chosen = sorted((gap(image) for image in probe.pixels.own), reverse=True)
    assert chosen == pytest.approx(sorted((gap(image) for image in pixels), reverse=True)[:3], rel=1e-4)
