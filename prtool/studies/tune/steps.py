"""The steps of `prtool tune` for one family: its run, its quality, its bundle and its speed, each stored and reused."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prtool.bundle import MANIFEST_NAME, Bundle
from prtool.engines.registry import graph_precision, probe
from prtool.errors import BundleError, ConfigError
from prtool.export.checks import usual_keep
from prtool.export.run import export_run, source_of
from prtool.export.write import ExportOptions
from prtool.files import new_directory, sha256_file
from prtool.progress import Progress
from prtool.records import from_plain, to_plain
from prtool.runtime.bench import BenchReport, bench
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import MERGE, NONE, RANK, Keep, PruneSpec
from prtool.store import Store, digest
from prtool.studies.tune.candidates import Candidate, Family, Speed
from prtool.studies.tune.config import TUNE_FOLDER, TuneConfig
from prtool.studies.tune.result import record_digest
from prtool.trainer.config import RANKING, TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig, EvalRow, evaluate_run
from prtool.trainer.recovery.train import keep_range
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.folder import copy_run
from prtool.trainer.runs.record import read_record
from prtool.trainer.settings import MERGE_METHOD, PATCH_RANKING_TOKENS, RECOVERED, SMALLER_IMAGE, PruneConfig
from prtool.trainer.train import train

SCHEMA = 3
_ALL = Keep.ratio(1.0)


@dataclass(frozen=True, slots=True)
class Task:
    """What the steps of all families share.

    Attributes:
        origin: the tuned run.
        checkpoint: its checkpoint.
        own: its family.
        config: the settings.
        data: images that quality is measured on; None takes the run's.
        data_sha256: digest of the whole split.
        progress: receives the stages of every step, with the family in front.
    """

    origin: Path
    checkpoint: Checkpoint
    own: Family
    config: TuneConfig
    data: str | Path | None
    data_sha256: str
    progress: Progress

    @property
    def folder(self) -> Path:
        """Where everything that is measured lies."""
        return self.origin / TUNE_FOLDER

    @property
    def recovers(self) -> bool:
        """Whether the tuned run has a recovery: whatever is chosen then has one of its own."""
        return self.checkpoint.recovery.kept is not None


class FamilyRun:
    """One family, and what is measured of it; what was measured before is reused while all that it depends on is the same.

    Until `recover` was called, the figures are those without recovery.

    Attributes:
        family: reducer, image size and locations.
        folder: where everything measured of it lies, such as RUN/tune/merge-4-168px.
        run: the tuned run for its own family, else a sibling in `folder`.
        is_recovered: whether `recover` was called, and had to do something.
        rows: number of kept patches -> evaluation, and that of the unpruned model on the same images.
        timing: plain values: "unpruned_ms" (median of one call), "speeds" ({k: [speed-up, low, high]}), "device", "versions"; {} untimed.
        notes: of the evaluation and the benchmark.
    """

    def __init__(self, task: Task, family: Family) -> None:
        self.family, self._task, self.is_recovered = family, task, False
        self.folder = task.folder / family.folder
        self.run = task.origin if family == task.own else self.folder / "run"
        self.rows: dict[int, tuple[EvalRow, EvalRow]] = {}
        self.timing: dict[str, Any] = {}
        self.notes: tuple[str, ...] = ()
        self._progress = _Prefixed(task.progress, str(family))

    @property
    def is_sibling(self) -> bool:
        """Whether it is not the tuned run itself."""
        return self.family != self._task.own

    @property
    def spec(self) -> PruneSpec:
        """How the run prunes; raises CheckpointError before `train`."""
        return read_record(self.run).prune

    @property
    def keep_range(self) -> tuple[int, int]:
        """Least and most patches that the encoder is, or will be, good for."""
        if self.is_recovered or not self._task.recovers or not self.is_sibling:
            return read_record(self.run).keep_range
        source, config = source_of(self.run), TrainConfig.from_json(self._task.checkpoint.config).recover
        return keep_range(source.spec, source.cost(), config.macs_low, config.macs_high)

    @property
    def keeps(self) -> dict[int, Keep]:
        """Number of kept patches -> the setting's first keep of that number; those out of reach are left out, and where nothing drops all stay."""
        spec, found, (low, high) = self.spec, dict[int, Keep](), self.keep_range
        for keep in (_ALL,) if self.family.method == NONE else self._task.config.keeps:
            if keep.is_count and keep.value > spec.patches:
                continue
            k = keep.resolve(spec.patches)
            if low <= k <= high and (k < spec.patches or self.family.method != MERGE):
                found.setdefault(k, keep)
        return found

    def train(self) -> None:
        """Trains the sibling run without recovery, which takes seconds where nothing is learned; one that is finished is kept.

        Raises:
            Everything that `prtool.trainer.train.train` raises.
        """
        if not self.is_sibling:
            return
        checkpoint = self._task.checkpoint
        ranked, shared = self._task.origin / "golden", set(self.family.locations) & set(checkpoint.prune.locations)
        if self.family.method == RANK and shared and ranked.is_dir() and not (self.run / "golden").exists():
            # Rankings lie in sub-folders named after all they depend on: those of a shared location are found there, others are not read.
            with new_directory(self.run / "golden") as root:
                shutil.copytree(ranked, root, dirs_exist_ok=True)
        # A sibling is made by this command, and made again where the run that it follows has changed.
        train(_sibling_config(self._task, self.family), self.run, self._progress, overwrite=True)

    def recover(self) -> None:
        """Corrects the encoder where the tuned run has a recovery, and forgets the figures without; does nothing elsewhere.

        Raises:
            Everything that `prtool.trainer.train.train` raises.
        """
        if not self._task.recovers or self.is_recovered:
            return
        if self.is_sibling:
            plain, self.run = self.run, self.folder / "recovered"
            if self.family.method == RANK and not self.run.exists():
                copy_run(plain, self.run)
            train(_sibling_config(self._task, self.family, recovered=True), self.run, self._progress, overwrite=True)
        self.is_recovered, self.rows = True, {}

    def evaluate(self, images: int, counts: Sequence[int]) -> None:
        """Sets `rows` of some numbers of kept patches, on at most so many images (0 for all); only what was not evaluated before is.

        Raises:
            Everything that `evaluate_run` raises.
        """
        task, keeps = self._task, self.keeps
        name = f"evaluation-{task.config.split}-{images}{'-recovered' if self.is_recovered else ''}.json"
        store = Store(self.folder, digest(SCHEMA, record_digest(self.run), task.data_sha256, library_versions()))
        found = store.read(name) or {"rows": {}, "notes": []}
        missing = [k for k in counts if str(k) not in found["rows"]]
        if missing:
            method, chosen = self._method(), tuple(keeps[k] for k in missing)
            asked = EvalConfig(split=task.config.split, keeps=chosen, methods=(method,), images=images, unpruned=task.folder / "unpruned")
            report = evaluate_run(self.run, task.data, asked, self._progress)
            rows = {str(k): to_plain(row) for k, row in zip((0, *missing), (report.unpruned, *report.of(method)), strict=True)}
            found = {"rows": {**found["rows"], **rows}, "notes": list(report.notes)}
            store.write(name, found)
        unpruned = from_plain(EvalRow, found["rows"]["0"])
        self.rows |= {k: (from_plain(EvalRow, found["rows"][str(k)]), unpruned) for k in counts}
        self.notes = tuple(found["notes"])

    def export(self) -> Path:
        """The bundle with graphs of the engine's precision; an unchanged one of the same run is reused.

        Raises:
            Everything that `export_run` raises.
        """
        task, bundle, name = self._task, self.folder / "bundle", "bundle.json"
        precision = graph_precision(task.config.engine, task.config.precision)
        store = Store(self.folder, digest(SCHEMA, record_digest(self.run), task.data_sha256 if precision == "int8" else "", library_versions()))
        if (store.read(name) or {}).get("manifest") != _manifest_digest(bundle) or not _has(bundle, precision):
            # The default keep of a candidate's bundle has no effect: every measured call names its own.
            export_run(self.run, bundle, ExportOptions(usual_keep(self.run), (precision,)), task.data, self._progress)
            store.write(name, {"manifest": _manifest_digest(bundle)})
        return bundle

    def time(self, bundle: Path, counts: Sequence[int]) -> None:
        """Sets `timing`, of some numbers of kept patches and the unpruned model in the same rounds.

        Raises:
            Everything that `bench` raises.
        """
        config, keeps = self._task.config, self.keeps
        settings, machine, info = config.bench([keeps[k] for k in counts]), this_machine(), probe(config.engine)
        asked = [config.engine, config.precision, config.batch, list(counts), config.threads, config.device, config.budget_s, settings.min_rounds]
        host = [machine.cpu, machine.threads_granted, machine.system, info.version, info.device]
        name = f"speed-{config.engine}-{config.precision}-{config.batch}.json"
        store = Store(self.folder, digest(SCHEMA, _manifest_digest(bundle), asked, host, library_versions()))
        found = store.read(name)
        if found is None:
            found = _timing(bench(bundle, settings, self._progress), list(counts))
            store.write(name, found)
        self.timing, self.notes = found, (*self.notes, *found["notes"])

    def candidates(self, unpruned_ms: float | None = None) -> list[Candidate]:
        """The evaluated candidates; with the unpruned model's time those that were timed have theirs."""
        return [self._candidate(k, unpruned_ms) for k in self.rows]

    def _candidate(self, k: int, unpruned_ms: float | None) -> Candidate:
        row, unpruned = self.rows[k]
        found = self.timing["speeds"].get(str(k)) if self.timing and unpruned_ms else None
        speed = Speed(unpruned_ms / found[0], *found) if found and unpruned_ms else None
        return Candidate(self.family, row.keep, k, row, unpruned, self._task.config.batch, speed)

    def _method(self) -> str:
        # Each run's own: training a sibling's tokens or recovery may end without any, where none improve on the plain encoder.
        made = Checkpoint.load(self.run)
        if self.is_recovered or not self._task.recovers:
            if _has_tokens(made):
                return PATCH_RANKING_TOKENS
            if made.recovery.kept:
                return RECOVERED
        if self.family.method != RANK:
            return MERGE_METHOD if self.family.method == MERGE else SMALLER_IMAGE
        return "patch-ranking"


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


def _sibling_config(task: Task, family: Family, *, recovered: bool = False) -> TrainConfig:
    """The run's settings with another family: equal numbers drop at each location, and all that the run has is made, by whichever call it was."""
    checkpoint = task.checkpoint
    config, ranks = TrainConfig.from_json(checkpoint.config), family.method == RANK
    made = {"recover": recovered}
    if ranks and checkpoint.prune.method == RANK:
        trained = checkpoint.scorer_trained
        # Tokens are learned with the corrected encoder, where there is one.
        tokens = _has_tokens(checkpoint) and recovered == task.recovers
        made = {"rank": trained and config.objective == RANKING, "predictor": trained, **made, "tokens": tokens}
    phases = tuple(phase for phase, wanted in made.items() if wanted) or ("none",)
    rescore = ranks and config.prune.rescore and len(family.locations) > 1
    return replace(
        config,
        model=checkpoint.model,
        pretrained=checkpoint.pretrained,
        image_size=family.image_size,
        data=checkpoint.data.root or config.data,
        phases=phases,
        prune=PruneConfig(family.method, family.locations or PruneConfig().locations, rescore=rescore),
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
