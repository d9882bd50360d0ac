"""The race itself: everyone from the same JPEG files in one interleaved run, and the rows that come of it."""

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import torch

from benchmarks.peers.accuracy import Accuracies
from benchmarks.peers.baselines import Baselines
from benchmarks.peers.entrants import Contestant, Field, PeersConfig, add_baselines, add_engines, make_bundles
from benchmarks.peers.report import PeersReport, PeersRow
from benchmarks.race import SCOPES, figures, of_scope, race
from benchmarks.reducers import Workshop
from prtool.pictures import short_name
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.timing import SETTLE_S, Samples
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.machine import Machine, library_versions, peak_memory_mib, this_machine
from prtool.trainer.runs.checkpoint import load_seeded

_MIN_COSINE = 0.99
_PHOTOS = 16


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
    found, made = Field(), Baselines(model, config.device)
    with contextlib.ExitStack() as stack:
        wanted = add_baselines(found, made, pixels, config, workshop)
        add_engines(found, bundles, config, (pixels, wanted), stack)
        samples = race([[one.entrant for one in group] for group in found.groups], photos, config.batch, config.plan, workshop.progress)
    rows = _rows(found.groups, samples, config)
    return PeersReport(
        model={"name": short_name(workshop.model), "pretrained": workshop.pretrained, "weights_sha256": model.weights_sha256},
        rows=rows,
        accuracy="" if config.accuracies is None else config.accuracies.about,
        rounds=len(samples[0][0].total_ns),
        seed=workshop.seed,
        date=started.isoformat(timespec="seconds"),
        left_out=(*found.left_out, *made.left_out, *_disagreements(rows), *_unrecovered(rows)),
        **_circumstances(found, config, machine),
    )


def _circumstances(found: Field, config: PeersConfig, machine: Machine) -> dict[str, Any]:
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
    known = None if accuracies is None else accuracies.of(facts["method"], relative_size, facts["target"])
    if known is None or accuracies is None:
        return {"accuracy": None, "drop": None, "fidelity": None}
    return {"accuracy": known["accuracy"], "drop": accuracies.unpruned - known["accuracy"], "fidelity": known["cosine"]}


def _unrecovered(rows: Sequence[PeersRow]) -> list[str]:
    named = dict.fromkeys(row.name for row in rows if row.name.endswith("+"))
    return [f"{', '.join(named)} ran without recovery, which changes no speed; their accuracies are those of recovered encoders."] if named else []


def _disagreements(rows: Sequence[PeersRow]) -> list[str]:
    return [
        f"{row.title} has a cosine of {row.cosine:.4f} to open_clip eager fp32 on generated photographs."
        for row in rows
        if row.scope == SCOPES[0] and row.cosine is not None and row.cosine < _MIN_COSINE
    ]
