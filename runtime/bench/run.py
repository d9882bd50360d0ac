"""The benchmark itself: loads everything, times everything in one interleaved run, and reports."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from prtool.bundle import Bundle
from prtool.manifest import Manifest
from prtool.progress import Progress, SilentProgress
from prtool.runtime.bench.config import BenchConfig
from prtool.runtime.bench.gpu import GpuMeter, joules_per_call, on_gpu, torch_peak_mib
from prtool.runtime.bench.lineup import Lineup, Loader, Way, load_encoder
from prtool.runtime.bench.notes import notes_on
from prtool.runtime.bench.report import BenchReport, BenchRow
from prtool.runtime.bench.rows import plateaus_of, rows_of
from prtool.runtime.bench.timing import Clock, Group, Plan, Samples, Sensors, measure
from prtool.runtime.machine import EnergyMeter, Machine, library_versions, peak_memory_mib, this_machine

_NO_GPU = "no engine of this run says that it runs on a GPU"


@dataclass(frozen=True, slots=True)
class Instruments:
    """How encoders are made, and time and energy are read; tests put their own in."""

    load: Loader = load_encoder
    clock: Clock = time.perf_counter_ns
    sleep: Callable[[float], None] = time.sleep
    meter: EnergyMeter = field(default_factory=EnergyMeter)
    gpu_meter: Callable[[], GpuMeter] = GpuMeter

    def sensors(self) -> Sensors:
        """The part that the timing needs."""
        return Sensors(self.clock, self.meter.joules, self.sleep)


def bench(bundle: str | Path | Bundle, config: BenchConfig, progress: Progress | None = None, instruments: Instruments | None = None) -> BenchReport:
    """Measures a bundle.

    Every round calls each configuration, and the unpruned model for each scope, batch, engine and precision, once;
    see `prtool.runtime.bench.timing.measure`. All graphs are loaded at the same time, the weights once for each engine,
    precision and mode. Combinations that an engine or the bundle does not offer are left out and named in the notes,
    as long as one is left.

    Args:
        bundle: a bundle directory, or an opened bundle.
        config: what is measured and for how long.
        progress: hears about warming up and timing, between calls.
        instruments: encoders, clock and energy counters; None takes the real ones.

    Raises:
        KeepError: a keep is outside the bundle's range; nothing was run.
        ConfigError: a name is unknown, nothing is left to measure, or the graphs do not fit into memory together.
        DataError: an image cannot be read (ImageError: or decoded).
        BundleError, EngineUnavailable, EngineError: as `Encoder.load` and `Encoder.encode_pixels`.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    tools, told = instruments or Instruments(), progress or SilentProgress()
    started, machine = datetime.now(UTC), this_machine()
    with contextlib.ExitStack() as stack:
        gpu = _Gpu(tools.gpu_meter())
        lineup = Lineup.load(opened, config, tools.load, stack)
        samples = measure(lineup.groups(), config.plan(), tools.sensors(), told)
        measured = {way: taken for ways, found in zip(lineup.ways, samples, strict=True) for way, taken in zip(ways, found, strict=True)}
        rows = gpu.with_energy(lineup, _with_stages(lineup, rows_of(lineup, measured), tools), tools.clock)
        gpu_memory, gpu_reason = gpu.memory(lineup)
    infos = lineup.infos
    return BenchReport(
        engines={name: info.device for name, info in infos.items()},
        device=machine.cpu,
        versions=library_versions() | {name: info.version for name, info in infos.items()},
        rows=rows,
        model=_model(opened.manifest),
        rounds=_rounds(measured),
        warmup_rounds=config.warmup_rounds,
        seed=config.seed,
        threads=config.threads or machine.threads_granted,
        streams=config.streams,
        reference=config.reference,
        images=lineup.inputs.origin,
        machine=machine,
        peak_memory_mib=peak_memory_mib(),
        gpu_memory_mib=gpu_memory,
        energy_reason=tools.meter.reason,
        gpu_reason=gpu_reason,
        date=started.isoformat(timespec="seconds"),
        notes=_notes(lineup, rows, measured, machine),
    )


class _Gpu:
    """The figures that only a run on a GPU has, read after the timing."""

    def __init__(self, meter: GpuMeter) -> None:
        self._meter = meter
        self._before_mib = meter.memory_mib()

    def with_energy(self, lineup: Lineup, rows: Sequence[BenchRow], clock: Clock) -> tuple[BenchRow, ...]:
        """Adds the GPU's energy to the rows of engines that run there."""
        if self._meter.reason is not None:
            return tuple(rows)
        cases = [case for group in lineup.groups() for case in group.cases]
        return tuple(
            replace(row, gpu_joules_per_image=_image_share(joules_per_call([case], self._meter, clock)[0], way)) if on_gpu(lineup.info(way)) else row
            for way, case, row in zip(_ways(lineup), cases, rows, strict=True)
        )

    def memory(self, lineup: Lineup) -> tuple[float | None, str | None]:
        """MiB that the run took on the GPU, and why there are no figures of the GPU."""
        if not any(map(on_gpu, lineup.infos.values())):
            return None, _NO_GPU
        now = self._meter.memory_mib()
        if now is None or self._before_mib is None:
            return torch_peak_mib(), self._meter.reason
        return round(now - self._before_mib, 1), None


def _ways(lineup: Lineup) -> list[Way]:
    return [way for group in lineup.ways for way in group]


def _with_stages(lineup: Lineup, rows: Sequence[BenchRow], tools: Instruments) -> list[BenchRow]:
    """Adds the stages of the configurations whose timed calls do not mark them, from a few calls that do."""
    found = list(rows)
    for place, way in enumerate(_ways(lineup)):
        breakdown = lineup.breakdown(way)
        if breakdown is not None:
            samples = measure([Group((breakdown,))], Plan(5, 5, 1, 0.0, lineup.config.seed), tools.sensors(), SilentProgress())[0][0]
            found[place] = replace(found[place], stages_ms=samples.stages_ms())
    return found


def _image_share(joules: float | None, way: Way) -> float | None:
    return None if joules is None else joules / way.batch


def _notes(lineup: Lineup, rows: tuple[BenchRow, ...], measured: Mapping[Way, Samples], machine: Machine) -> tuple[str, ...]:
    left_out = tuple(map(str, lineup.refusals))
    return left_out + notes_on(rows, plateaus_of(lineup, measured), lineup.manifest.prune.patches, machine)


def _rounds(measured: Mapping[Way, Samples]) -> int:
    return len(next(iter(measured.values())).total_ns)


def _model(manifest: Manifest) -> dict[str, str | int]:
    model = manifest.model
    return {"name": model.name, "pretrained": model.pretrained, "weights_sha256": model.weights_sha256, "patches": manifest.prune.patches}
