"""Zero-shot accuracy of exported bundles on labelled images, by engine, precision and keep; the file that benchmarks.peers reads.

python -m benchmarks.accuracy --set dtd10 runs/dtd10 data/dtd10 --encoder ort:fp32,openvino:bf16,openvino:int8 --keep 1.0,0.6,0.5

Each run is exported once, with the precisions that the engines need (int8's scales from its train part), into WORK/NAME; the test
part is measured. "unpruned" rows come from the graph that never reads the scorer, "tome" rows from a merged encoder in PyTorch
at the multiply-accumulates of the pruned one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
import torch

from benchmarks.common import KEEPS, NAMES, Script, named, output_option, publish_json, show
from prtool.bundle import Bundle
from prtool.cli.console import BarProgress
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError
from prtool.export.run import export_run, source_of
from prtool.export.write import ExportOptions
from prtool.pictures import short_name
from prtool.progress import stage
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.machine import library_versions, this_machine
from prtool.spec import Keep
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.baselines.tome import MergedEncoder, schedule

Row = dict[str, Any]
Embeddings = npt.NDArray[np.float32]
_BATCH = 8


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """One data set: its run, its bundle, and the images and labels of the test part."""

    name: str
    run: Path
    bundle: Bundle
    pixels: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


Variant = tuple[str, str, str, Keep | None]
"""Method, engine, precision and keep of one way to encode; the keep is None for the unpruned graph."""


def variants_of(encoders: tuple[str, ...], chosen: tuple[Keep, ...], tome: bool) -> list[Variant]:
    """What "ENGINE:PRECISION" names: unpruned and pruned at each keep; and merged encoders."""
    found: list[Variant] = []
    for name in encoders:
        engine, _, precision = name.partition(":")
        if not precision or engine not in ENGINES:
            raise ConfigError(f"encoder = {name!r}, but it must be ENGINE:PRECISION with an engine of {', '.join(ENGINES)}")
        graph_precision(engine, precision)
        found += [("unpruned", engine, precision, None), *(("patch-ranking", engine, precision, keep) for keep in chosen)]
    return found + [("tome", "torch", "fp32", keep) for keep in chosen if tome and keep.value != 1.0]


def prepare(name: str, run: Path, data: Path, work: Path, precisions: tuple[str, ...]) -> DataSet:
    """Exports the run unless its bundle is there already, and reads the test part."""
    folder = work / name
    if not (folder / "prtool.json").is_file() or set(precisions) - set(Bundle.open(folder).manifest.graphs):
        export_run(run, folder, ExportOptions(Keep.ratio(0.6), precisions), data, BarProgress())
    bundle, images = Bundle.open(folder), load_split(data, "test")
    pixels = prepare_batch([images.source(index) for index in range(len(images))], bundle.manifest.preprocess)
    return DataSet(name, run, bundle, pixels, np.array(images.labels))


def embed(found: DataSet, variant: Variant) -> Embeddings:
    """(images, E) of the test part."""
    method, engine, precision, keep = variant
    parts = [found.pixels[start : start + _BATCH] for start in range(0, len(found.pixels), _BATCH)]
    if method == "tome":
        source = source_of(found.run)
        tower, spec = source.pruned.tower, source.spec
        encoder = MergedEncoder(tower, schedule(tower, tower.cost().pruned_gmacs(spec, spec.counts(keep))))
        with torch.inference_mode():
            return np.concatenate([encoder(torch.from_numpy(part)).numpy() for part in parts])
    mode = "full" if keep is None else "fused"
    with Encoder.load(found.bundle, engine=engine, precision=precision, mode=mode, verify=False) as loaded:
        return np.concatenate([loaded.encode_pixels(part, keep) for part in parts])


def measure(sets: list[DataSet], variants: list[Variant]) -> list[Row]:
    """One row a variant: accuracy in percent and mean cosine to the first variant's embeddings, for each data set."""
    progress = BarProgress()
    rows: list[Row] = [
        {"method": method, "engine": engine, "precision": precision, "keep": 1.0 if keep is None else keep.value, "accuracy": {}, "cosine": {}}
        for method, engine, precision, keep in variants
    ]
    with stage(progress, "encoding (sets x variants)", len(sets) * len(variants)):
        for found in sets:
            with Encoder.load(found.bundle, verify=False) as encoder:
                classes = encoder.classes.embeddings
            reference: Embeddings | None = None
            for variant, row in zip(variants, rows, strict=True):
                embeddings = embed(found, variant)
                reference = embeddings if reference is None else reference
                right = (embeddings @ classes.T).argmax(axis=1) == found.labels
                row["accuracy"][found.name] = 100.0 * float(right.mean())
                row["cosine"][found.name] = round(float((embeddings * reference).sum(axis=1).mean()), 5)
                progress.advance()
    for row in rows:
        percent = row["accuracy"]
        row["mean"] = round(sum(percent.values()) / len(percent), 3)
        row["accuracy"] = {name: round(value, 3) for name, value in percent.items()}
    return rows


@click.command(cls=Script)
@click.option("--set", "sets", nargs=3, multiple=True, required=True, metavar="NAME RUN DATA", help="A data set, its run and its folder; repeatable.")
@click.option("--encoder", "encoders", type=NAMES, default="ort:fp32", show_default=True, help="ENGINE:PRECISION; the first is the reference.")
@click.option("--keep", "chosen", type=KEEPS, default="1.0,0.8,0.7,0.6,0.5", show_default=True, help="Ratios or counts.")
@click.option("--tome/--no-tome", default=True, show_default=True, help="Also a merged encoder at equal multiply-accumulates, in PyTorch.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/accuracy"), show_default=True, help="Where bundles are made and kept.")
@output_option
def main(
    sets: tuple[tuple[str, str, str], ...], encoders: tuple[str, ...], chosen: tuple[Keep, ...], tome: bool, work: Path, output: Path | None
) -> None:
    """Measures every encoder on every data set."""
    variants = variants_of(encoders, chosen, tome)
    needed = {graph_precision(engine, precision) for method, engine, precision, _ in variants if method != "tome"}
    found = [prepare(name, Path(run), Path(data), work, tuple(sorted({"fp32"} | needed))) for name, run, data in sets]
    rows = measure(found, variants)
    manifest = found[0].bundle.manifest
    model = short_name(manifest.model.name)
    report = {
        "what": "zero-shot top-1 accuracy in percent on the test part, without tuning; cosine to the unpruned embedding of the first encoder",
        "model": model,
        "data": {item.name: len(item.labels) for item in found},
        "location": list(manifest.prune.locations),
        "versions": library_versions() | manifest.versions,
        "cpu": this_machine().cpu,
        "rows": rows,
    }
    file = publish_json(named(output, "accuracy", model, "engines"), report)
    columns = ["method", "engine", "precision", "keep", *(item.name for item in found), "mean"]
    cells = [[str(row[name]) for name in columns[:4]] + [f"{row['accuracy'][s.name]:.2f}" for s in found] + [f"{row['mean']:.2f}"] for row in rows]
    show((columns, cells), f"{model}, top-1 in percent", (), [file])


if __name__ == "__main__":
    main()
