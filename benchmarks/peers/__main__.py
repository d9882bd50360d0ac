"""A pruned encoder and its peers in one interleaved run: open_clip eager and compiled, merged tokens, and a bundle's engines.

    python -m benchmarks.peers runs/b16/bundle --precision fp32,bf16,int8 --threads 2 --accuracy benchmarks/results/accuracy.json
    python -m benchmarks.peers --model ViT-B-16 --threads 2
    python -m benchmarks.peers --table benchmarks/results/peers-vit-b-16-cpu.json

Without BUNDLE one is made from --model, with random weights unless --pretrained names some, under runs/. The result goes to
benchmarks/results/peers-MODEL-DEVICE as JSON, CSV and PNG; `--table` prints such a JSON file as Markdown. The form of the
accuracy file is in benchmarks/peers/accuracy.py.

Every encoder gets the same pixels, from numpy to numpy, with the same number of threads, and is called once a round, in
an order that is shuffled in each. Between calls of different libraries lies a rest of 30 ms that is not timed: the idle threads
of OpenMP (PyTorch) spin for some milliseconds after a call, those of ONNX Runtime are told to stop with it, and neither then
takes the cores from its successor. What compiles is compiled before: whole encoders take minutes, merged ones (`--compile all`)
much longer.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import click

from benchmarks.common import COUNTS, KEEPS, NAMES, Script, named, show
from benchmarks.peers.accuracy import Accuracies
from benchmarks.peers.plot import plot_peers
from benchmarks.peers.report import RESULT
from benchmarks.peers.run import PeersConfig, compare
from benchmarks.peers.table import cells, markdown
from prtool.bundle import Bundle
from prtool.cli.console import BarProgress
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import BundleError, ConfigError, DataError
from prtool.pictures import short_name
from prtool.runtime.bench.config import ENCODER, BenchConfig
from prtool.runtime.bench.files import output_files, write_report
from prtool.spec import Keep
from prtool.studies.demo.model import write_model

COMPILE = ("none", "whole", "all")
_CPU_ENGINES = ",".join(name for name in ("ort", "openvino", "torch") if name in ENGINES)


@click.command(cls=Script)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--model", help="open_clip name, or local-dir:PATH.  [default: the bundle's, which holds no path; without BUNDLE ViT-B-16]")
@click.option("--pretrained", help="Tag or checkpoint file.  [default: the bundle's; without BUNDLE random weights]")
@click.option("--data", type=click.Path(path_type=Path), help="Without BUNDLE: images for int8's scales.")
@click.option("--engine", "engines", type=NAMES, default=_CPU_ENGINES, show_default=True, help="Engines of the bundle.")
@click.option("--precision", "precisions", type=NAMES, default="fp32,bf16", show_default=True, help="As engines and bundle have them.")
@click.option("--batch", "batches", type=COUNTS, default="1,8,32", show_default=True, help="Images a call.")
@click.option("--keep", "keeps", type=KEEPS, default="0.8,0.7,0.6,0.5", show_default=True, help="Ratios or counts of patches.")
@click.option("--mode", "modes", type=NAMES, default="fused,split", show_default=True, help="fused, split or both.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--streams", default=1, show_default=True, help="Parts of a batch that run side by side, where an engine has streams.")
@click.option("--seconds", "budget_s", default=600.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--compile", "compiled", default="whole", show_default=True, type=click.Choice(COMPILE), help="What also runs through torch.compile.")
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]), help="Of PyTorch.")
@click.option("--seed", default=0, show_default=True, help="Of random weights, pixels and order.")
@click.option("--accuracy", type=click.Path(path_type=Path), help="JSON file of accuracies to put next to the rows.")
@click.option("--smoke", is_flag=True, help="A tiny model and few rounds, to see that everything runs.")
@click.option("--table", type=click.Path(path_type=Path), help="Print this result as Markdown, and stop.")
@click.option("--within", type=float, help="With --table: only rows that lose at most this many points of accuracy.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A file, or a name for all three.  [default: model and device]")
def main(bundle: Path | None, table: Path | None, within: float | None, **options: Any) -> None:
    """Compares the encoder of BUNDLE with its peers."""
    if table is not None:
        click.echo(markdown(_read(table), within))
        return
    chosen, accuracy, compiled, device, smoke = (options.pop(name) for name in ("output", "accuracy", "compiled", "device", "smoke"))
    model, pretrained, data = (options.pop(name) for name in ("model", "pretrained", "data"))
    output_files(named(chosen, "peers"), RESULT)
    if smoke:
        options |= {"batches": (1, 2), "keeps": (Keep.ratio(0.6),), "budget_s": 0.0}
    bench = BenchConfig(scopes=(ENCODER,), **options)
    accuracies = Accuracies.load(accuracy) if accuracy else None
    if bundle is None:
        model, pretrained = _smoke_model() if smoke else (model or "ViT-B-16", pretrained or "")
        bundle = _make_bundle(bench, model, pretrained, data)
    opened = Bundle.open(bundle)
    made = opened.manifest.model
    config = PeersConfig(bench, model or made.name, made.pretrained if pretrained is None else pretrained, compiled, device, accuracies)
    report = compare(opened, config, BarProgress())
    name = report.model["name"]
    files = output_files(named(chosen, "peers", name, "cpu" if device == "cpu" else report.device), RESULT)
    write_report(report, files, plot_peers, RESULT)
    show(cells(report.to_json()), f"{name} on {report.device}, {report.threads} threads, {report.rounds} rounds", report.notes(), files)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as cause:
        raise DataError(f"{path} cannot be read as JSON: {cause}; give a result of this script") from cause
    if not isinstance(value, dict) or "ratio_method" not in value:
        raise DataError(f"{path} is no result of this script; give one that it wrote")
    return value


def _smoke_model() -> tuple[str, str]:
    """A tiny model in the working folder, drawn at the first call."""
    folder = Path("runs/peers-smoke")
    if not folder.exists():
        write_model(folder)
    return f"local-dir:{folder}", ""


def _make_bundle(config: BenchConfig, model: str, pretrained: str, data: Path | None) -> Path:
    """Trains nothing and exports the graphs that the engines need; a bundle that an earlier call made is reused."""
    root = Path("runs") / named(None, "peers", short_name(model), pretrained, config.seed).name
    run, bundle, needed = root / "run", root / "bundle", _graphs(config)
    if not _has(bundle, needed):
        _prtool("train", "--model", model, "--pretrained", pretrained, "--phase", "none", "--set", f"seed={config.seed}", "-o", str(run))
        images = ("--data", str(data)) if data else ()
        _prtool("export", str(run), "--keep", "0.6", "--precision", ",".join(sorted(needed)), "-o", str(bundle), *images)
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
    """A command of prtool; it has printed what went wrong when this raises."""
    from prtool.cli.main import app

    try:
        app.main(list(arguments), prog_name="prtool")
    except SystemExit as end:
        if end.code:
            raise ConfigError(f"prtool {' '.join(arguments)} failed; its message stands above") from end


if __name__ == "__main__":
    main()
