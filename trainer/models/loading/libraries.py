"""Call model libraries: what they raise becomes one error, what they warn of becomes notes."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from prtool.errors import ModelError
from prtool.text_safety import printable

_LINE = 300
_ABOUT_LIBRARIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
_LIBRARIES = ("open_clip", "timm", "transformers", "torch")
Value = TypeVar("Value")


def foreign(what: str, call: Callable[[], Value]) -> Value:
    """Calls a model library; whatever it raises becomes one ModelError that begins with `what`."""
    try:
        return call()
    except ModelError:
        raise
    except Exception as cause:  # model libraries raise any type for values that they do not check
        raise ModelError(f"{what}: {reason(cause)}") from cause


@contextlib.contextmanager
def library_warnings(notes: dict[str, str]) -> Iterator[None]:
    """Collects what model libraries warn of as notes, where it can change numbers; announcements about their own future are dropped."""
    heard = _Heard(notes)
    root = logging.getLogger()
    root.addHandler(heard)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        root.removeHandler(heard)
    for warning in caught:
        if not issubclass(warning.category, _ABOUT_LIBRARIES):
            heard.note(warning.filename, str(warning.message))


class _Heard(logging.Handler):
    """Turns the log records of other libraries into notes."""

    def __init__(self, notes: dict[str, str]) -> None:
        super().__init__(logging.WARNING)
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record that is not prtool's own."""
        if not record.name.startswith("prtool"):
            self.note(record.pathname, record.getMessage())

    def note(self, file: str, text: str) -> None:
        """Keeps the first line of a text."""
        library = next((name for name in _LIBRARIES if name in Path(file).parts), "a library")
        line = printable(text.strip().partition("\n")[0], _LINE)
        self.notes[line] = f"{library} warns: {line}"


def reason(cause: BaseException) -> str:
    """The first line of an exception, with its type where the text alone says little."""
    text = str(cause).strip()
    first = printable(text.splitlines()[0], _LINE) if text else ""
    return first if isinstance(cause, OSError) and first else f"{type(cause).__name__}: {first}".removesuffix(": ")
