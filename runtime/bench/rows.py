"""From samples to rows: percentiles, speed-up against the own baseline, ratio to the reference, and flat steps."""

from collections.abc import Mapping, Sequence

from prtool.manifest import Manifest
from prtool.runtime.bench.config import ENCODER, SLOWEST
from prtool.runtime.bench.lineup import Lineup, Way
from prtool.runtime.bench.report import BenchRow, Plateau
from prtool.runtime.bench.timing import Samples, speedup

_GAINS = 1.03
"""Least ratio of multiply-accumulates between two keeps for which equal times are worth a word."""
_FLAT = 1.02
"""Most ratio of times that counts as the same time."""

Measured = Mapping[Way, Samples]


def rows_of(lineup: Lineup, measured: Measured) -> tuple[BenchRow, ...]:
    """One row for each configuration, in the lineup's order."""
    return tuple(_row(lineup, way, group[0], measured) for group in lineup.ways for way in group)


def plateaus_of(lineup: Lineup, measured: Measured) -> tuple[Plateau, ...]:
    """Keeps of the encoder that take the same time although they differ in cost, for each batch, engine, precision and mode."""
    found: list[Plateau] = []
    for group in lineup.ways:
        if group[0].scope != ENCODER:
            continue
        for mode in dict.fromkeys(way.mode for way in group[1:]):
            steps = sorted((way for way in group[1:] if way.mode == mode), key=lambda way: -patches_kept(lineup.manifest, way))
            found += _plateaus(lineup, steps, measured)
    return tuple(found)


def patches_kept(manifest: Manifest, way: Way) -> int:
    """The number of patches that stay."""
    return manifest.prune.patches if way.keep is None else manifest.resolve(way.keep)


def _plateaus(lineup: Lineup, steps: Sequence[Way], measured: Measured) -> list[Plateau]:
    """Splits configurations of falling keep into runs that are as slow as the first of the run."""
    found, start = [], 0
    for place in range(1, len(steps) + 1):
        if place < len(steps) and _is_flat(lineup.manifest, steps[start], steps[place], measured):
            continue
        plateau = _plateau(lineup, steps[start:place], measured)
        if plateau is not None:
            found.append(plateau)
        start = place
    return found


def _is_flat(manifest: Manifest, more: Way, fewer: Way, measured: Measured) -> bool:
    """Whether fewer patches are hardly faster, and surely by less than half of what their cost promises."""
    gained = speedup(measured[more], measured[fewer])
    promised = manifest.theoretical_speedup(patches_kept(manifest, fewer)) / manifest.theoretical_speedup(patches_kept(manifest, more))
    return gained.median < _FLAT and gained.high < 1.0 + 0.5 * (promised - 1.0)


def _plateau(lineup: Lineup, ways: Sequence[Way], measured: Measured) -> Plateau | None:
    manifest = lineup.manifest
    counts = [patches_kept(manifest, way) for way in ways]
    if manifest.theoretical_speedup(counts[-1]) / manifest.theoretical_speedup(counts[0]) < _GAINS:
        return None
    way = ways[0]
    times = [measured[item].percentile_ms(50) for item in ways]
    where = f"batch {way.batch}, {way.mode}, {way.offer.engine} {way.offer.precision}, {way.scope}"
    return Plateau(where, tuple(counts), min(times), max(times))


def _row(lineup: Lineup, way: Way, baseline: Way, measured: Measured) -> BenchRow:
    manifest, samples, info = lineup.manifest, measured[way], lineup.info(way)
    patches, k = manifest.prune.patches, patches_kept(manifest, way)
    bound = 1.0 if way.keep is None else manifest.theoretical_speedup(k)
    gained = speedup(measured[baseline], samples)
    p50_ms = samples.percentile_ms(50)
    images = len(samples.total_ns) * way.batch
    return BenchRow(
        scope=way.scope,
        batch=way.batch,
        engine=way.offer.engine,
        device=info.device,
        precision=way.offer.precision,
        mode=way.mode,
        keep=k / patches if way.keep is None or way.keep.is_count else way.keep.value,
        k=k,
        gmacs=manifest.cost.full_gmacs(manifest.prune) / bound,
        p50_ms=p50_ms,
        p90_ms=samples.percentile_ms(90),
        p99_ms=samples.percentile_ms(99),
        images_per_s=1e3 * way.batch / p50_ms,
        speedup=gained.median,
        speedup_low=gained.low,
        speedup_high=gained.high,
        bound=bound,
        share_of_bound=gained.median / bound,
        reference_ratio=_reference_ratio(lineup, way, measured),
        stages_ms=samples.stages_ms(),
        device_ms=samples.device_ms(),
        joules_per_image=None if samples.joules is None else samples.joules / images,
        gpu_joules_per_image=None,
    )


def _reference_ratio(lineup: Lineup, way: Way, measured: Measured) -> float | None:
    """Median over the rounds of reference time / time within the same round; None where no reference was asked for."""
    name = lineup.config.reference
    baselines = [group[0] for group in lineup.ways if (group[0].scope, group[0].batch) == (way.scope, way.batch)]
    if not name:
        return None
    if name == SLOWEST:
        chosen = max(baselines, key=lambda item: measured[item].percentile_ms(50))
    else:
        chosen = next(item for item in baselines if str(item.offer) == name)
    return speedup(measured[chosen], measured[way]).median
