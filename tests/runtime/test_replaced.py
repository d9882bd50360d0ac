"""A bundle that is replaced after an encoder opened it: what was loaded stays, and no later part comes from the new one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import CONTEXT, TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines import registry
from prtool.errors import BundleError
from prtool.runtime import pipeline
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import read_probe

OLD, NEW = TinyModel(seed=0), TinyModel(seed=9)


def replace(root: Path) -> None:
    """Puts another bundle at the place, as an export does."""
    tiny_bundle(root.parent / "new", NEW, classes=("dog", "car", "cat"))
    root.rename(root.parent / "old")
    (root.parent / "new").rename(root)


LATER: dict[str, Callable[[Encoder], object]] = {
    "classes": lambda encoder: encoder.classes,
    "classify": lambda encoder: encoder.classify([np.zeros((8, 8, 3), np.uint8)]),
    "text graph": lambda encoder: encoder.encode_text(np.zeros((1, CONTEXT), np.int64)),
    "tokenizer": lambda encoder: encoder.encode_text(["a cat"]),
    "split graphs": lambda encoder: encoder.scores(OLD.pixels(1)),
}


@pytest.mark.parametrize("part", LATER)
def test_later_parts_are_never_of_another_bundle(tmp_path: Path, part: str) -> None:
    tiny_bundle(tmp_path / "b", OLD)
    with Encoder.load(tmp_path / "b") as encoder:
        replace(tmp_path / "b")
        np.testing.assert_allclose(encoder.encode_pixels(OLD.pixels(2)), OLD.embed(OLD.pixels(2), (10,)), atol=1e-5)
        with pytest.raises(BundleError):
            LATER[part](encoder)
    with Encoder.load(tmp_path / "b") as encoder:
        LATER[part](encoder)


def test_what_was_read_before_stays(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "b", OLD)
    with Encoder.load(tmp_path / "b") as encoder:
        before = encoder.encode_text(["a photo of a cat"]), encoder.classes.names
        replace(tmp_path / "b")
        np.testing.assert_array_equal(encoder.encode_text(["a photo of a cat"]), before[0])
        assert encoder.classes.names == before[1]


def test_a_graph_that_is_replaced_while_an_engine_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tiny_bundle(tmp_path / "b", OLD)

    def late(*arguments: Any) -> Any:
        replace(tmp_path / "b")
        return registry.open_engine(*arguments)

    monkeypatch.setattr(pipeline, "open_engine", late)
    with pytest.raises(BundleError):
        Encoder.load(bundle)


def test_an_opened_bundle_reads_no_other_probe(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", OLD)
    (tmp_path / "b" / "probe.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match=r"probe\.safetensors"):
        read_probe(bundle)
    assert Bundle.open(tmp_path / "b")
