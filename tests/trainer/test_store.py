"""Stored results: any damage is found with a note, and what is of another key is not taken."""

import os
import re
import resource
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from prtool.errors import StorageError
from prtool.progress import SilentProgress
from prtool.store import digest
from prtool.trainer.store import TensorStore

TENSORS = {
    "half": torch.tensor([[1.5, -2.0]], dtype=torch.float16),
    "whole": torch.tensor([3, 4], dtype=torch.int16),
    "flag": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "none": torch.zeros(0, 3),
}
FACTS = {"best_epoch": 2, "history": [[0.5, None]]}


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        found[name].dtype == TENSORS[name].dtype and torch.equal(found[name], TENSORS[name]) for name in found
    )


def test_what_is_kept_comes_back_from_a_plain_safetensors_file(tmp_path: Path) -> None:
    TensorStore(tmp_path, "key").write_tensors("a", TENSORS, FACTS)
    found = TensorStore(tmp_path, "key").read_tensors("a")
    assert found is not None and same(found.tensors) and found.facts == FACTS
    assert found.part("ha").keys() == {"lf"}
    assert same(load_file(tmp_path / "a"))
    TensorStore(tmp_path / "other", "key").write_tensors("a", dict(reversed(TENSORS.items())), FACTS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "other" / "a").read_bytes()


def test_every_flipped_bit_is_damage_or_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    TensorStore(tmp_path, "key").write_tensors(path.name, TENSORS, FACTS)
    content = path.read_bytes()
    for place in range(len(content)):
        caplog.clear()
        path.write_bytes(content[:place] + bytes([content[place] ^ (1 << place % 8)]) + content[place + 1 :])
        found = TensorStore(tmp_path, "key").read_tensors(path.name)
        if found is None:
            assert str(path) in caplog.text
        else:
            assert same(found.tensors) and found.facts == FACTS


def test_other_damage_is_noted_and_another_key_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a"
    TensorStore(tmp_path, "key").write_tensors(path.name, TENSORS)
    content = path.read_bytes()
    for damaged in (content[:-1], content[: len(content) // 2], content + b"\0", b"", b"\0" * 200, b"\xff" * 200):
        path.write_bytes(damaged)
        caplog.clear()
        assert TensorStore(tmp_path, "key").read_tensors(path.name) is None and str(path) in caplog.text
    caplog.clear()
    path.write_bytes(content)
    assert TensorStore(tmp_path, "other").read_tensors(path.name) is None and TensorStore(tmp_path, "key").read_tensors("none") is None
    assert not caplog.records
    save_file(TENSORS, path)
    assert TensorStore(tmp_path, "key").read_tensors(path.name) is None and "seal" in caplog.text


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert TensorStore(tmp_path, "key").read_tensors("pipe") is None
    assert TensorStore(tmp_path, "key").read("pipe") is None


def test_kept_json_comes_back_only_whole_and_of_its_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.json"
    TensorStore(tmp_path, "key").write(path.name, FACTS)
    content = path.read_bytes()
    assert TensorStore(tmp_path, "key").read(path.name) == FACTS
    assert TensorStore(tmp_path, "other").read(path.name) is None and TensorStore(tmp_path, "key").read("none") is None
    assert not caplog.records
    deep, digits = (content.replace(b"0.5", change) for change in (b"[" * 100_000, b"1" * 5000))
    for damaged in (content.replace(b"0.5", b"0.7"), content[:-2], b"", b"{", b"null", b"\xff", deep, digits):
        path.write_bytes(damaged)
        caplog.clear()
        assert TensorStore(tmp_path, "key").read(path.name) is None and str(path) in caplog.text


def test_a_file_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    TensorStore(tmp_path, "key").write_tensors(path.name, TENSORS)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A limit on the size of files is what a full disk looks like to every library.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=re.escape(str(path))):
            TensorStore(tmp_path, "key").write_tensors(path.name, {"a": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = TensorStore(tmp_path, "key").read_tensors(path.name)
    assert found is not None and same(found.tensors)
    assert [item.name for item in tmp_path.iterdir()] == ["a"]
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        TensorStore(tmp_path / "file", "key").write_tensors("a", TENSORS)


def test_a_shard_is_checked_in_a_fraction_of_the_time_that_computing_it_takes(tmp_path: Path) -> None:
    """20 MB, as 64 images of ViT-B/16: 20 ms with SHA-256 instructions, 100 ms without; the encoder takes seconds for them."""
    TensorStore(tmp_path, "key").write_tensors("a", {"tokens": torch.zeros(64, 197, 768, dtype=torch.float16)})
    started = time.monotonic()
    assert TensorStore(tmp_path, "key").read_tensors("a") is not None
    assert time.monotonic() - started < 2.0


def test_shards_resume_and_are_computed_where_nothing_is_stored(tmp_path: Path) -> None:
    computed: list[range] = []

    def compute(items: range) -> dict[str, Tensor]:
        computed.append(items)
        return {"x": torch.tensor(items)}

    for store in (TensorStore(tmp_path, "key"), TensorStore(None, "key")):
        for _ in range(2):
            shards = store.shards(5, 2, compute, SilentProgress())
            assert torch.cat([shard["x"] for shard in shards]).tolist() == [0, 1, 2, 3, 4]
    parts = [range(2), range(2, 4), range(4, 5)]
    assert computed == 3 * parts
    (tmp_path / "00001.safetensors").replace(tmp_path / "00000.safetensors")
    TensorStore(tmp_path, "key").shards(5, 2, compute, SilentProgress())
    assert computed[9:] == parts[:2]


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    store = TensorStore(tmp_path, "key")
    store.write("a", 1)
    store.remove("a")
    store.remove("a")
    assert store.read("a") is None and not [*tmp_path.iterdir()]


def test_a_digest_depends_on_every_value_and_on_no_order_of_names() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})
