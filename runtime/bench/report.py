"""The result of a benchmark: rows with stable names, and the circumstances of the run."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from prtool.runtime.machine import Machine

SCHEMA = 1
SPEEDUP_METHOD = "median over rounds of unpruned time / pruned time in the same round; low and high enclose it with 95 % confidence"


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One measured variant.

    Attributes:
        scope: "encoder" or "end-to-end".
        batch: images a call.
        engine: name of the engine that ran.
        device: what it ran on, human-readable.
        precision: of the arithmetic.
        mode: "fused", "split", or "full" for the unpruned model.
        keep: share of the patches that is kept, 0 to 1.
        k: patches that are kept.
        image_size: height and width of the images that the encoder reads; with smaller images than the unpruned model's, `keep` and `k` are
            of their own patches.
        gmacs: 10^9 multiply-accumulates of one image through the encoder, scorer included.
        p50_ms, p90_ms, p99_ms: percentiles of one call over the rounds; with fewer than 100 rounds p99 lies next to the slowest.
        images_per_s: batch / p50.
        speedup: against the unpruned model with the same scope, batch, engine and precision; 1 for that model itself.
        speedup_low, speedup_high: 95 % interval of the speed-up.
        theoretical_speedup: unpruned over own multiply-accumulates; below 1 where scoring comes on top of all patches.
        share_of_theoretical: speedup / theoretical_speedup.
        reference_ratio: against the report's `reference` with the same scope and batch; None where none was asked for.
        stages_ms: median of each stage ("pre", "select", "mid", "post" in split mode; end to end "decode", "preprocess" before
            them, and "encode" for a mode of one graph). Where arrays stay on a device they come from calls of their own, which
            wait after each stage.
        device_ms: median of one call by CUDA events; None on other devices.
        joules_per_image: energy of the processor packages; None where nothing counts it.
        gpu_joules_per_image: energy of the GPU, idle power included; None without a GPU, or where nothing counts it.
    """

    scope: str
    batch: int
    engine: str
    device: str
    precision: str
    mode: str
    keep: float
    k: int
    image_size: tuple[int, int]
    gmacs: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    theoretical_speedup: float
    share_of_theoretical: float
    reference_ratio: float | None
    stages_ms: dict[str, float]
    device_ms: float | None
    joules_per_image: float | None
    gpu_joules_per_image: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether this is the unpruned model."""
        return self.mode == "full"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Rows and circumstances of one run.

    Attributes:
        engines: name of each engine that ran -> what it ran on, human-readable.
        device: the host's processor.
        versions: of prtool, Python, each engine's library (under the engine's name) and others.
        rows: the unpruned model first in each group of scope, batch, engine and precision.
        model: name and weights of the encoder; `patches` is N, `method` what shortens its sequence ("rank", "merge" or "none").
        rounds, warmup_rounds, seed: of the measurement; every row has one call a round.
        threads, streams: CPU threads of one call, and the parts that a batch was cut into where the engine has streams.
        reference: "ENGINE/PRECISION" whose unpruned model the rows' `reference_ratio` relates to, or "slowest"; "" for none.
        images: where the images of the end-to-end rows came from.
        machine: the host, with its load before the measurement.
        peak_memory_mib: highest resident memory of the process since its start, with every variant loaded; None if not counted.
        gpu_memory_mib: what loading and running took on the GPU, whatever allocated it; by torch's own count where NVML is missing.
        energy_reason: why there is no energy of the processor; None if there is.
        gpu_reason: why there are no energy and memory figures of a GPU; None if there are.
        date: start, ISO 8601 in UTC.
        notes: what was left out and why, and what a reader should know, as sentences.
    """

    engines: dict[str, str]
    device: str
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]
    model: dict[str, str | int]
    rounds: int
    warmup_rounds: int
    seed: int
    threads: int
    streams: int
    reference: str
    images: str
    machine: Machine
    peak_memory_mib: float | None
    gpu_memory_mib: float | None
    energy_reason: str | None
    gpu_reason: str | None
    date: str
    notes: tuple[str, ...]

    @property
    def title(self) -> str:
        """The table in one line: what is compared with what."""
        full = next(row for row in self.rows if row.is_baseline)
        pruned = next((row for row in self.rows if not row.is_baseline), full)
        return (
            f"{self.model['name']}, prune method {self.model['method']}, images of {size_text(pruned.image_size)}; "
            f"speed-ups against the unpruned model (mode full) at {size_text(full.image_size)}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the names are stable within a schema number, new ones may be added."""
        value = {**dataclasses.asdict(self), "rows": [_rounded(row) for row in self.rows], "notes": list(self.notes)}
        return {"schema": SCHEMA, **value, "speedup_method": SPEEDUP_METHOD}

    def to_csv(self) -> list[dict[str, Any]]:
        """One flat record a row, all with the same columns; the stages become columns, and model, versions and date are repeated."""
        stages = list(dict.fromkeys(name for row in self.rows for name in row.stages_ms))
        common = {"processor": self.device, "threads": self.threads, "rounds": self.rounds, "date": self.date}
        records = []
        for row in self.rows:
            values = _rounded(row)
            spent, values["image_size"] = values.pop("stages_ms"), size_text(row.image_size)
            own = {"model": self.model["name"], "engine_version": self.versions[row.engine]}
            records.append(values | {f"{name}_ms": spent.get(name) for name in stages} | own | common)
        return records

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a row."""
        columns = ["scope", "batch", "engine", "precision", "mode", "image", "keep", "p50 ms", "p90 ms", "p99 ms", "images/s"]
        columns += ["speed-up", "theoretical", "of theoretical", *([f"vs {self.reference}"] if self.reference else [])]
        cells = []
        for row in self.rows:
            times = [f"{value:.1f}" if value >= 10.0 else f"{value:.3f}" for value in (row.p50_ms, row.p90_ms, row.p99_ms)]
            rates = [f"{row.images_per_s:.1f}", f"{row.speedup:.2f}x", f"{row.theoretical_speedup:.2f}x", f"{row.share_of_theoretical:.0%}"]
            rates += [] if row.reference_ratio is None else [f"{row.reference_ratio:.2f}x"]
            cells.append([row.scope, str(row.batch), row.engine, row.precision, row.mode, size_text(row.image_size), f"{row.keep:g}", *times, *rates])
        return columns, cells


def size_text(size: tuple[int, int]) -> str:
    """Height and width, such as "168x168"."""
    return f"{size[0]}x{size[1]}"


def _rounded(row: BenchRow) -> dict[str, Any]:
    values = dataclasses.asdict(row)
    values["stages_ms"] = {name: round(value, 4) for name, value in row.stages_ms.items()}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
