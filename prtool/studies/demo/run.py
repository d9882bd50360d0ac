"""The demonstration: the whole pipeline on a small synthetic data set, ending in tables and plots."""

from pathlib import Path

import numpy as np

from prtool.errors import DataError
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.files import OutputKind, check_output, new_file, write_json
from prtool.progress import Progress
from prtool.runtime.bench import bench
from prtool.runtime.bench.config import ENCODER, BenchConfig
from prtool.runtime.bench.report import BenchReport
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.select import select
from prtool.runtime.show import show
from prtool.spec import Keep
from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, patch_coverage, read_mask, write_dataset
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.evaluate import EvalConfig, EvalReport, evaluate_run
from prtool.trainer.evaluation.plots import plot_evaluation
from prtool.trainer.evaluation.report import figures
from prtool.trainer.train import train

KEEPS = tuple(Keep.ratio(r) for r in (1.0, 0.8, 0.6, 0.5, 0.4, 0.3, 0.2))
PICTURED = tuple(Keep.ratio(r) for r in (0.8, 0.6, 0.4, 0.2))
METHODS = ("patch-ranking", "golden", "cls-attention", "random")
Table = tuple[list[str], list[list[str]]]
_MADE = {"data", "model", "run", "bundle", "vit-b-16", "accuracy.png", "patches.png", "report.md", "report.json"}
_DEMO = OutputKind(
    "a folder of 'prtool demo'", lambda folder: all(item.name in _MADE or item.name[0] == "." for item in folder.iterdir()), True, is_filled=True
)


def run_demo(root: Path, real_size: bool, progress: Progress) -> dict[str, Table]:
    """Train, evaluate, export, bench and show.

    Args:
        root: folder for all outputs; finished stages of an earlier call are reused.
        real_size: also measure ViT-B/16 at 224 px with random weights (speed only; about two minutes).

    Returns:
        Title -> (columns, rows) of each table, also written to `root/report.md`.

    Raises:
        ConfigError: `root` holds something else than an earlier demonstration.
    """
    check_output(root, _DEMO)
    run, bundle = root / "run", root / "bundle"
    train(_prepare(root), run, progress, overwrite=True)
    accuracy = evaluate_run(run, None, EvalConfig(keeps=KEEPS, methods=METHODS), progress)
    plot_evaluation(accuracy, root / "accuracy.png")
    export_run(run, bundle, ExportOptions(Keep.ratio(0.6)), progress=progress)
    speed = bench(bundle, BenchConfig(batches=(8,), keeps=KEEPS, budget_s=15.0), progress)
    tables = {
        "the demo data set: accuracy and speed by keep rate": _world_table(accuracy, speed),
        "object patches among the kept ones (chance: the share kept)": _object_table(root),
    }
    with Encoder.load(bundle) as encoder:
        test = load_split(root / "data", "test")
        show(encoder, [test.file(i) for i in range(0, len(test), max(1, len(test) // 5))][:5], list(PICTURED), root / "patches.png")
    if real_size:
        tables["ViT-B/16 at real size, random weights: speed only"] = _real_size(root, progress)
    _write_report(root, tables)
    return tables


def _prepare(root: Path) -> TrainConfig:
    data, model = root / "data", root / "model"
    if not data.exists():
        write_dataset(data, SceneCounts(train=12, val=3, test=4), seed=0)
    if not model.exists():
        write_model(model)
    # Without recovery, which would limit the keeps to those it learned: here every keep is shown.
    settings = {"phases": ("predictor",), "prune.locations": (3,)}
    return TrainConfig.load(None, {"model": f"local-dir:{model.resolve()}", "data": str(data.resolve()), **settings})


def _world_table(accuracy: EvalReport, speed: BenchReport) -> Table:
    found = {(row.method, round(row.keep, 3)): row for row in accuracy.rows}
    timed = {round(row.keep, 3): row for row in speed.rows if row.scope == ENCODER and row.mode == "fused"}
    columns = ["keep", *(f"accuracy {m}" for m in METHODS), "images/s", "speed-up", "theoretical"]
    rows = []
    for keep in KEEPS:
        key = round(keep.value, 3)
        clock = timed[key]
        rows.append(
            [
                f"{keep.value:.1f}",
                *(figures(found[method, key].accuracy) for method in METHODS),
                f"{clock.images_per_s:.0f}",
                f"{clock.speedup:.2f}x",
                f"{clock.theoretical_speedup:.2f}x",
            ]
        )
    return columns, rows


def _object_table(root: Path) -> Table:
    """The share of object-covered patch area that the predictor keeps: an independent check against the true masks."""
    test = load_split(root / "data", "test")
    with Encoder.load(root / "bundle") as encoder:
        manifest = encoder.manifest
        files = [test.file(i) for i in range(len(test))]
        scores = np.concatenate([encoder.scores(prepare_batch(files[i : i + 32], manifest.preprocess)) for i in range(0, len(files), 32)])
    coverage = np.stack([patch_coverage(read_mask(file), manifest.prune.grid) for file in files])
    rows = []
    for keep in KEEPS:
        kept = np.take_along_axis(coverage, select(scores, keep.resolve(manifest.prune.patches)), axis=1).sum() / coverage.sum()
        rows.append([f"{keep.value:.1f}", f"{100 * kept:.1f} %", f"{100 * keep.value:.1f} %"])
    if not rows:
        raise DataError(f"{root / 'data'} has no test images; remove {root} and run the demo again")
    return ["keep", "object area kept", "by chance"], rows


def _real_size(root: Path, progress: Progress) -> Table:
    run, bundle = root / "vit-b-16" / "run", root / "vit-b-16" / "bundle"
    train(TrainConfig(model="ViT-B-16", phases=("none",)), run, progress, overwrite=True)
    export_run(run, bundle, ExportOptions(Keep.ratio(0.6)), progress=progress)
    return bench(bundle, BenchConfig(batches=(1, 8), keeps=KEEPS[:5], scopes=(ENCODER,), budget_s=60.0), progress).table()


def _write_report(root: Path, tables: dict[str, Table]) -> None:
    write_json(root / "report.json", {title: {"columns": columns, "rows": rows} for title, (columns, rows) in tables.items()})
    lines = ["# prtool demo", ""]
    for title, (columns, rows) in tables.items():
        lines += [f"## {title}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    lines += ["![accuracy against keep](accuracy.png)", "", "![kept patches](patches.png)", ""]
    with new_file(root / "report.md") as temporary:
        temporary.write_text("\n".join(lines))
