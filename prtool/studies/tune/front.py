"""Choosing among measured candidates: the Pareto front, what is worth measuring further, and the best candidate."""

from collections.abc import Sequence

from prtool.studies.tune.candidates import Candidate
from prtool.studies.tune.limits import Limits

SAME_TIME = 1.02
"""Maximum ratio of two times that count as equal; smaller steps are within a benchmark's noise."""
OTHER_METHODS = 0.95
"""A candidate of another method must need at most this share of the MACs to beat one: methods differ in time per MAC."""
Point = tuple[float, float, float]
"""Cost (lower is better), time (lower is better) and quality (higher is better)."""


def choose(candidates: Sequence[Candidate], limits: Limits) -> Candidate | None:
    """The best candidate within every limit; None where there is none. Only candidates that were timed are chosen.

    With a limit on quality it is the fastest, and of those within 2 % of its time the best. With limits on cost and speed
    alone it is the best, and of equally good ones the fastest.

    Args:
        candidates: the unpruned model among them.
        limits: on quality, cost and speed.
    """
    fit = [row for row in timed(candidates) if limits.quality_within(row) and limits.cost_within(row)]
    if not fit:
        return None
    if limits.on_quality:
        least = min(map(_latency, fit))
        fit = [row for row in fit if _latency(row) <= SAME_TIME * least]
    return max(fit, key=lambda row: (limits.quality(row), -_latency(row), row.is_unpruned))


def nearest(candidates: Sequence[Candidate], limits: Limits) -> Candidate:
    """Where no candidate is within every limit: the fastest of the timed ones within the limits on quality.

    Without one of those, it is the best of all. The unpruned model, when it is among the candidates, is within every limit on quality.
    """
    fit = [row for row in timed(candidates) if limits.quality_within(row)]
    return min(fit, key=_latency) if fit else max(timed(candidates), key=limits.quality)


def timed(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates whose time was measured."""
    return [row for row in candidates if row.speed is not None]


def pareto_front(points: Sequence[Point]) -> tuple[bool, ...]:
    """For each point, whether no other is at least as good in all three and better in one; equal points are both on the front."""
    return tuple(not any(_dominates(other, point) for other in points) for point in points)


def front_of(candidates: Sequence[Candidate], limits: Limits) -> tuple[bool, ...]:
    """`pareto_front` of the timed candidates over (GMACs, latency, quality); False for the others."""
    found = timed(candidates)
    on_front = iter(pareto_front([(row.gmacs, _latency(row), limits.quality(row)[0]) for row in found]))
    return tuple(row.speed is not None and next(on_front) for row in candidates)


def unbeaten(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that no other beats: with clearly fewer MACs, or as many by the same method, and no worse in any measure."""
    return [row for row in candidates if not any(_beats(other, row) for other in candidates)]


def near_by_cosine(row: Candidate, others: Sequence[Candidate], slack: float) -> bool:
    """Whether a candidate's distance from the unpruned embeddings, 1 - cosine, is at most `slack` times that of any as cheap.

    Between candidates of one method the slack is a tenth at most: there the cosine shows which is better.
    """
    for other in others:
        factor = min(slack, 1.1) if other.family.method == row.family.method else slack
        if _as_cheap(other, row) and 1.0 - row.cosine > factor * (1.0 - other.cosine):
            return False
    return True


def _as_cheap(other: Candidate, row: Candidate) -> bool:
    same = other.family.method == row.family.method
    return other is not row and other.gmacs <= row.gmacs * (1.0 if same else OTHER_METHODS)


def _beats(other: Candidate, row: Candidate) -> bool:
    if not _as_cheap(other, row):
        return False
    theirs, mine = _measures(other), _measures(row)
    no_worse = all(one >= two for one, two in zip(theirs, mine, strict=True))
    return no_worse and (other.gmacs < row.gmacs or theirs != mine)


def _measures(row: Candidate) -> tuple[float, ...]:
    drops = [-value for value in (row.drop, row.recall_drop) if value is not None]
    return (row.cosine, *drops) if row.overlap is None else (row.cosine, row.overlap, *drops)


def _latency(row: Candidate) -> float:
    return float("inf") if row.speed is None else row.speed.latency_ms


def _dominates(one: Point, other: Point) -> bool:
    at_least = one[0] <= other[0] and one[1] <= other[1] and one[2] >= other[2]
    return at_least and one != other
