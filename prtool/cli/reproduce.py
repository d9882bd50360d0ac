"""The command that reproduces the paper's tables: `prtool reproduce TABLE`."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from prtool.cli.console import BarProgress, message, print_report
from prtool.cli.parameters import FOLDER, Values, json_option, settings_option
from prtool.errors import ConfigError
from prtool.spec import Keep

OVERHEAD = "overhead"
_PAPERS_KEEPS = (("--keep",), "has keeps of its own, the paper's")
_UNREAD = {
    "predictor-ablation": _PAPERS_KEEPS,
    "cls-attention": _PAPERS_KEEPS,
    OVERHEAD: (("--seeds", "--images", "--row"), "is a benchmark of one run, of the first seed"),
}
"""Options that change nothing in a table, and why."""


@click.command()
@click.argument("table")
@click.option("--data", required=True, help="Data sets, or a folder of them: FOLDER or NAME:FOLDER, with commas.")
@click.option("--model", default="ViT-B-16", show_default=True, help="As of prtool train.")
@click.option("--pretrained", default="", help="As of prtool train.")
@click.option("--keep", type=Values("keep", Keep.parse), default="0.6", show_default=True, help="Patches kept: a ratio or a count; several for main.")
@click.option("--seeds", type=int, default=3, show_default=True, help="Training seeds, from 0 on.")
@click.option("--shots", type=int, default=16, show_default=True, help="Images of each class that tokens are tuned on; 0 takes all.")
@click.option("--images", type=int, default=0, help="Test images of each set at most; 0 takes all.  [default: 0]")
@click.option("--row", "rows", multiple=True, metavar="PATTERN", help="Only rows called so (*, ?); may be given again.  [default: all]")
@settings_option("all of 'prtool train --show-config'")
@click.option("-o", "--output", type=FOLDER, default=Path("reproduce"), show_default=True, help="Folder of tables and runs.")
@json_option
def reproduce(table: str, output: Path, as_json: bool, keep: tuple[Keep, ...], settings: dict[str, object], **asked: Any) -> None:  # noqa: ANN401
    """A table of the paper, our figures next to the published ones; a call that was stopped resumes where it stopped.

    TABLE: main, predictor-ablation, locations, cls-attention, layers, training-ablation, cross-domain or overhead.
    """
    from prtool.studies.paper.plan import Study
    from prtool.studies.paper.report import make_report, report_files, write_report
    from prtool.studies.paper.sets import data_sets
    from prtool.studies.paper.tables import TABLES, make_table, unknown_table
    from prtool.trainer.data.address import split_data
    from prtool.trainer.models.loading.source import canonical_name, check_pretrained

    if table not in (*TABLES, OVERHEAD):
        raise unknown_table(table, OVERHEAD)
    _reject_unread(table)
    check_pretrained(canonical_name(asked["model"]), asked["pretrained"])
    study = Study(data_sets(split_data(asked.pop("data"))), keeps=keep, settings=settings, **asked)
    progress = BarProgress()
    report_files(table, output / table)
    if table == OVERHEAD:
        from prtool.studies.paper.overhead import overhead

        report = overhead(study, output, "ort", progress)
    else:
        made = make_table(table, study)
        from prtool.studies.paper.run import Grid

        grid = Grid(study, output, progress)
        grid.run(made.cells)
        report = make_report(made, grid, study)
    files = write_report(report, output / table)
    print_report(report, as_json, report.title)
    for line in report.missing:
        message(f"did not run: {line}")
    message(f"wrote {', '.join(map(str, files))}")


def _reject_unread(table: str) -> None:
    """Rejects options that were given and change nothing in a table."""
    context = click.get_current_context()
    unread, why = _UNREAD.get(table, ((), ""))
    named = [option.opts[0] for option in context.command.params if context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE]
    if given := [name for name in named if name in unread]:
        raise ConfigError(f"{', '.join(given)}: the table {table} {why}; leave it out")
