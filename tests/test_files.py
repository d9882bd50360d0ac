"""Files and directories appear whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from prtool.errors import StorageError
from prtool.files import new_directory, new_file, sha256_file, write_json


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


def test_a_file_appears_whole(tmp_path: Path) -> None:
    with new_file(tmp_path / "sub" / "a.bin") as temporary:
        temporary.write_bytes(b"whole")
        assert not (tmp_path / "sub" / "a.bin").exists()
    assert (tmp_path / "sub" / "a.bin").read_bytes() == b"whole"
    assert names(tmp_path / "sub") == ["a.bin"]


@pytest.mark.parametrize("failure", [ValueError("stop"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    with pytest.raises(type(failure)), new_file(path) as temporary:
        temporary.write_text("half")
        raise failure
    assert json.loads(path.read_text()) == {"old": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    for content in ("first", "second"):
        with new_directory(path) as temporary:
            (temporary / "x").write_text(content)
    assert (path / "x").read_text() == "second"
    with pytest.raises(RuntimeError), new_directory(path) as temporary:
        (temporary / "x").write_text("third")
        raise RuntimeError("stop")
    assert (path / "x").read_text() == "second"
    assert names(tmp_path) == ["bundle"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(StorageError, match="no space left"), new_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        write_json(blocker / "a.json", {})


def test_nan_never_reaches_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_digest(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
