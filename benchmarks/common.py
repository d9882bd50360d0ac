"""What the benchmark scripts share: reading lists, naming and writing a result, showing it, and errors in one line."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from prtool.cli.console import message, result_table
from prtool.errors import PrtoolError
from prtool.files import write_json
from prtool.spec import Keep

RESULTS = Path(__file__).resolve().parent / "results"
Table = tuple[list[str], list[list[str]]]


def words(text: object) -> tuple[str, ...]:
    """A comma-separated list."""
    return tuple(item.strip() for item in str(text).split(",") if item.strip())


def numbers(text: object) -> tuple[int, ...]:
    """A comma-separated list of whole numbers."""
    items = words(text)
    if not all(item.isascii() and item.isdigit() for item in items):
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 1,8")
    return tuple(int(item) for item in items)


def keeps(text: object) -> tuple[Keep, ...]:
    """A comma-separated list of keep ratios or counts."""
    return tuple(Keep.parse(item) for item in words(text))


def short(model: str) -> str:
    """The last part of a path or of a `local-dir:` or `hf-hub:` name."""
    return model.rstrip("/").split("/")[-1].split(":")[-1]


def named(output: object, *facts: object) -> Path:
    """`output` where one was given, else a name in results/ made of `facts`, without a suffix."""
    return output if isinstance(output, Path) else RESULTS / re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, facts)).lower()).strip("-")


def publish_json(path: Path, report: object) -> Path:
    """Writes the report to `path`, ending in .json; returns where it lies."""
    file = path if path.suffix == ".json" else path.with_name(f"{path.name}.json")
    write_json(file, report)
    return file


def show(table: Table, title: str, notes: Sequence[str], files: Sequence[Path]) -> None:
    """The table on stdout; notes and the names of what was written on stderr."""
    result_table(*table, title=title)
    for note in notes:
        message(note)
    for file in files:
        message(f"written to {file}")


def in_one_line(run: Callable[[dict[str, object]], None], options: dict[str, object]) -> None:
    """Runs a script; an error of ours becomes one line on stderr and exit status 1."""
    try:
        run(options)
    except PrtoolError as error:
        raise click.ClickException(str(error)) from error
