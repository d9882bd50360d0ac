"""The commands that make and judge a run: train, eval, tune, export."""

from pathlib import Path
from typing import Any

import click

from prtool import api
from prtool.cli.console import BarProgress, message, print_report, result_text
from prtool.cli.parameters import FOLDER, FileName, SettingOption, Values, json_option, option, run_argument, settings_option, shared, whole, word

_SPLIT = click.Choice(["train", "val", "test"])
_METHODS = ("patch-ranking", "patch-ranking-tokens", "cls-attention", "evit", "avit", "tome", "random", "golden")


@click.command()
@option(api.train, "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="TOML file.  [default: prtool.toml]")
@option(api.train, "--model", cls=SettingOption, setting="model")
@option(api.train, "--pretrained", cls=SettingOption, setting="pretrained")
@shared("data", verb=api.train)
@option(api.train, "--location", type=Values("block", whole), cls=SettingOption, setting="prune.locations")
@option(api.train, "--phase", type=Values("phase", word("rank", "predictor", "tokens", "none")), cls=SettingOption, setting="phases")
@option(api.train, "--preset", type=click.Choice(["default", "leave-one-out", "paper"]), help="Settings by name; options and --set win over them.")
@option(api.train, "--overwrite", is_flag=True, help="Replace a trained run of other settings in the run folder.")
@settings_option("all that --show-config prints, e.g. golden.group=1")
@option(api.train, "-o", "--output", type=FOLDER, help="Run folder.  [default: runs/MODEL-DATA-HASH, the hash of all settings]")
@click.option("--show-config", is_flag=True, help="Print every setting with its unit, and stop.")
@json_option
def train(show_config: bool, as_json: bool, overwrite: bool, output: Path | None, **given: Any) -> None:  # noqa: ANN401 - as click hands them over
    """Rank patches, train the predictor, train learnable tokens; the run resumes where it stopped."""
    config = api.train_config(**given)
    if show_config:
        from prtool.trainer.config import show_config as config_text

        result_text(config_text(config))
        return
    report = api.train(config, overwrite=overwrite, output=output, progress=BarProgress())
    print_report(report, as_json, "on the validation images")
    message(f"wrote {report.run}; next: prtool eval, prtool export --keep 0.6")


@click.command(name="eval")
@run_argument
@shared("data", verb=api.evaluate, data="the run's")
@option(api.evaluate, "--split", type=_SPLIT, help="Part of the data.")
@shared("keep", verb=api.evaluate, several=("keep",))
@option(api.evaluate, "--method", type=Values("method", word(*_METHODS)), help=f"Of {', '.join(_METHODS)} (slow); several with commas.")
@option(api.evaluate, "--images", type=click.IntRange(0), help="At most this many images; 0 takes all.")
@option(api.evaluate, "-o", "--output", type=FileName(".png"), help="Picture of accuracy against keep.  [default: RUN/eval-SPLIT.png]")
@json_option
def evaluate(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Zero-shot accuracy by keep rate, for several ways to choose patches."""
    print_report(api.evaluate(**options, progress=BarProgress()), as_json)
    message(f"wrote {api.evaluation_picture(options['run'], options['split'], options['output'])}")


@click.command()
@run_argument
@option(api.tune, "--max-drop", type=float, help="Points of accuracy below the unpruned model, at most; the fastest within it is chosen.")
@option(
    api.tune, "--max-latency-ms", type=float, help="Milliseconds of a call of --batch images, at most; alone, the most accurate within it is chosen."
)
@option(
    api.tune,
    "--location",
    type=Values("block", whole),
    multiple=True,
    help="A candidate: 4, or 4,6,8,10 for progressive pruning; repeat it for more. Others than the run's train sibling runs.  [default: the run's]",
)
@shared("keep", "engine", "precision", "batch", "data", verb=api.tune, several=("keep",), data="the run's")
@settings_option("limits.min_cosine", "limits.min_images_per_s", "split", "images", "threads", "device", "budget_s", "cache")
@json_option
def tune(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Choose location and keep by accuracy on validation images and speed on this machine; export then takes the choice."""
    from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER
    from prtool.studies.tune.result import RESULT_NAME

    report = api.tune(**options, progress=BarProgress())
    print_report(report, as_json)
    run: Path = options["run"]
    message(report.verdict())
    message(f"wrote {run / RESULT_NAME}, {run / TUNE_FOLDER / REPORT_NAME}, {run / TUNE_FOLDER / PICTURE_NAME}; next: prtool export {run}")


@click.command()
@run_argument
@shared("keep", verb=api.export_bundle, keep="what 'prtool tune' chose, else 0.6")
@shared("precision", "data", verb=api.export_bundle, several=("precision",), data="the run's")
@option(api.export_bundle, "-o", "--output", type=FOLDER, help="Bundle folder.")
@json_option
def export(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Write a bundle of ONNX graphs, after comparing them with PyTorch."""
    report = api.export_bundle(**options, progress=BarProgress())
    print_report(report, as_json)
    where = "" if str(report.bundle) == api.BUNDLE else f" --bundle {report.bundle}"
    message(f"wrote {report.bundle}; next: prtool bench{where}, prtool embed{where} PHOTOS -o out.npz")
