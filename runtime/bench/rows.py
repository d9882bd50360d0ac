"""From samples to rows: percentiles, the speed-up over the own baseline, and the ratio to the reference."""

from collections.abc import Mapping

from prtool.runtime.bench.config import BASELINE_MODE, SLOWEST
from prtool.runtime.bench.lineup import Lineup, Variant
from prtool.runtime.bench.report import BenchRow
from prtool.runtime.bench.timing import Samples, speedup

Measured = Mapping[Variant, Samples]


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
