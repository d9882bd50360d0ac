"""The tune verb: sweeps locations and keeps on validation images and on the device's clock, and writes the choice into the run."""

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prtool.bundle import BUNDLE
from prtool.engines.registry import graph_precision
from prtool.errors import ConfigError, DataError
from prtool.files import PICTURE, check_output, file_kind, write_json
from prtool.progress import Progress, SilentProgress
from prtool.spec import Keep
from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER, TuneConfig
from prtool.studies.tune.front import Candidate, choose, nearest
from prtool.studies.tune.report import TuneReport, plot_front
from prtool.studies.tune.result import CHOICE, RESULT_NAME, SCHEMA, TuneResult, record_digest, write_choice
from prtool.studies.tune.steps import (
    Quality,
    QualityAsk,
    Site,
    Timing,
    Tools,
    Workshop,
    ensure_bundle,
    ensure_run,
    qualities,
    site_of,
    timing,
)
from prtool.trainer.data.load import NO_LABEL, available_splits, load_split
from prtool.trainer.evaluation.report import drop_error, paired_drop
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import data_of, only_trainer

_REPORT = file_kind("a report of 'prtool tune'", {".json": re.compile(rb'\{\n "schema": \d+,\n "results"')})
_DRIFT = 1.1


@dataclass(frozen=True, slots=True)
class _Measured:
    """All that was measured of one set of locations."""

    site: Site
    qualities: dict[int, Quality]
    timing: Timing
    notes: tuple[str, ...]


def tune(run: Path, config: TuneConfig, data: str | Path | None = None, progress: Progress | None = None, tools: Tools | None = None) -> TuneReport:
    """Measures every candidate, chooses, and writes RUN/tune.json, RUN/tune/tune.json and RUN/tune/pareto.png.

    Locations that are not the run's need a predictor there: sibling runs with the run's settings are trained under
    RUN/tune. Runs, evaluations, bundles and benchmarks that are finished are kept, and reused while all that they depend on
    is the same. Times of candidates come from the speed-up over the unpruned model in the same rounds, so that sets of
    locations that were timed one after another compare.

    Args:
        run: folder of a checkpoint.
        config: what is tried, and what must hold.
        data: data that quality is measured on; None takes the run's. Sibling runs are trained on the run's data in any case.
        progress: hears about each step.
        tools: the verbs that do the work; None takes the real ones.

    Raises:
        ConfigError: a set of locations is beyond the depth, two keeps are the same number of patches, something of another kind
            stands where a file or a bundle is to be written, or no candidate holds the limits: then the message
            names the nearest, the report is written, and an earlier choice stands.
        DataError: the data cannot be read, lacks the split, or has no labels where a limit needs them.
        EngineUnavailable: the engine cannot run here; nothing was done.
        CheckpointError, ModelError, StorageError, ParityError, EngineError: as training, export and benchmark raise them.
    """
    shop = Workshop(run, Checkpoint.load(run), tools or Tools(), progress or SilentProgress())
    checkpoint = shop.checkpoint
    sites = [site_of(run, checkpoint, places) for places in config.locations or (checkpoint.prune.locations,)]
    checkpoint.prune.distinct_counts(config.keeps)
    folder = run / TUNE_FOLDER
    _check_outputs(run, folder, sites)
    shop.tools.probe(config.engine)
    ask, root = _quality_ask(run, checkpoint, config, data)
    with only_trainer(folder):
        measured = _measure(shop, config, sites, ask)
        report = _report(checkpoint, config, measured, root)
        write_json(folder / REPORT_NAME, report.to_json())
        plot_front(report, folder / PICTURE_NAME)
        if report.choice is None:
            raise ConfigError(_out_of_reach(report, folder / REPORT_NAME))
        write_choice(run, _choice(run, report, report.choice, sites))
    return report


def _check_outputs(run: Path, folder: Path, sites: Sequence[Site]) -> None:
    check_output(folder / REPORT_NAME, _REPORT)
    check_output(folder / PICTURE_NAME, PICTURE)
    check_output(run / RESULT_NAME, CHOICE)
    for site in sites:
        check_output(site.folder / "bundle", BUNDLE)


def _quality_ask(run: Path, checkpoint: Checkpoint, config: TuneConfig, data: str | Path | None) -> tuple[QualityAsk, str]:
    """What quality is measured on, checked before any work, and the data in words."""
    root = data_of(run, checkpoint, data)
    splits = available_splits(root)
    if config.split not in splits:
        raise DataError(
            f"{root} has no split {config.split!r}, it has {', '.join(splits) or 'none'}; give one of these with --set split=NAME "
            "(a choice made on test flatters the accuracy that is reported on test)"
        )
    images = load_split(root, config.split).take(config.images, 0)
    if config.limits.max_drop is not None and NO_LABEL in images.labels:
        raise DataError(
            f"max_drop is in points of accuracy, but {root} has images without labels in split {config.split!r}; "
            "give --set limits.min_cosine=C instead"
        )
    return QualityAsk(data, images.digest(), config.split, config.images), root


def _measure(shop: Workshop, config: TuneConfig, sites: Sequence[Site], ask: QualityAsk) -> list[_Measured]:
    """Trains, exports and evaluates every set first, so that the benchmarks come one right after another."""
    precision = graph_precision(config.engine, config.precision)
    ready = []
    for site in sites:
        ensure_run(shop, site)
        bundle = ensure_bundle(shop, site, ask, precision)
        ready.append((site, bundle, *qualities(shop, site, ask, config.keeps)))
    found = []
    for site, bundle, quality, notes in ready:
        taken = timing(shop, site, bundle, config.bench())
        found.append(_Measured(site, quality, taken, (*notes, *taken.notes)))
    return found


def _report(checkpoint: Checkpoint, config: TuneConfig, measured: Sequence[_Measured], root: str) -> TuneReport:
    first = measured[0]
    unpruned_ms = statistics.median(part.timing.unpruned_ms for part in measured)
    full, patches = first.qualities[0], checkpoint.prune.patches
    alone = Candidate((), 1.0, patches, full.gmacs, config.batch, unpruned_ms, 1.0, 1.0, 1.0, full.cosine, full.accuracy, *_no_drop(full))
    pruned = [_candidate(part, keep, patches, config.batch, unpruned_ms) for part in measured for keep in config.keeps]
    candidates = (alone, *pruned)
    report = TuneReport(
        candidates=candidates,
        choice=choose(candidates, config.limits),
        limits=config.limits,
        model=checkpoint.model,
        data=root,
        split=config.split,
        images=full.images,
        engine=config.engine,
        precision=config.precision,
        batch=config.batch,
        device=first.timing.device,
        versions=first.timing.versions,
    )
    return replace(report, notes=_notes(report, measured))


def _no_drop(full: Quality) -> tuple[float | None, float | None]:
    return (None, None) if full.accuracy is None else (0.0, 0.0)


def _candidate(part: _Measured, keep: Keep, patches: int, batch: int, unpruned_ms: float) -> Candidate:
    k = keep.resolve(patches)
    quality, full, speed = part.qualities[k], part.qualities[0], part.timing.speeds[k]
    labelled = quality.accuracy is not None and full.accuracy is not None
    counted = labelled and quality.lost is not None and quality.won is not None
    return Candidate(
        locations=part.site.spec.locations,
        keep=k / patches if keep.is_count else keep.value,
        k=k,
        gmacs=quality.gmacs,
        batch=batch,
        latency_ms=unpruned_ms / speed.speedup,
        speedup=speed.speedup,
        speedup_low=speed.low,
        speedup_high=speed.high,
        cosine=quality.cosine,
        accuracy=quality.accuracy,
        drop=_drop(quality, full) if labelled else None,
        drop_error=drop_error(quality.lost or 0, quality.won or 0, quality.images) if counted else None,
    )


def _drop(quality: Quality, full: Quality) -> float:
    """Points of accuracy lost; from the counts where they are known, so that a drop of exactly the limit is not above it by rounding."""
    if quality.lost is not None and quality.won is not None:
        return paired_drop(quality.lost, quality.won, quality.images)
    return (full.accuracy or 0.0) - (quality.accuracy or 0.0)


def _notes(report: TuneReport, measured: Sequence[_Measured]) -> tuple[str, ...]:
    notes = [f"{part.site.name} was tried with a sibling run in {part.site.run}" for part in measured if part.site.run.parent == part.site.folder]
    several = len(measured) > 1
    notes += [f"{part.site.name}: {note}" if several else note for part in measured for note in part.notes]
    notes += [note for note in (_unsure_drop(report), _unsure_speed(report)) if note]
    if report.precision != "fp32":
        notes.append(f"accuracy and cosine are those of float32 in PyTorch; what {report.precision} adds is held by the export's gates alone")
    if report.split != "val":
        notes.append(f"chosen on the {report.split} split: figures on the same images flatter the choice")
    times = [part.timing.unpruned_ms for part in measured]
    if max(times) > _DRIFT * min(times):
        notes.append(
            f"the unpruned model took {min(times):.3g} to {max(times):.3g} ms in the benchmarks of the sets: the machine changed between them. "
            "Speed-ups are of the same rounds and compare; the milliseconds are the median's"
        )
    return tuple(dict.fromkeys(notes))


def _unsure_drop(report: TuneReport) -> str:
    """Where the limit on the drop is finer than the images can tell."""
    limit = report.limits.max_drop
    pruned = [row for row in report.candidates if row.drop_error is not None and row.k < report.unpruned.k]
    if limit is None or not pruned:
        return ""
    unsure = [row for row in pruned if (row.drop_error or 0.0) > limit]
    if not unsure:
        return ""
    row = report.choice if report.choice in unsure and report.choice is not None else unsure[0]
    return (
        f"{len(unsure)} of {len(pruned)} drops are known less exactly than the limit of {limit:g} points: {row} has "
        f"{row.drop:.2f} +- {row.drop_error:.2f} points (95 %, paired, {report.images} images); more validation images would narrow it"
    )


def _unsure_speed(report: TuneReport) -> str:
    """Where the interval of the chosen speed-up reaches beyond the limit on speed."""
    row = report.choice
    if (
        row is None
        or row.speedup_low >= row.speedup
        or report.limits.hold_speed(replace(row, latency_ms=row.latency_ms * row.speedup / row.speedup_low))
    ):
        return ""
    return f"the choice's speed-up is known as {row.speedup_low:.2f} to {row.speedup_high:.2f}, which reaches beyond the limit; measure for longer"


def _out_of_reach(report: TuneReport, path: Path) -> str:
    close = nearest(report.candidates, report.limits)
    fast = min(report.candidates, key=lambda row: row.latency_ms)
    fastest = "" if fast == close else f"; the fastest of all is {fast}: {fast.figures()}"
    return (
        f"no candidate holds {report.limits}: the nearest is {close}: {close.figures()}{fastest}. Give a looser limit, other --keep or --location, "
        f"or another engine or precision; all figures are in {path}, and no choice was written"
    )


def _choice(run: Path, report: TuneReport, chosen: Candidate, sites: Sequence[Site]) -> TuneResult:
    source = next((site.run for site in sites if site.spec.locations == chosen.locations), run)
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
        engine=report.engine,
        precision=report.precision,
        batch=report.batch,
        device=report.device,
        data=report.data,
        split=report.split,
        versions=report.versions,
    )
