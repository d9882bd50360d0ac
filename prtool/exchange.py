"""Put a finished file or folder in its place in one step, and clear what a killed process left next to it."""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    from fcntl import LOCK_EX, LOCK_NB, flock

PART, ASIDE = "part", "old"
_LONGEST_PREFIX_BYTES = 200
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def claimed(path: Path, *, folder: bool) -> Iterator[Path]:
    """Yields a new, empty file or folder next to `path`, held by this process until the body ends; then it is gone, unless it was moved.

    It is named `.NAME.xxxxxxxx.part`, and made with the permissions that the umask of the process leaves.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        temporary = path.with_name(f"{_prefix(path)}{secrets.token_hex(4)}.{PART}")
        if folder:
            temporary.mkdir()
        else:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        held = _hold(temporary)
        if held is not None:
            break
    try:
        yield temporary
    finally:
        _remove(temporary)
        if held >= 0:
            os.close(held)


def sweep(path: Path) -> None:
    """Removes what killed processes left next to `path`; what a live process holds stays.

    Where a kill between two renames left nothing at `path`, the folder that was moved aside comes back.
    """
    pattern = re.compile(rf"{re.escape(_prefix(path))}[0-9a-f]{{8}}\.({PART}|{ASIDE})")
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = [item for item in os.scandir(path.parent) if pattern.fullmatch(item.name)]
        for entry in found:
            left = Path(entry.path)
            if entry.name.endswith(ASIDE):
                _repair(path, left)
            elif (held := _hold(left)) is not None and held >= 0:
                _remove(left)
                os.close(held)


def put_folder(temporary: Path, path: Path) -> None:
    """Moves a folder to `path`, where it takes the place of a folder in one step: a reader finds the old one or the new one.

    After it, `temporary` is the old folder, or nothing; after an OSError `path` is as before.
    """
    while True:
        try:
            temporary.rename(path)  # a missing or an empty folder is replaced in one step
            return
        except OSError as cause:
            if cause.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        try:
            if not exchange(temporary, path):
                _swap_in_two_steps(temporary, path)
            return
        except FileNotFoundError:
            if not temporary.exists():
                raise  # else another process removed what stood at `path` just now


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Makes processes that change several files of a folder take turns; where the file system has no locks, they do not.

    The folder itself is locked: no file is left, and the lock of a killed process is gone.
    """
    descriptor = -1
    try:
        if sys.platform != "win32":
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                flock(descriptor, LOCK_EX)
        yield
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two paths in one step; False where the system or the file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _prefix(path: Path) -> str:
    """What the names of a path's temporaries begin with; a long name is shortened, for they are longer than it."""
    name = os.fsencode(path.name)
    return f".{path.name}." if len(name) <= _LONGEST_PREFIX_BYTES else f".{hashlib.sha256(name).hexdigest()[:32]}."


def _hold(path: Path) -> int | None:
    """A descriptor that locks `path`, -1 where nothing can be locked here, None where another process has swept it meanwhile."""
    if sys.platform == "win32":  # a live process cannot be distinguished from a dead one, so nothing is swept
        return -1
    descriptor = -1
    held: int | None = None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        flock(descriptor, LOCK_EX | LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), path.lstat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks
        held = -1
    if descriptor >= 0:
        os.close(descriptor)
    return held


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def _swap_in_two_steps(temporary: Path, path: Path) -> None:
    """Two renames; after a kill between them, `sweep` puts the old folder back."""
    aside = temporary.with_suffix(f".{ASIDE}")
    with _alone(path):
        path.rename(aside)
        try:
            temporary.rename(path)
        except OSError:
            aside.rename(path)
            raise
        aside.rename(temporary)


def _repair(path: Path, aside: Path) -> None:
    with _alone(path):
        if os.path.lexists(path):
            _remove(aside)
        elif aside.exists():
            aside.rename(path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps two processes from moving aside at once; the lock's file is needed on file systems without an exchange only."""
    from filelock import FileLock  # 0.15 s, and most file systems never need it

    with FileLock(path.with_name(f"{_prefix(path)}lock")):
        yield
