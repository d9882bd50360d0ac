"""The command that chooses where and how much a run prunes."""

from pathlib import Path
from typing import Any

import click

from prtool.cli.parameters import Counts, KeepList, cache_option, engine_option, json_option, precision_option, run_argument


@click.command()
@run_argument
@click.option("--max-drop", type=float, help="Most points of accuracy below the unpruned model; the fastest within it is chosen.")
@click.option("--min-cosine", type=float, help="Least mean cosine to the unpruned embedding, for images without labels.")
@click.option("--max-latency-ms", type=float, help="Most milliseconds of a call of --batch images; alone, the most accurate within it is chosen.")
@click.option("--min-images-per-s", type=float, help="Least images a second; the same kind of limit.")
@click.option(
    "--location",
    "locations",
    type=Counts(),
    multiple=True,
    help="A candidate: 4, or 4,6,8,10 for progressive pruning; repeat it for more. Others than the run's train sibling runs.  [default: the run's]",
)
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.9,0.8,0.7,0.6,0.5,0.4,0.3", show_default=True, help="Keep ratios or counts to try.")
@engine_option
@precision_option
@click.option("--batch", type=int, default=8, show_default=True, help="Images a call.")
@click.option("--threads", type=int, default=0, help="CPU threads; 0 takes all that are granted.  [default: 0]")
@click.option("--seconds", "budget_s", type=float, default=30.0, show_default=True, help="Time for measuring each candidate location.")
@click.option("--data", type=click.Path(path_type=Path), help="Images that quality is measured on.  [default: the run's]")
@click.option("--split", default="val", show_default=True, type=click.Choice(["train", "val", "test"]), help="Part of the data.")
@click.option("--images", type=int, default=0, help="At most this many images; 0 takes all.  [default: 0]")
@cache_option
@json_option
def tune(run: Path, data: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401 - as click hands them over
    """Choose location and keep by accuracy on validation images and speed on this machine; export then takes the choice."""
    from prtool.cli.console import BarProgress, message, result_json, result_table
    from prtool.studies.tune.config import PICTURE_NAME, REPORT_NAME, TUNE_FOLDER, TuneConfig
    from prtool.studies.tune.front import Limits
    from prtool.studies.tune.result import RESULT_NAME
    from prtool.trainer.data.address import parse_data
    from prtool.trainer.runs.checks import data_of
    from prtool.trainer.runs.record import read_record

    limits = Limits(*(options.pop(name) for name in ("max_drop", "min_cosine", "max_latency_ms", "min_images_per_s")))
    config = TuneConfig(limits, **options)
    record = read_record(run)
    record.prune.distinct_counts(config.keeps)
    parse_data(data_of(run, record, data))
    from prtool.studies.tune.run import tune as choose

    report = choose(run, config, data, BarProgress())
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())
    for note in report.notes:
        message(f"note: {note}")
    message(report.verdict())
    folder = run / TUNE_FOLDER
    message(f"wrote {run / RESULT_NAME}, {folder / REPORT_NAME}, {folder / PICTURE_NAME}; next: prtool export {run}")
