"""The steps of `prtool tune` for one candidate set of locations: its run, its quality, its bundle and its speed, each stored and reused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from prtool.bundle import MANIFEST_NAME, Bundle
from prtool.engines.registry import graph_precision, probe
from prtool.errors import BundleError, ConfigError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.files import new_directory, sha256_file
from prtool.progress import Progress
from prtool.records import from_plain, to_plain
from prtool.runtime.bench import BenchReport, bench
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import Keep
from prtool.store import Store, digest
from prtool.studies.tune.config import TUNE_FOLDER, TuneConfig
from prtool.studies.tune.result import record_digest
from prtool.trainer.config import RANKING, TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig, EvalRow, evaluate_run
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.settings import PATCH_RANKING_TOKENS, PruneConfig
from prtool.trainer.train import train

SCHEMA = 2
# The default of a candidate's bundle has no effect: every measured call names its keep.
_BUNDLE_KEEP = Keep.ratio(0.6)


class LocationSet:
    """One candidate set of locations, and what is measured of it; what was measured before is reused while all that it depends on is the same.

    Attributes:
        locations: 1-based blocks on entry to which patches drop.
        folder: where everything measured of it lies, RUN/tune/at-4-6.
        run: the run that has a predictor there: the tuned one for its own locations, else a sibling in `folder`.
        rows: number of kept patches -> evaluation; the unpruned model's under 0.
        timing: plain values: "unpruned_ms" (median of one call), "speeds" ({k: [speed-up, low, high]}), "device", "versions".
        notes: of the evaluation and the benchmark.
    """

    def __init__(self, origin: Path, checkpoint: Checkpoint, locations: tuple[int, ...], progress: Progress) -> None:
        """Checks the locations; nothing is measured yet.

        Args:
            origin: the tuned run.
            checkpoint: its checkpoint.
            locations: of this set.
            progress: receives the stages of every step, with the locations in front.

        Raises:
            ConfigError: the locations are out of order or beyond the depth.
        """
        self.origin, self.checkpoint, self.locations = origin, checkpoint, locations
        self.name = f"location {','.join(map(str, locations))}"
        self.folder = origin / TUNE_FOLDER / f"at-{'-'.join(map(str, locations))}"
        self.run = origin if locations == checkpoint.prune.locations else self.folder / "run"
        self.rows: dict[int, EvalRow] = {}
        self.timing: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self._progress = _Prefixed(progress, self.name)
        if self.is_sibling:
            _check(checkpoint, locations)

    @property
    def is_sibling(self) -> bool:
        """Whether the locations are not those of the tuned run."""
        return self.run != self.origin

    def train(self) -> None:
        """Trains the sibling run; one that is finished is kept.

        Raises:
            Everything that `prtool.trainer.train.train` raises.
        """
        if not self.is_sibling:
            return
        ranked, shared = self.origin / "golden", set(self.locations) & set(self.checkpoint.prune.locations)
        if shared and ranked.is_dir() and not (self.run / "golden").exists():
            # Rankings lie in sub-folders named after all they depend on: those of a shared location are found there, others are not read.
            with new_directory(self.run / "golden") as root:
                shutil.copytree(ranked, root, dirs_exist_ok=True)
        # A sibling is made by this command, and made again where the run that it follows has changed.
        train(_sibling_config(self.checkpoint, self.locations), self.run, self._progress, overwrite=True)

    def export(self, config: TuneConfig, data: str | Path | None, data_sha256: str) -> Path:
        """The bundle with graphs of the engine's precision; an unchanged one of the same run is reused.

        Raises:
            Everything that `export_run` raises.
        """
        bundle, name, precision = self.folder / "bundle", "bundle.json", graph_precision(config.engine, config.precision)
        store = Store(self.folder, digest(SCHEMA, record_digest(self.run), data_sha256 if precision == "int8" else "", library_versions()))
        if (store.read(name) or {}).get("manifest") != _manifest_digest(bundle) or not _has(bundle, precision):
            export_run(self.run, bundle, ExportOptions(_BUNDLE_KEEP, (precision,)), data, self._progress)
            store.write(name, {"manifest": _manifest_digest(bundle)})
        return bundle

    def evaluate(self, config: TuneConfig, data: str | Path | None, data_sha256: str) -> None:
        """Sets `rows`; only keeps that were not evaluated before are.

        Raises:
            Everything that `evaluate_run` raises.
        """
        name = f"evaluation-{config.split}.json"
        store = Store(self.folder, digest(SCHEMA, record_digest(self.run), data_sha256, config.split, config.images, library_versions()))
        found = store.read(name) or {"rows": {}, "notes": []}
        counts = {keep.resolve(self.checkpoint.prune.patches): keep for keep in config.keeps}
        missing = {k: keep for k, keep in counts.items() if str(k) not in found["rows"]}
        if missing:
            # Each run's own: training a sibling's tokens may end without any, where none improve on the plain encoder.
            method = PATCH_RANKING_TOKENS if _has_tokens(Checkpoint.load(self.run)) else "patch-ranking"
            asked = EvalConfig(split=config.split, keeps=tuple(missing.values()), methods=(method,), images=config.images)
            report = evaluate_run(self.run, data, asked, self._progress)
            rows = {str(k): to_plain(row) for k, row in zip((0, *missing), (report.unpruned, *report.of(method)), strict=True)}
            found = {"rows": {**found["rows"], **rows}, "notes": list(report.notes)}
            store.write(name, found)
        self.rows = {k: from_plain(EvalRow, found["rows"][str(k)]) for k in (0, *counts)}
        self.notes += tuple(found["notes"])

    def time(self, bundle: Path, config: TuneConfig) -> None:
        """Sets `timing`, of all keeps and the unpruned model in the same rounds.

        Raises:
            Everything that `bench` raises.
        """
        settings, machine, info = config.bench(), this_machine(), probe(config.engine)
        counts = [keep.resolve(self.checkpoint.prune.patches) for keep in config.keeps]
        asked = [config.engine, config.precision, config.batch, counts, config.threads, config.device, config.budget_s, settings.min_rounds]
        host = [machine.cpu, machine.threads_granted, machine.system, info.version, info.device]
        name = f"speed-{config.engine}-{config.precision}-{config.batch}.json"
        store = Store(self.folder, digest(SCHEMA, _manifest_digest(bundle), asked, host, library_versions()))
        found = store.read(name)
        if found is None:
            found = _timing(bench(bundle, settings, self._progress), counts)
            store.write(name, found)
        self.timing, self.notes = found, (*self.notes, *found["notes"])


class _Prefixed:
    """A Progress with a name in front of each stage."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    def start(self, what: str, total: int) -> None:
        """A stage begins."""
        self._progress.start(f"{self._name}: {what}", total)

    def advance(self, count: int = 1) -> None:
        """`count` further items are done."""
        self._progress.advance(count)

    def finish(self) -> None:
        """The stage is over."""
        self._progress.finish()


def _check(checkpoint: Checkpoint, locations: tuple[int, ...]) -> None:
    """Raises where a sibling run cannot have these locations."""
    own = checkpoint.prune
    # First without learnable tokens, so that the message is about the locations and not about the tokens that follow them.
    spec = replace(own, locations=locations, drop_ratios=(), learnable_tokens=0, learnable_from_block=1)
    follows = own.learnable_tokens and TrainConfig.from_json(checkpoint.config).tokens.first == 0
    replace(spec, learnable_tokens=own.learnable_tokens, learnable_from_block=locations[0] if follows else own.learnable_from_block)


def _sibling_config(checkpoint: Checkpoint, locations: tuple[int, ...]) -> TrainConfig:
    """The run's settings with other locations: equal numbers drop at each, and all that the run has is made, by whichever call it was."""
    config = TrainConfig.from_json(checkpoint.config)
    trained = checkpoint.scorer_trained
    made = {"rank": trained and config.objective == RANKING, "predictor": trained, "tokens": _has_tokens(checkpoint)}
    return replace(
        config,
        model=checkpoint.model,
        pretrained=checkpoint.pretrained,
        data=checkpoint.data.root or config.data,
        phases=tuple(phase for phase, wanted in made.items() if wanted) or ("none",),
        prune=PruneConfig(locations=locations, rescore=config.prune.rescore and len(locations) > 1),
    )


def _has_tokens(checkpoint: Checkpoint) -> bool:
    return bool(checkpoint.tokens.visual or checkpoint.tokens.text)


def _timing(report: BenchReport, counts: list[int]) -> dict[str, Any]:
    baseline = next(row for row in report.rows if row.is_baseline)
    pruned = [row for row in report.rows if not row.is_baseline]
    if [row.k for row in pruned] != counts:
        raise ConfigError(f"the benchmark measured {[row.k for row in pruned]} patches, but {counts} were requested; run it again")
    speeds = {str(row.k): [row.speedup, row.speedup_low, row.speedup_high] for row in pruned}
    facts = {"device": baseline.device, "versions": report.versions, "notes": list(report.notes)}
    return {"unpruned_ms": baseline.p50_ms, "speeds": speeds, **facts}


def _manifest_digest(bundle: Path) -> str:
    path = bundle / MANIFEST_NAME
    return sha256_file(path) if path.is_file() else ""


def _has(bundle: Path, precision: str) -> bool:
    """Whether a bundle that can be read has graphs of this precision."""
    try:
        return precision in Bundle.open(bundle).manifest.graphs
    except BundleError:
        return False
