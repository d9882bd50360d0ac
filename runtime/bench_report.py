"""The result of a benchmark: rows with stable names, the circumstances beside them, and what they mean in plain sentences."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from prtool.runtime.machine import Machine

SCHEMA = 1
PAYS = 1.03
"""Least speed-up that is worth pruning for."""
_UNSURE = 0.05
_MUCH_PREPARATION = 0.2
SPEEDUP_METHOD = "median over rounds of unpruned time / pruned time in the same round; low and high enclose it with 95 % confidence"


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One configuration.

    Attributes:
        scope: "encoder" or "end-to-end".
        batch: images a call.
        keep: share of the patches that is kept, 0 to 1.
        k: patches that are kept.
        mode: "fused", "split", or "full" for the unpruned model.
        precision: of the graphs.
        p50_ms, p90_ms, p99_ms: percentiles of one call over the rounds; with fewer than 100 rounds p99 lies next to the slowest.
        images_per_s: batch / p50.
        speedup: against the unpruned model with the same scope, batch and precision; 1 for that model itself.
        speedup_low, speedup_high: 95 % interval of the speed-up.
        bound: most that the encoder's speed-up can be, by multiply-accumulates; below 1 where scoring comes on top of all patches.
        share_of_bound: speedup / bound.
        stages_ms: median of each stage ("pre", "select", "mid", "post" in split mode; "decode", "preprocess", "encode" end to end).
        joules_per_image: energy of the processor packages; None where nothing counts it.
    """

    scope: str
    batch: int
    keep: float
    k: int
    mode: str
    precision: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    images_per_s: float
    speedup: float
    speedup_low: float
    speedup_high: float
    bound: float
    share_of_bound: float
    stages_ms: dict[str, float]
    joules_per_image: float | None

    @property
    def is_baseline(self) -> bool:
        """Whether this is the unpruned model."""
        return self.mode == "full"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Rows and circumstances of one run.

    Attributes:
        engine: name of the engine.
        device: what it ran on, in words.
        versions: of prtool, Python, the engine's library (under the engine's name) and others.
        rows: the unpruned model first in each group of scope, batch and precision.
        model: name and weights of the encoder; `patches` is N.
        rounds, warmup_rounds, seed: of the measurement; every row has one call a round.
        images: where the images of the end-to-end rows came from.
        machine: the host, with its load before the measurement.
        peak_memory_mib: highest resident memory of the process since its start, with every configuration loaded; None if not counted.
        energy_reason: why there are no energy figures; None if there are.
        date: start, ISO 8601 in UTC.
        notes: what a reader should know, as sentences.
    """

    engine: str
    device: str
    versions: dict[str, str]
    rows: tuple[BenchRow, ...]
    model: dict[str, str | int]
    rounds: int
    warmup_rounds: int
    seed: int
    images: str
    machine: Machine
    peak_memory_mib: float | None
    energy_reason: str | None
    date: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the names are stable within a schema number, new ones may be added."""
        value = dataclasses.asdict(self)
        value["rows"] = [_rounded(dataclasses.asdict(row)) for row in self.rows]
        value["notes"] = list(self.notes)
        return {"schema": SCHEMA, **value, "speedup_method": SPEEDUP_METHOD}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a row."""
        columns = ["scope", "batch", "keep", "mode", "precision", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up", "bound", "of bound"]
        return columns, [_cells(row) for row in self.rows]


def notes_on(rows: tuple[BenchRow, ...], patches: int, machine: Machine) -> tuple[str, ...]:
    """What the rows mean: where pruning does not pay, what else takes time, and whether the machine was too busy to tell."""
    pruned = [row for row in rows if not row.is_baseline and row.k < patches]
    notes = [_does_not_pay(row) for row in pruned if row.speedup < PAYS]
    notes += _preparation(pruned)
    unsure = [row for row in pruned if row.speedup_high - row.speedup_low > 2.0 * _UNSURE * row.speedup]
    if unsure:
        widest = max(unsure, key=lambda row: (row.speedup_high - row.speedup_low) / row.speedup)
        notes.append(
            f"{len(unsure)} of {len(pruned)} speed-ups are known less exactly than +-5 % (widest: {_where(widest)}, {_interval(widest)}); "
            "measure for longer or on a quiet machine."
        )
    if machine.load_average is not None and machine.load_average > 0.5:
        notes.append(f"Other jobs ran before the measurement: the load average was {machine.load_average:.1f} on {machine.cores} processors.")
    return tuple(notes)


def _does_not_pay(row: BenchRow) -> str:
    return (
        f"Pruning does not pay for {_where(row)}: speed-up {row.speedup:.2f}x ({_interval(row)}), where the bound is {row.bound:.2f}x; "
        "run the unpruned model (mode 'full') there."
    )


def _preparation(rows: list[BenchRow]) -> list[str]:
    """The row whose images take the largest share of an end-to-end call to prepare, if that is much."""
    shares = [((row.stages_ms["decode"] + row.stages_ms["preprocess"]) / row.p50_ms, row) for row in rows if "decode" in row.stages_ms]
    if not shares:
        return []
    share, row = max(shares, key=lambda pair: pair[0])
    if share < _MUCH_PREPARATION:
        return []
    return [f"Decoding and preprocessing take {100.0 * share:.0f} % of a call for {_where(row)}; pruning does not shorten them."]


def _interval(row: BenchRow) -> str:
    return f"{row.speedup_low:.2f} to {row.speedup_high:.2f}"


def _where(row: BenchRow) -> str:
    return f"batch {row.batch}, keep {row.keep:g}, {row.mode}, {row.precision}, {row.scope}"


def _cells(row: BenchRow) -> list[str]:
    times = [_milliseconds(value) for value in (row.p50_ms, row.p90_ms, row.p99_ms)]
    rates = [f"{row.images_per_s:.1f}", f"{row.speedup:.2f}x", f"{row.bound:.2f}x", f"{100.0 * row.share_of_bound:.0f}%"]
    return [row.scope, str(row.batch), f"{row.keep:g}", row.mode, row.precision, *times, *rates]


def _milliseconds(value: float) -> str:
    return f"{value:.1f}" if value >= 10.0 else f"{value:.3f}"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    row["stages_ms"] = {name: round(value, 4) for name, value in row["stages_ms"].items()}
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
