"""What the commands print: results as tables on stdout, progress and messages on stderr."""

import json
import logging
import sys
import time
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from prtool.text_safety import LINE_CHARACTERS, escaped, printable

_messages = Console(stderr=True, highlight=False, soft_wrap=True)


class BarProgress:
    """A Progress that draws one bar a stage on stderr, with rate and time left; plain lines where stderr is no terminal."""

    def __init__(self) -> None:
        self._bars: RichBars | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._done = 0
        self._started = 0.0

    def start(self, what: str, total: int) -> None:
        """A stage begins; see prtool.progress."""
        self._what, self._done, self._started = what, 0, time.monotonic()
        if not _messages.is_terminal:
            _messages.print(f"{what} ({total}) ...", markup=False)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._bars = RichBars(*columns, console=_messages, transient=True)
        self._bars.start()
        self._task = self._bars.add_task(what, total=total, rate="")

    def advance(self, count: int = 1) -> None:
        """`count` further items are done."""
        self._done += count
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, advance=count, rate=f"{self._rate():.3g}/s")

    def finish(self) -> None:
        """The stage is over."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = self._task = None
        seconds = time.monotonic() - self._started
        _messages.print(f"{self._what}: {self._done} in {seconds:.1f} s ({self._rate():.3g}/s)", markup=False)

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)


class NoteHandler(logging.Handler):
    """Shows what the library logs as a warning as one line "note: ..." on stderr, once in a process."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Shows a record."""
        text = record.getMessage()
        if text not in self._shown:
            self._shown.add(text)
            message(f"note: {text}")


def show_notes() -> None:
    """From now on, warnings that prtool logs are shown by `NoteHandler`."""
    logger = logging.getLogger("prtool")
    if not any(isinstance(handler, NoteHandler) for handler in logger.handlers):
        logger.addHandler(NoteHandler())


def message(text: str) -> None:
    """One line for the person, on stderr, of at most `LINE_CHARACTERS`."""
    _messages.print(Text(printable(text, LINE_CHARACTERS)))


def result_json(value: object) -> None:
    """The result as JSON on stdout."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def result_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """The result as a table on stdout; numbers are right-aligned."""
    table = Table(title=title or None, title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        # What stands in brackets is text ("[tensorrt]"), not a style.
        table.add_row(*(Text(escaped(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(width=width, highlight=False).print(table)


def _is_number(text: str) -> bool:
    stripped = text.rstrip("x% ").lstrip("~")
    return stripped in ("", "-") or stripped.replace(".", "", 1).replace("-", "", 1).replace("+", "", 1).isdigit()
