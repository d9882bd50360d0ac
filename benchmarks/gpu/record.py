"""The result file of a long run: written after every figure, so that a run which is cut off keeps what it measured."""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prtool.errors import EngineUnavailable
from prtool.files import write_json

_ITSELF = "the part itself"


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Record:
    """Figures by part and name; a figure that is there already is not measured again.

    Attributes:
        path: the JSON file.
        facts: what holds for the whole run: device, versions, settings.
        deadline: `time.monotonic()` after which nothing new is started.
        parts: part -> name -> {"state": "done", "seconds": ..., "result": ...}, {"state": "failed", "error": ...}, or
            "unavailable" where a library or device is missing.
    """

    path: Path
    facts: dict[str, Any]
    deadline: float
    parts: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    late: bool = False

    def measure(self, part: str, name: str, work: Callable[[], Any]) -> Any:
        """Does the work once and keeps its result or its error; None where there is no result.

        A failure belongs to one figure: out of memory, a library that is missing or rejects a graph.
        """
        known = self.parts.setdefault(part, {}).get(name)
        if known is not None and known["state"] == "done":
            return known["result"]
        if time.monotonic() > self.deadline:
            if not self.late:
                say("the time is used up: what is missing is measured by the same command again")
            self.late = True
            return None
        return self._kept(part, name, work)

    def whole(self, part: str, work: Callable[[], None]) -> None:
        """Does a part, which measures figures by itself; what fails outside of them (an import, a model) is kept as "the part itself"."""
        try:
            work()
            self.parts.get(part, {}).pop(_ITSELF, None)
        except Exception as cause:  # noqa: BLE001 - kept, and the next part goes on
            self.parts.setdefault(part, {})[_ITSELF] = _failure(cause)
            say(f"[{part}] failed: {cause}"[:200])
        self.write()

    def _kept(self, part: str, name: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        result = None
        try:
            result = work()
            entry: dict[str, Any] = {"state": "done", "result": result}
        except Exception as cause:  # noqa: BLE001 - kept, and the next figure goes on
            entry = _failure(cause)
        entry["seconds"] = round(time.monotonic() - started, 1)
        self.parts[part][name] = entry
        self.write()
        say(f"[{part}] {name}: {entry['state']} in {entry['seconds']} s {entry.get('error', '')[:160]}")
        return result

    def write(self) -> None:
        """Replaces the file as a whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {**self.facts, "parts": self.parts})


def _failure(cause: Exception) -> dict[str, Any]:
    if isinstance(cause, EngineUnavailable):
        return {"state": "unavailable", "error": str(cause)}
    place = traceback.extract_tb(cause.__traceback__)[-1]
    return {"state": "failed", "error": f"{type(cause).__name__}: {cause}"[:2000], "at": f"{Path(place.filename).name}:{place.lineno}"}
