"""How long work reports its progress to the caller; the library itself prints nothing."""

import contextlib
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Receives one stage after another: `start`, any number of `advance`, `finish`, then perhaps the next `start`.

    Work calls it from the thread that called the work, never from a worker thread. An exception raised by
    `advance` stops the work, so a caller can cancel with it.
    """

    def start(self, what: str, total: int) -> None:
        """A stage begins: what it does and counts ("embedding images"), of how many items; one that resumes advances at once by those done."""
        ...

    def advance(self, count: int = 1) -> None:
        """`count` further items are done."""
        ...

    def finish(self) -> None:
        """The stage is over, finished or failed."""
        ...


class SilentProgress:
    """A Progress that ignores every call; the default of library functions."""

    def start(self, what: str, total: int) -> None:
        """Does nothing."""

    def advance(self, count: int = 1) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


@contextlib.contextmanager
def stage(progress: Progress, what: str, total: int) -> Iterator[None]:
    """Starts a stage, and finishes it when the body ends in any way."""
    progress.start(what, total)
    try:
        yield
    finally:
        progress.finish()
