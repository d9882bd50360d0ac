"""The benchmark itself: loads everything, times everything in one interleaved run, and reports."""

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from prtool.bundle import Bundle
from prtool.progress import Progress, SilentProgress
from prtool.runtime.bench.config import BASELINE_MODE, SLOWEST, BenchConfig
from prtool.runtime.bench.lineup import Lineup, Measured, Variant, left_out
from prtool.runtime.bench.notes import notes_on, plateaus
from prtool.runtime.bench.report import BenchReport, BenchRow
from prtool.runtime.bench.sensors import EnergyMeter, GpuMeter, on_gpu, torch_peak_mib
from prtool.runtime.bench.timing import Case, Clock, Plan, Sensors, measure, speedup
from prtool.runtime.machine import library_versions, peak_memory_mib, this_machine

_NO_GPU = "no engine of this run says that it runs on a GPU"


def bench(bundle: str | Path | Bundle, config: BenchConfig, progress: Progress | None = None) -> BenchReport:
    """Measures a bundle.

    Every round calls each variant, and the unpruned model for each scope, batch, engine and precision, once; see
    `prtool.runtime.bench.timing.measure`. All graphs are loaded at the same time, the weights once for each engine,
    precision and mode. Combinations that an engine or the bundle does not support are left out and named in the notes,
    as long as one is left.

    Args:
        bundle: a bundle directory, or an opened bundle.
        config: what is measured and for how long.
        progress: advanced once per call, between calls.

    Raises:
        KeepError: a keep is outside the bundle's range; nothing was run.
        ConfigError: a name is unknown, nothing is left to measure, or the graphs do not fit into memory together.
        DataError: an image cannot be read (ImageError: or decoded).
        BundleError, EngineUnavailable, EngineError: as `Encoder.load` and `Encoder.encode_pixels`.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    started, machine = datetime.now(UTC), this_machine()
    meter, gpu = EnergyMeter(), GpuMeter()
    before_mib, sensors = gpu.memory_mib(), Sensors(joules=meter.joules)
    with contextlib.ExitStack() as stack:
        lineup = Lineup.load(opened, config, stack)
        samples = measure(lineup.groups(), config, sensors, progress or SilentProgress())
        measured = lineup.by_variant(samples)
        rows = _with_own_calls(lineup, rows_of(lineup, measured), sensors, gpu)
        gpu_memory, gpu_reason = _gpu_memory(lineup, gpu, before_mib)
    infos, model, prune = lineup.infos, opened.manifest.model, opened.manifest.prune
    return BenchReport(
        engines={name: info.device for name, info in infos.items()},
        device=machine.cpu,
        versions=library_versions() | {name: info.version for name, info in infos.items()},
        rows=rows,
        model={
            "name": model.name,
            "pretrained": model.pretrained,
            "weights_sha256": model.weights_sha256,
            "patches": prune.patches,
            "method": prune.method,
        },
        rounds=len(samples[0][0].total_ns),
        warmup_rounds=config.warmup_rounds,
        seed=config.seed,
        threads=config.threads or machine.threads_granted,
        streams=config.streams,
        reference=config.reference,
        images=lineup.origin,
        machine=machine,
        peak_memory_mib=peak_memory_mib(),
        gpu_memory_mib=gpu_memory,
        energy_reason=meter.reason,
        gpu_reason=gpu_reason,
        date=started.isoformat(timespec="seconds"),
        notes=(*map(left_out, lineup.unsupported), *plateaus(lineup, measured), *notes_on(rows, machine)),
    )


def rows_of(lineup: Lineup, measured: Measured) -> tuple[BenchRow, ...]:
    """One row per variant, in the lineup's order."""
    return tuple(_row(lineup, variant, group[0], measured) for group in lineup.variants for variant in group)


def _row(lineup: Lineup, variant: Variant, baseline: Variant, measured: Measured) -> BenchRow:
    manifest, samples = lineup.manifest, measured[variant]
    promised = 1.0 if variant.mode == BASELINE_MODE else manifest.theoretical_speedup(variant.k)
    gained = speedup(measured[baseline], samples)
    p50_ms = samples.percentile_ms(50)
    return BenchRow(
        scope=variant.scope,
        batch=variant.batch,
        engine=variant.engine,
        device=lineup.encoder(variant).info.device,
        precision=variant.precision,
        mode=variant.mode,
        keep=variant.keep,
        k=variant.k,
        image_size=manifest.preprocess_for(variant.mode).size,
        gmacs=manifest.cost.full_gmacs(manifest.prune) / promised,
        p50_ms=p50_ms,
        p90_ms=samples.percentile_ms(90),
        p99_ms=samples.percentile_ms(99),
        images_per_s=1e3 * variant.batch / p50_ms,
        speedup=gained.median,
        speedup_low=gained.low,
        speedup_high=gained.high,
        theoretical_speedup=promised,
        share_of_theoretical=gained.median / promised,
        reference_ratio=_reference_ratio(lineup, variant, measured),
        stages_ms=samples.stages_ms(),
        device_ms=samples.device_ms(),
        joules_per_image=None if samples.joules is None else samples.joules / (len(samples.total_ns) * variant.batch),
        gpu_joules_per_image=None,
    )


def _reference_ratio(lineup: Lineup, variant: Variant, measured: Measured) -> float | None:
    """Median over the rounds of reference time / time within the same round; None where no reference was asked for."""
    name = lineup.config.reference
    if not name:
        return None
    baselines = [group[0] for group in lineup.variants if (group[0].scope, group[0].batch) == (variant.scope, variant.batch)]
    slowest = max(baselines, key=lambda item: measured[item].percentile_ms(50))
    reference = slowest if name == SLOWEST else next(item for item in baselines if f"{item.engine}/{item.precision}" == name)
    return speedup(measured[reference], measured[variant]).median


def joules_per_call(case: Case, meter: GpuMeter, clock: Clock, least_s: float = 1.0) -> float | None:
    """Energy of one call, idle power included, from calls repeated for `least_s` seconds: the driver's counter is updated too rarely for one."""
    meter.joules()
    started, calls = clock(), 0
    while calls == 0 or clock() - started < 1e9 * least_s:
        case.run(calls, lambda _: None)
        calls += 1
    used = meter.joules()
    return None if used is None else used / calls


def _with_own_calls(lineup: Lineup, rows: Sequence[BenchRow], sensors: Sensors, gpu: GpuMeter) -> tuple[BenchRow, ...]:
    """Adds what the timed calls do not tell: stages on a device, and energy of the GPU."""
    found = list(rows)
    for place, variant in enumerate(itertools.chain(*lineup.variants)):
        breakdown = lineup.breakdown(variant)
        if breakdown is not None:
            samples = measure([[breakdown]], Plan(5, 5, 1, 0.0, lineup.config.seed), sensors, SilentProgress())[0][0]
            found[place] = replace(found[place], stages_ms=samples.stages_ms())
        joules = joules_per_call(lineup.case(variant), gpu, sensors.clock) if gpu.reason is None and on_gpu(lineup.encoder(variant).info) else None
        if joules is not None:
            found[place] = replace(found[place], gpu_joules_per_image=joules / variant.batch)
    return tuple(found)


def _gpu_memory(lineup: Lineup, gpu: GpuMeter, before_mib: float | None) -> tuple[float | None, str | None]:
    """MiB that the run took on the GPU, and why there are no figures of the GPU."""
    if not any(map(on_gpu, lineup.infos.values())):
        return None, _NO_GPU
    now_mib = gpu.memory_mib()
    if now_mib is None or before_mib is None:
        return torch_peak_mib(), gpu.reason
    return round(now_mib - before_mib, 1), None
