"""The commands: one verb a stage, with the library's names; each parses, checks what can be known without PyTorch, calls one function, and prints."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from prtool.cli.build import build, engine_cache
from prtool.cli.bundle import bench, classify, embed, show, verify
from prtool.cli.data import data as data_sets
from prtool.cli.exits import exit_status, fill_descriptors
from prtool.cli.parameters import Counts, FileName, KeepList, Names, OneKeep, json_option, run_argument, settings_of
from prtool.cli.reproduce import reproduce
from prtool.cli.signals import stop_on_signals
from prtool.cli.tune import tune
from prtool.spec import Keep


class Commands(click.Group):
    """A group whose every error is one line and an exit status; see `prtool.cli.exits`."""

    def main(self, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as click declares
        """Runs a command line, and exits."""
        sys.exit(exit_status(lambda: click.Group.main(self, *arguments, **{**named, "standalone_mode": False})))

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares
        """Runs a command; what click would end in its own way, such as an interrupt, is caught here."""
        ctx.exit(exit_status(lambda: click.Group.invoke(self, ctx)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="prtool")
def app() -> None:
    """Makes a frozen CLIP image encoder faster by pruning patches, and proves it.

    In a project folder: prtool train, prtool eval, prtool export --keep 0.6, prtool bench.
    """


@app.command()
@click.option("--config", "config_file", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TOML file.  [default: prtool.toml]")
@click.option("--model", help="open_clip architecture, hf-hub:ORG/REPO or local-dir:PATH.")
@click.option("--pretrained", help="open_clip tag or checkpoint file; none gives random weights.")
@click.option("--data", help="FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas; see docs/data.md.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder.  [default: runs/MODEL-DATA-HASH, the hash of all settings]")
@click.option("--location", "locations", type=Counts(), help="Blocks (1-based) on entry to which patches drop, e.g. 4,6,8,10.  [default: 4]")
@click.option("--phase", "phases", type=Names("rank", "predictor", "tokens", "none"), help="Phases to run.  [default: predictor]")
@click.option("--preset", type=click.Choice(["default", "leave-one-out", "paper"]), help="Settings by name; options and --set win over them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting of --show-config, e.g. --set golden.group=1.")
@click.option("--overwrite", is_flag=True, help="Replace a trained run of other settings in the run folder.")
@click.option("--show-config", is_flag=True, help="Print every setting with its unit, and stop.")
def train(config_file: Path | None, preset: str | None, settings: tuple[str, ...], overwrite: bool, show_config: bool, **flags: Any) -> None:  # noqa: ANN401
    """Rank patches, train the predictor, tune learnable tokens; the run resumes where it stopped."""
    from prtool.cli.console import BarProgress, message, result_table, result_text
    from prtool.trainer.config import PRESETS, TrainConfig
    from prtool.trainer.config import show_config as config_text
    from prtool.trainer.runs.checks import check_training
    from prtool.trainer.runs.place import run_name

    output: Path | None = flags.pop("output")
    given = {name: value for name, value in flags.items() if value is not None}
    if "locations" in given:
        given["prune.locations"] = given.pop("locations")
    in_folder = Path("prtool.toml") if Path("prtool.toml").is_file() else None
    config = TrainConfig.load(config_file or in_folder, {**(PRESETS[preset] if preset else {}), **given, **settings_of(settings)})
    if show_config:
        result_text(config_text(config))
        return
    run = output or Path("runs") / run_name(config)
    check_training(config, run)
    from prtool.trainer.train import check_latest, point_latest, train

    check_latest(run)
    checkpoint = train(config, run, BarProgress(), overwrite=overwrite)
    point_latest(run)
    rates = [[str(row.m), f"{row.predictor:.3f}", f"{row.random:.3f}", f"{row.constant:.3f}"] for row in checkpoint.metrics.matching]
    if rates:
        result_table(["m", "predictor", "random", "constant"], rates, "matching rate @m on the validation images")
    message(f"wrote {run}; next: prtool eval, prtool export --keep 0.6")


@app.command(name="eval")
@run_argument
@click.option("--data", type=click.Path(path_type=Path), help="Data folder.  [default: the run's]")
@click.option("--split", default="test", show_default=True, type=click.Choice(["train", "val", "test"]), help="Part of the data.")
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.8,0.7,0.6,0.5", show_default=True, help="Keep ratios or counts.")
@click.option(
    "--method",
    "methods",
    type=Names(),
    default="patch-ranking,cls-attention,random",
    show_default=True,
    help="Also: patch-ranking-tokens, evit, avit, tome, golden (slow).",
)
@click.option("--images", type=int, default=0, help="At most this many images; 0 takes all.  [default: 0]")
@click.option("-o", "--output", type=FileName(".png"), help="Picture of accuracy against keep.  [default: RUN/eval-SPLIT.png]")
@json_option
def evaluate(run: Path, output: Path | None, as_json: bool, data: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Zero-shot accuracy by keep rate, for several ways to choose patches."""
    from prtool.cli.console import BarProgress, message, result_json, result_table
    from prtool.files import PICTURE, check_output
    from prtool.trainer.evaluation.config import EvalConfig
    from prtool.trainer.runs.checks import check_evaluation

    config = EvalConfig(**options)
    picture = output or run / f"eval-{config.split}.png"
    check_evaluation(run, data, config)
    check_output(picture, PICTURE)
    from prtool.trainer.evaluation.evaluate import evaluate_run
    from prtool.trainer.evaluation.plots import plot_accuracy

    report = evaluate_run(run, data, config, BarProgress())
    plot_accuracy(report, picture)
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())
    for note in report.notes:
        message(f"note: {note}")
    message(f"wrote {picture}")


@app.command()
@run_argument
@click.option("--keep", type=OneKeep(), help="Patches kept by default: a ratio or a count.  [default: what 'prtool tune' chose, else 0.6]")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True, help="Bundle folder.")
@click.option("--precision", "precisions", type=Names("fp32", "fp16", "bf16", "int8"), default="fp32", show_default=True, help="Graphs besides fp32.")
@click.option("--data", type=click.Path(path_type=Path), help="Images that prove the bundle and set int8's scales.  [default: the run's]")
def export(run: Path, keep: Keep | None, output: Path, precisions: tuple[str, ...], data: Path | None) -> None:
    """Write a bundle of ONNX graphs, after comparing them with PyTorch."""
    from prtool.cli.console import BarProgress, message, result_table
    from prtool.export.checks import check_export
    from prtool.studies.tune.result import read_result

    kept, choice = keep or Keep.ratio(0.6), None if keep else read_result(run)
    if choice is not None:
        run, kept = run / choice.run, choice.kept
        message(f"taking what 'prtool tune' chose: {run}, keep {kept}; --keep overrides it")
        if choice.is_unpruned:
            message("the choice is the unpruned model: run the bundle with --mode full")
    images = check_export(run, output, kept, precisions, data)
    if images is None:
        message("note: there are no images of the run, so the graphs are compared with PyTorch on noise; --data FOLDER gives images")
    from prtool.export.run import export_run
    from prtool.export.write import PARITY_NAME, ExportOptions

    manifest = export_run(run, output, ExportOptions(kept, precisions), data, BarProgress())
    result_table(["compared with PyTorch", "worst"], [[name, f"{value:.9g}"] for name, value in manifest.parity.items()])
    for part in json.loads((output / PARITY_NAME).read_text())["precisions"]:
        if part["judged"] is not None:
            message(f"{part['precision']} was held to {part['judged']['decided_by']}: {part['judged']['why']}")
    where = "" if output == Path("bundle") else f" --bundle {output}"
    message(f"wrote {output}; next: prtool bench{where.replace(' --bundle', '')}, prtool embed{where} PHOTOS -o out.npz")


@app.command()
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can run, for a bug report."""
    from prtool.cli.console import result_json, result_table
    from prtool.cli.doctor import examine

    facts = examine(Path.cwd())
    if as_json:
        result_json(facts)
        return
    rows = [[key, str(value)] for key, value in facts.items() if not isinstance(value, dict)]
    rows += [[f"{key}: {name}", str(item)] for key, value in facts.items() if isinstance(value, dict) for name, item in value.items()]
    result_table(["what", "state"], rows)


@app.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder for all that is made.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Also measure ViT-B/16 at real size (random weights).")
def demo(output: Path, speed: bool) -> None:
    """Train, evaluate, export, bench and show on a small world of coloured objects; offline, minutes on a CPU."""
    from prtool.cli.console import BarProgress, message, result_table
    from prtool.studies.demo.run import run_demo

    for title, (columns, rows) in run_demo(output, speed, BarProgress()).items():
        result_table(columns, rows, title)
    message(f"pictures and tables: {output}")


for _command in (verify, bench, embed, classify, show, build):
    app.add_command(_command)
app.add_command(engine_cache)
app.add_command(data_sets)
app.add_command(reproduce)
app.add_command(tune)


def main(arguments: list[str] | None = None) -> None:
    """The `prtool` program: exit 0 done, 1 our error in one line, 2 wrong usage, 128 + N ended by signal N (130 Ctrl-C, 141 no reader of stdout)."""
    fill_descriptors()
    with stop_on_signals():
        app.main(arguments, prog_name="prtool")
