"""What the commands print: results as tables on stdout, progress and messages on stderr."""

import contextlib
import io
import json
import logging
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.table import Table
from rich.text import Text

from prtool.files import storage_errors
from prtool.text_safety import LINE_CHARACTERS, escaped, printable

_BORDERS = 3
"""Characters that a column takes besides its text: a line and a space on each side."""
_LINES = "┏━┃┡│└"
_MIN_WIDTH = 24
"""Words up to this length are never broken over lines: numbers are shorter."""


class _Messages(Console):
    """Where messages go: one that cannot be written is dropped, for it must not end the work that it is about."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


_messages = _Messages(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)


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
        self._what, self._done, self._started = printable(what), 0, time.monotonic()
        if not _messages.is_terminal:
            message(f"{what} ({total}) ...")
            return
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeRemainingColumn(),
        )
        self._bars = RichBars(*columns, console=_messages, transient=True)
        self._bars.start()
        self._task = self._bars.add_task(self._what, total=total, rate="")

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
        message(f"{self._what}: {self._done} in {seconds:.1f} s ({self._rate():.3g}/s)")

    def _rate(self) -> float:
        return self._done / max(time.monotonic() - self._started, 1e-9)


class Report(Protocol):
    """What a verb returns; a field `notes`, where it has one, is a tuple of sentences."""

    def to_json(self) -> Any:  # noqa: ANN401 - any plain value
        """Plain JSON values."""
        ...

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and rows of cells."""
        ...


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
    """One line for the person, on stderr, of at most `LINE_CHARACTERS`; lost where stderr cannot be written."""
    with contextlib.suppress(OSError):
        _messages.print(Text(printable(text, LINE_CHARACTERS)))


def counted(count: int, noun: str) -> str:
    """Such as "1 engine" and "2 engines"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def result_text(text: str) -> None:
    """The result as text on stdout, with escapes for what its encoding lacks. Raises StorageError, or BrokenPipeError where the reader has gone."""
    with storage_errors(Path("stdout")):
        sys.stdout.write(_encodable(text))
        sys.stdout.flush()


def result_json(value: object) -> None:
    """The result as JSON on stdout, in ASCII whatever the names in it; raises as `result_text`."""
    result_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def print_report(report: Report, as_json: bool, title: str = "") -> None:
    """A verb's report as JSON or as a table on stdout, and its notes on stderr. Raises as `result_text`."""
    columns, rows = report.table()
    if as_json:
        result_json(report.to_json())
    elif rows:
        result_table(columns, rows, title)
    for note in getattr(report, "notes", ()):
        message(f"note: {note}")


def result_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """The result as a table on stdout; numbers are right-aligned. Raises as `result_text`.

    Nothing is cut. In a terminal that is too narrow, cells continue on further lines; words and numbers of up to 24 characters
    stay whole, if need be in lines that are longer than the terminal is wide.
    """
    shown = [[_encodable(escaped(cell)) for cell in row] for row in (columns, *rows)]
    terminal = sys.stdout.isatty()
    widths = _widths(list(zip(*shown, strict=True)), shutil.get_terminal_size().columns if terminal else None)
    table = Table(box=box.HEAVY_HEAD if _encodable(_LINES) == _LINES else box.ASCII)
    for index, (header, width) in enumerate(zip(shown[0], widths, strict=True)):
        numeric = bool(rows) and all(_is_number(row[index]) for row in rows)
        table.add_column(Text(header), justify="right" if numeric else "left", width=width, overflow="fold")
    for row in shown[1:]:
        table.add_row(*map(Text, row))
    drawn = io.StringIO()
    Console(file=drawn, force_terminal=terminal, width=sum(widths) + _BORDERS * len(widths) + 1, highlight=False).print(table)
    result_text((_encodable(escaped(title)) + "\n" if title else "") + drawn.getvalue())


def _widths(columns: Sequence[Sequence[str]], available: int | None) -> list[int]:
    """The width of each column's text: what it needs, or what fits into `available` characters without breaking short words."""
    needed = [max(map(cell_len, cells), default=1) or 1 for cells in columns]
    if available is None:
        return needed
    least = [min(_MIN_WIDTH, max((cell_len(word) for cell in cells for word in cell.split()), default=1)) for cells in columns]
    room = available - _BORDERS * len(columns) - 1
    for most in range(max(room, 1), 0, -1):
        widths = [max(low, min(wide, most)) for low, wide in zip(least, needed, strict=True)]
        if sum(widths) <= room:
            return widths
    return least


def _encodable(text: str) -> str:
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _is_number(text: str) -> bool:
    stripped = text.rstrip("x% ").lstrip("~")
    return stripped in ("", "-") or stripped.replace(".", "", 1).replace("-", "", 1).replace("+", "", 1).isdigit()
