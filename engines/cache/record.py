"""build.json beside an engine file: what was built, and whether the file still is that."""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from prtool.engines.cache.key import EngineKey
from prtool.errors import EngineError
from prtool.files import sha256_file

SCHEMA = 1
ENGINE_FILE = "engine.plan"
RECORD_FILE = "build.json"


def default_root() -> Path:
    """Where engines are kept when no folder is given: `prtool/engines` in the user's cache folder, by the custom of the system."""
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
class BuildRecord:
    """build.json: what the engine file beside it is.

    Attributes:
        key: what it was built from and for.
        source: the ONNX file's path at that time, to explain why a later build is needed.
        size, sha256: of the engine file, in bytes and hexadecimal.
        seconds: what the build took.
        built_at: date and time, UTC, ISO 8601.
    """

    key: EngineKey
    source: str
    size: int
    sha256: str
    seconds: float
    built_at: str


def read_record(folder: Path) -> BuildRecord | None:
    """The record of an entry's folder; None where there is no engine, or one of another schema.

    Raises:
        EngineError: the record is damaged, or is not the one of this folder.
    """
    path = folder / RECORD_FILE
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir() and (folder / ENGINE_FILE).exists():
            raise EngineError(refusal(path, "it is missing")) from None
        return None
    except (OSError, ValueError, RecursionError) as cause:
        raise EngineError(refusal(path, f"it cannot be read: {cause}")) from cause
    if not isinstance(value, dict):
        raise EngineError(refusal(path, "it is not a JSON object"))
    if value.pop("schema", None) != SCHEMA:
        return None
    kinds = {item.name: item.type for item in dataclasses.fields(BuildRecord)}
    key = value.get("key")
    names = {item.name for item in dataclasses.fields(EngineKey)}
    if set(value) != set(kinds) or not isinstance(key, dict) or set(key) != names or not all(isinstance(text, str) for text in key.values()):
        raise EngineError(refusal(path, "its fields are not those of a record"))
    record = BuildRecord(**{**value, "key": EngineKey(**key)})
    if not (isinstance(record.size, int) and isinstance(record.sha256, str) and isinstance(record.source, str)):
        raise EngineError(refusal(path, "its values are not of the right kinds"))
    if record.key.digest != folder.name:
        raise EngineError(refusal(path, "its key is not the one that its folder is named by"))
    return record


def damage(path: Path, record: BuildRecord) -> str:
    """How the engine file differs from what was built; "" for a whole one.

    Raises:
        FileNotFoundError: there is no such file.
    """
    size = path.stat().st_size
    if size != record.size:
        return f"it has {size} bytes, but {record.size} were built"
    return "" if sha256_file(path) == record.sha256 else "its SHA-256 is not the one recorded when it was built"


def refusal(path: Path, problem: str) -> str:
    """The message that refuses a file of the cache: which, why, and what to do."""
    folder = path.parent
    where = "" if folder.parent == default_root() else f" --engine-cache {folder.parent}"
    return f"{path} is not loaded: {problem}; remove it with 'prtool engine-cache clear {folder.name}{where}', or build again with --rebuild"
