"""How commands end: one line on stderr, and an exit status."""

import os
import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from prtool.cli.exits import exit_status
from prtool.cli.main import app
from prtool.errors import ConfigError, ImageError


def deep() -> None:
    deep()


def missing_module(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def command() -> Iterator[list[BaseException]]:
    """A command of the program that raises what is put into the list."""
    errors: list[BaseException] = []

    @app.command(name="fail")
    def fail() -> None:
        raise errors[0]

    yield errors
    del app.commands["fail"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ConfigError("two\nlines"), 1, r"two\nlines"),
        (ImageError("x" * 1_000_000), 1, "xxx ... xxx"),
        (ConfigError("a\x1b[31mb\u202e"), 1, r"a\x1b[31mb\u202e"),
        (MemoryError(), 1, "memory ran out"),
        (RecursionError("maximum recursion depth exceeded"), 1, "nested too deep"),
        (OSError(36, "File name too long", "n" * 5000), 1, "File name too long"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "/x/y: Permission denied"),
        (ModuleNotFoundError("No module named 'open_clip'", name="open_clip"), 1, "pip install '.[train]'"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.UsageError("wrong\x1b"), 2, r"error: wrong\x1b"),
    ],
)
def test_an_error_is_one_line(command: list[BaseException], error: BaseException, status: int, words: str) -> None:
    command.append(error)
    result = CliRunner().invoke(app, ["fail"], catch_exceptions=False)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (status, "", 1)
    assert words in result.stderr
    assert len(result.stderr) <= 1001
    assert result.stderr.isprintable() or result.stderr[:-1].isprintable()


def test_a_reader_that_has_gone_ends_without_a_word(command: list[BaseException]) -> None:
    command.append(BrokenPipeError(32, "Broken pipe"))
    result = CliRunner().invoke(app, ["fail"], catch_exceptions=False)
    assert (result.exit_code, result.output) == (141, "")


def test_what_nobody_foresaw_keeps_its_traceback(command: list[BaseException]) -> None:
    command.append(ValueError("a fault of ours"))
    with pytest.raises(ValueError, match="a fault of ours"):
        CliRunner().invoke(app, ["fail"], catch_exceptions=False)
    with pytest.raises(ModuleNotFoundError):
        exit_status(lambda: missing_module("our_own_typo"))


@pytest.mark.parametrize("words", [["--nonsense"], ["nonsense"], ["bench", "--nonsense"], ["bench", "--keep", "x" * 5000], ["embed"]])
def test_wrong_usage_is_one_line(words: list[str]) -> None:
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "--help'" in result.stderr
    assert len(result.stderr) <= 1001


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of shell in which $P is the program."""
    environment = {**os.environ, "P": f"{sys.executable} -m prtool"}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("$P data list > /dev/full", 1, "cannot write stdout: no space left"),
        ("$P --version > /dev/full", 1, "No space left"),
        ("$P data list >&-", 1, "stdout is closed"),
        ("$P data list --json | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("$P data list 2>&-", 0, ""),
        ("$P data download nonsense 2> /dev/full", 1, ""),
        ("$P --version", 0, ""),
    ],
)
def test_streams_that_cannot_be_written(line: str, status: int, words: str) -> None:
    result = shell(line)
    assert (result.returncode, result.stderr.count("\n")) == (status, 1 if words else 0), result.stderr
    assert words in result.stderr
