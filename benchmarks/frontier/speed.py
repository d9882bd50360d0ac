"""Measured images a second of every row: its bundle on CPU engines, and all methods in eager PyTorch, in one interleaved run."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.frontier.eager import LIBRARY, eager_entrants
from benchmarks.frontier.points import Point
from benchmarks.race import SCOPES, Entrant, check_memory, figures, of_scope, race
from benchmarks.reducers import Reducer, Workshop
from prtool.bundle import Bundle
from prtool.engines.base import EngineOptions
from prtool.errors import ConfigError
from prtool.records import to_plain
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.timing import Plan, Samples
from prtool.runtime.encoder import Encoder
from prtool.runtime.machine import this_machine
from prtool.store import Store, digest

PHOTOS = 16
_PRECISION = "fp32"
Speeds = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SpeedPlan:
    """What is timed: the engines' names ("torch" is eager PyTorch), images a call, threads, and how long."""

    engines: tuple[str, ...]
    batch: int
    threads: int
    plan: Plan


def measured(workshop: Workshop, points: Sequence[Point], how: SpeedPlan) -> dict[str, Any]:
    """{"rows": [engine -> scope -> figures, the unpruned first, then each point], "rounds", ...}; kept, so that a second call reads it."""
    bundles = {reducer: workshop.bundle(reducer) for reducer in dict.fromkeys(point.reducer for point in points)}
    key = digest(
        [bundle.manifest.to_json()["files"] for bundle in bundles.values()],
        [point.name for point in points],
        [how.engines, how.batch, how.threads, to_plain(how.plan)],
        this_machine().cpu,
    )
    store, name = Store(workshop.folder / "speed", key), f"{key[:16]}.json"
    kept: dict[str, Any] | None = store.read(name)
    if kept is None:
        kept = _race(workshop, bundles, points, how)
        store.write(name, kept)
    return kept


def _race(workshop: Workshop, bundles: Mapping[Reducer, Bundle], points: Sequence[Point], how: SpeedPlan) -> dict[str, Any]:
    images, machine = sample_photos(PHOTOS, workshop.seed), this_machine()
    threads = how.threads or machine.threads_granted
    torch.set_num_threads(threads)
    exported = [point for point in points if point.exports]
    with contextlib.ExitStack() as stack:
        groups = {engine: engine_entrants(bundles, exported, engine, how, stack) for engine in how.engines if engine != LIBRARY}
        if LIBRARY in how.engines:
            groups[LIBRARY] = eager_entrants(workshop, points, images)
        samples = race(list(groups.values()), images, how.batch, how.plan, workshop.progress)
    rows: list[Speeds] = [{} for _ in (None, *points)]
    for engine, found in zip(groups, samples, strict=True):
        raced = [0, *(1 + points.index(point) for point in (points if engine == LIBRARY else exported))]
        for place, taken in zip(raced, found, strict=True):
            rows[place][engine] = {scope: _figures(taken, found[0], scope, how.batch) for scope in SCOPES}
    return {
        "rows": rows,
        "precision": _PRECISION,
        "batch": how.batch,
        "threads": threads,
        "rounds": len(samples[0][0].total_ns),
        "images": f"{PHOTOS} generated JPEGs of 500 x 375, in memory",
        "load_average_before": machine.load_average,
    }


def engine_entrants(
    bundles: Mapping[Reducer, Bundle], points: Sequence[Point], engine: str, how: SpeedPlan, stack: contextlib.ExitStack
) -> list[Entrant]:
    """The unpruned graph of the first bundle, then the fused graph of each point at its keep; `stack` closes them."""
    if not points:
        raise ConfigError(f"engine {engine} runs bundles, but none of the methods exports; give reducers, or leave the engine out")
    check_memory({f"{engine} {reducer}": sum(file.size for file in bundle.manifest.files.values()) / 2**20 for reducer, bundle in bundles.items()})
    options = EngineOptions(threads=how.threads)

    def load(bundle: Bundle, mode: str) -> Encoder:
        return stack.enter_context(Encoder.load(bundle, engine=engine, mode=mode, precision=_PRECISION, options=options, verify=False))

    first = bundles[points[0].reducer]
    entrants = [Entrant.of(load(first, "full"), first.manifest, "full")]
    encoders = {reducer: load(bundles[reducer], "fused") for reducer in dict.fromkeys(point.reducer for point in points)}
    for point in points:
        manifest = bundles[point.reducer].manifest
        entrants.append(Entrant.of(encoders[point.reducer], manifest, "fused", point.k))
    return entrants


def _figures(case: Samples, whole: Samples, scope: str, batch: int) -> dict[str, Any]:
    found = figures(of_scope(case, scope), of_scope(whole, scope), batch)
    return found | ({"stages_ms": case.stages_ms()} if scope == SCOPES[0] else {})
