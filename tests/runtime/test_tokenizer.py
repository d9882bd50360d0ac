"""Tokenizer files: those of the exporter are taken, and hostile ones rejected before the library sees them."""

import base64
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import CONTEXT, VOCABULARY, write_tokenizer

from prtool.errors import BundleError
from prtool.manifest import TextInfo
from prtool.runtime.text import PromptTokenizer

pytest.importorskip("tokenizers", reason="tokenizers is not installed")
TEXT = TextInfo(CONTEXT, VOCABULARY, "tokenizer.json")
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    write_tokenizer(tmp_path / "tokenizer.json")
    value: dict[str, Any] = json.loads((tmp_path / "tokenizer.json").read_bytes())
    return value


def read(settings: dict[str, Any]) -> PromptTokenizer:
    return PromptTokenizer.read(Path("tokenizer.json"), json.dumps(settings).encode(), TEXT)


def charsmap(content: bytes) -> dict[str, Any]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


def replaced(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def test_the_exporters_own_file(settings: dict[str, Any]) -> None:
    tokenizer = read(settings)
    assert tokenizer.ids("A photo of a cat") == [2, 3, 4, 2, 5]
    assert tokenizer.ids("a " * 40) == [2] * 40
    assert tokenizer.pad_id == 0


NESTED: dict[str, Any] = {"type": "Lowercase"}
for _ in range(40):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}
HOSTILE: dict[str, Change] = {
    "padding to a multiple": lambda s: s["padding"].update(pad_to_multiple_of=10**10),
    "padding to the longest": lambda s: s["padding"].update(strategy="BatchLongest"),
    "padding to another length": lambda s: s["padding"].update(strategy={"Fixed": 10**9}),
    "padding with another id": lambda s: s["padding"].update(pad_id=VOCABULARY),
    "no padding": lambda s: s.pop("padding"),
    "cut to another length": lambda s: s["truncation"].update(max_length=10**9),
    "a stride": lambda s: s["truncation"].update(stride=3),
    "an unknown field": lambda s: s.update(plugin="x"),
    "an unknown normalizer": lambda s: s.update(normalizer={"type": "Run"}),
    "a normalizer that is a list": lambda s: s.update(normalizer=[]),
    "normalizers within one another": lambda s: s.update(normalizer=NESTED),
    "a character map that claims gigabytes": lambda s: s.update(normalizer=charsmap(b"\xff" * 6)),
    "an empty character map": lambda s: s.update(normalizer=charsmap(b"")),
    "a character map that is no base64": lambda s: s.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "!"}),
    "replacements that double": lambda s: s.update(normalizer={"type": "Sequence", "normalizers": [replaced("a", "aa")] * 40}),
    "a long replacement": lambda s: s.update(normalizer=replaced("a", "b" * 1000)),
    "an expression that matches everywhere": lambda s: s.update(normalizer={"type": "Replace", "pattern": {"Regex": ""}, "content": "ab" * 200}),
    "random merges": lambda s: s["model"].update(dropout=0.5),
    "no model": lambda s: s.update(model=None),
    "a text model": lambda s: s.update(model="x"),
    "an unknown model": lambda s: s["model"].update(type="Neural"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_rejected(settings: dict[str, Any], name: str) -> None:
    HOSTILE[name](settings)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        read(settings)


def test_a_panic_of_the_library_is_an_error(settings: dict[str, Any]) -> None:
    """A table whose first unit points out of it: well formed, and the library's own code fails while it runs."""
    settings["normalizer"] = charsmap(struct.pack("<II", 4, 0xFFFFFFFF))
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        read(settings).ids("a cat")


def test_replacements_as_the_exporter_writes_them(settings: dict[str, Any]) -> None:
    ligatures = [replaced(chr(0xFB00 + number), "abc") for number in range(30)]
    expressions = [{"type": "Replace", "pattern": {"Regex": text}, "content": " "} for text in (r"\s+", "_+", "[\u2018-\u201b]", "[\u201c-\u201f]")]
    settings["normalizer"] = {"type": "Sequence", "normalizers": [*ligatures, *expressions, settings["normalizer"]]}
    assert read(settings).ids("a  cat") == [2, 5]
