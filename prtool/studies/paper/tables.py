"""The tables of the paper and its supplement, and further ablations, each as a list of cells."""

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from prtool.errors import ConfigError
from prtool.spec import Keep
from prtool.studies.paper.plan import Cell, DataSet, Job, Reader, Settings, Study, Table, accuracy, cosine, matching, unpruned
from prtool.studies.paper.published import in_ablation, in_columns, published
from prtool.trainer.config import PRESETS, TrainConfig
from prtool.trainer.settings import AUXILIARY, LOSS_NAMES, SCORES, FitConfig

OURS, TUNED = "patch-ranking", "patch-ranking-tokens"
_BASELINES = {
    "smaller-image": "smaller image",
    "merge": "gradual merging",
    "evit": "EViT",
    "avit": "A-ViT",
    "tome": "ToMe",
    "cls-attention": "CLS attention",
    "random": "random",
}
_SEEDED = ("random",)
_UNTRAINED = (("phases", ("none",)),)
_SCORED = (("phases", ("predictor",)),)
_RANKED = (("phases", ("rank", "predictor")),)
_WITH_TOKENS = (("phases", ("predictor", "tokens")),)
_KEEPS = tuple(Keep.ratio(value) for value in (1.0, 0.8, 0.7, 0.6, 0.5))
_GENERAL = "Patch Ranking, one predictor for all sets"
_PUBLISHED_AS = {_GENERAL: "Patch Ranking, one predictor trained on ImageNet"}
_GENERAL_STEPS = 2
"""Of a predictor for all sets, in those of a set's own: it sees more kinds of images, and each set far fewer times."""
_LEAVE_ONE_OUT = tuple((name, value) for name, value in PRESETS["leave-one-out"].items() if name != "phases")
_TRAININGS: Mapping[str, Settings] = MappingProxyType(
    {
        "distilled (default)": (),
        **{f"distilled, auxiliary {name}": (("scorer.auxiliary", (name,)),) for name in AUXILIARY},
        "distilled, all auxiliary features": (("scorer.auxiliary", AUXILIARY),),
        "distilled, transformer": (("scorer.arch", "transformer"),),
        **{f"leave-one-out, score {score}": (*_LEAVE_ONE_OUT, ("golden.score", score)) for score in SCORES},
        **{f"leave-one-out, groups of {side} x {side}": (*_LEAVE_ONE_OUT, ("golden.group", side)) for side in (1, 3, 4)},
        "leave-one-out, greedy, 7 groups a step until 98 patches are left": (*_LEAVE_ONE_OUT, ("golden.step", 7), ("golden.floor", 98)),
        **{f"leave-one-out, loss {loss}": (*_LEAVE_ONE_OUT, ("fit.loss", loss)) for loss in LOSS_NAMES if loss != FitConfig().loss},
    }
)
"""Ways to train a predictor; those with a ranking are named after what they change in the preset leave-one-out
(score feature, groups of 2 x 2, ListMLE)."""
_LOCATIONS = ((2, 3, 4, 5), (4, 5, 6, 7), (1, 3, 5, 7), (4, 6, 8, 10))


def make_table(name: str, study: Study) -> Table:
    """A table by name, with the rows of the study.

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
        raise ConfigError(f"--row {' --row '.join(study.rows)}: the table {name} has no such row; it has: {rows}")
    return replace(table, cells=chosen)


def unknown_table(name: str, *others: str) -> ConfigError:
    """The error for a name that is no table; `others` are known elsewhere."""
    known = (*TABLES, *others)
    near = difflib.get_close_matches(name, known, n=2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ConfigError(f"table = {name!r}, but it must be one of {', '.join(known)}{hint}")


def _main(study: Study) -> Table:
    """Rows by keep, so that methods of equal cost stand together."""
    cells = [Cell("unpruned", data.column, _baselines(study, data, 0), unpruned) for data in study.sets]
    for keep in study.keeps:
        at = f", keep {keep}" if len(study.keeps) > 1 else ""
        for data, seed in study.runs():
            for title, method, job in _main_rows(study, data, seed):
                paper = _paper(keep, "main", _PUBLISHED_AS.get(title, title), data.column)
                cells.append(Cell(title + at, data.column, job, accuracy(method, keep), paper))
    differs = (
        f"one predictor for all sets: {_GENERAL_STEPS} times the steps of a set's own, and tokens tuned towards the unpruned embedding only, "
        "because a label of one set means nothing among the class names of another",
    )
    keeps = ", ".join(map(str, study.keeps))
    title = f"Zero-shot accuracy (%) at keep {keeps}, all methods at equal multiply-accumulates"
    return Table("main", title, tuple(cells), differs if len(study.sets) > 1 else ())


def _main_rows(study: Study, data: DataSet, seed: int) -> Iterator[tuple[str, str, Job]]:
    """Title, method and job of each row."""
    baselines = _baselines(study, data, seed)
    for method in baselines.methods:
        yield _BASELINES[method], method, baselines
    jobs = {"Patch Ranking": Job((data,), data, _WITH_TOKENS, (OURS, TUNED), study.keeps, seed)}
    if len(study.sets) > 1:
        steps = _GENERAL_STEPS * TrainConfig.load(None, dict(study.settings)).distill.steps
        settings = (*_WITH_TOKENS, ("tokens.label", 0.0), ("distill.steps", steps))
        jobs[_GENERAL] = Job(study.sets, data, settings, (OURS, TUNED), study.keeps, seed)
    for title, job in jobs.items():
        yield title, OURS, job
        yield f"{title}, tuned tokens", TUNED, job


def _baselines(study: Study, data: DataSet, seed: int) -> Job:
    """What has no predictor needs no training, so it does not wait for one; without chance it runs for one seed."""
    return Job((data,), data, _UNTRAINED, tuple(_BASELINES) if seed == 0 else _SEEDED, study.keeps, seed)


def _paper(keep: Keep, table: str, row: str, column: str) -> float | None:
    """The paper's figure; None at another keep than the paper's."""
    return in_columns(table, row, column) if str(keep) == published()[table]["keep"] else None


Figures = Callable[[str, DataSet], Iterable[tuple[str, Reader, float | None]]]
"""Title of a variant and data set -> what is read of its job: the rest of the row's name, how, and the published figure."""


def _varied(study: Study, variants: Mapping[str, Settings], methods: tuple[str, ...], keeps: tuple[Keep, ...], figures: Figures) -> list[Cell]:
    """The cells of runs that differ in some settings."""
    return [
        Cell(f"{title}{rest}", data.column, Job((data,), data, settings, methods, keeps, seed), read, paper)
        for data in study.sets
        for title, settings in variants.items()
        for seed in range(study.seeds)
        for rest, read, paper in figures(title, data)
    ]


def _ablation(study: Study) -> Table:
    _reject(study, "predictor-ablation", "scorer.arch")
    variants = {arch: (*_RANKED, ("scorer.arch", arch)) for arch in ("mlp", "transformer", "mix-mlp")}

    def figures(arch: str, data: DataSet) -> Iterator[tuple[str, Reader, float | None]]:
        yield ", matching @100", matching, in_ablation(data.column, arch, "match")
        for keep in _KEEPS:
            yield f", keep {keep}", accuracy(OURS, keep), in_ablation(data.column, arch, str(keep))

    cells = _varied(study, variants, (OURS,), _KEEPS, figures)
    return Table("predictor-ablation", "Predictors: matching rate and accuracy (%) without tuning", tuple(cells))


def _reject(study: Study, table: str, *names: str) -> None:
    """Rejects settings that a table varies itself."""
    for name in names:
        if name in study.settings:
            raise ConfigError(f"--set {name}: the table {table} varies it itself; leave it out")


def _locations(study: Study) -> Table:
    _reject(study, "locations", "prune.locations", "prune.counts")
    keep = study.keep
    if keep.is_count:
        raise ConfigError(f"keep = {keep}, but the table locations takes a ratio such as 0.6, for locations at equal multiply-accumulates")
    variants: dict[str, Settings] = {"4 alone, same final keep": _WITH_TOKENS}
    variants |= {", ".join(map(str, places)): (*_WITH_TOKENS, ("prune.locations", places)) for places in _LOCATIONS}

    def figures(title: str, data: DataSet) -> Iterator[tuple[str, Reader, float | None]]:
        yield "", accuracy(TUNED, keep), _paper(keep, "locations", title, data.column)
        yield ", untuned", accuracy(OURS, keep), None

    cells = _varied(study, variants, (OURS, TUNED), (keep,), figures)
    equal = _equal_macs(keep)
    cells += _varied(
        study, {"4 alone, the MACs of 4, 6, 8, 10, untuned": _WITH_TOKENS}, (OURS,), (equal,), lambda *_: [("", accuracy(OURS, equal), None)]
    )
    differs = ("4 alone at the MACs of 4, 6, 8, 10: by tokens times blocks of an encoder with 12 blocks, so nearly equal",)
    return Table("locations", f"Pruning locations: accuracy (%) at final keep {keep}, tuned tokens", tuple(cells), differs)


def _equal_macs(keep: Keep) -> Keep:
    """Of location 4 alone, where the sum of tokens over blocks 4 to 12 is that of 4, 6, 8, 10: these drop a quarter each, 2 blocks apart."""
    # Blocks 4-5, 6-7, 8-9 and 10-12 run with 1/4, 2/4, 3/4 and all of the drop: 24 of 36 quarter-blocks.
    return Keep.ratio(round(1.0 - (1.0 - keep.value) * (2 * 1 + 2 * 2 + 2 * 3 + 3 * 4) / (9 * 4), 4))


def _cls_attention(study: Study) -> Table:
    _reject(study, "cls-attention", "prune.locations")
    keeps = tuple(Keep.ratio(value) for value in (0.9, 0.8, 0.7, 0.6, 0.5))
    cells, first = [], ("prune.locations", (1,))
    for data, seed in study.runs():
        ours = Job((data,), data, (*_SCORED, first), (OURS,), keeps, seed)
        # What draws nothing is the same for every seed, and what has no predictor waits for none to be trained.
        others = Job((data,), data, (*_UNTRAINED, first), ("cls-attention", "random") if seed == 0 else _SEEDED, keeps, seed)
        cells += [Cell("unpruned", data.column, others, unpruned)] if seed == 0 else []
        cells += [Cell(f"Patch Ranking, keep {keep}", data.column, ours, accuracy(OURS, keep)) for keep in keeps]
        cells += [Cell(f"{_BASELINES[name]}, keep {keep}", data.column, others, accuracy(name, keep)) for name in others.methods for keep in keeps]
    return Table("cls-attention", "CLS attention against Patch Ranking, pruned on entry to block 1, without tuning: accuracy (%)", tuple(cells))


def _layers(study: Study) -> Table:
    _reject(study, "layers", "prune.locations")
    keep = study.keep
    variants = {f"location {place}": (*_RANKED, ("prune.locations", (place,))) for place in (1, 4, 7, 11)}
    figures = ((", matching @100", matching, None), (", accuracy", accuracy(OURS, keep), None))
    cells = _varied(study, variants, (OURS,), (keep,), lambda *_: figures)
    differs = ("the same keep at a later location costs more multiply-accumulates",)
    return Table("layers", f"Predictor by location: matching rate and accuracy (%) at keep {keep}, without tuning", tuple(cells), differs)


def _training_ablation(study: Study) -> Table:
    _reject(study, "training-ablation", *{name for settings in _TRAININGS.values() for name, _ in settings})
    keep = study.keep
    variants = {title: (*_SCORED, *settings) for title, settings in _TRAININGS.items()}
    figures = ((": accuracy", accuracy(OURS, keep), None), (": cosine x 100", cosine(OURS, keep), None))
    cells = _varied(study, variants, (OURS,), (keep,), lambda *_: figures)
    differs = (
        "objective ranking has scorer.checkerboard = 2, objective distill has 1",
        "the scores label and confidence need labels or class names, and the others neither",
    )
    return Table("training-ablation", f"Training of the predictor: accuracy (%) and cosine at keep {keep}, without tuning", tuple(cells), differs)


def _cross_domain(study: Study) -> Table:
    keep = study.keep
    cells = [
        Cell(f"trained on {source.column}", target.column, Job((source,), target, _SCORED, (OURS,), (keep,), seed), accuracy(OURS, keep))
        for source in study.sets
        for target, seed in study.runs()
    ]
    return Table("cross-domain", f"Predictor trained on one set, evaluated on another: accuracy (%) at keep {keep}", tuple(cells))


TABLES: Mapping[str, Callable[[Study], Table]] = MappingProxyType(
    {
        "main": _main,
        "predictor-ablation": _ablation,
        "locations": _locations,
        "cls-attention": _cls_attention,
        "layers": _layers,
        "training-ablation": _training_ablation,
        "cross-domain": _cross_domain,
    }
)
"""Tables that are made of trained runs and their evaluation, by name; `overhead` is measured by a benchmark."""
