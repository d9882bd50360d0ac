"""The commands: one verb a stage, with the library's names; each parses, calls one function, and prints."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from prtool.build_commands import build, engine_cache
from prtool.data_commands import data as data_sets
from prtool.errors import PrtoolError
from prtool.extras import Extra, install_hint
from prtool.parameters import (
    Counts,
    EngineChoice,
    KeepList,
    Names,
    bundle_argument,
    cache_option,
    engine_options,
    json_option,
    keep_option,
    only,
    paths_argument,
    run_argument,
    settings_of,
)
from prtool.reproduce_command import reproduce
from prtool.spec import Keep
from prtool.study_commands import tune

if TYPE_CHECKING:
    from prtool.export.run import RunAgreement

_EXTRAS: dict[str, Extra] = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "matplotlib"), "train"),
    **dict.fromkeys(("onnx", "onnxscript"), "export"),
}


class Commands(click.Group):
    """A group that turns our errors into one line and exit status 1, and Ctrl-C into one line and 130."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click declares
        """Runs a command."""
        from prtool.console import message, show_notes

        show_notes()
        try:
            return super().invoke(ctx)
        except PrtoolError as error:
            message(f"error: {error}")
            ctx.exit(1)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0])
            if extra is None:
                raise
            message(f"error: {error.name} is not installed; {install_hint(extra)}")
            ctx.exit(1)
        except KeyboardInterrupt:
            message("interrupted; finished work is kept, run the same command again to go on")
            ctx.exit(130)


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
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Run folder.  [default: runs/MODEL-DATA]")
@click.option("--location", "locations", type=Counts(), help="Blocks (1-based) on entry to which patches are dropped, e.g. 4,6,8,10.  [default: 4]")
@click.option("--phase", "phases", type=Names("rank", "predictor", "tokens", "none"), help="Phases to run.  [default: predictor]")
@click.option("--recipe", type=click.Choice(["default", "leave-one-out", "paper"]), help="Settings by name; options and --set win over them.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any other setting of --show-config, e.g. --set golden.group=1.")
@click.option("--show-config", is_flag=True, help="Print every setting with its unit, and stop.")
def train(config_file: Path | None, recipe: str | None, settings: tuple[str, ...], show_config: bool, **flags: Any) -> None:  # noqa: ANN401
    """Rank patches, train the predictor, tune learnable tokens; the run resumes where it stopped."""
    from prtool.console import BarProgress, message, result_table
    from prtool.trainer.config import RECIPES, TrainConfig
    from prtool.trainer.config import show_config as config_text
    from prtool.trainer.train import point_latest, train

    output: Path | None = flags.pop("output")
    given = {name: value for name, value in flags.items() if value is not None}
    if "locations" in given:
        given["golden.location"], *given["prune.then"] = given.pop("locations")
    in_folder = Path("prtool.toml") if Path("prtool.toml").is_file() else None
    config = TrainConfig.load(config_file or in_folder, {**(RECIPES[recipe] if recipe else {}), **given, **settings_of(settings)})
    if show_config:
        click.echo(config_text(config), nl=False)
        return
    run = output or Path("runs") / _run_name(config.model, config.data)
    checkpoint = train(config, run, BarProgress())
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
    help="Also: patch-ranking+tokens, evit, a-vit, tome, golden (slow).",
)
@click.option("--images", type=int, default=0, help="At most this many images; 0 takes all.  [default: 0]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Picture of accuracy against keep.  [default: RUN/eval-SPLIT.png]")
@json_option
def evaluate(run: Path, output: Path | None, as_json: bool, data: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Zero-shot accuracy by keep rate, for several ways to choose patches."""
    from prtool.console import BarProgress, message, result_json, result_table
    from prtool.trainer.evaluate import EvalConfig, evaluate_run
    from prtool.trainer.plots import plot_accuracy

    config = EvalConfig(**options)
    report = evaluate_run(run, data, config, BarProgress())
    picture = output or run / f"eval-{config.split}.png"
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
@click.option("--keep", type=KeepList(), help="Patches kept by default: a ratio or a count.  [default: what 'prtool tune' chose, else 0.6]")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("bundle"), show_default=True, help="Bundle folder.")
@click.option("--precision", "precisions", type=Names(), default="fp32", show_default=True, help="Graphs besides fp32: fp16, bf16, int8.")
@click.option("--data", type=click.Path(path_type=Path), help="Images that prove the bundle and set int8's scales.  [default: the run's]")
def export(run: Path, keep: tuple[Keep, ...] | None, output: Path, precisions: tuple[str, ...], data: Path | None) -> None:
    """Write a bundle of ONNX graphs, after comparing them with PyTorch."""
    from prtool.choice import read_choice
    from prtool.console import BarProgress, message, result_table
    from prtool.export.run import export_run
    from prtool.export.write import ExportOptions

    kept, choice = only(keep or (Keep.ratio(0.6),)), None if keep else read_choice(run)
    if choice is not None:
        run, kept = run / choice.run, choice.kept
        message(f"taking what 'prtool tune' chose: {run}, keep {kept}; --keep overrides it")
        if choice.is_unpruned:
            message("the choice is the unpruned model: run the bundle in mode 'full'")
    manifest = export_run(run, output, ExportOptions(kept, precisions), data, BarProgress())
    result_table(["compared with PyTorch", "worst"], [[name, f"{value:.9g}"] for name, value in manifest.parity.items()])
    message(f"wrote {output}; next: prtool bench, prtool embed PHOTOS -o out.npz")


@app.command()
@bundle_argument
@engine_options
@click.option("--data", type=click.Path(path_type=Path), help="Compare on these images with the PyTorch model of --run.")
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/latest"), show_default=True, help="Run that the bundle came from.")
@json_option
def verify(bundle: Path, choice: EngineChoice, data: Path | None, run: Path, as_json: bool) -> None:
    """Check every file's digest, and every mode's embeddings against PyTorch's recorded ones."""
    from prtool.console import result_json, result_table
    from prtool.runtime.verify import VerifyReport
    from prtool.runtime.verify import verify as verify_probe

    report: VerifyReport | RunAgreement = verify_probe(bundle, choice.engine, choice.options(spinning=False), choice.precision)
    if data is not None:
        from prtool.export.agreement import VerifyRequest
        from prtool.export.run import verify_run

        report = verify_run(bundle, VerifyRequest(choice.engine, choice.precision, cache=choice.cache), run, data)
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())


@app.command()
@bundle_argument
@click.option("--engine", "engines", type=Names(), default="ort", show_default=True, help="Engines, side by side; 'prtool doctor' lists them.")
@click.option("--precision", "precisions", type=Names(), default="fp32", show_default=True, help="Of fp32, fp16, bf16, int8, as the engines have it.")
@click.option("--batch", "batches", type=Counts(), default="1,8", show_default=True, help="Images a call.")
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.8,0.6,0.5", show_default=True, help="Keep ratios or counts.")
@click.option("--mode", "modes", type=Names("fused", "split"), default="fused", show_default=True, help="One graph, or two with selection between.")
@click.option("--reference", default="", help="Also relate every row to the unpruned model of ENGINE/PRECISION, or of the 'slowest'.")
@click.option("--threads", type=int, default=0, help="CPU threads; 0 takes all that are granted.  [default: 0]")
@click.option("--streams", type=int, default=1, show_default=True, help="Parts of a batch that run side by side, where an engine has streams.")
@click.option("--seconds", "budget_s", type=float, default=60.0, show_default=True, help="Time for measuring; more gives steadier medians.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write FILE.json, .csv or .png; without a suffix, all three.")
@cache_option
@json_option
def bench(bundle: Path, output: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Speed against the unpruned model in the same run, beside the theoretical bound."""
    from prtool.console import BarProgress, message, result_json, result_table
    from prtool.runtime.bench import BenchConfig
    from prtool.runtime.bench import bench as measure
    from prtool.runtime.bench.files import output_files, write_report
    from prtool.runtime.bench.plot import plot_report

    files = () if output is None else output_files(output)
    report = measure(bundle, BenchConfig(**options), BarProgress())
    write_report(report, files, plot_report)
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())
    for note in report.notes:
        message(f"note: {note}")
    for file in files:
        message(f"wrote {file}")


@app.command()
@paths_argument
@engine_options
@keep_option
@click.option("--batch", type=int, default=8, show_default=True, help="Images a call.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("embeddings.npz"), show_default=True, help=".npz or .parquet file.")
def embed(paths: tuple[Path, ...], choice: EngineChoice, keep: tuple[Keep, ...] | None, batch: int, output: Path) -> None:
    """Embeddings of images and folders of images; unreadable ones are skipped, counted and listed."""
    from prtool.console import BarProgress, message
    from prtool.runtime.embed import EmbedOptions, check_names, check_output, embed_folder, save_embeddings
    from prtool.runtime.images import expand_images

    check_output(output)
    bundle, images = _bundle_and_images(paths)
    files, left_out = expand_images(images)
    check_names(output, files)
    with choice.load(bundle) as encoder:
        result = embed_folder(encoder, files or images, EmbedOptions(keep=only(keep) if keep else None, batch_size=batch), BarProgress())
    save_embeddings(result, output)
    for path, reason in result.skipped:
        message(f"skipped {path}: {reason}")
    if left_out.found:
        message(f"note: {left_out.note()}")
    message(f"wrote {output}: {len(result.paths)} embeddings, {len(result.skipped)} skipped, {result.images_per_s:.1f} images/s")


@app.command()
@paths_argument
@engine_options
@keep_option
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes named for each image.")
@json_option
def classify(paths: tuple[Path, ...], choice: EngineChoice, keep: tuple[Keep, ...] | None, top: int, as_json: bool) -> None:
    """The most likely classes of each image, among the bundle's classes."""
    from prtool.console import result_json, result_table

    bundle, images = _bundle_and_images(paths)
    with choice.load(bundle) as encoder:
        predictions = [encoder.classify([image], keep=only(keep) if keep else None, top=top)[0] for image in images]
    if as_json:
        found = [[{"name": c.name, "probability": c.probability} for c in row] for row in predictions]
        result_json({"results": [{"path": str(path), "classes": row} for path, row in zip(images, found, strict=True)]})
        return
    rows = [[str(path), *(f"{c.name} {c.probability:.1%}" for c in row)] for path, row in zip(images, predictions, strict=True)]
    result_table(["image", *(str(i + 1) for i in range(len(rows[0]) - 1))], rows)


@app.command()
@paths_argument
@engine_options
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.8,0.6,0.4", show_default=True, help="Keep ratios or counts, side by side.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("patches.png"), show_default=True, help="PNG file.")
def show(paths: tuple[Path, ...], choice: EngineChoice, keeps: tuple[Keep, ...], output: Path) -> None:
    """A picture of which patches stay: dropped ones are dimmed."""
    from prtool.console import message
    from prtool.runtime.show import show as draw

    bundle, images = _bundle_and_images(paths)
    with choice.load(bundle) as encoder:
        draw(encoder, images, list(keeps), output)
    message(f"wrote {output}")


@app.command()
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can run, for a bug report."""
    from prtool.console import result_json, result_table
    from prtool.doctor import examine

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
    from prtool.console import BarProgress, message, result_table
    from prtool.demo import run_demo

    for title, (columns, rows) in run_demo(output, speed, BarProgress()).items():
        result_table(columns, rows, title)
    message(f"pictures and tables: {output}")


app.add_command(build)
app.add_command(engine_cache)
app.add_command(data_sets)
app.add_command(reproduce)
app.add_command(tune)


def main(arguments: list[str] | None = None) -> None:
    """The `prtool` program: exit 0 done, 1 our error in one line, 2 wrong usage, 130 interrupted."""
    app.main(arguments, prog_name="prtool")


def _run_name(model: str, data: str) -> str:
    """MODEL-DATA in plain characters, so that the same command finds its own unfinished run."""
    words = [re.split(r"[:/\\]", part.rstrip("/"))[-1] for part in (model, data) if part]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(words)) or "run"


def _bundle_and_images(paths: tuple[Path, ...]) -> tuple[Path, tuple[Path, ...]]:
    """The first path is the bundle when it holds a manifest; else the bundle is `bundle/`."""
    from prtool.bundle import MANIFEST_NAME

    first, rest = (paths[0], paths[1:]) if (paths[0] / MANIFEST_NAME).is_file() else (Path("bundle"), paths)
    if not rest:
        raise click.UsageError("no images given; name files or folders after the bundle")
    return first, rest
