"""Files and directories appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from prtool.errors import ConfigError, StorageError
from prtool.exchange import exchange, put_folder, sweep
from prtool.files import (
    NEW_FOLDER,
    OutputKind,
    check_output,
    file_kind,
    new_directory,
    new_file,
    sha256_file,
    storage_errors,
    write_json,
)


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
        with new_directory(path, ANYTHING) as temporary:
            (temporary / "x").write_text(content)
    assert (path / "x").read_text() == "second"
    with pytest.raises(RuntimeError), new_directory(path, ANYTHING) as temporary:
        (temporary / "x").write_text("third")
        raise RuntimeError("stop")
    assert (path / "x").read_text() == "second"
    assert names(tmp_path) == ["bundle"]


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(StorageError, match=r"a.bin"), new_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(StorageError, match=r"a.json"):
        write_json(blocker / "a.json", {})


def test_nan_never_reaches_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert names(tmp_path) == []


def test_digest(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


ANYTHING = OutputKind("anything", lambda _: True, is_folder=True)
NOTE = file_kind("a note", {".txt": re.compile(b"note")})


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


@pytest.mark.parametrize("content", [b"", b"note: old"])
def test_an_output_of_its_kind_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    check_output(tmp_path / "a.txt", NOTE)
    check_output(tmp_path / "missing" / "a.txt", NOTE)


@pytest.mark.parametrize("kind", [NOTE, NEW_FOLDER], ids=["file", "folder"])
@pytest.mark.parametrize("place", ["thesis.txt", "thesis.md", "link", "photos", "pipe", "input", "above", "home", "cwd"])
def test_an_output_never_takes_the_place_of_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, kind: OutputKind) -> None:
    for name in ("photos", "above/data", "home", "cwd"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "photos" / "a.jpg").write_bytes(b"jpg")
    (tmp_path / "thesis.txt").write_bytes(b"chapter 1")
    (tmp_path / "thesis.md").write_bytes(b"note")
    (tmp_path / "input").write_bytes(b"note")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "cwd")
    before = tree(tmp_path / "photos")
    with pytest.raises(ConfigError, match=place):
        check_output(tmp_path / place, kind, (tmp_path / "input", tmp_path / "above" / "data"))
    assert tree(tmp_path / "photos") == before


def test_what_appeared_during_the_work_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    with pytest.raises(ConfigError, match="bundle"), new_directory(path) as temporary:
        (temporary / "x").write_text("new")
        path.mkdir()
        (path / "thesis").write_text("mine")
    assert tree(tmp_path) == {"bundle/thesis": b"mine"}


def test_the_umask_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda _: pytest.fail("the umask belongs to the whole process"))
        write_json(tmp_path / "a.json", {})
        with new_directory(tmp_path / "b"):
            pass
        # As safetensors does: another file under the same name, which only its owner may read.
        with new_file(tmp_path / "c") as temporary:
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b", "c")] == [0o640, 0o750, 0o640]


class Killed(BaseException):
    """Stands for kill -9: `put_folder` cleans nothing up after it."""


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_kill_at_any_step_leaves_the_old_or_the_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool) -> None:
    for moment in range(8):
        place = tmp_path / str(moment)
        path, temporary = place / "bundle", place / ".bundle.01234567.part"
        for folder, content in ((path, "old"), (temporary, "new")):
            folder.mkdir(parents=True)
            (folder / "x").write_text(content)
        with monkeypatch.context() as patch:
            steps = count()
            patch.setattr(Path, "rename", stopping(Path.rename, steps, moment))
            patch.setattr("prtool.exchange.exchange", stopping(exchange, steps, moment) if exchanges else lambda *_: False)
            with contextlib.suppress(Killed):
                put_folder(temporary, path)
        sweep(path)
        finished = next(steps) <= moment
        assert (path / "x").read_text() in (["new"] if finished else ["old", "new"])
        assert [name for name in names(place) if not name.endswith(".lock")] == ["bundle"]
        if finished:
            return
    pytest.fail("the swap has more steps than were tried")


def stopping(step: Callable[..., Any], steps: Iterator[int], moment: int) -> Callable[..., Any]:
    """`step`, killed before the `moment`-th of all steps."""

    def run(*arguments: Path) -> Any:
        if next(steps) == moment:
            raise Killed
        return step(*arguments)

    return run


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_stay(tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    (tmp_path / ".bundle.0000000a.part").mkdir()
    (tmp_path / ".bundle.0000000b.part").write_bytes(b"half")
    (tmp_path / ".bundle.part").write_bytes(b"mine")
    with new_directory(path) as living:
        sweep(path)
        assert living.is_dir()
        assert names(tmp_path) == sorted([living.name, ".bundle.part"])
    assert names(tmp_path) == [".bundle.part", "bundle"]


def test_folders_above_an_output_are_made_with_it_and_not_by_the_check(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b", NEW_FOLDER)
    assert names(tmp_path) == []
    with new_directory(tmp_path / "a" / "b"):
        pass
    assert (tmp_path / "a" / "b").is_dir()


def test_two_writers_of_one_folder_both_end_well(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def write(content: str) -> None:
        for _ in range(50):
            with new_directory(path, ANYTHING) as temporary:
                (temporary / "x").write_text(content)

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(write, content) for content in "abcd"]:
            job.result()
    assert (path / "x").read_text() in "abcd"
    assert names(tmp_path) == ["bundle"]


def test_a_full_disk_is_named_when_a_library_of_rust_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=re.escape(str(tmp_path))), storage_errors(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), storage_errors(tmp_path):
        raise SafetensorError("Error while deserializing header: invalid JSON")


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / ("a" * 255), {})
    assert names(tmp_path) == ["a" * 255]
