"""How a command ends: an error or a signal is one line on stderr, and an exit status."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TextIO

import click

from prtool.errors import PrtoolError, StorageError
from prtool.extras import Extra, install_hint

DONE, FAILED, WRONG_USAGE, INTERRUPTED, READER_GONE = 0, 1, 2, 130, 141
"""Exit statuses. 130 and 141 are what a shell gives for a program that SIGINT and SIGPIPE end."""
_EXTRAS: dict[str, Extra] = {
    **dict.fromkeys(("torch", "torchvision", "open_clip", "timm", "matplotlib"), "train"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript"), "export"),
}
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal asks the process to end: as with Ctrl-C, what is unfinished is removed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def exit_status(command: Callable[[], object]) -> int:
    """Runs a command, says on stderr how it failed, and gives the exit status, its result where that is a whole number.

    Errors that nobody foresaw pass through.
    """
    from prtool.cli.console import message, show_notes

    show_notes()
    try:
        if sys.stdout is None:
            raise StorageError("stdout is closed; give the command a file, a pipe or /dev/null to write to")
        ended = command()
        sys.stdout.flush()
        return ended if isinstance(ended, int) else DONE
    except click.exceptions.NoArgsIsHelpError as usage:
        usage.show()
        return WRONG_USAGE
    except click.ClickException as usage:
        message(f"error: {usage.format_message().rstrip('.')}{_see_help(usage)}")
        return usage.exit_code
    except (KeyboardInterrupt, click.Abort) as stop:
        with contextlib.suppress(OSError):  # SIGHUP: the terminal is gone
            message("interrupted; finished work is kept, run the same command again to go on")
        return 128 + stop.number if isinstance(stop, Stopped) else INTERRUPTED
    except BrokenPipeError:
        return READER_GONE
    except Exception as error:
        line = _line(error)
        if line is None:
            raise
        message(f"error: {line}")
        return FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_unwritten(stream)


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


def fill_descriptors() -> None:
    """Opens stdin, stdout and stderr on /dev/null where they are closed, so that no file that is opened later takes their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - as signal hands them over
    for other in _SIGNALS:
        if signal.getsignal(other) == _stop:
            signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise Stopped(number)


def _line(error: Exception) -> str | None:
    """What the line says of an error; None for one that nobody foresaw, whose traceback is needed."""
    if isinstance(error, PrtoolError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").split(".")[0])
        return None if extra is None else f"{error.name} is not installed; {install_hint(extra)}"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename is not None and error.strerror else str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"memory ran out{f' ({error})' if str(error) else ''}; close other programs, or give the command less at a time"
    if isinstance(error, RecursionError):
        return "a value is nested too deep to be read; look at the files that the command was given"
    return None


def _see_help(usage: click.ClickException) -> str:
    context = getattr(usage, "ctx", None)
    return "" if context is None else f"; see '{context.command_path} --help'"


def _drop_unwritten(stream: TextIO | None) -> None:
    """Where a stream cannot be written, points it to /dev/null: Python would try again at its end, and complain in several lines."""
    if stream is None:
        return
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
