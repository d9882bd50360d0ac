"""The result of the race: a row for each encoder and scope, relative to open_clip eager in fp32."""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.accuracy import UNPRUNED
from prtool.files import file_kind
from prtool.runtime.machine import Machine

RESULT = file_kind(
    "a result of 'python -m benchmarks.peers'", {".json": re.compile(rb'\{\n "schema": \d+,\n "model"'), ".csv": re.compile(rb"name,method,scope,")}
)
SCHEMA = 2
WITHIN = 1.0
"""Points of accuracy that a shortened encoder may lose."""
RATIO_METHOD = "median over rounds of open_clip eager fp32 time / time in the same round; low and high enclose it with 95 %"


@dataclass(frozen=True, slots=True)
class PeersRow:
    """One encoder in one scope.

    Attributes:
        name: "open_clip eager", "torch.compile", "ToMe", or how a bundle is shortened: "rank", "merge@192", "none@160", "full".
        method: "unpruned", or the method of `prtool eval` that its accuracy is looked up by.
        scope: "end-to-end" (from JPEG files in memory) or "encoder".
        engine: of the registry, or "torch".
        precision: of the arithmetic.
        image_size: side of the images that it reads, in pixels.
        k: patches that are left; 0 for whole encoders, and for ToMe, which spreads its merges over all blocks.
        target: the share of the unpruned MACs that was wanted; 1.0 for whole encoders.
        gmacs: 10^9 multiply-accumulates of one image.
        share: of those of the whole encoder in the same form.
        p50_ms, p90_ms: percentiles of one call.
        images_per_s: batch / p50.
        ratio, ratio_low, ratio_high: against open_clip eager in fp32, and its 95 % interval.
        speedup: against the whole encoder on the same engine, in the same precision and scope.
        theoretical_speedup: 1 / share.
        share_of_theoretical: speedup / theoretical_speedup.
        accuracy, drop, fidelity: percent, points below the unpruned encoder and mean cosine to it, of the frontier's model in fp32 whatever the
            precision here; None where the frontier has no such row.
        cosine: worst cosine to open_clip eager fp32 on noise, of whole encoders; None for the others.
        detail: how it was configured.
    """

    name: str
    method: str
    scope: str
    engine: str
    precision: str
    image_size: int
    k: int
    target: float
    gmacs: float
    share: float
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
    drop: float | None
    fidelity: float | None
    cosine: float | None
    detail: str

    @property
    def title(self) -> str:
        """Human-readable, without the scope."""
        cost = "" if self.method == UNPRUNED else f" at {self.share:.2f} of the MACs"
        where = self.name if self.engine == "torch" else f"{self.name} on {self.engine}"
        return f"{where} {self.precision}{cost}"


@dataclass(frozen=True, slots=True)
class PeersReport:
    """Rows and circumstances of one run.

    Attributes:
        model: name and weights.
        device: what PyTorch ran on; the engines' devices are in `engines`.
        engines: name -> device.
        images: where the files of the end-to-end rows come from.
        accuracy: of what model and data the accuracies are; "" without a file.
        batch, rounds, seed, threads: of the measurement.
        settle_ms: rest between calls of different libraries, not timed, so that none competes with its predecessor's idle threads.
        left_out: what was asked for and could not run, with reasons.
    """

    model: dict[str, str | int]
    device: str
    engines: dict[str, str]
    versions: dict[str, str]
    rows: tuple[PeersRow, ...]
    images: str
    accuracy: str
    batch: int
    rounds: int
    seed: int
    threads: int
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
        return [_rounded(dataclasses.asdict(row)) | {"batch": self.batch} | facts for row in self.rows]

    def notes(self) -> tuple[str, ...]:
        """What was left out, who wins in each scope, and whether the machine was busy."""
        notes = [*self.left_out]
        for scope in dict.fromkeys(row.scope for row in self.rows):
            notes += verdict([row for row in self.rows if row.scope == scope])
        load = self.machine.load_average
        if load is not None and load > 0.5:
            notes.append(f"Other jobs ran before the measurement: the load average was {load:.1f} on {self.machine.cores} processors.")
        return tuple(notes)


def verdict(rows: Sequence[PeersRow]) -> list[str]:
    """For the rows of one scope: the fastest that loses little accuracy, and the fastest of each other name within the same limit."""
    good = sorted((row for row in rows if row.drop is not None and row.drop <= WITHIN), key=lambda row: -row.ratio)
    if not good:
        return []
    fastest = {row.name: row for row in reversed(good)}
    best, *others = sorted(fastest.values(), key=lambda row: -row.ratio)
    behind = ", ".join(map(_described, others)) or "none"
    return [f"{best.scope}: the fastest within {WITHIN:g} point of accuracy is {_described(best)}; the fastest of the others: {behind}."]


def _described(row: PeersRow) -> str:
    return f"{row.title} ({row.ratio:.2f}x, {0.0 - (row.drop or 0.0):+.1f} points)"


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
