"""The result of the comparison: a row for each encoder, batch and keep, relative to open_clip eager in fp32."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.accuracy import MERGED, PRUNED, UNPRUNED, Accuracies
from prtool.files import file_kind
from prtool.runtime.machine import Machine

RESULT = file_kind(
    "a result of 'python -m benchmarks.peers'", {".json": re.compile(rb'\{\n "schema": \d+,\n "model"'), ".csv": re.compile(rb"method,kind,engine,")}
)
SCHEMA = 1
WITHIN = 1.0
"""Points of accuracy that a pruned encoder may lose."""
RATIO_METHOD = "median over rounds of open_clip eager fp32 time / time in the same round and at the same batch; low and high enclose it with 95 %"


@dataclass(frozen=True, slots=True)
class PeersRow:
    """One encoder at one batch.

    Attributes:
        method: "open_clip eager", "torch.compile", "ToMe", ..., and "unpruned" and "patch-ranking" for the bundle's graphs.
        kind: "unpruned", "patch-ranking" or "tome": what its accuracy depends on besides engine, precision and keep.
        engine: of the registry, or "torch".
        precision: of the arithmetic.
        mode: "full", "fused" or "split" of the bundle's graphs; "" for the others.
        keep: share of patches kept; for merged tokens that of the pruned encoder of equal cost.
        batch: images a call.
        gmacs: 10^9 multiply-accumulates of one image.
        p50_ms, p90_ms: percentiles of one call.
        images_per_s: batch / p50.
        ratio, ratio_low, ratio_high: against open_clip eager in fp32 at the same batch, and its 95 % interval.
        speedup: against the unpruned encoder in the same method's own form, engine, precision and batch.
        theoretical_speedup: unpruned over own multiply-accumulates.
        share_of_theoretical: speedup / theoretical_speedup.
        accuracy: mean in percent, from the accuracy file; None where it does not say.
        points: accuracy minus that of the unpruned encoder in fp32.
        cosine: worst cosine to open_clip eager fp32 on noise; None for encoders that drop or merge tokens.
        detail: how it was configured.
    """

    method: str
    kind: str
    engine: str
    precision: str
    mode: str
    keep: float
    batch: int
    gmacs: float
    p50_ms: float
    p90_ms: float
    images_per_s: float
    ratio: float
    ratio_low: float
    ratio_high: float
    speedup: float
    theoretical_speedup: float
    share_of_theoretical: float
    accuracy: float | None
    points: float | None
    cosine: float | None
    detail: str

    @property
    def name(self) -> str:
        """Human-readable, without the batch."""
        keep = "" if self.kind == UNPRUNED else f", keep {self.keep:g}"
        mode = f", {self.mode}" if self.mode in ("fused", "split") else ""
        method = self.method if self.engine == "torch" and self.mode == "" else f"{self.method} on {self.engine}"
        return f"{method} {self.precision}{keep}{mode}"


@dataclass(frozen=True, slots=True)
class PeersReport:
    """Rows and circumstances of one run.

    Attributes:
        model: name and weights.
        device: what PyTorch ran on; the engines' devices are in `engines`.
        engines: name -> device.
        accuracy: of what model and data the accuracies are, and the unpruned fp32 one; None without a file.
        rounds, seed, threads, streams: of the measurement.
        settle_ms: rest between calls of different libraries, not timed, so that none competes with its predecessor's idle threads.
        left_out: what was asked for and could not run, with reasons.
    """

    model: dict[str, str | int]
    device: str
    engines: dict[str, str]
    versions: dict[str, str]
    rows: tuple[PeersRow, ...]
    accuracy: dict[str, str | float] | None
    rounds: int
    seed: int
    threads: int
    streams: int
    settle_ms: float
    machine: Machine
    peak_memory_mib: float | None
    date: str
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        value = dataclasses.asdict(self)
        value["rows"] = [_rounded(dataclasses.asdict(row)) for row in self.rows]
        return {"schema": SCHEMA, **value, "ratio_method": RATIO_METHOD, "notes": list(self.notes())}

    def to_csv(self) -> list[dict[str, Any]]:
        """One flat record a row; model, processor and date are repeated."""
        facts = {"model": self.model["name"], "processor": self.machine.cpu, "threads": self.threads, "rounds": self.rounds, "date": self.date}
        return [_rounded(dataclasses.asdict(row)) | facts for row in self.rows]

    def notes(self) -> tuple[str, ...]:
        """What was left out, who wins at each batch, and whether the machine was busy."""
        notes = [*self.left_out]
        for batch in dict.fromkeys(row.batch for row in self.rows):
            notes += verdict([row for row in self.rows if row.batch == batch])
        load = self.machine.load_average
        if load is not None and load > 0.5:
            notes.append(f"Other jobs ran before the measurement: the load average was {load:.1f} on {self.machine.cores} processors.")
        return tuple(notes)


def verdict(rows: Sequence[PeersRow]) -> list[str]:
    """For the rows of one batch: the fastest pruned one that loses little accuracy, and the others that are as accurate and faster."""
    good = [row for row in rows if row.kind == PRUNED and row.points is not None and row.points >= -WITHIN]
    if not good:
        return []
    best = max(good, key=lambda row: row.ratio)
    faster = [row for row in rows if row.kind != PRUNED and row.ratio > best.ratio]
    as_accurate = [row for row in faster if row.accuracy is not None and best.accuracy is not None and row.accuracy >= best.accuracy]
    unknown = [row for row in faster if row.accuracy is None]
    others = "no other row at equal or better accuracy is faster" if not as_accurate else f"faster at equal or better accuracy: {_list(as_accurate)}"
    doubt = f"; faster at unknown accuracy: {_list(unknown)}" if unknown else ""
    return [f"Batch {best.batch}: the fastest pruned row within {WITHIN:g} point is {_list([best])}; {others}{doubt}."]


def with_accuracy(row: PeersRow, accuracies: Accuracies | None) -> PeersRow:
    """The row with the accuracy that the file has for it."""
    found = None if accuracies is None else accuracies.of(row.kind, row.engine, row.precision, row.keep)
    if accuracies is None or found is None:
        return row
    return dataclasses.replace(row, accuracy=found, points=found - accuracies.reference)


def kind_of(method: str) -> str:
    """What the accuracy of a method depends on."""
    if method.startswith("ToMe"):
        return MERGED
    return PRUNED if method == PRUNED else UNPRUNED


def _list(rows: Sequence[PeersRow]) -> str:
    points = ["" if row.points is None else f", {row.points:+.1f} points" for row in rows]
    return ", ".join(f"{row.name} ({row.ratio:.2f}x{extra})" for row, extra in zip(rows, points, strict=True))


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
