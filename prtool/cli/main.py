"""The `prtool` program: one command for each verb, with the library's names; each parses, calls one function and prints."""

import sys
from pathlib import Path
from typing import Any

import click

from prtool.cli.bundle import bench, build, classify, embed, show, verify
from prtool.cli.console import BarProgress, message, result_json, result_table
from prtool.cli.data import data
from prtool.cli.engine_cache import engine_cache
from prtool.cli.exits import exit_status, fill_descriptors, stop_on_signals
from prtool.cli.parameters import FOLDER, json_option
from prtool.cli.reproduce import reproduce
from prtool.cli.run import evaluate, export, train, tune


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
    """Makes a frozen CLIP image encoder faster by pruning patches, and validates the result.

    In a project folder: prtool train, prtool eval, prtool export --keep 0.6, prtool bench.
    """


@app.command()
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can run, for a bug report."""
    from prtool.cli.doctor import examine

    facts = examine(Path.cwd())
    if as_json:
        result_json(facts)
        return
    rows = [[key, str(value)] for key, value in facts.items() if not isinstance(value, dict)]
    rows += [[f"{key}: {name}", str(item)] for key, value in facts.items() if isinstance(value, dict) for name, item in value.items()]
    result_table(["what", "state"], rows)


@app.command()
@click.option("-o", "--output", type=FOLDER, default=Path("demo"), show_default=True, help="Folder for all that is made.")
@click.option("--speed/--no-speed", default=True, show_default=True, help="Also measure ViT-B/16 at real size (random weights).")
@json_option
def demo(output: Path, speed: bool, as_json: bool) -> None:
    """Train, evaluate, export, bench and show on a small world of coloured objects; offline, minutes on a CPU."""
    from prtool.studies.demo.run import run_demo

    tables = run_demo(output, speed, BarProgress())
    if as_json:
        result_json({title: [dict(zip(columns, row, strict=True)) for row in rows] for title, (columns, rows) in tables.items()})
    else:
        for title, (columns, rows) in tables.items():
            result_table(columns, rows, title)
    message(f"pictures and tables: {output}")


for _command in (train, evaluate, tune, export, build, verify, bench, embed, classify, show, reproduce, data, engine_cache):
    app.add_command(_command)


def main(arguments: list[str] | None = None) -> None:
    """The `prtool` program: exit 0 done, 1 our error in one line, 2 wrong usage, 128 + N ended by signal N (130 Ctrl-C, 141 no reader of stdout)."""
    fill_descriptors()
    with stop_on_signals():
        app.main(arguments, prog_name="prtool")
