"""The commands that make and judge a run: train, eval, tune, export."""

import inspect
from pathlib import Path
from typing import Any

import click

from prtool import api
from prtool.cli.console import BarProgress, message, print_report, result_text
from prtool.cli.parameters import FileName, Values, json_option, verb_options, whole


@click.command()
@verb_options(
    api.train, "all that --show-config prints, e.g. golden.group=1", config=click.Path(path_type=Path, exists=True, dir_okay=False), data=str
)
@click.option("--show-config", is_flag=True, help="Print every setting with its unit, and stop.")
@json_option
def train(show_config: bool, as_json: bool, overwrite: bool, output: Path | None, **given: Any) -> None:  # noqa: ANN401 - as click hands them over
    """Train the predictor, recovery and learnable tokens; the run resumes where it stopped."""
    config = api.train_config(**given)
    if show_config:
        from prtool.trainer.config import show_config as config_text

        result_text(config_text(config))
        return
    report = api.train(config, overwrite=overwrite, output=output, progress=BarProgress())
    print_report(report, as_json, "on the validation images")
    message(f"wrote {report.run}; next: prtool eval, prtool export")


@click.command(name="eval")
@verb_options(api.evaluate, "retrieval_images", "batch", "seed", "templates", data=str, output=FileName(".png"))
@json_option
def evaluate(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Accuracy, changed decisions, cosine and retrieval next to the cost, for several ways to spend less."""
    print_report(api.evaluate(**options, progress=BarProgress()), as_json)
    message(f"wrote {api.evaluation_picture(options['run'], options['split'], options['output'])}")


@click.command()
@verb_options(
    api.tune,
    *("limits.max_recall_drop", "limits.min_cosine", "limits.min_overlap", "limits.max_gmacs", "limits.min_images_per_s", "minutes", "methods"),
    *("split", "images", "screen_images", "threads", "device", "budget_s", "cache"),
    data=str,
    location=Values("block", whole),
)
@json_option
def tune(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Search reducer, image size, location and keep by quality on validation images and speed here; export then takes the choice."""
    from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER
    from prtool.studies.tune.result import RESULT_NAME

    report = api.tune(**options, progress=BarProgress())
    print_report(report, as_json)
    run: Path = options["run"]
    message(report.verdict())
    message(f"wrote {run / RESULT_NAME}, {run / TUNE_FOLDER / REPORT_NAME}, {run / TUNE_FOLDER / PICTURE_NAME}; next: prtool export {run}")


@click.command()
@verb_options(api.export_bundle, data=str, patch_tokens=int)
@click.option("--layout", help="Write the files of other software, of hf, immich and triton, and no bundle; RUN may then be a bundle's folder.")
@verb_options(api.write_layout, only=("pixels",))
@json_option
def export(layout: str | None, pixels: str, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Write a bundle of ONNX graphs, after comparing them with PyTorch; or with --layout the files of other software."""
    if layout is not None:
        _export_layout(layout, pixels, as_json, **options)
        return
    if pixels != inspect.signature(api.write_layout).parameters["pixels"].default:
        raise click.UsageError("--pixels is for --layout: a bundle's graphs read float32")
    report = api.export_bundle(**options, progress=BarProgress())
    print_report(report, as_json)
    where = "" if str(report.bundle) == api.BUNDLE else f" --bundle {report.bundle}"
    message(f"wrote {report.bundle}; next: prtool bench{where}, prtool embed{where} PHOTOS -o out.npz")


def _export_layout(
    layout: str,
    pixels: str,
    as_json: bool,
    *,
    run: Path,
    output: Path,
    precision: tuple[str, ...],
    patch_tokens: int | None,
    **options: Any,  # noqa: ANN401
) -> None:
    if patch_tokens is not None:
        raise click.UsageError("--patch-tokens is a bundle's: leave it or --layout out")
    if str(output) == api.BUNDLE:
        raise click.UsageError("--layout writes no bundle; name its folder with -o")
    if len(precision) != 1:
        raise click.UsageError(f"--layout writes images at one precision, but --precision names {', '.join(precision)}")
    report = api.write_layout(run, output, layout=layout, precision=precision[0], pixels=pixels, **options, progress=BarProgress())
    print_report(report, as_json)
    message(f"wrote {report.folder}, which keeps {report.keep} patches of each image")
