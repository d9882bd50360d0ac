"""The race against peers: open_clip eager and compiled, merged tokens, and a bundle's engines, in one interleaved run.

    python benchmarks/peers.py runs/b16/bundle --precision fp32,bf16,int8 --threads 2 --accuracy benchmarks/results/accuracy.json
    python benchmarks/peers.py --model ViT-B-16 --threads 2
    python benchmarks/peers.py --table benchmarks/results/peers-vit-b-16-cpu.json

Without BUNDLE one is made from --model, with random weights unless --pretrained names some, under runs/. The result goes to
benchmarks/results/peers-MODEL-DEVICE as JSON, CSV and PNG; `--table` prints such a JSON file as Markdown. The form of the
accuracy file is in race/accuracy.py.

Fair play: every way gets the same pixels, from numpy to numpy, with the same number of threads, and is called once a round, in
an order that is shuffled in each. Between calls of different libraries lies a rest of 30 ms that is not timed: the idle threads
of OpenMP (PyTorch) spin for some milliseconds after a call, those of ONNX Runtime are told to stop with it, and neither then
takes the cores from its successor. What compiles is compiled before: whole encoders take minutes, merged ones (`--compile all`)
much longer.
"""

import itertools
import json
from pathlib import Path

import click
from race.accuracy import Accuracies
from race.plot import plot_race
from race.report import RACE
from race.run import RaceSettings, race
from race.table import cells, markdown
from results_file import in_one_line, keeps, named, numbers, short, show, words

from prtool.bundle import Bundle
from prtool.cli.console import BarProgress
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import BundleError, ConfigError, DataError
from prtool.runtime.bench.config import ENCODER, BenchConfig
from prtool.runtime.bench.files import output_files, write_report
from prtool.studies.demo.model import write_model

COMPILE = ("none", "whole", "all")
_CPU_ENGINES = ",".join(name for name in ("ort", "openvino", "torch") if name in ENGINES)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--model", default="ViT-B-16", show_default=True, help="Without BUNDLE: the open_clip name, or local-dir:PATH.")
@click.option("--pretrained", default="", help="Without BUNDLE: tag or checkpoint file; random weights if absent.")
@click.option("--data", type=click.Path(path_type=Path), help="Without BUNDLE: images for int8's scales.")
@click.option("--engine", default=_CPU_ENGINES, show_default=True, help="Engines of the bundle, comma-separated.")
@click.option("--precision", default="fp32,bf16", show_default=True, help="Of fp32, bf16, fp16 and int8, as engines and bundle have them.")
@click.option("--batch", default="1,8,32", show_default=True, help="Images a call, comma-separated.")
@click.option("--keep", default="0.8,0.7,0.6,0.5", show_default=True, help="Ratios or counts of patches, comma-separated.")
@click.option("--mode", default="fused,split", show_default=True, help="fused, split or both.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--streams", default=1, show_default=True, help="Parts of a batch that run side by side, where an engine has streams.")
@click.option("--seconds", default=600.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--compile", "compiled", default="whole", show_default=True, type=click.Choice(COMPILE), help="What also runs through torch.compile.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of PyTorch.")
@click.option("--seed", default=0, show_default=True, help="Of random weights, pixels and order.")
@click.option("--accuracy", type=click.Path(path_type=Path), help="JSON file of accuracies to put beside the rows.")
@click.option("--smoke", is_flag=True, help="A tiny model and few rounds, to see that everything runs.")
@click.option("--table", type=click.Path(path_type=Path), help="Print this result as Markdown, and stop.")
@click.option("--within", type=float, help="With --table: only rows that lose at most this many points of accuracy.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file, or a name for all three.  [default: model and device]")
def main(**options: object) -> None:
    """Races the encoder of BUNDLE against its peers."""
    in_one_line(_table if options["table"] else _run, options)


def _table(options: dict[str, object]) -> None:
    path, within = options["table"], options["within"]
    assert isinstance(path, Path)
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} cannot be read as JSON: {cause}; give a result of this script") from cause
    if not isinstance(value, dict) or "ratio_method" not in value:
        raise DataError(f"{path} is no result of this script; give one that it wrote")
    click.echo(markdown(value, within if isinstance(within, float) else None))


def _run(options: dict[str, object]) -> None:
    output_files(named(options["output"], "peers"), RACE)
    accuracy = options["accuracy"]
    accuracies = Accuracies.load(accuracy) if isinstance(accuracy, Path) else None
    settings = RaceSettings(_config(options), str(options["compiled"]), str(options["device"]), accuracies)
    given = options["bundle"]
    bundle = given if isinstance(given, Path) else _make_bundle(options, settings.config)
    report = race(Bundle.open(bundle), settings, BarProgress())
    device = "cpu" if settings.device == "cpu" else report.device
    files = output_files(named(options["output"], "peers", report.model["name"], device), RACE)
    write_report(report, files, plot_race, RACE)
    title = f"{report.model['name']} on {report.device}, {report.threads} threads, {report.rounds} rounds"
    show(cells(report.to_json()), title, report.notes(), files)


def _config(options: dict[str, object]) -> BenchConfig:
    smoke = bool(options["smoke"])
    return BenchConfig(
        engines=words(options["engine"]),
        precisions=words(options["precision"]),
        batches=(1, 2) if smoke else numbers(options["batch"]),
        keeps=keeps("0.6" if smoke else options["keep"]),
        modes=words(options["mode"]),
        scopes=(ENCODER,),
        threads=int(str(options["threads"])),
        streams=int(str(options["streams"])),
        budget_s=0.0 if smoke else float(str(options["seconds"])),
        seed=int(str(options["seed"])),
    )


def _make_bundle(options: dict[str, object], config: BenchConfig) -> Path:
    """Trains nothing and exports the graphs that the engines need; a bundle that an earlier call made is used again."""
    smoke = bool(options["smoke"])
    name = "smoke" if smoke else short(str(options["model"]))
    root = named(None, "peers", name, options["pretrained"], config.seed).name
    run, bundle, drawn = (Path("runs") / root / name for name in ("run", "bundle", "model"))
    model = f"local-dir:{drawn}" if smoke else str(options["model"])
    if smoke and not drawn.exists():
        write_model(drawn)
    needed = _graphs(config)
    if _has(bundle, needed):
        return bundle
    _prtool("train", "--model", model, "--pretrained", str(options["pretrained"]), "--phase", "none", "--set", f"seed={config.seed}", "-o", str(run))
    data = ("--data", str(options["data"])) if options["data"] else ()
    _prtool("export", str(run), "--keep", "0.6", "--precision", ",".join(sorted(needed)), "-o", str(bundle), *data)
    return bundle


def _has(bundle: Path, precisions: set[str]) -> bool:
    """Whether an earlier call left a bundle there that this version reads and that holds these graphs."""
    try:
        return precisions <= set(Bundle.open(bundle, verify=False).manifest.graphs)
    except BundleError:
        return False


def _graphs(config: BenchConfig) -> set[str]:
    """The precisions of graphs that the engines load; those that an engine lacks are named when it is loaded."""
    needed = {"fp32"}
    for engine, precision in itertools.product(config.engines, config.precisions):
        if engine not in ENGINES or precision in ENGINES[engine].precisions:
            needed.add(graph_precision(engine, precision))
    return needed


def _prtool(*arguments: str) -> None:
    """A command of prtool; it has said what went wrong when this raises."""
    from prtool.cli.main import app

    try:
        app.main(list(arguments), prog_name="prtool")
    except SystemExit as end:
        if end.code:
            raise ConfigError(f"prtool {' '.join(arguments)} failed; its message stands above") from end


if __name__ == "__main__":
    main()
