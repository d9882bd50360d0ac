"""Call model libraries: what they raise becomes one error, what they warn of becomes notes."""

import contextlib
import importlib.metadata
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import TypeVar

from prtool.errors import ModelError
from prtool.text_safety import printable

OPEN_CLIP = "open_clip_torch>=3.0,<4"
"""The versions whose modules `hosts.py` takes apart, as pyproject.toml says."""
_LINE = 300
_ABOUT_LIBRARIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning)
_LIBRARIES = ("open_clip", "timm", "transformers", "torch")
Value = TypeVar("Value")


def check_open_clip() -> None:
    """Raises ModelError where an open_clip is installed of whose modules nothing is known; none at all is another error, later."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        found = importlib.metadata.version("open_clip_torch")
        if found.partition(".")[0] != "3":
            raise ModelError(f"open_clip_torch {found} is installed, but {OPEN_CLIP} is supported; run pip install '{OPEN_CLIP}'")


def foreign(what: str, call: Callable[[], Value]) -> Value:
    """Calls a model library; raises whatever it raises as a ModelError that begins with `what`."""
    try:
        return call()
    except ModelError:
        raise
    except Exception as cause:  # model libraries raise any type for values that they do not check
        line = printable(str(cause).strip().partition("\n")[0], _LINE)
        kind = "" if isinstance(cause, OSError) and line else f"{type(cause).__name__}: "
        raise ModelError(f"{what}: {kind}{line}".removesuffix(": ")) from cause


@contextlib.contextmanager
def library_warnings(notes: dict[str, str]) -> Iterator[None]:
    """Collects what model libraries warn of as notes, where it can change numbers; announcements about their own future are dropped."""
    collector, root = BufferingHandler(sys.maxsize), logging.getLogger()
    collector.setLevel(logging.WARNING)
    root.addHandler(collector)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        root.removeHandler(collector)
    found = [(record.pathname, record.getMessage()) for record in collector.buffer if not record.name.startswith("prtool")]
    found += [(each.filename, str(each.message)) for each in caught if not issubclass(each.category, _ABOUT_LIBRARIES)]
    for file, text in found:
        library = next((name for name in _LIBRARIES if name in Path(file).parts), "a library")
        line = printable(text.strip().partition("\n")[0], _LINE)
        notes[line] = f"{library} warns: {line}"
