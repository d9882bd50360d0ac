"""The race itself: bundles of every reducer on engines, and PyTorch's baselines, in one interleaved run from JPEG files."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from benchmarks.frontier.points import EVALUATED
from benchmarks.peers.accuracy import TOME as EVALUATED_TOME
from benchmarks.peers.accuracy import UNPRUNED, Accuracies
from benchmarks.peers.baselines import DTYPES, TOME, Baseline, Baselines, agreement
from benchmarks.peers.report import PeersReport, PeersRow
from benchmarks.race import SCOPES, Entrant, Pixels, check_memory, figures, of_scope, race
from benchmarks.reducers import Reducer, Workshop, check_some, chosen, default_reducers, keeps_at
from prtool.bundle import Bundle
from prtool.engines.base import EngineInfo, EngineOptions
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError, EngineUnavailable
from prtool.files import new_directory
from prtool.pictures import short_name
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.timing import SETTLE_S, Plan, Samples
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.machine import Machine, library_versions, peak_memory_mib, this_machine
from prtool.trainer.runs.checkpoint import load_seeded

_TORCH, FULL = "torch", "full"
_MIN_COSINE = 0.99
_PHOTOS, _FOR_SCALES = 16, 64


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """What takes part.

    Attributes:
        reducers: () takes the default ones.
        shares: of the unpruned MACs; each bundle runs at the keep that is nearest to each, where one is near.
        engines, precisions: of the bundles; PyTorch takes those of the precisions that it has, and fp32.
        batch, threads, plan: of the timing.
        compiled: whole encoders also run through torch.compile.
        device: of PyTorch, "cpu" or "cuda".
        images: data for int8's scales; "" takes generated photographs.
        accuracies: put next to the rows; None leaves them out.
    """

    reducers: tuple[Reducer, ...]
    shares: tuple[float, ...]
    engines: tuple[str, ...]
    precisions: tuple[str, ...]
    batch: int
    threads: int
    plan: Plan
    compiled: bool
    device: str
    images: str
    accuracies: Accuracies | None


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """One encoder: what it is, what it costs, and how it is called; `facts` are those fields of its rows that no clock gives."""

    facts: dict[str, Any]
    entrant: Entrant


@dataclass(slots=True)
class _Field:
    """Everyone who takes part, in groups of one engine and precision, the whole encoder first; and who could not."""

    groups: list[list[Contestant]] = field(default_factory=list)
    infos: dict[str, EngineInfo] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def compare(workshop: Workshop, config: PeersConfig) -> PeersReport:
    """Makes what is missing, loads everything, checks that whole encoders agree, and times everything in one interleaved run.

    Raises:
        ConfigError: nothing can be measured, or the graphs do not fit into memory.
        ModelError: the model cannot be loaded, or shortened in that way.
        EngineError: an engine failed.
    """
    started, machine = datetime.now(UTC), this_machine()
    torch.set_num_threads(config.threads or machine.threads_granted)
    model = load_seeded(workshop.model, workshop.pretrained, workshop.seed, config.device)
    bundles = make_bundles(workshop, config)
    photos = sample_photos(_PHOTOS, workshop.seed)
    pixels = prepare_batch([photos[place % _PHOTOS] for place in range(config.batch)], model.native_preprocess)
    found, made = _Field(), Baselines(model, config.device)
    with contextlib.ExitStack() as stack:
        wanted = _add_baselines(found, made, pixels, config, workshop)
        _add_engines(found, bundles, config, (pixels, wanted), stack)
        samples = race([[one.entrant for one in group] for group in found.groups], photos, config.batch, config.plan, workshop.progress)
    rows = _rows(found.groups, samples, config)
    return PeersReport(
        model={"name": short_name(workshop.model), "pretrained": workshop.pretrained, "weights_sha256": model.weights_sha256},
        rows=rows,
        accuracy="" if config.accuracies is None else config.accuracies.about,
        rounds=len(samples[0][0].total_ns),
        seed=workshop.seed,
        date=started.isoformat(timespec="seconds"),
        left_out=(*found.left_out, *made.left_out, *_disagreements(rows)),
        **_circumstances(found, config, machine),
    )


def _circumstances(found: _Field, config: PeersConfig, machine: Machine) -> dict[str, Any]:
    """The part of a report that tells where and how it was measured."""
    import open_clip

    versions = library_versions() | {name: info.version for name, info in found.infos.items()}
    return {
        "device": torch.cuda.get_device_name() if config.device == "cuda" else machine.cpu,
        "engines": {name: info.device for name, info in found.infos.items()},
        "versions": versions | {"torch": torch.__version__, "open_clip": str(open_clip.__version__)},
        "images": f"{_PHOTOS} generated JPEGs of 500 x 375, in memory",
        "batch": config.batch,
        "threads": config.threads or machine.threads_granted,
        "settle_ms": 1e3 * SETTLE_S,
        "machine": machine,
        "peak_memory_mib": peak_memory_mib(),
    }


def make_bundles(workshop: Workshop, config: PeersConfig) -> dict[Reducer, tuple[Bundle, dict[float, int]]]:
    """Each reducer's bundle, made where it is missing, and its keep for each share; those that reach none are left out."""
    tower = workshop.tower()
    reducers = chosen(config.reducers or default_reducers(tower), tower, config.shares)
    needed = {"fp32"}
    for engine, precision in itertools.product(config.engines, config.precisions):
        if engine not in ENGINES or precision in ENGINES[engine].precisions:
            needed.add(graph_precision(engine, precision))
    images = config.images or (_photo_folder(workshop.folder / "photos", workshop.seed) if "int8" in needed else None)
    made = {reducer: workshop.bundle(reducer, sorted(needed), images) for reducer in reducers}
    found = {reducer: (bundle, keeps) for reducer, bundle in made.items() if (keeps := keeps_at(bundle.manifest, config.shares))}
    check_some(list(found), reducers, config.shares)
    return found


def _photo_folder(folder: Path, seed: int) -> str:
    """Generated photographs as a data set of two classes, for int8's scales of weights that have seen none."""
    if not folder.exists():
        photos = sample_photos(_FOR_SCALES, seed + 1)
        with new_directory(folder) as temporary:
            for number, photo in enumerate(photos):
                place = temporary / ("val" if number % 4 == 0 else "train") / f"class {number % 2}"
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number}.jpg").write_bytes(photo)
    return str(folder)


def _add_baselines(found: _Field, made: Baselines, pixels: Pixels, config: PeersConfig, workshop: Workshop) -> Pixels:
    """One group for each precision of PyTorch; returns what open_clip eager in fp32, the first of all, makes of the pixels."""
    # fp32 always, which every ratio refers to.
    precisions = tuple(dict.fromkeys(("fp32", *(name for name in config.precisions if name in DTYPES))))
    baselines = made.all(precisions, config.shares, pixels, workshop.progress, compiled=config.compiled)
    wanted = baselines[0].run(pixels)
    for precision in precisions:
        found.groups.append([_peer(item, made, pixels, wanted) for item in baselines if item.precision == precision])
    return wanted


def _add_engines(
    found: _Field,
    bundles: Mapping[Reducer, tuple[Bundle, dict[float, int]]],
    config: PeersConfig,
    reference: tuple[Pixels, Pixels],
    stack: contextlib.ExitStack,
) -> None:
    """One group for each engine and precision; those that the engine or the machine lacks are named."""
    pairs = []
    for engine, precision in itertools.product(config.engines, config.precisions):
        try:
            graph_precision(engine, precision)
            pairs.append((engine, precision))
        except ConfigError as cause:
            if engine not in ENGINES:
                raise
            found.left_out.append(f"{engine}/{precision} is left out: {cause}")
    check_memory({f"{pair} {reducer}": _weights_mib(bundle, *pair) for pair in pairs for reducer, (bundle, _) in bundles.items()})
    for engine, precision in pairs:
        try:
            found.groups.append(_group(bundles, (engine, precision), config, reference, stack))
            found.infos[engine] = found.groups[-1][0].facts.pop("info")
        except EngineUnavailable as cause:
            found.left_out.append(f"{engine}/{precision} is left out: {cause}")


def _weights_mib(bundle: Bundle, engine: str, precision: str) -> float:
    folder = PurePosixPath(bundle.graph("fused", graph_precision(engine, precision)).file).parent
    return sum(file.size for name, file in bundle.manifest.files.items() if PurePosixPath(name).parent == folder) / 2**20


def _group(
    bundles: Mapping[Reducer, tuple[Bundle, dict[float, int]]],
    pair: tuple[str, str],
    config: PeersConfig,
    reference: tuple[Pixels, Pixels],
    stack: contextlib.ExitStack,
) -> list[Contestant]:
    """The unpruned graph of the first bundle, then every bundle's fused graph at its keeps."""
    engine, precision = pair
    options, (pixels, wanted) = EngineOptions(threads=config.threads), reference
    group: list[Contestant] = []
    for reducer, (bundle, keeps) in bundles.items():
        manifest = bundle.manifest
        how = {"engine": engine, "precision": precision}
        if not group:
            whole = stack.enter_context(Encoder.load(bundle, engine=engine, mode=FULL, precision=precision, options=options, verify=False))
            cosine = agreement(whole.encode_pixels(pixels), wanted)
            facts = {"name": FULL, "method": UNPRUNED, "image_size": manifest.native_size[0], "k": manifest.prune.patches, "target": 1.0}
            cost = {"gmacs": manifest.cost.full_gmacs(manifest.prune), "share": 1.0, "cosine": cosine}
            group.append(Contestant({**facts, **how, **cost, "info": whole.info}, Entrant.of(whole, manifest, FULL)))
        encoder = stack.enter_context(Encoder.load(bundle, engine=engine, mode="fused", precision=precision, options=options, verify=False))
        for share, k in keeps.items():
            own = 1.0 / manifest.theoretical_speedup(k)
            facts = {"name": str(reducer), "method": EVALUATED[reducer.method], "image_size": manifest.preprocess.size[0], "k": k, "target": share}
            cost = {"gmacs": own * manifest.cost.full_gmacs(manifest.prune), "share": own, "cosine": None}
            group.append(Contestant({**facts, **how, **cost}, Entrant.of(encoder, manifest, "fused", k)))
    return group


def _peer(item: Baseline, made: Baselines, pixels: Pixels, wanted: Pixels) -> Contestant:
    whole = item.target == 1.0
    facts = {
        "name": item.name,
        "method": EVALUATED_TOME if item.name == TOME else UNPRUNED,
        "image_size": made.tower.image_size[0],
        "k": made.tower.patches if whole else 0,
        "target": item.target,
        "engine": _TORCH,
        "precision": item.precision,
        "gmacs": item.gmacs,
        "share": item.gmacs / made.gmacs,
        "cosine": agreement(item.run(pixels), wanted) if whole else None,
        "detail": item.detail,
    }
    return Contestant(facts, Entrant(made.model.native_preprocess, item.run, _TORCH))


def _rows(groups: Sequence[Sequence[Contestant]], samples: Sequence[Sequence[Samples]], config: PeersConfig) -> tuple[PeersRow, ...]:
    """Every encoder in every scope; the first of all is open_clip eager in fp32, and the first of each group its whole encoder."""
    eager = samples[0][0]
    return tuple(
        PeersRow(
            **{"detail": "", **one.facts},
            **_times(taken, (of_group[0], eager), scope, config.batch, one.facts["share"]),
            **_accuracy(one.facts, one.facts["image_size"] / groups[0][0].facts["image_size"], config.accuracies),
        )
        for scope in SCOPES
        for group, of_group in zip(groups, samples, strict=True)
        for one, taken in zip(group, of_group, strict=True)
    )


def _times(case: Samples, others: tuple[Samples, Samples], scope: str, batch: int, share: float) -> dict[str, Any]:
    """The part of a row that comes from its own samples, those of its whole encoder, and those of open_clip eager fp32."""
    own, whole, eager = (of_scope(samples, scope) for samples in (case, *others))
    gained, ratio = figures(own, whole, batch), figures(own, eager, batch)
    return {
        "scope": scope,
        "p50_ms": own.percentile_ms(50),
        "p90_ms": own.percentile_ms(90),
        "images_per_s": ratio["images_per_s"],
        "ratio": ratio["speedup"],
        "ratio_low": ratio["speedup_low"],
        "ratio_high": ratio["speedup_high"],
        "speedup": gained["speedup"],
        "theoretical_speedup": 1.0 / share,
        "share_of_theoretical": gained["speedup"] * share,
    }


def _accuracy(facts: Mapping[str, Any], relative_size: float, accuracies: Accuracies | None) -> dict[str, Any]:
    known = None if accuracies is None else accuracies.of(facts["method"], relative_size, facts["share"])
    if known is None or accuracies is None:
        return {"accuracy": None, "drop": None, "fidelity": None}
    return {"accuracy": known["accuracy"], "drop": accuracies.unpruned - known["accuracy"], "fidelity": known["cosine"]}


def _disagreements(rows: Sequence[PeersRow]) -> list[str]:
    return [
        f"{row.title} has a cosine of {row.cosine:.4f} to open_clip eager fp32 on generated photographs."
        for row in rows
        if row.scope == SCOPES[0] and row.cosine is not None and row.cosine < _MIN_COSINE
    ]
