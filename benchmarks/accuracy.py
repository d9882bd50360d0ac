"""Zero-shot accuracy of exported bundles on labelled images, by engine, precision and keep; the file that peers.py reads.

python benchmarks/accuracy.py --set dtd10 runs/dtd10 data/dtd10 --ways ort:fp32,openvino:bf16,openvino:int8 --keep 1.0,0.6,0.5

Each run is exported once, with the precisions that the ways need (int8's scales from its train part), into WORK/NAME; the test
part is measured. "unpruned" rows come from the graph that never reads the scorer, "tome" rows from a merged encoder in PyTorch
at the multiply-accumulates of the pruned one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import numpy.typing as npt
import torch
from results_file import in_one_line, keeps, named, publish_json, short, show, words

from prtool.bundle import Bundle
from prtool.cli.console import BarProgress
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError
from prtool.export.run import export_run, source_of
from prtool.export.write import ExportOptions
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


@dataclass(frozen=True, slots=True)
class Way:
    """One way to encode; `keep` is None for the unpruned graph."""

    method: str
    engine: str
    precision: str
    keep: Keep | None


def ways_of(text: str, chosen: tuple[Keep, ...], tome: bool) -> list[Way]:
    """The ways that "ENGINE:PRECISION,..." names: unpruned and pruned at each keep, and merged encoders."""
    found = []
    for word in words(text):
        engine, _, precision = word.partition(":")
        if not precision or engine not in ENGINES:
            raise ConfigError(f"way = {word!r}, but it must be ENGINE:PRECISION with an engine of {', '.join(ENGINES)}")
        graph_precision(engine, precision)
        found.append(Way("unpruned", engine, precision, None))
        found += [Way("patch-ranking", engine, precision, keep) for keep in chosen]
    return found + ([Way("tome", "torch", "fp32", keep) for keep in chosen if keep.value != 1.0] if tome else [])


def prepare(name: str, run: Path, data: Path, work: Path, precisions: tuple[str, ...]) -> DataSet:
    """Exports the run unless its bundle is there already, and reads the test part."""
    folder = work / name
    if not (folder / "prtool.json").is_file() or set(precisions) - set(Bundle.open(folder).manifest.graphs):
        export_run(run, folder, ExportOptions(Keep.ratio(0.6), precisions), data, BarProgress())
    bundle, images = Bundle.open(folder), load_split(data, "test")
    pixels = prepare_batch([images.source(index) for index in range(len(images))], bundle.manifest.preprocess)
    return DataSet(name, run, bundle, pixels, np.array(images.labels))


def embed(found: DataSet, way: Way) -> Embeddings:
    """(images, E) of the test part."""
    parts = [found.pixels[start : start + _BATCH] for start in range(0, len(found.pixels), _BATCH)]
    if way.method == "tome":
        source = source_of(found.run)
        encoder = MergedEncoder(
            source.pruned.tower, schedule(source.pruned.tower, source.pruned.tower.cost().pruned_gmacs(source.spec, source.spec.counts(way.keep)))
        )
        with torch.inference_mode():
            return np.concatenate([encoder(torch.from_numpy(part)).numpy() for part in parts])
    mode = "full" if way.keep is None else "fused"
    with Encoder.load(found.bundle, engine=way.engine, precision=way.precision, mode=mode, verify=False) as encoder:
        return np.concatenate([encoder.encode_pixels(part, way.keep) for part in parts])


def measure(sets: list[DataSet], ways: list[Way]) -> list[Row]:
    """One row a way: accuracy in percent and mean cosine to the first way's embeddings, for each data set."""
    progress = BarProgress()
    rows: list[Row] = [
        {"method": way.method, "engine": way.engine, "precision": way.precision, "keep": 1.0 if way.keep is None else way.keep.value} for way in ways
    ]
    scores: list[dict[str, tuple[float, float]]] = [{} for _ in ways]
    with stage(progress, "encoding (sets x ways)", len(sets) * len(ways)):
        for found in sets:
            with Encoder.load(found.bundle, verify=False) as encoder:
                classes = encoder.classes.embeddings
            reference: Embeddings | None = None
            for way, score in zip(ways, scores, strict=True):
                embeddings = embed(found, way)
                reference = embeddings if reference is None else reference
                right = (embeddings @ classes.T).argmax(axis=1) == found.labels
                score[found.name] = (100.0 * float(right.mean()), float((embeddings * reference).sum(axis=1).mean()))
                progress.advance()
    for row, score in zip(rows, scores, strict=True):
        row["accuracy"] = {name: round(percent, 3) for name, (percent, _) in score.items()}
        row["cosine"] = {name: round(cosine, 5) for name, (_, cosine) in score.items()}
        row["mean"] = round(sum(percent for percent, _ in score.values()) / len(score), 3)
    return rows


@click.command()
@click.option("--set", "sets", nargs=3, multiple=True, required=True, metavar="NAME RUN DATA", help="A data set, its run and its folder; repeatable.")
@click.option("--ways", default="ort:fp32", show_default=True, help="ENGINE:PRECISION, comma-separated; the first unpruned one is the reference.")
@click.option("--keep", default="1.0,0.8,0.7,0.6,0.5", show_default=True, help="Ratios or counts, comma-separated.")
@click.option("--tome/--no-tome", default=True, show_default=True, help="Also a merged encoder at equal multiply-accumulates, in PyTorch.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/accuracy"), show_default=True, help="Where bundles are made and kept.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="JSON file; named after the model if absent.")
def main(**options: object) -> None:
    """Measures every way on every data set."""
    in_one_line(_run, options)


def _run(options: dict[str, object]) -> None:
    chosen = ways_of(str(options["ways"]), keeps(options["keep"]), bool(options["tome"]))
    needed = {graph_precision(way.engine, way.precision) for way in chosen if way.method != "tome"}
    precisions = tuple(sorted({"fp32"} | needed))
    asked = cast(tuple[tuple[str, str, str], ...], options["sets"])
    sets = [prepare(name, Path(run), Path(data), Path(str(options["work"])), precisions) for name, run, data in asked]
    rows = measure(sets, chosen)
    model = short(sets[0].bundle.manifest.model.name)
    report = {
        "what": "zero-shot top-1 accuracy in percent on the test part, without tuning; cosine to the unpruned embedding of the first way",
        "model": model,
        "data": {found.name: len(found.labels) for found in sets},
        "location": list(sets[0].bundle.manifest.prune.locations),
        "versions": library_versions() | sets[0].bundle.manifest.versions,
        "cpu": this_machine().cpu,
        "rows": rows,
    }
    file = publish_json(named(options["output"], "accuracy", model, "engines"), report)
    columns = ["method", "engine", "precision", "keep", *(found.name for found in sets), "mean"]
    cells = [[str(row[name]) for name in columns[:4]] + [f"{row['accuracy'][s.name]:.2f}" for s in sets] + [f"{row['mean']:.2f}"] for row in rows]
    show((columns, cells), f"{model}, top-1 in percent", (), [file])


if __name__ == "__main__":
    main()
