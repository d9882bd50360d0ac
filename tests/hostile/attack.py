"""Feeds the corpus to the Python reader and counts what happens; see corpus.py.

::

    PYTHONPATH=tests python -m hostile.attack --cases 10000 --openvino-share 8
"""

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hostile.corpus import SEED, Case, base_bundle, write_case
from prtool.spec import METHODS

SECONDS = 120.0
MAX_MIB = 1024
# A child is started again after so many cases, so that memory of one case does not count for many.
_CASES_A_CHILD = 400


@dataclass
class Child:
    """A process of reader.py, and the cases that it has answered."""

    process: subprocess.Popen[str]
    answered: int = 0

    @classmethod
    def start(cls) -> "Child":
        """Starts one; what it writes to stderr is dropped."""
        words = [sys.executable, "-W", "ignore", "-m", "hostile.reader"]
        folders = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return cls(subprocess.Popen(words, **pipes, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)}))

    def ask(self, root: Path, engine: str) -> dict[str, Any]:
        """The answer for one bundle; "crash" or "hang" as its fault where there is none."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.answered += 1
        self.process.stdin.write(json.dumps({"root": str(root), "engine": engine}) + "\n")
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], SECONDS)[0]:
            self.stop()
            return {"fault": "hang"}
        line = self.process.stdout.readline()
        if not line:
            return {"fault": f"crash {self.process.wait()}"}
        found: dict[str, Any] = json.loads(line)
        return found

    def stop(self) -> None:
        """Kills it."""
        self.process.kill()
        self.process.communicate()


class Attack:
    """Runs cases one after another; `close` ends its children."""

    def __init__(self, folder: Path, engines: tuple[str, ...], method: str = "rank") -> None:
        """Makes the good bundle of a method of pruning in `folder`, and takes each engine's answers for it as what is right."""
        self._folder = folder
        self._base = base_bundle(folder / "base", method)
        (folder / "outside").mkdir()
        self._children: dict[str, Child] = {}
        self.good = {engine: self._ask(self._base, engine) for engine in engines}
        for engine, found in self.good.items():
            if found["fault"] or found["errors"]:
                raise AssertionError(f"the good bundle fails with {engine}: {found}")

    def run(self, number: int, engine: str, seed: int = SEED) -> tuple[Case, str, dict[str, Any]]:
        """One case: what it is, its outcome, and the reader's answer."""
        out = self._folder / "case"
        case = write_case(self._base, out, number, seed)
        try:
            found = self._ask(out / "bundle", engine)
        finally:
            shutil.rmtree(out)
        return case, outcome(case, found, self.good[engine]["results"]), found

    def close(self) -> None:
        """Ends the children."""
        for child in self._children.values():
            child.stop()
        self._children.clear()

    def _ask(self, root: Path, engine: str) -> dict[str, Any]:
        child = self._children.get(engine)
        if child is None or child.process.poll() is not None or child.answered >= _CASES_A_CHILD:
            if child is not None:
                child.stop()
            child = self._children[engine] = Child.start()
        return child.ask(root, engine)


def outcome(case: Case, found: Mapping[str, Any], good: Mapping[str, Any]) -> str:
    """ "rejected", "right", "as sealed"; or a failure: "wrong", "traceback", "crash", "hang", "outside", "memory"."""
    if found["fault"]:
        kind = str(found["fault"]).split()[0]
        return kind if kind in ("crash", "hang") else "traceback"
    if found["outside"]:
        return "outside"
    if found["peak_mib"] > MAX_MIB:
        return "memory"
    if not found["results"]:
        return "rejected"
    if all(good.get(name) == value for name, value in found["results"].items()):
        return "rejected" if "open" in found["errors"] else "right"
    return "as sealed" if case.sealed else "wrong"


FINE = ("rejected", "right", "as sealed")


def main() -> None:
    """Prints every failure, then a table of groups and outcomes; exit status 1 where anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--method", default="rank", choices=METHODS, help="of the good bundle")
    parser.add_argument("--openvino-share", type=int, default=8, help="every so many-th case runs on OpenVINO, 0 for none")
    chosen = parser.parse_args()
    counts: Counter[tuple[str, str, str]] = Counter()
    peak = 0
    with tempfile.TemporaryDirectory() as folder:
        attack = Attack(Path(folder), ("ort", "openvino") if chosen.openvino_share else ("ort",), chosen.method)
        for number in range(chosen.first, chosen.first + chosen.cases):
            engine = "openvino" if chosen.openvino_share and number % chosen.openvino_share == 1 else "ort"
            case, result, found = attack.run(number, engine, chosen.seed)
            counts[case.group, engine, result] += 1
            peak = max(peak, found.get("peak_mib", 0))
            if result not in FINE:
                sys.stdout.write(f"{result}: {case} {engine} {found['fault']} {found.get('peak_mib')} MiB\n")
                sys.stdout.flush()
        attack.close()
    for (group, engine, result), count in sorted(counts.items()):
        sys.stdout.write(f"{group:45} {engine:9} {result:10} {count}\n")
    sys.stdout.write(f"{sum(counts.values())} cases, at most {peak} MiB\n")
    sys.exit(any(result not in FINE for _, _, result in counts))


if __name__ == "__main__":
    main()
