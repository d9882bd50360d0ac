"""`tune`: evaluates and times candidate locations and keeps, and writes the best one within the limits into the run."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prtool.bundle import BUNDLE
from prtool.engines.registry import probe
from prtool.errors import ConfigError, DataError
from prtool.files import PICTURE, check_output, file_kind, write_json
from prtool.progress import Progress, SilentProgress
from prtool.spec import Keep
from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER, TuneConfig
from prtool.studies.tune.front import Candidate, choose, nearest
from prtool.studies.tune.report import TuneReport, plot_front
from prtool.studies.tune.result import RESULT, RESULT_NAME, SCHEMA, TuneResult, record_digest, write_result
from prtool.studies.tune.steps import LocationSet
from prtool.trainer.data.images import NO_LABEL, ImageSet
from prtool.trainer.data.load import available_splits, load_split
from prtool.trainer.evaluation.report import drop_error
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import data_of, only_trainer

_REPORT = file_kind("a report of 'prtool tune'", {".json": re.compile(rb'\{\n "schema": \d+,\n "results"')})
_DRIFT = 1.1


def tune(run: Path, config: TuneConfig, data: str | Path | None = None, progress: Progress | None = None) -> TuneReport:
    """Measures every candidate, and writes RUN/tune.json, RUN/tune/tune.json and RUN/tune/pareto.png.

    Locations that are not the run's need a predictor there: sibling runs with the run's settings are trained under
    RUN/tune. Runs, evaluations, bundles and benchmarks that are finished are kept, and reused while all that they depend on
    is the same. Times of candidates come from the speed-up over the unpruned model in the same rounds, so that sets of
    locations that were timed one after another compare.

    Args:
        run: folder of a checkpoint.
        config: the candidates and the limits.
        data: data that quality is measured on; None takes the run's. Sibling runs are trained on the run's data in any case.
        progress: receives the stages of each step.

    Raises:
        ConfigError: a set of locations is beyond the depth, two keeps are the same number of patches, something of another kind
            stands where a file or a bundle is to be written, or no candidate is within the limits: then the message
            names the nearest, the report is written, and an earlier result stays.
        DataError: the data cannot be read, lacks the split, or has no labels where a limit needs them.
        EngineUnavailable: the engine cannot run here; nothing was done.
        CheckpointError, ModelError, StorageError, ParityError, EngineError: as training, export and benchmark raise them.
    """
    checkpoint, shown = Checkpoint.load(run), progress or SilentProgress()
    sets = [LocationSet(run, checkpoint, places, shown) for places in config.locations or (checkpoint.prune.locations,)]
    checkpoint.prune.distinct_counts(config.keeps)
    folder = run / TUNE_FOLDER
    outputs = {folder / REPORT_NAME: _REPORT, folder / PICTURE_NAME: PICTURE, run / RESULT_NAME: RESULT}
    for path, kind in (*outputs.items(), *((item.folder / "bundle", BUNDLE) for item in sets)):
        check_output(path, kind)
    probe(config.engine)
    root = data_of(run, checkpoint, data)
    data_sha256 = _images(root, config).digest()
    with only_trainer(folder):
        # Every set is trained, exported and evaluated first, so that the benchmarks come one right after another.
        bundles = []
        for item in sets:
            item.train()
            bundles.append(item.export(config, data, data_sha256))
            item.evaluate(config, data, data_sha256)
        for item, bundle in zip(sets, bundles, strict=True):
            item.time(bundle, config)
        report = _report(checkpoint, config, sets, root)
        write_json(folder / REPORT_NAME, report.to_json())
        plot_front(report, folder / PICTURE_NAME)
        if report.choice is None:
            raise ConfigError(_out_of_reach(report, folder / REPORT_NAME))
        write_result(run, _result(run, report, report.choice, sets))
    return report


def _images(root: str, config: TuneConfig) -> ImageSet:
    """What quality is measured on, checked before any work."""
    splits = available_splits(root)
    if config.split not in splits:
        raise DataError(
            f"{root} has no split {config.split!r}, it has {', '.join(splits) or 'none'}; give one of these with --set split=NAME "
            "(a result chosen on test flatters the accuracy that is reported on test)"
        )
    images = load_split(root, config.split).take(config.images, 0)
    if config.limits.max_drop is not None and NO_LABEL in images.labels:
        raise DataError(
            f"max_drop is in points of accuracy, but {root} has images without labels in split {config.split!r}; "
            "give --set limits.min_cosine=C instead"
        )
    return images


def _report(checkpoint: Checkpoint, config: TuneConfig, sets: Sequence[LocationSet], root: str) -> TuneReport:
    first, patches = sets[0], checkpoint.prune.patches
    unpruned_ms = statistics.median(item.timing["unpruned_ms"] for item in sets)
    pruned = [_candidate(item, keep, patches, config.batch, unpruned_ms) for item in sets for keep in config.keeps]
    candidates = (_unpruned(first, patches, config.batch, unpruned_ms), *pruned)
    report = TuneReport(
        candidates=candidates,
        choice=choose(candidates, config.limits),
        limits=config.limits,
        model=checkpoint.model,
        data=root,
        split=config.split,
        images=first.rows[0].images,
        engine=config.engine,
        precision=config.precision,
        batch=config.batch,
        device=first.timing["device"],
        versions=first.timing["versions"],
    )
    return replace(report, notes=_notes(report, sets))


def _unpruned(item: LocationSet, patches: int, batch: int, unpruned_ms: float) -> Candidate:
    full = item.rows[0]
    accuracy, drop = (None, None) if full.accuracy is None else (full.accuracy, 0.0)
    return Candidate((), 1.0, patches, full.gmacs, batch, unpruned_ms, 1.0, 1.0, 1.0, full.cosine, accuracy, drop, drop)


def _candidate(item: LocationSet, keep: Keep, patches: int, batch: int, unpruned_ms: float) -> Candidate:
    k = keep.resolve(patches)
    row = item.rows[k]
    speedup, low, high = item.timing["speeds"][str(k)]
    return Candidate(
        locations=item.locations,
        keep=k / patches if keep.is_count else keep.value,
        k=k,
        gmacs=row.gmacs,
        batch=batch,
        latency_ms=unpruned_ms / speedup,
        speedup=speedup,
        speedup_low=low,
        speedup_high=high,
        cosine=row.cosine,
        accuracy=row.accuracy,
        drop=row.drop,
        drop_error=None if row.lost is None or row.won is None else drop_error(row.lost, row.won, row.images),
    )


def _notes(report: TuneReport, sets: Sequence[LocationSet]) -> tuple[str, ...]:
    notes = [f"{item.name} was tried with a sibling run in {item.run}" for item in sets if item.is_sibling]
    notes += [f"{item.name}: {note}" if len(sets) > 1 else note for item in sets for note in item.notes]
    notes += [note for note in (_uncertain_drop(report), _uncertain_speed(report)) if note]
    if report.precision != "fp32":
        notes.append(f"accuracy and cosine are those of float32 in PyTorch; only the checks of the export limit the error of {report.precision}")
    if report.split != "val":
        notes.append(f"chosen on the {report.split} split: figures on the same images flatter the result")
    times = [item.timing["unpruned_ms"] for item in sets]
    if max(times) > _DRIFT * min(times):
        notes.append(
            f"the unpruned model took {min(times):.3g} to {max(times):.3g} ms in the benchmarks of the sets: the machine changed between them. "
            "Speed-ups are of the same rounds and compare; the milliseconds are the median's"
        )
    return tuple(dict.fromkeys(notes))


def _uncertain_drop(report: TuneReport) -> str:
    """Where the 95 % interval of a drop is wider than the limit."""
    limit = report.limits.max_drop
    pruned = [row for row in report.candidates if row.drop_error is not None and row.k < report.unpruned.k]
    uncertain = [row for row in pruned if limit is not None and (row.drop_error or 0.0) > limit]
    if not uncertain:
        return ""
    row = report.choice if report.choice in uncertain and report.choice is not None else uncertain[0]
    return (
        f"{len(uncertain)} of {len(pruned)} drops have a 95 % interval wider than the limit of {limit:g} points: {row} has "
        f"{row.drop:.2f} +- {row.drop_error:.2f} points (paired, {report.images} images); more validation images would narrow it"
    )


def _uncertain_speed(report: TuneReport) -> str:
    """Where the 95 % interval of the chosen speed-up reaches beyond the limit on speed."""
    row = report.choice
    if row is None or row.speedup_low >= row.speedup:
        return ""
    if report.limits.speed_within(replace(row, latency_ms=row.latency_ms * row.speedup / row.speedup_low)):
        return ""
    return f"the chosen speed-up has a 95 % interval of {row.speedup_low:.2f} to {row.speedup_high:.2f}, which exceeds the limit; measure for longer"


def _out_of_reach(report: TuneReport, path: Path) -> str:
    close = nearest(report.candidates, report.limits)
    fast = min(report.candidates, key=lambda row: row.latency_ms)
    fastest = "" if fast == close else f"; the fastest of all is {fast}: {fast.figures()}"
    return (
        f"no candidate is within {report.limits}: the nearest is {close}: {close.figures()}{fastest}. Give a looser limit, other --keep or "
        f"--location, or another engine or precision; all figures are in {path}, and no result was written"
    )


def _result(run: Path, report: TuneReport, chosen: Candidate, sets: Sequence[LocationSet]) -> TuneResult:
    source = next((item.run for item in sets if item.locations == chosen.locations), run)
    names = ("gmacs", "latency_ms", "images_per_s", "speedup", "cosine", "accuracy", "drop", "drop_error")
    figures = {name: getattr(chosen, name) for name in names}
    return TuneResult(
        schema=SCHEMA,
        checkpoint_sha256=record_digest(run),
        run=source.relative_to(run).as_posix(),
        run_sha256=record_digest(source),
        locations=chosen.locations,
        keep=chosen.keep,
        k=chosen.k,
        limits=report.limits.given(),
        figures={name: value for name, value in figures.items() if value is not None},
        **{name: getattr(report, name) for name in ("engine", "precision", "batch", "device", "data", "split", "versions")},
    )
