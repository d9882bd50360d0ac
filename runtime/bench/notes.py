"""What the rows of a benchmark mean, in plain sentences."""

from collections.abc import Sequence

from prtool.runtime.bench.report import BenchRow, Plateau
from prtool.runtime.machine import Machine

PAYS = 1.03
"""Least speed-up that is worth pruning for."""
_UNSURE = 0.05
_MUCH_PREPARATION = 0.2


def notes_on(rows: Sequence[BenchRow], plateaus: Sequence[Plateau], patches: int, machine: Machine) -> tuple[str, ...]:
    """Where pruning does not pay, where fewer patches bring nothing, what else takes time, and whether the machine was too busy to tell."""
    pruned = [row for row in rows if not row.is_baseline and row.k < patches]
    notes = _do_not_pay([row for row in pruned if row.speedup < PAYS])
    notes += [_brings_nothing(plateau) for plateau in plateaus]
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


def _do_not_pay(rows: Sequence[BenchRow]) -> list[str]:
    """One sentence for all keeps of a batch, mode, engine, precision and scope."""
    places: dict[str, list[BenchRow]] = {}
    for row in rows:
        places.setdefault(_place(row), []).append(row)
    return [
        f"Pruning does not pay for {place}: {', '.join(map(_gain, found))}; run the unpruned model (mode 'full') there."
        for place, found in places.items()
    ]


def _gain(row: BenchRow) -> str:
    return f"{row.speedup:.2f}x at keep {row.keep:g} ({_interval(row)}, bound {row.bound:.2f}x)"


def _brings_nothing(plateau: Plateau) -> str:
    *fewer, fewest = plateau.counts
    counts = f"{', '.join(map(str, fewer))} and {fewest}"
    return (
        f"Fewer than {plateau.counts[0]} patches bring nothing down to {fewest} for {plateau.where}: "
        f"{counts} take the same time ({plateau.least_ms:.3g} to {plateau.most_ms:.3g} ms)."
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
    return f"keep {row.keep:g}, {_place(row)}"


def _place(row: BenchRow) -> str:
    return f"batch {row.batch}, {row.mode}, {row.engine} {row.precision}, {row.scope}"
