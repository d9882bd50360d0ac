"""Every way to shorten an encoder at the same multiply-accumulates: accuracy, fidelity, retrieval and measured images a second.

    python -m benchmarks.frontier --model local-dir:MODEL --data caltech101:C,oxford_pets:P,eurosat:E,dtd10
    python -m benchmarks.frontier --table benchmarks/results/frontier-dual-s14.json --earlier benchmarks/results/frontier-dual-s14-earlier.json
    python -m benchmarks.frontier --model MODEL --data DATA --reducer rank+,none@140+ --seed 1 --no-speed -o recovered-1

One predictor is trained on all sets, and with a + behind a reducer its encoder is recovered. Rows: Patch Ranking, merging and smaller
images with their bundles on CPU engines, mixtures of them (METHOD@PIXELS), merging from block 1 on (merge/1, which is ToMe), and the
methods that exist in PyTorch only. The default shares are those of images of 13, 12, ... 8 of 14 patches a side, so that rows stand at
equal cost.

Runs, bundles, evaluations and speeds are kept in --work: the same command goes on where a stopped one was. With --no-speed it needs
no quiet machine; the same without it then only times.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from benchmarks.common import FILES, NAMES, Script, named, publish_json, show
from benchmarks.frontier.accuracy import Evaluations, Figures, Sets
from benchmarks.frontier.points import BASELINES, Point, points_of
from benchmarks.frontier.speed import SpeedPlan, measured
from benchmarks.frontier.table import joined, main_table, markdown
from benchmarks.reducers import REDUCERS, SHARES, Reducer, Workshop, check_some, chosen, default_reducers
from prtool.cli.console import BarProgress
from prtool.cli.parameters import settings_option
from prtool.errors import DataError
from prtool.pictures import short_name
from prtool.runtime.bench.timing import Plan
from prtool.runtime.machine import library_versions, this_machine
from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, write_dataset
from prtool.trainer.runs.checkpoint import Checkpoint

SCHEMA = 1
_SMOKE = Path("runs/frontier-smoke")


@click.command(cls=Script)
@click.option("--model", help="open_clip name, or local-dir:PATH.")
@click.option("--pretrained", default="", help="Tag or checkpoint file.")
@click.option("--data", default="", help="Labelled sets with commas, each FOLDER or NAME:FOLDER.")
@click.option("--share", "shares", type=SHARES, default=".857,.735,.617,.51,.41,.33", show_default=True, help="MACs relative to unpruned.")
@click.option("--reducer", "reducers", type=REDUCERS, default=(), help="METHOD[/BLOCK][@PIXELS][+], + for recovered.  [default: all but recovered]")
@click.option("--method", "baselines", type=NAMES, default=",".join(BASELINES), show_default=True, help="Methods that exist in PyTorch only.")
@click.option("--unseen", type=NAMES, default=(), help="Names of sets that are also measured with what was learned from the others.")
@click.option("--speed/--no-speed", "timed", default=True, show_default=True, help="Also time everything.")
@click.option("--engine", "engines", type=NAMES, default="ort,openvino,torch", show_default=True, help="Of the speeds; torch is eager PyTorch.")
@click.option("--batch", default=8, show_default=True, help="Images a call.")
@click.option("--threads", default=0, show_default=True, help="CPU threads; 0 takes all that are granted.")
@click.option("--seconds", default=300.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--images", default=0, show_default=True, help="Test images of each set at most; 0 takes all.")
@click.option("--seed", default=0, show_default=True, help="Of training, random methods and the order of timing.")
@settings_option("all of 'prtool train --show-config'")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/frontier"), show_default=True, help="Runs, bundles and what is finished.")
@click.option("--smoke", is_flag=True, help="A tiny model and a few drawn images, to see that everything runs.")
@click.option("--table", "tables", type=FILES, default=(), help="Print a result as Markdown, or the mean of several seeds' results, and stop.")
@click.option("--earlier", type=click.Path(path_type=Path), help="With --table: a file to compare with.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Result file; named after the model if absent.")
def main(tables: tuple[Path, ...], earlier: Path | None, **options: Any) -> None:
    """Measures the frontier of one encoder."""
    if tables:
        click.echo(markdown(joined(list(map(_read, tables))), None if earlier is None else _read(earlier)))
        return
    if options["smoke"]:
        options |= _smoke()
    if not options["model"] or not options["data"]:
        raise click.UsageError("give --model and --data, or --smoke")
    sets = Sets.parse(options["data"], options["images"])
    data = ",".join(sets.addresses.values())
    workshop = Workshop(options["work"], options["model"], options["pretrained"], data, options["seed"], options["settings"], BarProgress())
    report = _measure(workshop, sets, options)
    file = publish_json(named(options["output"], "frontier", report["model"]), report)
    show(main_table(sorted(report["rows"], key=lambda row: -row["share"])), f"{report['model']}: the frontier", (), [file])


def _measure(workshop: Workshop, sets: Sets, options: dict[str, Any]) -> dict[str, Any]:
    for name in options["unseen"]:
        sets.without(name)
    tower = workshop.tower()
    reducers = chosen(options["reducers"] or default_reducers(tower), tower, options["shares"])
    keeps = {reducer: workshop.keeps(reducer, options["shares"]) for reducer in reducers}
    points = points_of(keeps, options["baselines"])
    check_some(points, reducers, options["shares"])
    unpruned, rows = Evaluations(workshop, sets).rows(points, options["unseen"])
    unpruned |= {"image_size": tower.image_size[0], "k": tower.patches}
    return {
        "schema": SCHEMA,
        "what": "methods of shortening an image encoder at equal multiply-accumulates",
        "model": short_name(workshop.model),
        "data": {name: figures["images"] for name, figures in unpruned["sets"].items()},
        "shares": list(options["shares"]),
        "reducers": [str(reducer) for reducer in reducers],
        "seed": workshop.seed,
        "speed": _add_speed(workshop, points, [unpruned, *rows], options) if options["timed"] else None,
        "rows": [unpruned, *rows],
        "cpu": this_machine().cpu,
        "versions": library_versions() | Checkpoint.load(workshop.run(reducers[0])).versions,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _add_speed(workshop: Workshop, points: list[Point], rows: list[Figures], options: dict[str, Any]) -> dict[str, Any]:
    """Times everything, puts the figures into the rows (the unpruned one first), and returns the circumstances."""
    plan = Plan(budget_s=options["seconds"], warmup_rounds=1, seed=options["seed"])
    speed = dict(measured(workshop, points, SpeedPlan(options["engines"], options["batch"], options["threads"], plan)))
    for row, figures in zip(rows, speed.pop("rows"), strict=True):
        row["speed"] = figures
    return speed


def _smoke() -> dict[str, Any]:
    """The demonstration's model and a few of its scenes, drawn at the first call; few points."""
    model, data = _SMOKE / "model", _SMOKE / "scenes"
    if not model.exists():
        write_model(model)
    if not data.exists():
        write_dataset(data, SceneCounts(train=2, val=1, test=2), 0)
    return {
        "model": f"local-dir:{model}",
        "data": str(data),
        "work": _SMOKE,
        "shares": (0.7, 0.45),
        "reducers": tuple(map(Reducer.parse, ("rank", "merge", "none", "merge@80"))),
        "seconds": 0.0,
        "batch": 2,
        "images": 8,
        "settings": {"distill.steps": 2},
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} cannot be read as JSON: {cause}; give a result of this script") from cause
    if not isinstance(value, dict) or not {"schema", "rows", "what"} <= value.keys():
        raise DataError(f"{path} is no result of this script; give one that it wrote")
    return value


if __name__ == "__main__":
    main()
