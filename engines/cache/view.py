"""The engine cache as `prtool engine-cache` shows it: what is in it, and which of it to clear."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prtool.engines.cache.store import CacheEntry, Cleared, EngineCache
from prtool.errors import ConfigError
from prtool.records import to_plain

_MIB = 1 << 20
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class CacheView:
    """Every engine of a cache, the one used last first."""

    root: Path
    rows: tuple[CacheEntry, ...]

    @property
    def mib(self) -> float:
        """Size of all engines, in MiB."""
        return sum(entry.size for entry in self.rows) / _MIB

    def to_json(self) -> dict[str, Any]:
        """The view as plain JSON values."""
        return {"root": str(self.root), "mib": round(self.mib, 3), "engines": [_plain(entry) for entry in self.rows]}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names and rows, one an engine."""
        columns = ["id", "MiB", "last used", "library", "device", "precision", "graph"]
        return columns, [_row(entry) for entry in self.rows]


def clear(
    cache: EngineCache, digests: Sequence[str] = (), *, days: float | None = None, max_mib: float | None = None, everything: bool = False
) -> Cleared:
    """Removes every engine that one of the conditions names; engines that are being built stay.

    Args:
        cache: the folder of engines.
        digests: ids, as the list shows them.
        days: those not used for that long.
        max_mib: those used longest ago, until the others take at most this.
        everything: all of them, and the builders' measurements.

    Raises:
        ConfigError: there is no condition, or an id is not in the cache.
    """
    if everything:
        return cache.clear_all()
    if not digests and days is None and max_mib is None:
        raise ConfigError("nothing to clear was named; give ids of 'prtool engine-cache list', --older-than DAYS, --max-mib MIB or --all")
    entries = cache.entries()
    unknown = sorted(set(digests) - {entry.digest for entry in entries})
    if unknown:
        raise ConfigError(f"id = {unknown[0]!r}, but {cache.root} holds no such engine; 'prtool engine-cache list' shows what it holds")
    chosen = list(digests)
    if days is not None:
        oldest = time.time() - days * _DAY_S
        chosen += [entry.digest for entry in entries if entry.last_used < oldest]
    left = math.inf if max_mib is None else max_mib * _MIB
    for entry in entries:  # the one used last first
        if entry.size > left:
            chosen.append(entry.digest)
        else:
            left -= entry.size
    return cache.clear(chosen)


def _plain(entry: CacheEntry) -> dict[str, Any]:
    record = entry.record
    known = {} if record is None else {"key": to_plain(record.key), "source": record.source, "built_at": record.built_at}
    return {"id": entry.digest, "bytes": entry.size, "last_used": _date(entry.last_used), "problem": entry.problem, **known}


def _row(entry: CacheEntry) -> list[str]:
    start = [entry.digest, f"{entry.size / _MIB:.1f}", _date(entry.last_used)]
    if entry.record is None:
        return [*start, "?", "?", "?", entry.problem]
    key = entry.record.key
    return [*start, f"{key.library} {key.library_version}", key.device, key.precision, entry.record.source]


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
