"""Tensors of a bundle's files: what numpy cannot hold, or what does not fit the manifest, is one error."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import EMBED, TinyModel, tiny_bundle
from safetensors.numpy import save

from prtool.bundle import Bundle, seal
from prtool.errors import BundleError
from prtool.runtime.classes import ClassTable
from prtool.runtime.verify import PROBE_NAME, read_probe


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A safetensors file with another header."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def reopened(made: Bundle, name: str, content: bytes) -> Bundle:
    (made.path / name).write_bytes(content)
    seal(made.path, made.manifest)
    return Bundle.open(made.path)


HEADERS: list[Callable[[dict[str, Any]], object]] = [
    lambda header: header["embeddings"].update(shape=[1] * 72 + [3, EMBED]),
    lambda header: header["embeddings"].update(dtype="F8_E4M3", shape=[12, EMBED]),
    lambda header: header["embeddings"].update(dtype="BF16", shape=[6, EMBED]),
    lambda header: header["embeddings"].update(shape=[2**62, 4]),
    lambda header: header["embeddings"].update(shape=[EMBED, 3]),
    lambda header: header.update(other=header.pop("embeddings")),
]


@pytest.mark.parametrize("change", HEADERS)
def test_classes(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    made = tiny_bundle(tmp_path / "b", TinyModel())
    bundle = reopened(made, "classes.safetensors", with_header((made.path / "classes.safetensors").read_bytes(), change))
    with pytest.raises(BundleError, match=r"classes\.safetensors"):
        ClassTable.of(bundle)


def test_classes_larger_than_their_table(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", TinyModel())
    content = save({"embeddings": np.zeros((3, EMBED), np.float32), "other": np.zeros(1 << 20, np.uint8)})
    with pytest.raises(BundleError, match="1048648"):
        ClassTable.of(reopened(made, "classes.safetensors", content))


def test_logits_that_overflow(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", TinyModel())
    table = ClassTable.of(made)
    wild = ClassTable(table.names, table.embeddings, 1.7e308, 1.7e308)
    with pytest.raises(BundleError):
        wild.probabilities(table.embeddings)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("pixels", np.zeros((2, 3, 8, 9), np.float32)),
        ("pixels", np.zeros((2, 3, 8, 8), np.float64)),
        ("pixels", np.array(1.0, np.float32)),
        ("pixels", np.zeros((0, 3, 8, 8), np.float32)),
        ("embedding_full", np.zeros((1, EMBED), np.float32)),
        ("embedding_k10", np.zeros((2, EMBED + 1), np.float32)),
        ("text_tokens", np.zeros((2, 6), np.int64)),
        ("text_tokens", np.zeros((2, 7), np.int32)),
        ("text_embedding", np.zeros((3, EMBED), np.float32)),
    ],
)
def test_a_probe_of_another_shape(tmp_path: Path, name: str, tensor: np.ndarray[Any, Any]) -> None:
    good = {
        "pixels": np.zeros((2, 3, 8, 8), np.float32),
        "embedding_full": np.zeros((2, EMBED), np.float32),
        "embedding_k10": np.zeros((2, EMBED), np.float32),
        "text_tokens": np.zeros((2, 7), np.int64),
        "text_embedding": np.zeros((2, EMBED), np.float32),
    }
    made = tiny_bundle(tmp_path / "b", TinyModel())
    assert set(read_probe(reopened(made, PROBE_NAME, save(good)))) == set(good)
    with pytest.raises(BundleError, match=r"probe\.safetensors"):
        read_probe(reopened(made, PROBE_NAME, save({**good, name: tensor})))
