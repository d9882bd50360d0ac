"""What the table's rows are: a method, the reducer whose run it is evaluated with, and the patches that it keeps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.reducers import Reducer
from prtool.spec import MERGE, NONE, RANK
from prtool.trainer.settings import MERGE_METHOD, RECOVERED, SMALLER_IMAGE, TOME

EVALUATED = {RANK: "patch-ranking", MERGE: MERGE_METHOD, NONE: SMALLER_IMAGE}
"""The method of `prtool eval` that a run of each kind is evaluated with."""
BASELINES = ("evit", "avit", "cls-attention", "random")
"""Methods that exist in PyTorch only; they take the budget of Patch Ranking, without its predictor."""


@dataclass(frozen=True, slots=True)
class Point:
    """One row.

    Attributes:
        reducer: whose run and bundle.
        method: of `prtool eval`; with a + behind it one of PyTorch only that is recovered.
        k: patches that are left.
        target: the share of the unpruned MACs that was wanted.
    """

    reducer: Reducer
    method: str
    k: int
    target: float

    @property
    def exports(self) -> bool:
        """Whether its bundle computes it; else it is timed in PyTorch alone."""
        return self.method == evaluated_as(self.reducer)

    @property
    def label(self) -> str:
        """The method in results; it names the block where that is not the default one."""
        return labelled(self.reducer) if self.exports else self.method.replace("+", ", recovered")

    @property
    def learns(self) -> bool:
        """Whether anything was learned from images."""
        return self.reducer.learns if self.exports else self.method.endswith("+")

    @property
    def name(self) -> str:
        """In logs and keys."""
        return f"{self.method} {self.reducer} k={self.k}"


def evaluated_as(reducer: Reducer) -> str:
    """The method of `prtool eval` that is a reducer's own."""
    return RECOVERED if reducer.recovered else EVALUATED[reducer.method]


def labelled(reducer: Reducer) -> str:
    """What results call a reducer, without its image size; merging from block 1 on is ToMe, as published."""
    found = EVALUATED[reducer.method]
    if reducer.location:
        found = TOME if (reducer.method, reducer.location) == (MERGE, 1) else f"{found} from block {reducer.location}"
    return f"{found}, recovered" if reducer.recovered else found


def points_of(keeps: Mapping[Reducer, Mapping[float, int]], baselines: Sequence[str]) -> list[Point]:
    """Every row, in the order of the reducers; the baselines stand with Patch Ranking at the native size, recovered ones with recovered."""
    found = []
    for reducer, chosen in keeps.items():
        ranks = reducer == Reducer(RANK, recovered=reducer.recovered)
        methods = (evaluated_as(reducer), *(name for name in baselines if ranks and name.endswith("+") == reducer.recovered))
        found += [Point(reducer, method, k, share) for method in methods for share, k in chosen.items()]
    return found
