"""Verifying a bundle without PyTorch, against embeddings that plain numpy gave."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONTEXT, TinyModel, tiny_bundle
from safetensors.numpy import save_file

from prtool.bundle import Bundle, seal
from prtool.errors import BundleError, ConfigError, ParityError
from prtool.runtime.verify import agreement, verify

MODEL = TinyModel()
COUNTS = (16, 10, 4)


def probe() -> dict[str, np.ndarray[Any, Any]]:
    pixels = MODEL.pixels(3)
    tokens = np.random.default_rng(0).integers(0, 11, (2, CONTEXT))
    tensors = {"pixels": pixels, "text_tokens": tokens, "text_embedding": MODEL.embed_text(tokens), "embedding_full": MODEL.embed(pixels, (16,))}
    tensors |= {f"embedding_k{k}": MODEL.embed(pixels, (k,)) for k in COUNTS}
    return {name: np.ascontiguousarray(value if name == "text_tokens" else value.astype(np.float32)) for name, value in tensors.items()}


def make(root: Path, tensors: dict[str, np.ndarray[Any, Any]]) -> Path:
    bundle = tiny_bundle(root, MODEL)
    save_file(tensors, root / "probe.safetensors")
    seal(root, bundle.manifest)
    return root


def test_a_good_bundle_passes(tmp_path: Path) -> None:
    report = verify(make(tmp_path / "b", probe()))
    assert len(report.cases) == 2 * (2 * 3 + 1) + 1
    assert report.cosine > 0.99999 and report.max_error < 1e-5
    assert report.engine.name == "ort" and report.gate == 0.99999
    assert len(report.to_json()["cases"]) == len(report.cases)
    assert len(report.table()[1]) == len(report.cases)


@pytest.mark.parametrize(
    ("tensor", "place"),
    [("embedding_k10", r"fused.*10"), ("embedding_full", r"full.*16"), ("text_embedding", "text")],
)
def test_the_case_that_fails_is_named(tmp_path: Path, tensor: str, place: str) -> None:
    tensors = probe()
    tensors[tensor] = tensors[tensor] + np.linspace(0.0, 0.05, 6, dtype=np.float32)
    with pytest.raises(ParityError, match=place):
        verify(make(tmp_path / "b", tensors))


@pytest.mark.parametrize("tensor", ["pixels", "embedding_full", "text_tokens"])
def test_a_probe_that_lacks_a_tensor(tmp_path: Path, tensor: str) -> None:
    tensors = probe()
    del tensors[tensor]
    with pytest.raises(BundleError, match=tensor):
        verify(make(tmp_path / "b", tensors))


def test_a_probe_without_counts(tmp_path: Path) -> None:
    tensors = {name: value for name, value in probe().items() if not name.startswith("embedding_k")}
    with pytest.raises(BundleError, match="embedding_k"):
        verify(make(tmp_path / "b", tensors))


def test_a_bundle_without_probe(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b", MODEL)
    with pytest.raises(BundleError, match=r"probe\.safetensors"):
        verify(tmp_path / "b")


def test_a_damaged_probe(tmp_path: Path) -> None:
    root = make(tmp_path / "b", probe())
    (root / "probe.safetensors").write_bytes(b"\xff" * 100)
    seal(root, tiny_bundle(tmp_path / "c", MODEL).manifest)
    with pytest.raises(BundleError):
        verify(root)


def test_a_damaged_graph(tmp_path: Path) -> None:
    root = make(tmp_path / "b", probe())
    manifest = Bundle.open(root).manifest
    (root / "fused.onnx").write_bytes(b"damaged")
    with pytest.raises(BundleError, match=r"fused\.onnx.* 7 "):
        verify(root)
    seal(root, manifest)
    with pytest.raises(BundleError, match=r"fused\.onnx"):
        verify(root)


def test_unknown_precision_and_engine(tmp_path: Path) -> None:
    root = make(tmp_path / "b", probe())
    with pytest.raises(ConfigError, match="precision = 'int4'"):
        verify(root, precision="int4")
    with pytest.raises(ConfigError, match="engine = 'nope'"):
        verify(root, engine="nope")


def test_agreement_by_hand() -> None:
    found = agreement(np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert found.cosine == pytest.approx(np.sqrt(0.5)) and found.max_error == 1.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_never_agrees(bad: float) -> None:
    assert agreement(np.array([[bad, 1.0]]), np.array([[bad, 1.0]])).cosine == -1.0
    assert agreement(np.zeros((1, 2)), np.ones((1, 2))).cosine == -1.0
