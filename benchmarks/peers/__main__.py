"""Shortened encoders and their peers in one interleaved run: bundles of every reducer on engines, open_clip and token merging in PyTorch.

    python -m benchmarks.peers --accuracy benchmarks/results/frontier-dual-s14.json
    python -m benchmarks.peers --table benchmarks/results/peers-vit-b-16-cpu.json

The bundles are made from --model, with random weights unless --pretrained names some, under --work; a second call uses them again. The
result goes to benchmarks/results/peers-MODEL-DEVICE as JSON, CSV and PNG; `--table` prints such a JSON file as Markdown. Accuracies
are those that `python -m benchmarks.frontier` measured for the same method, relative image size and cost.

Every call starts from the same JPEG files, decodes and prepares them at the encoder's own image size, and ends with embeddings in numpy;
the encoder's part of it is marked. Every encoder is called once a round, in an order that is shuffled in each. Between calls of
different libraries lies a rest of 30 ms that is not timed: the idle threads of OpenMP (PyTorch) spin for some milliseconds after a
call, and would take the cores from its successor.
"""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.common import NAMES, Script, named, show
from benchmarks.peers.accuracy import Accuracies
from benchmarks.peers.entrants import PeersConfig, make_bundles
from benchmarks.peers.plot import plot_peers
from benchmarks.peers.report import RESULT, SCHEMA
from benchmarks.peers.run import compare
from benchmarks.peers.table import cells, markdown
from benchmarks.reducers import REDUCERS, SHARES, Reducer, Workshop
from prtool.cli.console import BarProgress
from prtool.engines.registry import ENGINES
from prtool.errors import DataError
from prtool.pictures import short_name
from prtool.runtime.bench.files import output_files, write_report
from prtool.runtime.bench.timing import Plan
from prtool.studies.demo.model import write_model

_CPU_ENGINES = ",".join(name for name in ("ort", "openvino") if name in ENGINES)
_SMOKE = Path("runs/peers-smoke")


@click.command(cls=Script)
@click.option("--model", default="ViT-B-16", show_default=True, help="open_clip name, or local-dir:PATH.")
@click.option("--pretrained", default="", help="Tag or checkpoint file.  [default: random weights]")
@click.option("--data", default="", help="Images for int8's scales.  [default: generated photographs]")
@click.option(
    *("--reducer", "reducers"),
    type=REDUCERS,
    default=(),
    help="METHOD[/BLOCK][@PIXELS][+], + with the accuracy of recovered ones.  [default: each alone, merge/1, mixtures]",
)
@click.option("--share", "shares", type=SHARES, default=".735,.51,.41", show_default=True, help="MACs relative to unpruned.")
@click.option("--engine", "engines", type=NAMES, default=_CPU_ENGINES, show_default=True, help="Engines of the bundles.")
@click.option("--precision", "precisions", type=NAMES, default="fp32,bf16,int8", show_default=True, help="As engines and PyTorch have them.")
@click.option("--batch", default=8, show_default=True, help="Images a call.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--seconds", "budget_s", default=480.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--compile/--no-compile", "compiled", default=False, show_default=True, help="Whole encoders also through torch.compile.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of PyTorch.")
@click.option("--seed", default=0, show_default=True, help="Of random weights, images and order.")
@click.option("--accuracy", type=click.Path(path_type=Path), help="Result of benchmarks.frontier, whose accuracies stand next to the rows.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/peers"), show_default=True, help="Where runs and bundles are made.")
@click.option("--prepare", is_flag=True, help="Only make the bundles, which needs no quiet machine.")
@click.option("--smoke", is_flag=True, help="A tiny model and few rounds, to see that everything runs.")
@click.option("--table", type=click.Path(path_type=Path), help="Print this result as Markdown, and stop.")
@click.option("--within", type=float, help="With --table: only rows that lose at most this many points of accuracy.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file, or a name for all three.  [default: model and device]")
def main(table: Path | None, within: float | None, **options: Any) -> None:
    """Races shortened encoders with their peers."""
    if table is not None:
        click.echo(markdown(_read(table), within))
        return
    output, accuracy, prepare, smoke = (options.pop(name) for name in ("output", "accuracy", "prepare", "smoke"))
    accuracies = Accuracies.load(accuracy) if accuracy else None
    if smoke:
        options |= _smoke()
    # Before anything is measured: what cannot be written should say so at once.
    files = output_files(named(output, "peers", short_name(options["model"]), options["device"]), RESULT)
    workshop = Workshop(options.pop("work"), options.pop("model"), options.pop("pretrained"), "", options.pop("seed"), {}, BarProgress())
    plan = Plan(budget_s=options.pop("budget_s"), warmup_rounds=1, seed=workshop.seed)
    config = PeersConfig(plan=plan, images=options.pop("data"), accuracies=accuracies, **options)
    if prepare:
        make_bundles(workshop, config)
        return
    report = compare(workshop, config)
    write_report(report, files, plot_peers, RESULT)
    show(
        cells(report.to_json()), f"{report.model['name']} on {report.device}, {report.threads} threads, {report.rounds} rounds", report.notes(), files
    )


def _smoke() -> dict[str, Any]:
    """A tiny model in the working folder, drawn at the first call, and few points."""
    model = _SMOKE / "model"
    if not model.exists():
        write_model(model)
    reducers = tuple(map(Reducer.parse, ("rank", "merge", "none", "merge@80")))
    return {
        "model": f"local-dir:{model}",
        "work": _SMOKE,
        "reducers": reducers,
        "shares": (0.7, 0.45),
        "batch": 2,
        "budget_s": 0.0,
        "precisions": ("fp32", "bf16"),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} cannot be read as JSON: {cause}; give a result of this script") from cause
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or "ratio_method" not in value:
        raise DataError(f"{path} is no result of this script; give one that it wrote")
    return value


if __name__ == "__main__":
    main()
