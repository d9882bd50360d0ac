"""The search of `prtool tune`: quality first, on a few images and then on all, and time only for what no other candidate beats."""

import contextlib
import statistics
from collections.abc import Iterable, Iterator, Sequence
from time import monotonic

from prtool.errors import ModelError, ParityError
from prtool.spec import NONE, RANK
from prtool.studies.tune.candidates import UNPRUNED_FAMILY, Candidate, Family, Speed
from prtool.studies.tune.front import near_by_cosine, unbeaten
from prtool.studies.tune.limits import Limits
from prtool.studies.tune.plan import Plan
from prtool.studies.tune.steps import FamilyRun, Task
from prtool.trainer.data.images import NO_LABEL, ImageSet

SCREEN_UNTIL, EVALUATE_UNTIL = 0.4, 0.65
"""Shares of the time limit after which no further family is screened, or evaluated on all images; exports and timing take the rest."""
SLACK, LABELLED_SLACK = 1.3, 2.0
"""What is expected, or measured on few images, to be this many times as far from the unpruned embeddings as something as cheap is left out.

With labels more is tried: accuracy may rank two methods otherwise than the distance, 1 - cosine, does. It holds without recovery as well,
which takes a tenth to a third of the distance away and left the order of the methods as it was.
"""
_TIME = "the time limit was reached; run the same command again, which continues, or give more with --set minutes=M"


class Search:
    """One search, and what it found.

    Attributes:
        runs: every family that was looked at.
        full: family -> numbers of kept patches that were evaluated on all images.
        timed: the families whose time was measured.
        untried: what was not tried, and why.
    """

    def __init__(self, task: Task, plan: Plan, limits: Limits, images: ImageSet) -> None:
        """Nothing is measured yet.

        Args:
            task: the tuned run and the settings.
            plan: the families.
            limits: on quality, cost and speed; they decide the order.
            images: those that quality is measured on.
        """
        self._task, self._plan, self._limits = task, plan, limits
        few = task.config.screen_images
        self._screen_images = few if 0 < few < len(images) else task.config.images
        self._slack = SLACK if NO_LABEL in images.labels else LABELLED_SLACK
        self.runs: dict[Family, FamilyRun] = {}
        self.full: dict[Family, list[int]] = {}
        self.timed: list[FamilyRun] = []
        self.untried: dict[str, str] = dict(plan.left_out)
        self._clock = _Clock(60.0 * task.config.minutes)

    def run(self) -> None:
        """The whole search.

        Raises:
            Everything that training, evaluation, export and benchmark raise.
        """
        # What trains nothing first: it takes seconds, and shows which mixtures are worth a training.
        for family in sorted(self._plan.first, key=self._trains):
            self._screen(family)
        self._screen_mixtures()
        self._evaluate()
        self._time()

    @property
    def unpruned_ms(self) -> float | None:
        """Median over the families of the unpruned model's time of a call; None before the first was timed."""
        times = [run.timing["unpruned_ms"] for run in self.timed]
        return statistics.median(times) if times else None

    def candidates(self) -> list[Candidate]:
        """The unpruned model, and every candidate that was evaluated, by falling cost."""
        found = [row for run in self.runs.values() for row in run.candidates(self.unpruned_ms)]
        return [self.unpruned(), *sorted(found, key=lambda row: -row.gmacs)]

    def unpruned(self) -> Candidate:
        """The model as it is, on as many images as possible."""
        rows = [unpruned for run in self.runs.values() for _, unpruned in run.rows.values()]
        best, patches = max(rows, key=lambda row: row.images), self._task.checkpoint.prune.patches
        speed = None if self.unpruned_ms is None else Speed(self.unpruned_ms)
        return Candidate(UNPRUNED_FAMILY, 1.0, patches, best, best, self._task.config.batch, speed)

    def _trains(self, family: Family) -> bool:
        return family.method == RANK and family != self._plan.own

    def _screen(self, family: Family, shares: Sequence[float] = ()) -> None:
        """Evaluates a family on a few images; with `shares` only keeps from the lowest to the highest of them."""
        kind = "train" if self._trains(family) else "screen"
        if self.runs and not self._clock.allows(kind, SCREEN_UNTIL):
            self.untried[str(family)] = _TIME
            return
        run = FamilyRun(self._task, family)
        with self._clock.step(kind):
            run.train()
            patches, (low, high) = run.spec.patches, run.keep_range
            counts = [k for k in run.keeps if not shares or min(shares) - 0.05 <= k / patches <= max(shares) + 0.05]
            if not counts:
                self.untried[str(family)] = f"no keep is within its reach, {low} to {high} patches"
                return
            run.evaluate(self._screen_images, counts)
        self.runs[family] = run

    def _screen_mixtures(self) -> None:
        pending = list(self._plan.mixtures)
        while pending:
            measured = [row for run in self.runs.values() for row in run.candidates()]
            promises = {family: self._promise(family, measured) for family in pending}
            family = min(pending, key=lambda item: (self._trains(item), promises[item][0]))
            pending.remove(family)
            distance, shares = promises[family]
            if distance > self._slack:
                self.untried[str(family)] = (
                    f"expected to be more than {self._slack:g} times as far from the unpruned embeddings as what costs as little"
                )
            else:
                self._screen(family, shares)

    def _promise(self, family: Family, measured: Sequence[Candidate]) -> tuple[float, list[float]]:
        """How far a mixture is expected to be from the front, as a ratio of distances, and the kept shares that are near it.

        Each part turns the embedding by an angle of its own, so the cosines of a smaller image alone and of the reducer at
        the native size are multiplied, and so are their shares of the MACs.
        """
        alone = next((row for row in measured if row.family == Family(NONE, family.image_size)), None)
        native = [row for row in measured if row.family == family.native]
        if alone is None or not native:
            return 1.0, []
        cheapest, found = min(measured, key=lambda row: row.gmacs), []
        for row in native:
            cost, distance = row.gmacs * alone.macs_share, 1.0 - row.cosine * alone.cosine
            best = min((1.0 - other.cosine for other in measured if other.gmacs <= cost), default=1.0 - cheapest.cosine)
            found.append((distance / max(best, 1e-6), row.row.keep))
        return min(found)[0], [share for ratio, share in found if ratio <= self._slack]

    def _evaluate(self) -> None:
        """Recovers, and evaluates on all images, what the few did not rule out, the most relevant family first."""
        measured = [row for run in self.runs.values() for row in run.candidates()]
        pending = _by_family(row for row in measured if near_by_cosine(row, measured, self._slack))
        for family in sorted(pending, key=lambda item: self._relevance(pending[item]), reverse=True):
            if self.full and not self._clock.allows("evaluate", EVALUATE_UNTIL):
                self.untried[f"{family} on all images"] = _TIME
                continue
            with self._clock.step("evaluate"):
                counts = [row.k for row in pending[family]]
                self.runs[family].recover()
                self.runs[family].evaluate(self._task.config.images, counts)
                self.full[family] = counts

    def _time(self) -> None:
        """Exports and times the families that still have a candidate that no other beats."""
        measured = [row for family, counts in self.full.items() for row in self.runs[family].candidates() if row.k in counts]
        standing = [row for row in unbeaten([self.unpruned(), *measured]) if not row.is_unpruned]
        pending, failed = _by_family(standing or measured), None
        while pending:
            family = max(pending, key=lambda item: self._relevance(pending[item]))
            counts = [row.k for row in pending.pop(family)]
            if self.timed and not self._clock.allows("time", 1.0):
                self.untried[f"the time of {family}"] = _TIME
                continue
            run = self.runs[family]
            try:
                with self._clock.step("time"):
                    run.time(run.export(), counts)
                self.timed.append(run)
            except (ModelError, ParityError) as cause:
                failed, self.untried[f"the time of {family}"] = cause, str(cause)
        if not self.timed and failed is not None:
            raise failed

    def _relevance(self, rows: Sequence[Candidate]) -> tuple[bool, bool, float]:
        """How much the best of some candidates may matter for the choice, higher first."""
        return max(map(self._relevance_of, rows))

    def _relevance_of(self, row: Candidate) -> tuple[bool, bool, float]:
        limits, unpruned_ms = self._limits, self.unpruned_ms
        longest = limits.latency_ms(row.batch)
        slow = unpruned_ms is not None and row.macs_share * unpruned_ms > longest
        affordable = not slow and (limits.max_gmacs is None or row.gmacs <= limits.max_gmacs)
        within = limits.quality_within(row)
        # With a limit on quality the cheapest within it counts, else the best that can be afforded.
        by_cost = within if limits.on_quality else not affordable
        return within and affordable, within, -row.gmacs if by_cost else limits.quality(row)[0]


class _Clock:
    """The time limit of one search, in seconds; 0 for none."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s, self._started = limit_s, monotonic()
        self._longest: dict[str, float] = {}

    def allows(self, kind: str, share: float) -> bool:
        """Whether a step of this kind, as long as the longest before, would end within a share of the limit."""
        spent = monotonic() - self._started + self._longest.get(kind, 0.0)
        return not self._limit_s or spent < share * self._limit_s

    @contextlib.contextmanager
    def step(self, kind: str) -> Iterator[None]:
        """Remembers how long the body took, if it is the longest of its kind."""
        started = monotonic()
        yield
        self._longest[kind] = max(monotonic() - started, self._longest.get(kind, 0.0))


def _by_family(rows: Iterable[Candidate]) -> dict[Family, list[Candidate]]:
    found: dict[Family, list[Candidate]] = {}
    for row in rows:
        found.setdefault(row.family, []).append(row)
    return found
