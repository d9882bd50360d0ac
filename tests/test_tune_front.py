"""Choosing among the candidates of `prtool tune`, against brute force; limits and settings that make no sense."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from prtool.errors import ConfigError
from prtool.studies.tune.candidates import UNPRUNED_FAMILY, Candidate, Family, Speed
from prtool.studies.tune.config import TuneConfig
from prtool.studies.tune.front import choose, front_of, nearest, pareto_front, unbeaten
from prtool.studies.tune.limits import Limits
from prtool.trainer.evaluation.report import UNPRUNED, EvalRow, drop_error

IMAGES = 1000


def candidate(gmacs: float, latency_ms: float | None, accuracy: float | None, cosine: float = 0.9, **given: Any) -> Candidate:
    """Accuracy in steps of 0.1 points below an unpruned model's 80 %."""
    lost = None if accuracy is None else round(10 * (80.0 - accuracy))
    row = EvalRow("", 0.5, accuracy, IMAGES, gmacs, None, cosine, lost, None if lost is None else 0, **given)
    unpruned = EvalRow(UNPRUNED, 1.0, None if accuracy is None else 80.0, IMAGES, 10.0, None, 1.0, text_to_image=(70.0, 80.0, 90.0))
    speed = None if latency_ms is None else Speed(latency_ms, 100 / latency_ms, 1.0, 2.0)
    return Candidate(Family("rank", 0, (4,)), 0.5, 98, row, unpruned, 8, speed)


def crowd(seed: int, size: int = 12) -> list[Candidate]:
    """Candidates on a coarse grid, so that ties of every kind occur."""
    rng = np.random.default_rng(seed)
    return [candidate(*rng.integers(1, 5, 2).tolist(), 78.0 + int(rng.integers(0, 4)), int(rng.integers(90, 94)) / 100) for _ in range(size)]


def latency(row: Candidate) -> float:
    assert row.speed is not None
    return row.speed.latency_ms


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_other_point_beats(seed: int) -> None:
    rows = crowd(seed)
    points = [(row.gmacs, latency(row), row.accuracy or 0.0) for row in rows]
    expected = []
    for mine in points:
        beaten = False
        for other in points:
            no_worse = [other[0] <= mine[0], other[1] <= mine[1], other[2] >= mine[2]]
            better = [other[0] < mine[0], other[1] < mine[1], other[2] > mine[2]]
            beaten = beaten or (all(no_worse) and any(better))
        expected.append(not beaten)
    assert pareto_front(points) == tuple(expected)
    assert any(expected)
    # What was not timed is on no front, and takes no place of another.
    mixed = [candidate(0.5, None, 80.0), *rows]
    assert front_of(mixed, Limits(max_drop=1.0)) == (False, *expected)


@pytest.mark.parametrize("seed", range(30))
def test_what_another_beats_in_every_measure_is_not_timed(seed: int) -> None:
    rows = crowd(seed)
    standing = unbeaten(rows)
    for row in rows:
        better = [o for o in rows if o.gmacs <= row.gmacs and o.cosine >= row.cosine and (o.accuracy or 0.0) >= (row.accuracy or 0.0)]
        strictly = [o for o in better if (o.gmacs, o.cosine, o.accuracy) != (row.gmacs, row.cosine, row.accuracy)]
        assert (row in standing) == (not strictly)
    # Another method must be clearly cheaper: it may take more time for each MAC.
    mine = candidate(5.0, 1.0, 79.0)
    for gmacs, stands in ((4.9, True), (4.5, False)):
        other = replace(candidate(gmacs, 1.0, 79.5, 0.95), family=Family("merge", 0, (4,)))
        assert (mine in unbeaten([mine, other])) == stands


@pytest.mark.parametrize("seed", range(30))
def test_with_a_limit_on_quality_the_fastest_is_chosen(seed: int) -> None:
    rows = crowd(seed)
    for limit in (0.0, 1.0, 2.0):
        chosen = choose(rows, Limits(max_drop=limit))
        fit = [row for row in rows if 80.0 - (row.accuracy or 0.0) <= limit]
        if not fit:
            assert chosen is None
            continue
        assert chosen in fit
        quick = [row for row in fit if latency(row) == min(map(latency, fit))]
        # Times here are whole numbers: none but equal ones are the same time. Of those the most accurate, then the nearest by cosine.
        assert chosen in quick
        assert (chosen.accuracy, chosen.cosine) == max((row.accuracy, row.cosine) for row in quick)


@pytest.mark.parametrize("seed", range(30))
def test_with_a_limit_on_cost_the_most_accurate_is_chosen(seed: int) -> None:
    rows = crowd(seed)
    for most in (0.5, 1.0, 2.0, 4.0):
        for limits, costs in (
            (Limits(max_latency_ms=most), list(map(latency, rows))),
            (Limits(min_images_per_s=8000 / most), list(map(latency, rows))),
            (Limits(max_gmacs=most), [row.gmacs for row in rows]),
        ):
            chosen = choose(rows, limits)
            fit = sorted((-(row.accuracy or 0.0), -row.cosine, latency(row)) for row, cost in zip(rows, costs, strict=True) if cost <= most)
            assert (chosen is None) == (not fit)
            if chosen is not None:
                assert (-(chosen.accuracy or 0.0), -chosen.cosine, latency(chosen)) == fit[0]


@pytest.mark.parametrize("seed", range(30))
def test_both_limits_hold(seed: int) -> None:
    rows = crowd(seed)
    limits = Limits(max_drop=1.0, max_latency_ms=2.0)
    chosen, fit = choose(rows, limits), [row for row in rows if (row.drop or 0.0) <= 1.0 and latency(row) <= 2.0]
    assert (chosen is None) == (not fit)
    if chosen is not None:
        assert latency(chosen) == min(map(latency, fit))
    close = nearest(rows, limits)
    within = [latency(row) for row in rows if (row.drop or 0.0) <= 1.0]
    assert latency(close) == min(within) if within else close.accuracy == max(row.accuracy or 0.0 for row in rows)


def test_times_within_two_percent_are_one_step_of_the_staircase() -> None:
    slow, better = candidate(3, 10.1, 79.9), candidate(4, 10.0, 79.1)
    assert choose([slow, better], Limits(max_drop=1.0)) is slow
    assert choose([candidate(3, 10.3, 79.9), better], Limits(max_drop=1.0)) is better


def test_what_was_not_timed_is_not_chosen() -> None:
    rows = [candidate(1, None, 80.0), candidate(2, 5, 79.5)]
    assert choose(rows, Limits(max_drop=1.0)) is rows[1]
    assert choose(rows[:1], Limits(max_drop=1.0)) is None


def test_without_labels_cosine_counts() -> None:
    rows = [candidate(1, 1, None, 0.95), candidate(2, 2, None, 0.97), candidate(3, 3, None, 0.99)]
    assert choose(rows, Limits(min_cosine=0.96)) is rows[1]
    assert choose(rows, Limits(max_latency_ms=2)) is rows[1]
    assert choose(rows, Limits(max_drop=5.0)) is None


def test_overlap_is_the_lower_of_both_and_recall_that_of_the_first_text() -> None:
    rows = [
        candidate(1, 1, None, 0.90, overlap_own=0.80, overlap_cross=0.90, text_to_image=(66.0, 80.0, 90.0)),
        candidate(2, 2, None, 0.91, overlap_own=0.95, overlap_cross=0.85, text_to_image=(69.5, 70.0, 71.0)),
        candidate(3, 3, None, 0.92, overlap_own=0.95, overlap_cross=0.95),
    ]
    assert choose(rows, Limits(min_overlap=0.82)) is rows[1]
    assert choose(rows, Limits(min_overlap=0.90)) is rows[2]
    assert choose(rows, Limits(max_recall_drop=4.0)) is rows[0]
    assert choose(rows, Limits(max_recall_drop=1.0)) is rows[1]
    assert choose(rows, Limits(max_recall_drop=0.4)) is None


def test_without_a_limit_half_a_point_or_a_cosine_is_the_default() -> None:
    assert Limits().or_default(labelled=True) == Limits(max_drop=0.5)
    assert Limits().or_default(labelled=False) == Limits(min_cosine=0.98)
    assert Limits(max_gmacs=3.0).or_default(labelled=True) == Limits(max_gmacs=3.0)


def test_the_unpruned_model_loses_nothing() -> None:
    row = replace(candidate(10.0, 100.0, 80.0), family=UNPRUNED_FAMILY)
    assert (row.drop, row.drop_error, row.macs_share) == (0.0, 0.0, 1.0)
    assert Limits(max_drop=0.0).quality_within(row)


@pytest.mark.parametrize(("lost", "won", "images"), [(0, 0, 50), (7, 2, 100), (30, 30, 1000)])
def test_the_error_of_a_drop_is_that_of_paired_differences(lost: int, won: int, images: int) -> None:
    """The variance of a mean of differences -1, 0 and 1, each of the four cells with half an image more."""
    values, weights = np.array([1.0, -1.0, 0.0]), np.array([lost + 0.5, won + 0.5, images - lost - won + 1.0])
    mean = np.average(values, weights=weights)
    variance = np.average((values - mean) ** 2, weights=weights) / weights.sum()
    assert drop_error(lost, won, images) == pytest.approx(100 * 1.96 * math.sqrt(variance), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"max_drop": -0.1}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
        ({"max_recall_drop": 101.0}, "max_recall_drop"),
        ({"min_cosine": 1.2}, "min_cosine"),
        ({"min_overlap": -0.5}, "min_overlap"),
        ({"max_gmacs": 0.0}, "max_gmacs"),
        ({"max_latency_ms": 0.0}, "max_latency_ms"),
        ({"min_images_per_s": math.inf}, "min_images_per_s"),
        ({"max_latency_ms": 10.0, "min_images_per_s": 900.0}, r"max_latency_ms.*min_images_per_s"),
    ],
)
def test_limits_that_make_no_sense(given: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Limits(**given)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"keeps": ()}, "keeps"),
        ({"engine": "ortt"}, "ortt"),
        ({"precision": "fp16"}, "fp16"),
        ({"batch": 0}, "batch"),
        ({"locations": ((6, 4),)}, r"6.*4"),
        ({"locations": ((0,),)}, "0"),
        ({"locations": ((2,), (2,))}, "2"),
        ({"split": "valid"}, "split"),
        ({"methods": ("merge", "ranks")}, "ranks"),
        ({"methods": ("merge", "merge")}, "merge"),
        ({"image_sizes": (168, 168)}, "168"),
        ({"image_sizes": (-1,)}, "-1"),
        ({"minutes": -1.0}, "minutes"),
        ({"images": -1}, "images"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TuneConfig(Limits(max_drop=1.0), **given)
