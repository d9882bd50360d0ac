"""What the rows of a benchmark mean, in plain sentences."""

from collections.abc import Sequence

from prtool.runtime.bench.config import ENCODER
from prtool.runtime.bench.lineup import Lineup, Measured, Variant
from prtool.runtime.bench.report import BenchRow
from prtool.runtime.bench.timing import speedup
from prtool.runtime.machine import Machine

PAYS = 1.03
"""Least speed-up that is worth pruning for, and least theoretical speed-up between two keeps whose equal times are worth a note."""
_FLAT = 1.02
"""Most ratio of times that counts as the same time."""
_UNSURE = 0.05
_MUCH_PREPARATION = 0.2


def notes_on(rows: Sequence[BenchRow], machine: Machine) -> list[str]:
    """Where pruning is not faster, what else takes time, and whether the machine was too busy to tell."""
    pruned = [row for row in rows if not row.is_baseline and row.theoretical_speedup > 1.0]
    notes = _not_faster([row for row in pruned if row.speedup < PAYS]) + _preparation(pruned)
    unsure = [row for row in pruned if row.speedup_high - row.speedup_low > 2.0 * _UNSURE * row.speedup]
    if unsure:
        widest = max(unsure, key=lambda row: (row.speedup_high - row.speedup_low) / row.speedup)
        notes.append(
            f"{len(unsure)} of {len(pruned)} speed-ups are known less exactly than +-5 % (widest: {_where(widest)}, {_interval(widest)}); "
            "measure for longer or on a quiet machine."
        )
    if machine.load_average is not None and machine.load_average > 0.5:
        notes.append(f"Other jobs ran before the measurement: the load average was {machine.load_average:.1f} on {machine.cores} processors.")
    return notes


def plateaus(lineup: Lineup, measured: Measured) -> list[str]:
    """One sentence on each run of keeps of the encoder that take the same time although they differ in cost."""
    found: list[str] = []
    for group in lineup.variants:
        for mode in lineup.config.modes if group[0].scope == ENCODER else ():
            start, steps = 0, sorted((item for item in group[1:] if item.mode == mode), key=lambda item: -item.k)
            for end in range(1, len(steps) + 1):
                if end == len(steps) or not _is_flat(lineup, steps[start], steps[end], measured):
                    found += _plateau(lineup, steps[start:end], measured)
                    start = end
    return found


def _is_flat(lineup: Lineup, more: Variant, fewer: Variant, measured: Measured) -> bool:
    """Whether fewer patches are hardly faster, and significantly (95 % CI) by less than half of what their cost promises."""
    gained = speedup(measured[more], measured[fewer])
    return gained.median < _FLAT and gained.high < 1.0 + 0.5 * (_promised(lineup, more, fewer) - 1.0)


def _plateau(lineup: Lineup, steps: Sequence[Variant], measured: Measured) -> list[str]:
    first, last = steps[0], steps[-1]
    if _promised(lineup, first, last) < PAYS:
        return []
    counts = f"{', '.join(str(item.k) for item in steps[:-1])} and {last.k}"
    times = [measured[item].percentile_ms(50) for item in steps]
    return [
        f"Keeping fewer than {first.k} patches, down to {last.k}, is not faster for {_place(first)}: "
        f"{counts} take the same time ({min(times):.3g} to {max(times):.3g} ms)."
    ]


def _promised(lineup: Lineup, more: Variant, fewer: Variant) -> float:
    return lineup.manifest.theoretical_speedup(fewer.k) / lineup.manifest.theoretical_speedup(more.k)


def _not_faster(rows: Sequence[BenchRow]) -> list[str]:
    """One sentence for all keeps of a batch, mode, engine, precision and scope."""
    places: dict[str, list[str]] = {}
    for row in rows:
        gain = f"{row.speedup:.2f}x at keep {row.keep:g} ({_interval(row)}, theoretical {row.theoretical_speedup:.2f}x)"
        places.setdefault(_place(row), []).append(gain)
    return [
        f"Pruning is not worth it for {place}: {', '.join(gains)}; run the unpruned model there (--mode full)." for place, gains in places.items()
    ]


def _preparation(rows: Sequence[BenchRow]) -> list[str]:
    """The row whose images take the largest share of an end-to-end call to prepare, if that is much."""
    shares = [((row.stages_ms["decode"] + row.stages_ms["preprocess"]) / row.p50_ms, row) for row in rows if "decode" in row.stages_ms]
    share, row = max(shares, key=lambda pair: pair[0], default=(0.0, None))
    if row is None or share < _MUCH_PREPARATION:
        return []
    return [f"Decoding and preprocessing take {100.0 * share:.0f} % of a call for {_where(row)}; pruning does not shorten them."]


def _interval(row: BenchRow) -> str:
    return f"{row.speedup_low:.2f} to {row.speedup_high:.2f}"


def _where(row: BenchRow) -> str:
    return f"keep {row.keep:g}, {_place(row)}"


def _place(item: BenchRow | Variant) -> str:
    return f"batch {item.batch}, {item.mode}, {item.engine} {item.precision}, {item.scope}"
