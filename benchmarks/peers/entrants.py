"""Who takes part in the race: bundles of every reducer on engines, and PyTorch's baselines, each group with its whole encoder first."""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from benchmarks.frontier.points import labelled
from benchmarks.peers.accuracy import UNPRUNED, Accuracies
from benchmarks.peers.baselines import DTYPES, TOME, Baseline, Baselines, agreement
from benchmarks.race import Entrant, Pixels, check_memory
from benchmarks.reducers import Reducer, Workshop, check_some, chosen, default_reducers, keeps_of
from prtool.bundle import Bundle
from prtool.engines.base import EngineInfo, EngineOptions
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError, EngineUnavailable
from prtool.files import new_directory
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.timing import Plan
from prtool.runtime.encoder import Encoder
from prtool.trainer.settings import TOME as EVALUATED_TOME

_TORCH, FULL = "torch", "full"
_FOR_SCALES = 64
Raced = Mapping[Reducer, tuple[Bundle, dict[float, int]]]
"""Each reducer's bundle, and its keep for each share that it reaches."""


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """What takes part.

    Attributes:
        reducers: () takes the default ones. Recovered ones run without their corrections, which change no shape and so no speed; their
            accuracies are those of recovered encoders.
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
class Field:
    """Everyone who takes part, in groups of one engine and precision, the whole encoder first; and who could not."""

    groups: list[list[Contestant]] = field(default_factory=list)
    infos: dict[str, EngineInfo] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def make_bundles(workshop: Workshop, config: PeersConfig) -> Raced:
    """Each reducer's bundle, made where it is missing and without recovery, and its keep for each share; those that reach none are left out."""
    tower = workshop.tower()
    reducers = chosen(config.reducers or default_reducers(tower), tower, config.shares)
    needed = {"fp32"}
    for engine, precision in itertools.product(config.engines, config.precisions):
        if engine not in ENGINES or precision in ENGINES[engine].precisions:
            needed.add(graph_precision(engine, precision))
    images = config.images or (_photo_folder(workshop.folder / "photos", workshop.seed) if "int8" in needed else None)
    made = {reducer: workshop.bundle(replace(reducer, recovered=False), sorted(needed), images) for reducer in reducers}
    found = {reducer: (bundle, keeps) for reducer, bundle in made.items() if (keeps := keeps_of(bundle.manifest, config.shares))}
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


def add_baselines(found: Field, made: Baselines, pixels: Pixels, config: PeersConfig, workshop: Workshop) -> Pixels:
    """One group for each precision of PyTorch; returns what open_clip eager in fp32, the first of all, makes of the pixels."""
    # fp32 always, which every ratio refers to.
    precisions = tuple(dict.fromkeys(("fp32", *(name for name in config.precisions if name in DTYPES))))
    baselines = made.all(precisions, config.shares, pixels, workshop.progress, compiled=config.compiled)
    wanted = baselines[0].run(pixels)
    for precision in precisions:
        found.groups.append([_peer(item, made, pixels, wanted) for item in baselines if item.precision == precision])
    return wanted


def add_engines(
    found: Field,
    bundles: Raced,
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
    bundles: Raced,
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
            facts = {"name": FULL, "method": UNPRUNED, "image_size": manifest.native_size[0], "k": 0, "target": 1.0}
            cost = {"gmacs": manifest.cost.full_gmacs(manifest.prune), "share": 1.0, "cosine": cosine}
            group.append(Contestant({**facts, **how, **cost, "info": whole.info}, Entrant.of(whole, manifest, FULL)))
        encoder = stack.enter_context(Encoder.load(bundle, engine=engine, mode="fused", precision=precision, options=options, verify=False))
        for share, k in keeps.items():
            own = 1.0 / manifest.theoretical_speedup(k)
            facts = {"name": str(reducer), "method": labelled(reducer), "image_size": manifest.preprocess.size[0], "k": k, "target": share}
            cost = {"gmacs": own * manifest.cost.full_gmacs(manifest.prune), "share": own, "cosine": None}
            group.append(Contestant({**facts, **how, **cost}, Entrant.of(encoder, manifest, "fused", k)))
    return group


def _peer(item: Baseline, made: Baselines, pixels: Pixels, wanted: Pixels) -> Contestant:
    whole = item.target == 1.0
    facts = {
        "name": item.name,
        "method": EVALUATED_TOME if item.name == TOME else UNPRUNED,
        "image_size": made.tower.image_size[0],
        "k": 0,
        "target": item.target,
        "engine": _TORCH,
        "precision": item.precision,
        "gmacs": item.gmacs,
        "share": item.gmacs / made.gmacs,
        "cosine": agreement(item.run(pixels), wanted) if whole else None,
        "detail": item.detail,
    }
    return Contestant(facts, Entrant(made.model.native_preprocess, item.run, _TORCH))
