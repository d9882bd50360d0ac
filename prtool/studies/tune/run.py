"""`tune`: searches reducers, image sizes, locations and keeps, and writes the best candidate within the limits into the run."""

import re
from pathlib import Path

from prtool.bundle import BUNDLE
from prtool.engines.registry import probe
from prtool.errors import ConfigError, DataError
from prtool.files import PICTURE, check_output, file_kind, write_json
from prtool.progress import Progress, SilentProgress
from prtool.studies.tune.candidates import Candidate
from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER, TuneConfig
from prtool.studies.tune.front import choose, nearest, timed
from prtool.studies.tune.limits import Limits
from prtool.studies.tune.notes import notes
from prtool.studies.tune.plan import Plan, make_plan
from prtool.studies.tune.report import TuneReport, plot_front
from prtool.studies.tune.result import RESULT, RESULT_NAME, SCHEMA, TuneResult, record_digest, write_result
from prtool.studies.tune.search import Search
from prtool.studies.tune.steps import Task
from prtool.trainer.data.images import NO_LABEL, ImageSet
from prtool.trainer.data.load import available_splits, load_split
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import data_of, only_trainer

_REPORT = file_kind("a report of 'prtool tune'", {".json": re.compile(rb'\{\n "schema": \d+,\n "results"')})


def tune(run: Path, config: TuneConfig, data: str | Path | None = None, progress: Progress | None = None) -> TuneReport:
    """Searches, and writes RUN/tune.json, RUN/tune/tune.json and RUN/tune/pareto.png.

    Other families than the run's own are sibling runs with the run's settings under RUN/tune; a predictor is trained where
    patches are ranked, the others train nothing. Runs, evaluations, bundles and benchmarks that are finished are kept, and
    reused while all that they depend on is the same. Times of candidates come from the speed-up over the unpruned model at
    its native size in the same rounds, so that families that were timed one after another compare.

    Args:
        run: folder of a checkpoint.
        config: the candidates, the limits and the time limit.
        data: data that quality is measured on; None takes the run's. Sibling runs are trained on the run's data in any case.
        progress: receives the stages of each step.

    Raises:
        ConfigError: a family that was asked for is impossible, two keeps are the same number of patches, something of another kind
            stands where a file or a bundle is to be written, or no candidate is within the limits: then the message
            names the nearest, the report is written, and an earlier result stays.
        DataError: the data cannot be read, lacks the split, or has no labels where a limit needs them.
        EngineUnavailable: the engine cannot run here; nothing was done.
        CheckpointError, ModelError, StorageError, ParityError, EngineError: as training, export and benchmark raise them.
    """
    checkpoint = Checkpoint.load(run)
    config.check_keeps(checkpoint.prune)
    plan = make_plan(checkpoint, checkpoint.load_model().native, config)
    _check_outputs(run, plan)
    probe(config.engine)
    root, shown = data_of(run, checkpoint, data), progress or SilentProgress()
    images = _images(root, config)
    taken = images.take(config.images, 0)
    limits = _limits(config.limits, taken, root, config.split)
    task = Task(run, checkpoint, plan.own, config, data, images.digest(), shown)
    with only_trainer(task.folder):
        search = Search(task, plan, limits, taken)
        search.run()
        report = _report(task, search, limits, root)
        write_json(task.folder / REPORT_NAME, report.to_json())
        plot_front(report, task.folder / PICTURE_NAME)
        if report.choice is None:
            raise ConfigError(_out_of_reach(report, task.folder / REPORT_NAME))
        write_result(run, _result(run, report, report.choice, search))
    return report


def _check_outputs(run: Path, plan: Plan) -> None:
    folder = run / TUNE_FOLDER
    outputs = {folder / REPORT_NAME: _REPORT, folder / PICTURE_NAME: PICTURE, run / RESULT_NAME: RESULT}
    for path, kind in (*outputs.items(), *((folder / family.folder / "bundle", BUNDLE) for family in (*plan.first, *plan.mixtures))):
        check_output(path, kind)


def _images(root: str, config: TuneConfig) -> ImageSet:
    """The split that quality is measured on, checked before any work."""
    splits = available_splits(root)
    if config.split not in splits:
        raise DataError(
            f"{root} has no split {config.split!r}, it has {', '.join(splits) or 'none'}; give one of these with --set split=NAME "
            "(a result chosen on test flatters the accuracy that is reported on test)"
        )
    return load_split(root, config.split)


def _limits(limits: Limits, images: ImageSet, root: str, split: str) -> Limits:
    """The limits, or the default; raises DataError where the images lack what one needs."""
    labelled = NO_LABEL not in images.labels
    if limits.max_drop is not None and not labelled:
        raise DataError(
            f"max_drop is in points of accuracy, but {root} has images without labels in split {split!r}; give --set limits.min_cosine=C instead"
        )
    if limits.max_recall_drop is not None and not labelled and not any(images.captions):
        raise DataError(
            f"max_recall_drop needs captions or labels, but {root} has images without either in split {split!r}; "
            "give --set limits.min_overlap=S instead"
        )
    return limits.or_default(labelled=labelled)


def _report(task: Task, search: Search, limits: Limits, root: str) -> TuneReport:
    config, candidates, timing = task.config, tuple(search.candidates()), search.timed[0].timing
    choice = choose(candidates, limits)
    return TuneReport(
        candidates=candidates,
        choice=choice,
        limits=limits,
        model=task.checkpoint.model,
        data=root,
        split=config.split,
        images=candidates[0].row.images,
        engine=config.engine,
        precision=config.precision,
        batch=config.batch,
        device=timing["device"],
        versions=timing["versions"],
        untried=search.untried,
        notes=notes(task, search, candidates, choice, limits),
    )


def _out_of_reach(report: TuneReport, path: Path) -> str:
    close = nearest(report.candidates, report.limits)
    fast = min(timed(report.candidates), key=lambda row: row.speed.latency_ms if row.speed else 0.0)
    fastest = "" if fast == close else f"; the fastest of all is {fast}: {fast.figures()}"
    untried = f"; {len(report.untried)} families or steps were not tried" if report.untried else ""
    return (
        f"no candidate is within {report.limits}: the nearest is {close}: {close.figures()}{fastest}{untried}. Give a looser limit, other --keep, "
        f"--location or --image-size, or another engine or precision; all figures are in {path}, and no result was written"
    )


def _result(run: Path, report: TuneReport, chosen: Candidate, search: Search) -> TuneResult:
    source = run if chosen.is_unpruned else search.runs[chosen.family].run
    figures = report.figures(chosen)
    return TuneResult(
        schema=SCHEMA,
        checkpoint_sha256=record_digest(run),
        run=source.relative_to(run).as_posix(),
        run_sha256=record_digest(source),
        method=chosen.family.method,
        image_size=chosen.image_size,
        locations=chosen.family.locations,
        keep=chosen.keep,
        k=chosen.k,
        limits=report.limits.given(),
        figures={name: value for name, value in figures.items() if isinstance(value, float)},
        **{name: getattr(report, name) for name in ("engine", "precision", "batch", "device", "data", "split", "versions")},
    )
