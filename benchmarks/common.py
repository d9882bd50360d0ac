"""What the benchmark scripts share: their command class, and naming, writing and showing a result."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from prtool.cli.console import message, result_table
from prtool.cli.parameters import Values, whole
from prtool.errors import PrtoolError
from prtool.files import write_json
from prtool.spec import Keep

RESULTS = Path(__file__).resolve().parent / "results"
Table = tuple[list[str], list[list[str]]]
NAMES, FILES, COUNTS, KEEPS = Values("name", str), Values("file", Path), Values("number", whole), Values("keep", Keep.parse)
output_option = click.option("-o", "--output", type=click.Path(path_type=Path), help="Result file; named after what was measured if absent.")


def word(*known: str) -> Callable[[str], str]:
    """Reads one of a few words."""

    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"{text!r} is not one of {', '.join(known)}")
        return text

    return read


class Script(click.Command):
    """A command whose errors of prtool become one line on stderr and exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except PrtoolError as error:
            raise click.ClickException(str(error)) from error


def named(output: Path | None, *facts: object) -> Path:
    """`output` where one was given, else a name in results/ made of `facts`, without a suffix."""
    return output or RESULTS / slug(*facts)


def slug(*facts: object) -> str:
    """A file name made of `facts`: ("ViT-B-16", "rank@192") -> "vit-b-16-rank-192"."""
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, facts)).lower()).strip("-")


def publish_json(path: Path, report: object) -> Path:
    """Writes the report to `path`, ending in .json; returns the file."""
    file = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    write_json(file, report)
    return file


def show(table: Table, title: str, notes: Sequence[str], files: Sequence[Path]) -> None:
    """The table on stdout; notes and the names of the files written on stderr."""
    result_table(*table, title=title)
    for line in (*notes, *(f"wrote {file}" for file in files)):
        message(line)
