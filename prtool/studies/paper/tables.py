"""The tables of the paper and its supplement, and the open questions, each as a list of cells."""

import difflib
import fnmatch
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from prtool.errors import ConfigError
from prtool.spec import Keep
from prtool.studies.paper.plan import Cell, DataSet, Job, Study, Table, accuracy, cosine, matching, unpruned
from prtool.studies.paper.published import in_ablation, in_columns, published
from prtool.trainer.config import PRESETS, TrainConfig
from prtool.trainer.evaluation.report import EvalReport
from prtool.trainer.runs.record import Record
from prtool.trainer.settings import AUXILIARY, LOSS_NAMES, SCORES, FitConfig

OURS, TUNED = "patch-ranking", "patch-ranking-tokens"
_RIVALS = {"evit": "EViT", "avit": "A-ViT", "tome": "ToMe", "cls-attention": "CLS attention", "random": "random"}
_SEEDED = ("random",)
_SCORED = (("phases", ("predictor",)),)
_RANKED = (("phases", ("rank", "predictor")),)
_WITH_TOKENS = (("phases", ("predictor", "tokens")),)
_KEEPS = tuple(Keep.ratio(value) for value in (1.0, 0.8, 0.7, 0.6, 0.5))
_GENERAL = "Patch Ranking, one predictor for all sets"
_PUBLISHED_AS = {_GENERAL: "Patch Ranking, one predictor trained on ImageNet"}
_GENERAL_STEPS = 2
"""Of a predictor for all sets, in those of a set's own: it sees more kinds of images, and each set far fewer times."""
_LEAVE_ONE_OUT = tuple((name, value) for name, value in PRESETS["leave-one-out"].items() if name != "phases")
_LESSONS: Mapping[str, tuple[tuple[str, object], ...]] = MappingProxyType(
    {
        "own choice (default)": (),
        **{f"own choice, also sees {name}": (("scorer.auxiliary", (name,)),) for name in AUXILIARY},
        "own choice, also sees all of these": (("scorer.auxiliary", AUXILIARY),),
        "own choice, transformer": (("scorer.arch", "transformer"),),
        **{f"leave-one-out, score {score}": (*_LEAVE_ONE_OUT, ("golden.score", score)) for score in SCORES},
        **{f"leave-one-out, groups of {side} x {side}": (*_LEAVE_ONE_OUT, ("golden.group", side)) for side in (1, 3, 4)},
        "leave-one-out, greedy, 7 groups a step until 98 patches are left": (*_LEAVE_ONE_OUT, ("golden.step", 7), ("golden.floor", 98)),
        **{f"leave-one-out, loss {loss}": (*_LEAVE_ONE_OUT, ("fit.loss", loss)) for loss in LOSS_NAMES if loss != FitConfig().loss},
    }
)
"""Ways to teach a predictor; those with a ranking say what they change in `--preset leave-one-out` (score feature, groups of 2 x 2, ListMLE)."""
_LOCATIONS = ((2, 3, 4, 5), (4, 5, 6, 7), (1, 3, 5, 7), (4, 6, 8, 10))


def make_table(name: str, study: Study) -> Table:
    """A table by name, of the rows that the study asks for.

    Raises:
        ConfigError: there is no such table, the message has near names; or no such row.
    """
    if name not in TABLES:
        raise unknown_table(name)
    table = TABLES[name](study)
    if not study.rows:
        return table
    chosen = tuple(cell for cell in table.cells if any(fnmatch.fnmatchcase(cell.row, pattern) for pattern in study.rows))
    if not chosen:
        rows = "; ".join(dict.fromkeys(cell.row for cell in table.cells))
        raise ConfigError(f"--row {' --row '.join(study.rows)}: no row of the table {name} is called so; it has: {rows}")
    return replace(table, cells=chosen)


def unknown_table(name: str, *others: str) -> ConfigError:
    """The error for a name that is no table; `others` are known elsewhere."""
    known = (*TABLES, *others)
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"table = {name!r}, but it must be one of {', '.join(known)}{hint}")


def _main(study: Study) -> Table:
    differs = (
        f"one predictor for all sets: {_GENERAL_STEPS} times the steps of a set's own, and tokens tuned towards the unpruned embedding only, "
        "because a label of one set means nothing beside the class names of another",
    )
    keeps = ", ".join(map(str, study.keeps))
    title = f"Zero-shot accuracy (%) at keep {keeps}, all methods at equal multiply-accumulates"
    return Table("main", title, tuple(_main_cells(study)), differs if len(study.sets) > 1 else ())


def _main_cells(study: Study) -> Iterator[Cell]:
    """Rows by keep, so that methods of equal cost stand together."""
    jobs = {(data.name, seed): _main_jobs(study, data, seed) for data in study.sets for seed in range(study.seeds)}
    for data in study.sets:
        yield Cell("unpruned", data.column, jobs[data.name, 0].rivals, unpruned)
    for keep in study.keeps:
        at = f", keep {keep}" if len(study.keeps) > 1 else ""
        for data in study.sets:
            for seed in range(study.seeds):
                for title, method, job in jobs[data.name, seed].rows():
                    yield Cell(
                        title + at, data.column, job, accuracy(method, keep), _paper(keep, "main", _PUBLISHED_AS.get(title, title), data.column)
                    )


@dataclass(frozen=True, slots=True)
class _MainJobs:
    """The jobs of one data set and seed; `general` is None for a single set."""

    rivals: Job
    own: Job
    general: Job | None

    def rows(self) -> Iterator[tuple[str, str, Job]]:
        """Title, method and job of each row."""
        for method in self.rivals.methods:
            yield _RIVALS[method], method, self.rivals
        yield "Patch Ranking", OURS, self.own
        yield "Patch Ranking, tuned tokens", TUNED, self.own
        if self.general is not None:
            yield _GENERAL, OURS, self.general
            yield f"{_GENERAL}, tuned tokens", TUNED, self.general


def _main_jobs(study: Study, data: DataSet, seed: int) -> _MainJobs:
    rivals = tuple(_RIVALS) if seed == 0 else _SEEDED
    own = Job((data,), data, _WITH_TOKENS, (OURS, TUNED), study.keeps, seed)
    general = None
    if len(study.sets) > 1:
        steps = _GENERAL_STEPS * TrainConfig.load(None, dict(study.settings)).distill.steps
        settings = (*_WITH_TOKENS, ("tokens.label", 0.0), ("distill.steps", steps))
        general = Job(study.sets, data, settings, (OURS, TUNED), study.keeps, seed)
    # What has no predictor needs no training, so it does not wait for one.
    return _MainJobs(Job((data,), data, (("phases", ("none",)),), rivals, study.keeps, seed), own, general)


def _paper(keep: Keep, table: str, row: str, column: str) -> float | None:
    """The paper's figure; None at another keep than the paper's."""
    return in_columns(table, row, column) if str(keep) == published()[table]["keep"] else None


def _ablation(study: Study) -> Table:
    _refuse(study, "predictor-ablation", "scorer.arch")
    cells = []
    for data in study.sets:
        for arch in ("mlp", "transformer", "mix-mlp"):
            for seed in range(study.seeds):
                job = Job((data,), data, (*_RANKED, ("scorer.arch", arch)), (OURS,), _KEEPS, seed)
                cells.append(Cell(f"{arch}, matching @100", data.column, job, matching, in_ablation(data.column, arch, "match")))
                cells += [
                    Cell(f"{arch}, keep {keep}", data.column, job, accuracy(OURS, keep), in_ablation(data.column, arch, str(keep))) for keep in _KEEPS
                ]
    return Table("predictor-ablation", "Predictors: matching rate and accuracy (%) without tuning", tuple(cells))


def _refuse(study: Study, table: str, *names: str) -> None:
    """Refuses settings that a table varies itself."""
    for name in names:
        if name in study.settings:
            raise ConfigError(f"--set {name}: the table {table} varies it itself; leave it out")


def _locations(study: Study) -> Table:
    _refuse(study, "locations", "prune.locations", "prune.counts")
    if study.keep.is_count:
        raise ConfigError(f"keep = {study.keep}, but the table locations takes a ratio such as 0.6, for locations at equal multiply-accumulates")
    cells = []
    for data in study.sets:
        for seed in range(study.seeds):
            single = Job((data,), data, _WITH_TOKENS, (OURS, TUNED), (study.keep,), seed)
            cells += [
                Cell("4 alone, same final keep", data.column, single, accuracy(TUNED, study.keep)),
                Cell("4 alone, same final keep, untuned", data.column, single, accuracy(OURS, study.keep)),
            ]
            for places in _LOCATIONS:
                name = ", ".join(map(str, places))
                settings = (*_WITH_TOKENS, ("prune.locations", places))
                job = Job((data,), data, settings, (OURS, TUNED), (study.keep,), seed)
                cells.append(Cell(name, data.column, job, accuracy(TUNED, study.keep), _paper(study.keep, "locations", name, data.column)))
                cells.append(Cell(f"{name}, untuned", data.column, job, accuracy(OURS, study.keep)))
            cells.append(Cell("4 alone, the MACs of 4, 6, 8, 10, untuned", data.column, _equal_macs(study, data, seed), _at_equal_macs))
    differs = ("4 alone at the MACs of 4, 6, 8, 10: by tokens times blocks of an encoder with 12 blocks, so nearly equal",)
    return Table("locations", f"Pruning locations: accuracy (%) at final keep {study.keep}, tuned tokens", tuple(cells), differs)


def _equal_macs(study: Study, data: DataSet, seed: int) -> Job:
    """Location 4 alone at the keep whose sum of tokens over blocks 4 to 12 is that of 4, 6, 8, 10: these drop a quarter each, 2 blocks apart."""
    dropped = 1.0 - study.keep.value
    # Blocks 4-5, 6-7, 8-9 and 10-12 run with 1/4, 2/4, 3/4 and all of the drop: 24 of 36 quarter-blocks.
    keep = Keep.ratio(round(1.0 - dropped * (2 * 1 + 2 * 2 + 2 * 3 + 3 * 4) / (9 * 4), 4))
    return Job((data,), data, _WITH_TOKENS, (OURS,), (keep,), seed)


def _at_equal_macs(_: Record, report: EvalReport) -> float:
    return report.of(OURS)[0].accuracy


def _cls_attention(study: Study) -> Table:
    _refuse(study, "cls-attention", "prune.locations")
    keeps = tuple(Keep.ratio(value) for value in (0.9, 0.8, 0.7, 0.6, 0.5))
    cells = []
    for data in study.sets:
        for seed in range(study.seeds):
            ours = Job((data,), data, (*_SCORED, ("prune.locations", (1,))), (OURS,), keeps, seed)
            # What draws nothing is the same for every seed, and what has no predictor waits for none to be trained.
            rivals = ("cls-attention", "random") if seed == 0 else _SEEDED
            others = Job((data,), data, (("phases", ("none",)), ("prune.locations", (1,))), rivals, keeps, seed)
            cells += [Cell("unpruned", data.column, others, unpruned)] if seed == 0 else []
            cells += [Cell(f"Patch Ranking, keep {keep}", data.column, ours, accuracy(OURS, keep)) for keep in keeps]
            cells += [Cell(f"{_RIVALS[name]}, keep {keep}", data.column, others, accuracy(name, keep)) for name in rivals for keep in keeps]
    return Table("cls-attention", "CLS attention against Patch Ranking, pruned on entry to block 1, without tuning: accuracy (%)", tuple(cells))


def _layers(study: Study) -> Table:
    _refuse(study, "layers", "prune.locations")
    cells = []
    for data in study.sets:
        for place in (1, 4, 7, 11):
            for seed in range(study.seeds):
                job = Job((data,), data, (*_RANKED, ("prune.locations", (place,))), (OURS,), (study.keep,), seed)
                cells.append(Cell(f"location {place}, matching @100", data.column, job, matching))
                cells.append(Cell(f"location {place}, accuracy", data.column, job, accuracy(OURS, study.keep)))
    differs = ("the same keep at a later location costs more multiply-accumulates",)
    return Table("layers", f"Predictor by location: matching rate and accuracy (%) at keep {study.keep}, without tuning", tuple(cells), differs)


def _lessons(study: Study) -> Table:
    _refuse(study, "lessons", *{name for settings in _LESSONS.values() for name, _ in settings})
    cells = []
    for title, settings in _LESSONS.items():
        for data in study.sets:
            for seed in range(study.seeds):
                job = Job((data,), data, (*_SCORED, *settings), (OURS,), (study.keep,), seed)
                cells.append(Cell(f"{title}: accuracy", data.column, job, accuracy(OURS, study.keep)))
                cells.append(Cell(f"{title}: cosine x 100", data.column, job, cosine(OURS, study.keep)))
    differs = (
        "a ranking is followed with scorer.checkerboard = 2, an own choice with 1",
        "the scores label and confidence need labels or class names, and the others neither",
    )
    return Table("lessons", f"Ways to teach the predictor: accuracy (%) and cosine at keep {study.keep}, without tuning", tuple(cells), differs)


def _cross_domain(study: Study) -> Table:
    cells = [
        Cell(f"trained on {source.column}", target.column, Job((source,), target, _SCORED, (OURS,), (study.keep,), seed), accuracy(OURS, study.keep))
        for source in study.sets
        for target in study.sets
        for seed in range(study.seeds)
    ]
    return Table("cross-domain", f"Predictor trained on one set, evaluated on another: accuracy (%) at keep {study.keep}", tuple(cells))


TABLES: Mapping[str, Callable[[Study], Table]] = MappingProxyType(
    {
        "main": _main,
        "predictor-ablation": _ablation,
        "locations": _locations,
        "cls-attention": _cls_attention,
        "layers": _layers,
        "lessons": _lessons,
        "cross-domain": _cross_domain,
    }
)
"""Tables that are made of trained runs and their evaluation, by name; `overhead` is measured by a benchmark."""
