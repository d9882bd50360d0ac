"""What pruning itself costs: the share of predictor, selection and learnable tokens in multiply-accumulates, time, memory and energy."""

from dataclasses import replace
from pathlib import Path

from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.bench import BenchConfig, BenchReport, bench
from prtool.runtime.bench.config import ENCODER
from prtool.spec import Keep
from prtool.studies.paper.plan import Job, Study
from prtool.studies.paper.report import Entry, Report
from prtool.studies.paper.run import trained

_BUDGET_S = 30.0


def overhead(study: Study, folder: Path, engine: str, progress: Progress) -> Report:
    """Trains, exports and measures the study's first data set.

    Args:
        study: its keep is the pruned encoder's.
        folder: runs go to `folder/runs`, the bundle next to them.
        engine: name of the engine registry.
        progress: receives the stages of each phase.

    Raises:
        Everything that training, export and benchmark raise.
    """
    # Made before anything is trained: it rejects keeps that cannot be measured.
    asked = BenchConfig(engines=(engine,), batches=(1, 8), keeps=(1.0, study.keep), modes=("fused", "split"), scopes=(ENCODER,), budget_s=_BUDGET_S)
    job = Job(study.sets[:1], study.sets[0], (("phases", ("predictor", "tokens")),), (), ())
    run, _ = trained(job, study, folder, progress)
    bundle = folder / "bundles" / run.name
    manifest = export_run(run, bundle, ExportOptions(study.keep), progress=progress)
    report = bench(bundle, asked, progress)
    entries = [*_macs(manifest, study.keep), *_times(report)]
    entries += [Entry("peak memory of the run, MiB", "time", report.peak_memory_mib, None, 1, None)] if report.peak_memory_mib else []
    differs = [f"{report.device}, {engine}; data set {study.sets[0].name}", *report.notes]
    differs += [f"energy was not read: {report.energy_reason}"] if report.energy_reason else []
    return Report("overhead", f"What pruning costs, % of the unpruned encoder (keep {study.keep})", tuple(entries), tuple(differs), ())


def _macs(manifest: Manifest, keep: Keep) -> list[Entry]:
    """Multiply-accumulates, exactly."""
    cost, spec = manifest.cost, manifest.prune
    whole, bare = cost.full_gmacs(spec), replace(spec, learnable_tokens=0, learnable_from_block=1)
    tokens = cost.pruned_gmacs(spec, spec.counts(keep)) - cost.pruned_gmacs(bare, bare.counts(keep))
    return [
        Entry("predictor", "MACs", 100 * cost.scorer_macs / 1e9 / whole, None, 1, None),
        Entry("learnable tokens", "MACs", 100 * tokens / whole, None, 1, None),
        Entry("everything at this keep", "MACs", 100 * cost.pruned_gmacs(spec, spec.counts(keep)) / whole, None, 1, None),
    ]


def _times(report: BenchReport) -> list[Entry]:
    """Times and energy relative to the unpruned encoder of the same run."""
    entries = []
    for batch in sorted({row.batch for row in report.rows}):
        rows = [row for row in report.rows if row.batch == batch]
        base, column = next(row for row in rows if row.is_baseline), f"time, batch {batch}"
        for row in (row for row in rows if not row.is_baseline):
            if row.mode == "split":
                chosen = sum(value for name, value in row.stages_ms.items() if name.startswith("select"))
                entries.append(Entry(f"selection at keep {row.keep:g}, split", column, 100 * chosen / base.p50_ms, None, 1, None))
                continue
            whole = row.k == max(r.k for r in rows)
            title = "predictor, selection and tokens (keep 1, fused, above the unpruned)" if whole else f"all at keep {row.keep:g}"
            below = 100 if whole else 0
            entries.append(Entry(title, column, 100 / row.speedup - below, None, 1, None))
            if row.joules_per_image is not None and base.joules_per_image:
                entries.append(Entry(title, f"energy, batch {batch}", 100 * row.joules_per_image / base.joules_per_image - below, None, 1, None))
    return entries
