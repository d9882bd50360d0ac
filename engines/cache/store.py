"""Built engines on disk: each in a folder named by its key, checked before use, never built twice at once."""

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prtool.engines.cache.record import ENGINE_FILE, RECORD_FILE, SCHEMA, BuildRecord, EngineKey, damage, default_root, read_record, rejection
from prtool.errors import EngineError, StorageError
from prtool.exchange import claimed, sweep
from prtool.files import OutputKind, locked, new_directory, new_file, sha256_file, storage_errors, write_json
from prtool.records import to_plain

_ENTRY_NAME = re.compile(r"[0-9a-f]{32}")
_LEFTOVER_NAME = re.compile(r"\.([0-9a-f]{32})\..*")
_log = logging.getLogger(__name__)


def _holds_engine(folder: Path) -> bool:
    """Whether a folder holds nothing but an engine and its record; others, which are also called so, are somebody else's."""
    try:
        return not folder.is_symlink() and {item.name for item in folder.iterdir()} <= {ENGINE_FILE, RECORD_FILE}
    except (FileNotFoundError, NotADirectoryError):  # cleared by another process just now, or a file
        return False


_ENTRY = OutputKind("a folder of the engine cache", _holds_engine, is_folder=True)


@dataclass(frozen=True, slots=True)
class CachedEngine:
    """An engine file that passed its check.

    Attributes:
        path: the engine file.
        record: what it is.
        built: whether this call built it; else it was found.
        reason: why it was built or could be taken.
    """

    path: Path
    record: BuildRecord
    built: bool
    reason: str

    def read(self) -> bytes:
        """The engine's bytes, checked once more, so that what is loaded is what was checked; EngineError where they are not what was built."""
        try:
            content = self.path.read_bytes()
        except OSError as cause:
            raise EngineError(f"{self.path} cannot be read ({cause}); build it again with 'prtool build'") from cause
        if len(content) != self.record.size or hashlib.sha256(content).hexdigest() != self.record.sha256:
            raise EngineError(rejection(self.path, "it changed while it was loaded"))
        return content


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One folder of the cache, as `prtool engine-cache list` shows it.

    Attributes:
        digest: the folder's name.
        size: bytes on disk.
        last_used: seconds since 1970, of the last build or use.
        record: None where it cannot be understood; `problem` then says why.
    """

    digest: str
    size: int
    last_used: float
    record: BuildRecord | None
    problem: str


@dataclass(frozen=True, slots=True)
class Cleared:
    """What `EngineCache.clear` did: folders removed, and folders left because an engine is being built in them."""

    removed: tuple[str, ...]
    busy: tuple[str, ...]


class EngineCache:
    """A folder of built engines; many threads and processes may use it at once.

    Whoever can write to the folder can make this process run their code: an engine is native code, and its
    digest lies next to it. The check finds damage, not an attack.
    """

    def __init__(self, root: Path | None = None) -> None:
        """Touches nothing yet; the folder, by default `default_root()`, is made on the first build."""
        self.root = (root or default_root()).absolute()

    def obtain(self, key: EngineKey, build: Callable[[Path], None], *, source: str = "", rebuild: bool = False) -> CachedEngine:
        """The engine of `key`: taken where it is there and whole, else built; only one process builds it, others wait and take its result.

        Args:
            key: everything that the engine depends on.
            build: writes the engine to the path it is given.
            source: path of the ONNX file; an earlier engine of the same path explains what changed.
            rebuild: build it even if it is there, also in place of a damaged one.

        Raises:
            EngineError: the stored engine or its record is damaged or was altered; nothing of it was loaded.
            StorageError: the engine cannot be written (disk full, no permission); nothing is left behind.
        """
        if not rebuild and (found := self._find(key)):
            return found
        with self._lock(key.digest, f"another process builds engine {key.digest}; waiting for it"):
            if not rebuild and (found := self._find(key)):
                return found
            reason = "asked for" if rebuild else self._why(key, source)
            _log.log(logging.WARNING if reason.startswith("stale") else logging.INFO, "building an engine of %s: %s", source or key.digest, reason)
            return self._build(key, build, source, reason)

    def latest(self, like: EngineKey) -> EngineKey | None:
        """The key of the engine used last among those that differ from `like` in nothing but profiles and options."""
        for entry in self.entries():
            key = entry.record.key if entry.record else None
            if key and dataclasses.replace(like, profiles=key.profiles, options=key.options) == key:
                return key
        return None

    def entries(self) -> list[CacheEntry]:
        """Every engine in the cache, the one used last first. Engine files are not read."""
        folders = [path for path in self._children() if _ENTRY_NAME.fullmatch(path.name) and _holds_engine(path)]
        return sorted((_entry(path) for path in folders), key=lambda entry: entry.last_used, reverse=True)

    def clear(self, digests: Iterable[str]) -> Cleared:
        """Removes engines by the names of their folders, and what interrupted builds of them left; those that are being built stay.

        Unknown names are passed over. Raises StorageError where a folder cannot be removed.
        """
        removed: list[str] = []
        busy: list[str] = []
        for digest in dict.fromkeys(digests):
            folder = self.root / digest
            if not _ENTRY_NAME.fullmatch(digest) or not (_holds_engine(folder) or digest in self._unfinished()):
                continue
            with self._lock(digest, busy="") as held:
                if held:
                    self._remove(folder)
                (removed if held else busy).append(digest)
        return Cleared(tuple(removed), tuple(busy))

    def clear_all(self) -> Cleared:
        """Removes every engine, what interrupted builds left, and the builders' timing caches; engines that are being built stay."""
        with storage_errors(self.timing_folder):
            for path in self.timing_folder.glob("*.timing"):
                path.unlink()
            with contextlib.suppress(OSError):  # missing, or somebody else's files are in it
                self.timing_folder.rmdir()
        return self.clear([*(entry.digest for entry in self.entries()), *self._unfinished()])

    @property
    def timing_folder(self) -> Path:
        """Where builders keep what they measured."""
        return self.root / "timing"

    def _find(self, key: EngineKey) -> CachedEngine | None:
        folder = self.root / key.digest
        record = read_record(folder)
        if record is None:
            return None
        path = folder / ENGINE_FILE
        try:
            problem = damage(path, record)
        except FileNotFoundError:
            if not folder.exists():
                return None  # cleared by another process just now
            problem = "it is missing"
        if problem:
            raise EngineError(rejection(path, problem))
        with contextlib.suppress(OSError):  # a read-only cache still serves; only its order of use stays as it is
            os.utime(folder / RECORD_FILE)
        return CachedEngine(path, record, built=False, reason="in the cache")

    def _why(self, key: EngineKey, source: str) -> str:
        if (self.root / key.digest).exists():
            return f"stale: its record is not of schema {SCHEMA}"
        records = [entry.record for entry in self.entries() if entry.record is not None and source and entry.record.source == source]
        if not records:
            return "not in the cache"
        nearest = min(records, key=lambda record: len(key.changes_since(record.key)))
        return "stale: " + ", ".join(key.changes_since(nearest.key))

    def _build(self, key: EngineKey, build: Callable[[Path], None], source: str, reason: str) -> CachedEngine:
        folder = self.root / key.digest
        with new_directory(folder, _ENTRY) as fresh:
            started = time.monotonic()
            with new_file(fresh / ENGINE_FILE) as temporary:
                build(temporary)
                if temporary.stat().st_size == 0:
                    raise EngineError(f"the builder of {source or key.digest} wrote nothing; build it again with other options")
            seconds = round(time.monotonic() - started, 3)
            plan = fresh / ENGINE_FILE
            record = BuildRecord(key, source, plan.stat().st_size, sha256_file(plan), seconds, datetime.now(UTC).isoformat(timespec="seconds"))
            write_json(fresh / RECORD_FILE, {"schema": SCHEMA, **to_plain(record)})
        return CachedEngine(folder / ENGINE_FILE, record, built=True, reason=reason)

    def _lock(self, digest: str, busy: str) -> contextlib.AbstractContextManager[bool]:
        return locked(self.root / ".locks" / f"{digest}.lock", busy, "--set cache=FOLDER")

    def _remove(self, folder: Path) -> None:
        """Readers find the whole folder or none."""
        with storage_errors(folder):
            sweep(folder)
            with claimed(folder, folder=True) as aside:
                if folder.exists():
                    folder.rename(aside / folder.name)

    def _unfinished(self) -> list[str]:
        """Digests of the engines that are being built or removed, now or when a process was killed."""
        return [match.group(1) for path in self._children() if (match := _LEFTOVER_NAME.fullmatch(path.name))]

    def _children(self) -> list[Path]:
        try:
            return list(self.root.iterdir())
        except FileNotFoundError:
            return []
        except OSError as cause:
            raise StorageError(f"cannot read the engine cache {self.root} ({cause}); choose another folder with --set cache=FOLDER") from cause


def _entry(folder: Path) -> CacheEntry:
    record, problem = None, ""
    try:
        record = read_record(folder)
        problem = "" if record else f"its record is not of schema {SCHEMA}"
    except EngineError as cause:
        problem = str(cause)
    sizes, times = [0], [0.0]
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # cleared by another process just now
            status = path.stat()
            sizes.append(status.st_size)
            times.append(status.st_mtime)
    return CacheEntry(folder.name, sum(sizes), max(times), record, problem)
