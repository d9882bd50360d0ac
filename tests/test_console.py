"""Results on stdout: nothing cut, nothing interpreted, and written whatever the terminal's encoding is."""

import io
import json
import logging
import os
import sys
from collections.abc import Callable

import pytest

from prtool.cli import console
from prtool.cli.console import BarProgress, message, result_json, result_table
from prtool.cli.exits import exit_status
from prtool.errors import StorageError

LONG = [f"{'d' * 100}/{'f' * 110}-{name}.png" for name in ("one", "two")]


class Terminal(io.TextIOWrapper):
    """An encoded stream that says it is a terminal or none."""

    def __init__(self, encoding: str = "utf-8", errors: str = "strict", *, tty: bool = False) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors=errors, newline="")
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding)


Stdout = Callable[..., Terminal]


@pytest.fixture
def stdout(monkeypatch: pytest.MonkeyPatch) -> Stdout:
    def put(*arguments: str, **options: bool) -> Terminal:
        stream = Terminal(*arguments, **options)
        monkeypatch.setattr(sys, "stdout", stream)
        return stream

    return put


def test_a_pipe_gets_whole_rows(stdout: Stdout) -> None:
    stream = stdout()
    result_table(["image", *(f"p50 of {i}" for i in range(30))], [[name, *(f"{i}.125" for i in range(30))] for name in LONG])
    lines = stream.text().splitlines()
    assert len(lines) == 6
    for name in LONG:
        assert any(name in line and "29.125" in line for line in lines)
    assert "…" not in stream.text()


@pytest.mark.parametrize("columns", [20, 60, 80, 120])
def test_a_terminal_breaks_names_and_no_number(stdout: Stdout, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = stdout(tty=True)
    result_table(["image", "class", "p50 in ms", "speed-up"], [[name, "a long class name", "123.4567", "1.47x"] for name in LONG])
    text = stream.text()
    assert "…" not in text
    assert text.count("123.4567") == 2
    assert text.count("1.47x") == 2
    cells = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert "".join(cells) == "".join(LONG)


def test_what_fits_a_terminal_is_on_one_line(stdout: Stdout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    stream = stdout(tty=True)
    result_table(["image", "犬"], [["a name of words", "1"]])
    assert [line for line in stream.text().splitlines() if "a name of words" in line]


def test_nothing_is_markup_or_an_emoji_code(stdout: Stdout, capsys: pytest.CaptureFixture[str]) -> None:
    stream = stdout()
    odd = "shot:x:1:smile:[bold].jpg"
    result_table([odd, f"[red]{odd}"], [[odd, f"[/]{odd}"]], f"title {odd}")
    assert stream.text().count(odd) == 5
    assert f"[red]{odd}" in stream.text()
    progress = BarProgress()
    progress.start(odd, 1)
    progress.finish()
    message(odd)
    assert capsys.readouterr().err.count(odd) == 3


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [("utf-8", "犬 é"), ("cp1252", "\\u72ac é"), ("ascii", "\\u72ac \\xe9")],
)
def test_a_name_that_the_encoding_lacks_is_escaped(stdout: Stdout, encoding: str, shown: str) -> None:
    stream = stdout(encoding)
    result_table(["犬 é"], [["犬 é"], [os.fsdecode(b"caf\xe9")]], "犬 é")
    assert stream.text().count(shown) == 3
    assert "caf\\xe9" in stream.text()
    assert len({len(line) for line in stream.text().splitlines()[1:]}) == (2 if encoding == "utf-8" else 1)  # 犬 takes two columns


def test_json_is_ascii_and_reads_back(stdout: Stdout) -> None:
    stream, value = stdout("ascii"), {"path": os.fsdecode(b"caf\xe9/\xe7\x8a\xac"), "name": "\x1b[2J"}
    result_json(value)
    assert json.loads(stream.text()) == value


def test_a_full_disk_is_our_error(stdout: Stdout, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = stdout()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stream, "write", full)
    with pytest.raises(StorageError, match="stdout"):
        result_table(["a"], [["1"]])


def test_a_message_that_cannot_be_written_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")):
        stream = io.StringIO()

        def fail(*_: object, error: OSError = error) -> int:
            raise error

        monkeypatch.setattr(stream, "write", fail)
        monkeypatch.setattr(console, "_messages", console._Messages(file=stream))
        progress = BarProgress()
        progress.start("embedding", 1)
        progress.advance()
        progress.finish()
        message("done")


def test_what_the_library_warns_of_is_one_line_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "message", said.append)
    assert exit_status(lambda: logging.getLogger("prtool.trainer.train").warning("%s", "12 files are not used")) == 0
    assert exit_status(lambda: logging.getLogger("prtool.trainer.train").warning("12 files are not used")) == 0
    assert said == ["note: 12 files are not used"]
