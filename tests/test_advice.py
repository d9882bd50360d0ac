"""What messages and documents advise exists: extras, commands and their options."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
from support import REPO

from prtool.cli.main import app
from prtool.extras import Extra, install_hint

FOLDERS = ("prtool", "trainer", "export", "runtime", "engines")
DOCUMENTS = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "benchmarks").glob("*.md"))]
KNOWN_EXTRAS = set(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def literals() -> Iterator[tuple[Path, str]]:
    """Every string constant of the package, with parts of f-strings, and every document."""
    for folder in FOLDERS:
        for path in sorted((REPO / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path, node.value
    for path in DOCUMENTS:
        yield path, path.read_text()


def test_the_names_of_extras_are_those_of_the_package() -> None:
    assert set(get_args(Extra)) == KNOWN_EXTRAS - {"dev", "docs"}
    assert "pip install '.[openvino]'" in install_hint("openvino")


def test_no_text_advises_an_unknown_extra() -> None:
    for path, text in literals():
        # The package is on no index: its name is nothing that pip can install.
        assert not re.search(r"pip install\S* '?\"?prtool", text), path
        for names in re.findall(r"pip install[^`]{0,40}?\.\[([^\]{]+)\]", text):
            assert set(names.split(",")) <= KNOWN_EXTRAS, (path, names)


@pytest.mark.parametrize("path", sorted((REPO / "tests").rglob("test_*.py")), ids=lambda path: path.stem)
def test_no_skip_advises_an_unknown_extra(path: Path) -> None:
    for names in re.findall(r"reason=.*pip install '\.\[([^\]]+)\]'", path.read_text()):
        assert set(names.split(",")) <= KNOWN_EXTRAS, names


OTHER_PROGRAMS = re.compile(r"\b(?:pip|docker|tar)\b[^;,)]*")
OPTION = re.compile(r"(?<![\w-])--?[a-z][a-z-]*(?![\w(])")
CALL = re.compile(r"(?:^|[`'\"]|[,:;] |\n)prtool ((?:engine-cache |data )?[a-z][a-z-]*)((?:(?! (?:and|or) )[^`'\"\n;,])*)")


def options(command: click.Command) -> set[str]:
    return {name for item in command.params for name in (*item.opts, *item.secondary_opts) if name.startswith("-")} | {"-h", "--help"}


def commands(group: click.Group, before: str = "") -> dict[str, set[str]]:
    """Every command by its words, with its options."""
    found: dict[str, set[str]] = {}
    for name, command in group.commands.items():
        found[before + name] = options(command)
        if isinstance(command, click.Group):
            found |= commands(command, f"{before}{name} ")
    return found


COMMANDS = commands(app)
EVERY_OPTION = set().union(*COMMANDS.values(), {"--version"})


def code_spans(text: str) -> Iterator[str]:
    """What a document shows as code: spans in backticks, and the lines of blocks without their comments."""
    blocks = re.split(r"^```.*$", text, flags=re.MULTILINE)
    for place, block in enumerate(blocks):
        yield from (line.split("#")[0].strip() for line in block.splitlines()) if place % 2 else re.findall(r"`([^`]+)`", block)


def calls() -> Iterator[tuple[Path, str, str]]:
    """Each call of the program that a message or document shows: where, its command, and what follows."""
    for path, text in literals():
        for shown in code_spans(text) if path.suffix == ".md" else [text]:
            for command, rest in CALL.findall(shown):
                yield path, command, rest


def test_every_command_that_is_advised_exists() -> None:
    shown = [(path, command) for path, command, _ in calls()]
    assert len(shown) > 60
    assert [item for item in shown if item[1] not in COMMANDS] == []


def test_every_option_of_a_command_that_is_advised_exists() -> None:
    wrong = [
        (path.name, command, option)
        for path, command, rest in calls()
        for option in OPTION.findall(rest)
        if option not in COMMANDS.get(command, set())
    ]
    assert wrong == []


def test_every_option_that_a_message_names_exists() -> None:
    """Of some command: a library function does not know by which one it was called."""
    wrong = [
        (path.name, option)
        for path, text in literals()
        if path.suffix == ".py"
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", OTHER_PROGRAMS.sub("", text))
        if option not in EVERY_OPTION
    ]
    assert wrong == []


def test_a_mode_that_is_advised_can_be_given() -> None:
    """Messages advise mode "full" to whoever embeds or classifies."""
    for name in ("embed", "classify"):
        (mode,) = (item for item in app.commands[name].params if item.name == "mode")
        assert mode.type.convert("full", mode, None) == "full"
