"""What messages and documents advise exists: extras, commands with their options and settings, files, Python names."""

import ast
import contextlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest
from support import REPO, settable

import prtool
from prtool.cli.main import app
from prtool.engines.base import BuildOptions, EngineOptions
from prtool.extras import Extra, install_hint
from prtool.runtime.bench import BenchConfig
from prtool.studies.tune.config import TuneConfig
from prtool.trainer.config import TrainConfig
from prtool.trainer.evaluation.config import EvalConfig

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


FOLDER = "docs|benchmarks|examples|tests|prtool|trainer|export|runtime|engines|.ci"
NAMED_FILE = re.compile(rf"(?<![\w/.<-])(?:{FOLDER})/[\w./-]*\w\.(?:md|py|json|toml|sh|hpp|h|cpp|yml)\b")
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]+)")
DOTTED = re.compile(r"(?<![\w./-])prtool(?:\.\w+)+(?![\w/])")
SETTING = re.compile(r"--set ([\w.]+)=")


def test_every_file_that_is_named_exists() -> None:
    wrong = [(path.name, name) for path, text in literals() for name in NAMED_FILE.findall(text) if not (REPO / name).exists()]
    wrong += [(path.name, name) for path in DOCUMENTS for name in LINK.findall(path.read_text()) if not (path.parent / name).exists()]
    assert wrong == []


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module, even one whose library is not installed, or to an attribute of one."""
    found: object = prtool
    parts = name.split(".")
    for place, part in enumerate(parts[1:], 2):
        module = ".".join(parts[:place])
        if isinstance(found, ModuleType) and not hasattr(found, part) and importlib.util.find_spec(module) is not None:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)
            found = sys.modules.get(module)
        else:
            found = getattr(found, part, ...)
    return found is not ...


def test_every_python_name_exists() -> None:
    others = ("prtool.json", "prtool.toml", "prtool.hpp", "prtool.h", "prtool.pc", "prtool.trainer.x")
    named = {(path.name, name) for path, text in literals() for name in DOTTED.findall(text) if name not in others}
    assert len(named) > 50
    assert sorted(item for item in named if not exists(item[1])) == []


def test_every_setting_exists() -> None:
    """Of the command that is shown, or, in a message, of some command."""
    kinds = {
        "eval": [EvalConfig],
        "tune": [TuneConfig],
        "bench": [BenchConfig],
        "build": [BuildOptions, EngineOptions],
        "train": [TrainConfig],
        "reproduce": [TrainConfig],
    }
    known = {command: set().union(*map(settable, kinds.get(command, [EngineOptions]))) for command in COMMANDS}
    shown = [(path.name, name, known[command]) for path, command, rest in calls() for name in SETTING.findall(rest)]
    shown += [(path.name, name, set().union(*known.values())) for path, text in literals() for name in SETTING.findall(text)]
    assert len(shown) > 20
    assert [item[:2] for item in shown if item[1] not in (*item[2], "KEY")] == []
