"""SIGTERM and SIGHUP end a command as Ctrl-C does: what is unfinished is removed, and the exit status names the signal."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Raises Stopped in the body, in the main thread, when SIGTERM or SIGHUP comes; a signal that is ignored (nohup) or handled stays so."""
    taken = [number for number in _SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in taken:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal hands them over
    for other in _SIGNALS:
        if signal.getsignal(other) == _stop:
            signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise Stopped(number)
