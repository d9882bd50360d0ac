"""The steps behind `prtool tune`: a run for each candidate's locations, its quality, its bundle and its speed, each kept and reused."""

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from prtool.bundle import MANIFEST_NAME, Bundle
from prtool.engines.base import EngineInfo
from prtool.engines.registry import probe
from prtool.errors import BundleError, ConfigError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.files import new_directory, sha256_file
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.bench import BenchConfig, BenchReport, bench
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import Keep, PruneSpec
from prtool.store import Store, digest
from prtool.studies.tune.config import TUNE_FOLDER
from prtool.studies.tune.quality import evaluate_quality
from prtool.studies.tune.result import record_digest
from prtool.trainer.config import RANKING, TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig, EvalReport, EvalRow
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.settings import PATCH_RANKING_TOKENS, PruneConfig
from prtool.trainer.train import train

SCHEMA = 1
PLAIN = "patch-ranking"
# The default of a candidate's bundle has no effect: every measured call names its keep.
_BUNDLE_KEEP = Keep.ratio(0.6)


class Trains(Protocol):
    """As `prtool.trainer.train.train`."""

    def __call__(self, config: TrainConfig, run: Path, progress: Progress | None = None) -> Checkpoint:
        """Trains, or returns what stands."""
        ...


# A sibling is made by this command, and made again where the run that it follows has changed.
_train_again = functools.partial(train, overwrite=True)


@dataclass(frozen=True, slots=True)
class Tools:
    """The verbs that do the work; tests put quick ones in."""

    train: Trains = _train_again
    evaluate: Callable[[Path, str | Path | None, EvalConfig, Progress | None], EvalReport] = evaluate_quality
    export: Callable[[Path, Path, ExportOptions, str | Path | None, Progress | None], Manifest] = export_run
    bench: Callable[[Path, BenchConfig, Progress | None], BenchReport] = bench
    probe: Callable[[str], EngineInfo] = probe


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every step needs: the run, its checkpoint, the verbs, and who hears about progress."""

    run: Path
    checkpoint: Checkpoint
    tools: Tools
    progress: Progress


@dataclass(frozen=True, slots=True)
class Site:
    """One candidate set of locations.

    Attributes:
        spec: where patches drop.
        run: the run that has a predictor there.
        folder: where everything measured of it lies, RUN/tune/at-4-6.
    """

    spec: PruneSpec
    run: Path
    folder: Path

    @property
    def name(self) -> str:
        """The locations in words, for progress and notes."""
        return f"location {','.join(map(str, self.spec.locations))}"


@dataclass(frozen=True, slots=True)
class Quality:
    """What evaluation says about one number of kept patches; `accuracy` is None without labels."""

    gmacs: float
    cosine: float
    accuracy: float | None
    images: int
    lost: int | None
    won: int | None


@dataclass(frozen=True, slots=True)
class Speed:
    """Speed-up over the unpruned model in the same rounds, with its 95 % interval."""

    speedup: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Timing:
    """One benchmark of a candidate set.

    Attributes:
        unpruned_ms: median of one call of the unpruned model.
        speeds: k -> speed.
        device: what the engine ran on.
        versions: of the engine's library and others.
        notes: the benchmark's.
    """

    unpruned_ms: float
    speeds: dict[int, Speed]
    device: str
    versions: dict[str, str]
    notes: tuple[str, ...]


class Named:
    """A Progress that says which candidate a stage belongs to."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name

    def start(self, what: str, total: int) -> None:
        """A stage begins."""
        self._progress.start(f"{self._name}: {what}", total)

    def advance(self, count: int = 1) -> None:
        """`count` further items are done."""
        self._progress.advance(count)

    def finish(self) -> None:
        """The stage is over."""
        self._progress.finish()


def site_of(run: Path, checkpoint: Checkpoint, locations: tuple[int, ...]) -> Site:
    """Where a candidate set is measured: the run itself for its own locations, else a sibling run under RUN/tune.

    Raises:
        ConfigError: the locations are out of order or beyond the depth.
    """
    own = checkpoint.prune
    folder = run / TUNE_FOLDER / f"at-{'-'.join(map(str, locations))}"
    if locations == own.locations:
        return Site(own, run, folder)
    # Checked as they stand first, so that the message is about them and not about the learnable tokens that follow them.
    spec = replace(own, locations=locations, drop_ratios=(), learnable_tokens=0, learnable_from_block=1)
    follows = own.learnable_tokens and TrainConfig.from_json(checkpoint.config).tokens.first == 0
    first = locations[0] if follows else own.learnable_from_block
    return Site(replace(spec, learnable_tokens=own.learnable_tokens, learnable_from_block=first), folder / "run", folder)


def sibling_config(checkpoint: Checkpoint, locations: tuple[int, ...]) -> TrainConfig:
    """The run's settings with other locations: equal numbers drop at each, and all that the run has is made, by whichever call it was."""
    config = TrainConfig.from_json(checkpoint.config)
    made = {
        "rank": checkpoint.scorer_trained and config.objective == RANKING,
        "predictor": checkpoint.scorer_trained,
        "tokens": has_tokens(checkpoint),
    }
    phases = tuple(phase for phase, wanted in made.items() if wanted) or ("none",)
    return replace(
        config,
        model=checkpoint.model,
        pretrained=checkpoint.pretrained,
        data=checkpoint.data.root or config.data,
        phases=phases,
        prune=PruneConfig(locations, rescore=config.prune.rescore and len(locations) > 1),
    )


def has_tokens(checkpoint: Checkpoint) -> bool:
    """Whether a run has learnable tokens, which its bundle then holds."""
    return bool(checkpoint.tokens.visual or checkpoint.tokens.text)


def ensure_run(shop: Workshop, site: Site) -> None:
    """Trains the sibling run of a site where it is not the run itself; what is finished is not done again.

    Raises:
        Everything that `train` raises.
    """
    if site.run == shop.run:
        return
    ranked, shared = shop.run / "golden", set(site.spec.locations) & set(shop.checkpoint.prune.locations)
    if shared and ranked.is_dir() and not (site.run / "golden").exists():
        # Rankings lie in sub-folders named after all they depend on: those of a shared location are found there, others are not looked at.
        with new_directory(site.run / "golden") as root:
            shutil.copytree(ranked, root, dirs_exist_ok=True)
    shop.tools.train(sibling_config(shop.checkpoint, site.spec.locations), site.run, Named(shop.progress, f"sibling run at {site.name}"))


@dataclass(frozen=True, slots=True)
class QualityAsk:
    """What quality is measured on: data folder (None: the run's), its digest, and which part of it."""

    data: str | Path | None
    data_sha256: str
    split: str
    images: int


def qualities(shop: Workshop, site: Site, ask: QualityAsk, keeps: Sequence[Keep]) -> tuple[dict[int, Quality], tuple[str, ...]]:
    """Quality by number of kept patches, the unpruned model's under 0, and the evaluation's notes; what was evaluated before is reused.

    Raises:
        Everything that `evaluate_quality` raises.
    """
    name = f"evaluation-{ask.split}.json"
    store = Store(site.folder, digest(SCHEMA, record_digest(site.run), ask.data_sha256, ask.split, ask.images, library_versions()))
    found = store.read(name) or {"rows": {}, "notes": []}
    counts = {keep.resolve(site.spec.patches): keep for keep in keeps}
    missing = {k: keep for k, keep in counts.items() if str(k) not in found["rows"]}
    if missing:
        # Each site's own: tuning a sibling may end without tokens, where none are better.
        method = PATCH_RANKING_TOKENS if has_tokens(Checkpoint.load(site.run)) else PLAIN
        asked = EvalConfig(split=ask.split, keeps=tuple(missing.values()), methods=(method,), images=ask.images)
        report = shop.tools.evaluate(site.run, ask.data, asked, Named(shop.progress, site.name))
        rows = {str(k): _quality(row) for k, row in zip(missing, report.of(method), strict=True)}
        found = {"rows": {**found["rows"], "0": _quality(report.unpruned), **rows}, "notes": list(report.notes)}
        store.write(name, found)
    return {k: Quality(**found["rows"][str(k)]) for k in (0, *counts)}, tuple(found["notes"])


def ensure_bundle(shop: Workshop, site: Site, ask: QualityAsk, precision: str) -> Path:
    """The bundle of a site with graphs of this precision; one that stands, belongs to the run and is unchanged is reused.

    Raises:
        Everything that `export_run` raises.
    """
    bundle, name = site.folder / "bundle", "bundle.json"
    scales = ask.data_sha256 if precision == "int8" else ""
    store = Store(site.folder, digest(SCHEMA, record_digest(site.run), scales, library_versions()))
    if (store.read(name) or {}).get("manifest") == _manifest_digest(bundle) and _has(bundle, precision):
        return bundle
    shop.tools.export(site.run, bundle, ExportOptions(_BUNDLE_KEEP, (precision,)), ask.data, Named(shop.progress, site.name))
    store.write(name, {"manifest": _manifest_digest(bundle)})
    return bundle


def timing(shop: Workshop, site: Site, bundle: Path, config: BenchConfig) -> Timing:
    """The latency staircase of a bundle beside its unpruned model; a benchmark of the same bundle, machine and settings is reused.

    Args:
        shop: the verbs, and who hears about calls.
        site: whose bundle it is.
        bundle: its folder.
        config: one engine, precision and batch, all keeps.

    Raises:
        Everything that `bench` raises.
    """
    engine, machine = config.engines[0], this_machine()
    counts = [keep.resolve(site.spec.patches) for keep in config.chosen_keeps()]
    info = shop.tools.probe(engine)
    settings = [engine, config.precisions, config.batches, counts, config.threads, config.budget_s, config.min_rounds]
    host = [machine.cpu, machine.threads_granted, machine.system, info.version, info.device]
    name = f"speed-{engine}-{config.precisions[0]}-{config.batches[0]}.json"
    store = Store(site.folder, digest(SCHEMA, _manifest_digest(bundle), settings, host, library_versions()))
    found = store.read(name)
    if found is None:
        report = shop.tools.bench(bundle, config, Named(shop.progress, site.name))
        found = _timing(report, counts)
        store.write(name, found)
    speeds = {int(k): Speed(*values) for k, values in found["speeds"].items()}
    return Timing(found["unpruned_ms"], speeds, found["device"], found["versions"], tuple(found["notes"]))


def _quality(row: EvalRow) -> dict[str, Any]:
    accuracy: float | None = row.accuracy
    # Images without labels have no accuracy: None, or a number that is none.
    known = accuracy is not None and accuracy == accuracy  # noqa: PLR0124
    return {
        "gmacs": row.gmacs,
        "cosine": row.cosine,
        "accuracy": accuracy if known else None,
        "images": row.images,
        "lost": row.lost,
        "won": row.won,
    }


def _timing(report: BenchReport, counts: Sequence[int]) -> dict[str, Any]:
    baseline = next(row for row in report.rows if row.is_baseline)
    pruned = [row for row in report.rows if not row.is_baseline]
    if [row.k for row in pruned] != list(counts):
        raise ConfigError(f"the benchmark measured {[row.k for row in pruned]} patches, but {list(counts)} were asked for; run it again")
    speeds = {str(row.k): [row.speedup, row.speedup_low, row.speedup_high] for row in pruned}
    return {
        "unpruned_ms": baseline.p50_ms,
        "speeds": speeds,
        "device": baseline.device,
        "versions": report.versions,
        "notes": list(report.notes),
    }


def _manifest_digest(bundle: Path) -> str:
    path = bundle / MANIFEST_NAME
    return sha256_file(path) if path.is_file() else ""


def _has(bundle: Path, precision: str) -> bool:
    """Whether a bundle that can be read has graphs of this precision."""
    try:
        return precision in Bundle.open(bundle).manifest.graphs
    except BundleError:
        return False
