"""What messages and documents advise exists: extras."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from support import REPO

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
    assert set(get_args(Extra)) == KNOWN_EXTRAS - {"dev"}
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
