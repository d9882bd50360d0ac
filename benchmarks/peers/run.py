"""The comparison itself: a bundle's engines and PyTorch's baselines in one interleaved run."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.peers.accuracy import PRUNED, UNPRUNED, Accuracies
from benchmarks.peers.baselines import COMPILED, DTYPES, OPEN_CLIP, TOME_COMPILED, Baseline, Baselines, agreement
from benchmarks.peers.report import PeersReport, PeersRow, kind_of, with_accuracy
from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.pictures import short_name
from prtool.progress import Progress
from prtool.runtime.bench.config import BASELINE_MODE, BenchConfig
from prtool.runtime.bench.lineup import Lineup, left_out
from prtool.runtime.bench.run import rows_of
from prtool.runtime.bench.timing import SETTLE_S, Case, Mark, Samples, Sensors, measure, speedup
from prtool.runtime.machine import Machine, library_versions, peak_memory_mib, this_machine
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.runs.checkpoint import load_seeded

_TORCH = "torch"
_MIN_COSINE = 0.99
Cosines = Mapping[tuple[str, str, str], float]
"""(method, engine, precision) of a whole encoder -> worst cosine to open_clip eager fp32."""
Timed = Mapping[tuple[Baseline, int], Samples]
"""(baseline, batch) -> its samples."""


@dataclass(frozen=True, slots=True)
class PeersConfig:
    """What takes part.

    Attributes:
        bench: the bundle's side: engines, precisions, batches, keeps, modes, rounds; its scope is "encoder".
        model, pretrained: what PyTorch runs; it must have the bundle's weights.
        compiled: what also runs through torch.compile: "none", "whole" encoders, or "all".
        device: of PyTorch, "cpu" or "cuda".
        accuracies: percent next to the rows; None leaves them out.
    """

    bench: BenchConfig
    model: str
    pretrained: str
    compiled: str
    device: str
    accuracies: Accuracies | None


def compare(bundle: Bundle, config: PeersConfig, progress: Progress) -> PeersReport:
    """Loads everything, checks that whole encoders agree, and times everything in one interleaved run.

    Raises:
        ConfigError: nothing can be measured, the graphs do not fit into memory, or the weights are not the bundle's.
        ModelError: the model cannot be loaded.
        EngineError: an engine failed.
    """
    bench, manifest, started, machine = config.bench, bundle.manifest, datetime.now(UTC), this_machine()
    torch.set_num_threads(bench.threads or machine.threads_granted)
    # fp32 always, which every ratio refers to.
    precisions = tuple(dict.fromkeys(("fp32", *(name for name in bench.precisions if name in DTYPES))))
    with contextlib.ExitStack() as stack:
        lineup = Lineup.load(bundle, bench, stack)
        made = Baselines(_model(bundle, config), manifest.prune, manifest.cost, config.device)
        inputs = [lineup.pixels[manifest.native_size][:batch] for batch in bench.batches]
        baselines = made.all(precisions, bench.chosen_keeps(manifest), config.compiled, inputs, progress)
        cosines = _cosines(lineup, baselines)
        cases = [[_case(baseline, pixels) for baseline in baselines] for pixels in inputs]
        samples = measure([*lineup.groups(), *cases], bench, Sensors(), progress)
    timed: dict[tuple[Baseline, int], Samples] = {}
    for batch, taken in zip(bench.batches, samples[len(lineup.variants) :], strict=True):
        timed |= {(baseline, batch): found for baseline, found in zip(baselines, taken, strict=True)}
    rows = [*_baseline_rows(timed, cosines), *_bundle_rows(lineup, samples, timed, cosines)]
    return PeersReport(
        model={"name": short_name(manifest.model.name), "pretrained": manifest.model.pretrained, "weights_sha256": manifest.model.weights_sha256},
        rows=tuple(with_accuracy(row, config.accuracies) for row in rows),
        accuracy=None if config.accuracies is None else {"about": config.accuracies.about, "unpruned_fp32": config.accuracies.reference},
        rounds=len(samples[0][0].total_ns),
        date=started.isoformat(timespec="seconds"),
        left_out=(*map(left_out, lineup.unsupported), *made.left_out, *_disagreements(cosines)),
        **_circumstances(lineup, config, machine),
    )


def _circumstances(lineup: Lineup, config: PeersConfig, machine: Machine) -> dict[str, Any]:
    """The part of a report that tells where and how it was measured."""
    import open_clip

    bench = config.bench
    versions = library_versions() | {name: info.version for name, info in lineup.infos.items()}
    return {
        "device": torch.cuda.get_device_name() if config.device == "cuda" else machine.cpu,
        "engines": {name: info.device for name, info in lineup.infos.items()},
        "versions": versions | {"torch": torch.__version__, "open_clip": str(open_clip.__version__)},
        "seed": bench.seed,
        "threads": bench.threads or machine.threads_granted,
        "streams": bench.streams,
        "settle_ms": 1e3 * SETTLE_S,
        "machine": machine,
        "peak_memory_mib": peak_memory_mib(),
    }


def _model(bundle: Bundle, config: PeersConfig) -> DualEncoder:
    wanted, seed = bundle.manifest.model, config.bench.seed
    model = load_seeded(config.model, config.pretrained, seed, config.device)
    if model.weights_sha256 != wanted.weights_sha256:
        raise ConfigError(
            f"{config.model} {config.pretrained} has weights {model.weights_sha256[:12]} with seed {seed}, but the bundle was made from "
            f"{wanted.weights_sha256[:12]}, and PyTorch would run another model; give --model, --pretrained and --seed as the run had them"
        )
    return model


def _case(baseline: Baseline, pixels: npt.NDArray[np.float32]) -> Case:
    def run(_number: int, _mark: Mark) -> None:
        baseline.run(pixels)

    return Case(run, _TORCH)


def _cosines(lineup: Lineup, baselines: Sequence[Baseline]) -> dict[tuple[str, str, str], float]:
    # A batch that is timed: another one would be compiled for this alone.
    pixels = lineup.pixels[lineup.manifest.native_size][: lineup.config.batches[0]]
    wanted = _baseline(baselines, OPEN_CLIP, "fp32").run(pixels)
    found = {(item.method, _TORCH, item.precision): agreement(item.run(pixels), wanted) for item in baselines if item.keep == 1.0}
    for (engine, precision, mode), encoder in lineup.encoders.items():
        if mode == BASELINE_MODE:
            found[UNPRUNED, engine, precision] = agreement(encoder.encode_pixels(pixels), wanted)
    return found


def _disagreements(cosines: Cosines) -> list[str]:
    return [
        f"{method} on {engine} in {precision} has a cosine of {cosine:.4f} to open_clip eager fp32 on noise."
        for (method, engine, precision), cosine in cosines.items()
        if cosine < _MIN_COSINE
    ]


def _baseline(baselines: Sequence[Baseline], method: str, precision: str) -> Baseline:
    return next(item for item in baselines if (item.method, item.precision) == (method, precision))


def _baseline_rows(timed: Timed, cosines: Cosines) -> list[PeersRow]:
    baselines = list(dict.fromkeys(item for item, _ in timed))
    rows = []
    for (item, batch), samples in timed.items():
        whole = _baseline(baselines, COMPILED if item.method == TOME_COMPILED else OPEN_CLIP, item.precision) if item.keep < 1.0 else item
        gained, theoretical = speedup(timed[whole, batch], samples).median, whole.gmacs / item.gmacs
        row = PeersRow(
            method=item.method,
            kind=kind_of(item.method),
            engine=_TORCH,
            precision=item.precision,
            mode="",
            keep=item.keep,
            batch=batch,
            gmacs=item.gmacs,
            **_times(samples, batch, timed),
            speedup=gained,
            theoretical_speedup=theoretical,
            share_of_theoretical=gained / theoretical,
            accuracy=None,
            points=None,
            cosine=cosines.get((item.method, _TORCH, item.precision)) if item.keep == 1.0 else None,
            detail=item.detail,
        )
        rows.append(row)
    return rows


def _bundle_rows(lineup: Lineup, samples: Sequence[Sequence[Samples]], timed: Timed, cosines: Cosines) -> list[PeersRow]:
    taken = lineup.by_variant(samples)
    variants = [variant for group in lineup.variants for variant in group]
    return [
        PeersRow(
            method=UNPRUNED if row.is_baseline else PRUNED,
            kind=UNPRUNED if row.is_baseline else PRUNED,
            engine=row.engine,
            precision=row.precision,
            mode=row.mode,
            keep=row.keep,
            batch=row.batch,
            gmacs=row.gmacs,
            **_times(taken[variant], row.batch, timed),
            speedup=row.speedup,
            theoretical_speedup=row.theoretical_speedup,
            share_of_theoretical=row.share_of_theoretical,
            accuracy=None,
            points=None,
            cosine=cosines.get((UNPRUNED, row.engine, row.precision)) if row.is_baseline else None,
            detail=row.device,
        )
        for variant, row in zip(variants, rows_of(lineup, taken), strict=True)
    ]


def _times(samples: Samples, batch: int, timed: Timed) -> dict[str, float]:
    """The part of a row that comes from its own samples and those of open_clip eager fp32."""
    eager = _baseline([item for item, _ in timed], OPEN_CLIP, "fp32")
    ratio, p50_ms = speedup(timed[eager, batch], samples), samples.percentile_ms(50)
    return {
        "p50_ms": p50_ms,
        "p90_ms": samples.percentile_ms(90),
        "images_per_s": 1e3 * batch / p50_ms,
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }
