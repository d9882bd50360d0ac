"""What a built engine depends on (its key), and build.json next to the engine file: what was built, and whether the file still is that.

The C++ library finds engines by these records: runtime/cpp/src/engines/trt/plans.cpp.
"""

import dataclasses
import functools
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from prtool.engines.base import Profile, check_file
from prtool.engines.profiles import profiles_text
from prtool.errors import EngineError
from prtool.files import sha256_file
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.records import from_plain, to_plain
from prtool.store import digest
from prtool.strict import parse_json, read_regular

SCHEMA = 1
ENGINE_FILE = "engine.plan"
RECORD_FILE = "build.json"
NO_DEVICE = "no device"
_RECORD_BYTES = 1 << 20
_DIGEST_CHARACTERS = 32
_SHOWN_CHARACTERS = 12


def default_root() -> Path:
    """The folder of engines when none is given: `prtool/engines` in the user's cache folder, by the custom of the system."""
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        base = Path(local) if local else Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path.home() / ".cache"
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if chosen and Path(chosen).is_absolute() else base) / "prtool" / "engines"


@dataclass(frozen=True, slots=True)
class EngineKey:
    """Names one built engine; two builds with equal keys are interchangeable.

    Attributes:
        graph_sha256, weights_sha256: of the ONNX file, and of `weights.bin` next to it ("" where there is none), as `graph_digests` gives them.
        precision: the arithmetic asked for.
        profiles: the shapes that it is built for.
        options: the builder's options, by their names in `BuildOptions`, without those that `profiles` holds.
        builder: raised when the same options come to build something else.
        library, library_version: what builds it, by the name of its Python module.
        device, compute_capability, driver: the GPU and its driver; `NO_DEVICE` each, for a build without one.
        system, architecture: operating system and CPU architecture.
    """

    graph_sha256: str
    weights_sha256: str
    precision: str
    profiles: tuple[Profile, ...]
    options: dict[str, int | bool]
    builder: str
    library: str
    library_version: str
    device: str = NO_DEVICE
    compute_capability: str = NO_DEVICE
    driver: str = NO_DEVICE
    system: str = dataclasses.field(default_factory=platform.system)
    architecture: str = dataclasses.field(default_factory=platform.machine)

    @property
    def digest(self) -> str:
        """The name of the engine's folder in a cache: 32 hexadecimal digits over every field."""
        return digest(to_plain(self))[:_DIGEST_CHARACTERS]

    def changes_since(self, earlier: "EngineKey") -> list[str]:
        """Each field and option that differs, as "device changed from 'A' to 'B'"."""
        old, new = earlier._texts(), self._texts()
        return [f"{name} changed from {old.get(name, '')!r} to {new.get(name, '')!r}" for name in {**old, **new} if old.get(name) != new.get(name)]

    def _texts(self) -> dict[str, str]:
        texts = {item.name: getattr(self, item.name) for item in dataclasses.fields(self) if item.name != "options"}
        texts |= {name: texts[name][:_SHOWN_CHARACTERS] for name in ("graph_sha256", "weights_sha256")}
        return {**texts, "profiles": profiles_text(self.profiles), **{name: str(value) for name, value in self.options.items()}}


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """build.json: what the engine file next to it is.

    Attributes:
        key: what it was built from and for.
        source: the ONNX file's path at that time, to explain why a later build is needed.
        size, sha256: of the engine file, in bytes and hexadecimal.
        seconds: duration of the build.
        built_at: date and time, UTC, ISO 8601.
    """

    key: EngineKey
    source: str
    size: int
    sha256: str
    seconds: float
    built_at: str


def graph_digests(model_path: Path) -> tuple[str, str]:
    """The SHA-256 of an ONNX file, and of the file of weights next to it ("" where there is none); raises EngineError without such a graph."""
    check_file(model_path)
    weights = model_path.parent / WEIGHTS_NAME
    return _digest_of(model_path), _digest_of(weights) if weights.is_file() else ""


def read_record(folder: Path) -> BuildRecord | None:
    """The record of an entry's folder, None without an engine or of another schema; raises EngineError where it is damaged or another's."""
    path = folder / RECORD_FILE
    try:
        value = parse_json(read_regular(path, _RECORD_BYTES))
        if isinstance(value, dict) and value.pop("schema", None) != SCHEMA:
            return None
        record: BuildRecord = from_plain(BuildRecord, value)
    except (FileNotFoundError, NotADirectoryError):
        if (folder / ENGINE_FILE).exists():
            raise EngineError(rejection(path, "it is missing")) from None
        return None
    except (OSError, ValueError) as cause:
        raise EngineError(rejection(path, f"it is no record of a build: {cause}")) from cause
    if record.key.digest != folder.name:
        raise EngineError(rejection(path, "its key is not the one that its folder is named by"))
    return record


def damage(path: Path, record: BuildRecord) -> str:
    """How the engine file differs from what was built; "" for a whole one. Raises FileNotFoundError."""
    size = path.stat().st_size
    if size != record.size:
        return f"it has {size} bytes, but {record.size} were built"
    return "" if sha256_file(path) == record.sha256 else "its SHA-256 is not the one recorded when it was built"


def rejection(path: Path, problem: str) -> str:
    """The message about a file of the cache that is not loaded: which, why, and what to do."""
    folder = path.parent
    where = "" if folder.parent == default_root() else f" --engine-cache {folder.parent}"
    return f"{path} is not loaded: {problem}; remove it with 'prtool engine-cache clear {folder.name}{where}', or build again with --rebuild"


def _digest_of(path: Path) -> str:
    status = path.stat()
    return _digest_at(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_at(path: Path, size: int, modified_ns: int) -> str:  # noqa: ARG001 - they make another entry of a changed file
    """The graphs of a bundle share a file of weights, which is read once."""
    return sha256_file(path)
