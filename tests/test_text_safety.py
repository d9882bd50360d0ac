"""Text from elsewhere on a terminal: one line, of limited length, with nothing hidden in it."""

import os

import pytest

from prtool.cli.console import message, result_table
from prtool.errors import ConfigError, EngineError
from prtool.text_safety import LINE_CHARACTERS, escaped, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name.jpg", "plain name.jpg"),
        ("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m"),
        ("two\nlines\r\ttab", r"two\nlines\r\ttab"),
        ("\x7f\x9b1m", r"\x7f\x9b1m"),
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
        ("photo\u202egnp.exe", r"photo\u202egnp.exe"),
        ("a\u2028b\u0085c", r"a\u2028b\x85c"),
        ("café 犬 👩‍🔬", "café 犬 👩‍🔬"),
    ],
)
def test_what_cannot_be_seen_is_escaped(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert printable(text) == shown


@pytest.mark.parametrize("character", ["a", "\x00", "\u202e", "犬"])
@pytest.mark.parametrize("length", [100, 101, 200_000])
def test_long_text_loses_its_middle(character: str, length: int) -> None:
    shown = printable("start " + character * length + " end", 100)
    assert len(shown) <= 100
    assert shown.startswith("start ")
    assert shown.endswith(" end")
    assert " ... " in shown


def test_any_value_can_be_shown() -> None:
    assert printable(float("nan")) == "nan"
    assert printable(["a" * 500], 40).startswith("['aaa")


def test_messages_are_one_line_of_limited_length(capsys: pytest.CaptureFixture[str]) -> None:
    message("error: \x1b]0;title\x07 [bold]x[/] :smile: " + "y\n" * 50_000)
    line = capsys.readouterr().err
    assert line.startswith(r"error: \x1b]0;title\x07 [bold]x[/] :smile: y\ny\n")
    assert line.count("\n") == 1
    assert len(line) <= 1001


def test_a_table_shows_names_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    result_table(["image"], [["a\x1b[2Jb\ud800.png"]])
    assert r"a\x1b[2Jb\ud800.png" in capsys.readouterr().out


def test_every_error_is_one_line() -> None:
    """Libraries' messages and values of files are echoed in many places; none of them can break the line or fill the screen."""
    text = str(EngineError("first\nsecond \x1b[31m" + "x" * 10_000))
    assert text.startswith(r"first\nsecond \x1b[31mx")
    assert len(text) == LINE_CHARACTERS
    assert str(ConfigError("plain")) == "plain"
