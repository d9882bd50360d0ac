"""Files that appear whole or not at all, what they may replace, and their digests."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import ConfigError, PrtoolError, StorageError
from prtool.exchange import claimed, put_folder, sweep

_log = logging.getLogger(__name__)
_HEAD_BYTES = 4096
_REASONS = {
    errno.ENOSPC: "no space left on the disk; free some and run the command again",
    errno.EDQUOT: "the disk quota is used up; free some space and run the command again",
    errno.EROFS: "the file system is read-only; choose another output folder with -o",
    errno.EACCES: "permission denied; choose another output folder with -o",
    errno.EPERM: "operation not permitted; choose another output folder with -o",
}
# Rust's libraries (safetensors, tokenizers) raise errors of their own, which name the system's number or its words only.
_RUST_NUMBER = re.compile(r"\(os error (\d+)\)")
_SYSTEM_WORDS = {os.strerror(number): number for number in _REASONS}


@dataclass(frozen=True, slots=True)
class OutputKind:
    """What a command writes, so that it replaces its own earlier output and nothing else.

    Attributes:
        name: what it is, for messages: "a bundle".
        recognises: whether what stands at a path is of this kind, with nothing else in it; called for a file or folder that is not empty and no link.
        is_folder: a folder; else a file.
        is_filled: the command writes into a folder that is there and keeps it, so that it may be the current one or behind a link.
    """

    name: str
    recognises: Callable[[Path], bool]
    is_folder: bool = False
    is_filled: bool = False


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size in bytes and SHA-256, in hexadecimal, of one file."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes | Path) -> "FileDigest":
        """The digest of a file's content, or of the file at a path."""
        if isinstance(content, Path):
            return cls(content.stat().st_size, sha256_file(content))
        return cls(len(content), hashlib.sha256(content).hexdigest())


NEW_FOLDER = OutputKind("an empty folder", lambda _: False, is_folder=True)
"""Replaces nothing."""
PICTURE_METADATA = {"Software": "prtool"}
"""Metadata that marks a PNG as drawn by prtool."""


def file_kind(name: str, beginnings: Mapping[str, re.Pattern[bytes]]) -> OutputKind:
    """The kind of a file that begins as its suffix says; a pattern sees the first 4,096 bytes."""

    def recognises(path: Path) -> bool:
        pattern = beginnings.get(path.suffix.lower())
        with path.open("rb") as stream:
            return pattern is not None and pattern.match(stream.read(_HEAD_BYTES)) is not None

    return OutputKind(name, recognises)


PICTURE = file_kind("a picture that prtool drew", {".png": re.compile(rb"\x89PNG\r\n\x1a\n.{8,}tEXtSoftware\0prtool", re.DOTALL)})


def check_output(path: str | Path, kind: OutputKind, inputs: Iterable[str | Path] = ()) -> None:
    """Checks, before any work, that an output may be written to a place: it is missing, empty, or of the kind that is written.

    `inputs` are files and folders that are read; the output is none of them and holds none of them.

    Raises:
        ConfigError: the place is a link, an input, the home or the current folder or one above, or holds something else.
        StorageError: it cannot be written to.
    """
    path = _real(path) if kind.is_filled else Path(path)
    with storage_errors(path):
        _check_inputs(path, (*inputs, *(_own_places() if kind.is_folder and not kind.is_filled else ())))
        problem = _occupied(path, kind)
        if problem:
            raise ConfigError(f"output = {path}, but {problem}; name another place with -o, or move away what stands there")
        above = path.absolute().parents
        with tempfile.TemporaryFile(dir=path if kind.is_filled and path.exists() else next(item for item in above if item.exists())):
            pass


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Maps errors of a full disk or a missing permission in the body, from Python or a library, to a StorageError that names `path`."""
    try:
        yield
    except (PrtoolError, BrokenPipeError):
        raise
    except OSError as cause:
        reason = _REASONS.get(cause.errno or 0, cause.strerror or str(cause))
        raise StorageError(f"cannot write {path}: {reason}") from cause
    except Exception as cause:
        number = _system_number(str(cause))
        if not number:
            raise
        raise StorageError(f"cannot write {path}: {_REASONS.get(number, os.strerror(number))}") from cause


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path next to `path`, renamed to it when the body succeeds; else (StorageError) what stood there is untouched."""
    with storage_errors(path):
        sweep(path)
        with claimed(path, folder=False) as temporary:
            mode = temporary.stat().st_mode
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            if temporary.stat().st_mode != mode:
                temporary.chmod(stat.S_IMODE(mode))  # safetensors puts a file of its own there
            temporary.replace(path)


@contextlib.contextmanager
def new_directory(path: Path, kind: OutputKind = NEW_FOLDER, inputs: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Yields a temporary directory next to `path`, and puts it in `path`'s place in one step when the body succeeds.

    `check_output` runs before and after the body. Where it or the writing fails, whatever stood at `path` is untouched.
    """
    check_output(path, kind, inputs)
    with storage_errors(path):
        sweep(path)
        with claimed(path, folder=True) as temporary:
            yield temporary
            check_output(path, kind, inputs)
            put_folder(temporary, path)


@contextlib.contextmanager
def locked(path: Path, busy: str, option: str) -> Iterator[bool]:
    """Holds a lock file, made with its folder, among processes and threads; yields whether it is held.

    `busy` is logged as a warning while another holder is waited for; "" does not wait but yields False. Raises StorageError, which
    advises `option`, where the file cannot be made or its file system has no locks.
    """
    from filelock import FileLock, Timeout  # 0.15 s

    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if busy:
                _log.warning("%s", busy)
                lock.acquire()
    except (OSError, NotImplementedError) as cause:
        raise StorageError(f"cannot lock {path} ({cause}); choose a folder on a local disk that you may write to, with {option}") from cause
    try:
        yield lock.is_locked
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Writes `content` to `path` atomically."""
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON to `path` atomically; NaN and infinity raise ValueError."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _system_number(text: str) -> int:
    """The system's error number in a library's message; 0 where there is none."""
    if found := _RUST_NUMBER.search(text):
        return int(found[1])
    return next((number for words, number in _SYSTEM_WORDS.items() if words in text), 0)


def _own_places() -> list[Path]:
    places = []
    for place in (Path.cwd, Path.home):
        with contextlib.suppress(OSError, RuntimeError):  # a folder that is gone, a user without a home
            places.append(place())
    return places


def _check_inputs(path: Path, inputs: Iterable[str | Path]) -> None:
    place = _real(path)
    for item in map(Path, inputs):
        other = _real(item)
        if place == other or (path.exists() and other.exists() and place.samefile(other)):
            raise ConfigError(f"output = {path}, but that is {item} itself, which is in use; name another place with -o")
        if place in other.parents:
            raise ConfigError(f"output = {path}, but that holds {item}, which is in use; name another place with -o")


def _real(path: str | Path) -> Path:
    """The path without links; unlike Path.resolve it takes links that go in a circle."""
    return Path(os.path.realpath(path))


def _occupied(path: Path, kind: OutputKind) -> str:
    """What keeps `path` from being replaced; "" where nothing does."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return ""
    if stat.S_ISLNK(mode):
        return f"that is a link to {path.readlink()}"
    if kind.is_folder != stat.S_ISDIR(mode) or not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return f"that is {'a folder' if stat.S_ISDIR(mode) else 'a file'}, and {kind.name} is written"
    if path.is_mount() and not kind.is_filled:
        return "that is a mount point, which cannot be replaced (a folder in it can)"
    is_empty = not any(path.iterdir()) if kind.is_folder else path.stat().st_size == 0
    return "" if is_empty or kind.recognises(path) else f"what stands there is not {kind.name}, and nothing else is replaced"
