"""The C++ reader on the corpus of damaged and hostile bundles that the Python reader is tested with (tests/hostile)."""

import json
import os
import resource
import select
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnx", reason="onnx makes the hostile graphs")
from cpp_programs import BUILD, built_file, run
from hostile.corpus import GROUPS, SEED, base_bundle, write_case
from hostile.reader import Watch
from support import REPO

from prtool.graphs.graph_reader import OPERATORS

SAMPLE = 150
SECONDS = 120.0
MAX_KB = 1 << 20
# prtool_status: out of memory, and a fault of the library itself.
MEMORY, INTERNAL = 10, 11


# The limit on memory that docs/bundle-format.md advises for bundles of strangers. AddressSanitizer reserves terabytes, so there the
# limit is one of each allocation.
_DATA_BYTES = 1 << 30
_ASAN = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=768"

# Under AddressSanitizer `new` cannot throw std::bad_alloc, which is an error of one line otherwise: it ends the process.
_NO_MEMORY = ("out-of-memory", "allocation-size-too-big")


def _limit_memory() -> None:
    cache = BUILD / "CMakeCache.txt"
    if cache.exists() and "PRTOOL_SANITIZE:STRING=\n" in cache.read_text():
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))


class Attack:
    """Runs cases one after another in one process, which is started again after a crash or a hang."""

    def __init__(self, folder: Path) -> None:
        """Makes the good bundle, and takes the reader's answer for it as what is right."""
        self._folder = folder
        self._program = built_file("tests/prtool-bundle-probe")
        self._process: subprocess.Popen[str] | None = None
        self.peak_kb = 0
        self._base = base_bundle(folder / "base")
        self.good = self._ask(self._base)
        assert self.good["status"] == 0, self.good

    def run(self, number: int) -> tuple[str, str]:
        """The group of one case, and its outcome; "" where the outcome is fine."""
        out = self._folder / "case"
        case = write_case(self._base, out, number, SEED)
        watch = Watch(out / "outside")
        try:
            found = self._ask(out / "bundle")
        finally:
            opened = watch.close()
            shutil.rmtree(out)
        problem = "reads outside" if opened else self._problem(found, case.sealed)
        return case.group, f"{problem}: {case} {found}"[:600] if problem else ""

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None

    def _problem(self, found: dict[str, Any], sealed: bool) -> str:
        if "fault" in found:
            return str(found["fault"])
        self.peak_kb = max(self.peak_kb, found["memory_kb"])
        if found["memory_kb"] > MAX_KB:
            return "memory"
        if found["status"] == INTERNAL or len(found["message"]) > 1100 or not found["message"].isprintable():
            return "message"
        right = all(found[mode] == self.good[mode] for mode in ("fused", "split", "full") if mode in found)
        return "" if right or sealed else "wrong"

    def _ask(self, root: Path) -> dict[str, Any]:
        if self._process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            environment = {"ASAN_OPTIONS": _ASAN, **os.environ}
            self._process = subprocess.Popen([self._program], text=True, env=environment, preexec_fn=_limit_memory, **pipes)  # noqa: PLW1509 - one thread
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{root}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline() if select.select([self._process.stdout], [], [], SECONDS)[0] else "hang"
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
        self._process.kill()
        printed = self._process.communicate()[1][-400:]
        self._process = None
        if not line and any(f"AddressSanitizer: {words}" in printed for words in _NO_MEMORY):
            return {"status": MEMORY, "message": "", "memory_kb": 0}
        return {"fault": line or f"crash: {printed}"}


@pytest.fixture
def attack(tmp_path: Path) -> Iterator[Attack]:
    made = Attack(tmp_path)
    yield made
    made.close()


def _failures(attack: Attack, numbers: range) -> tuple[list[str], Counter[str]]:
    outcomes = [attack.run(number) for number in numbers]
    return [outcome for _, outcome in outcomes if outcome], Counter(group for group, _ in outcomes)


def test_a_sample_of_every_group(attack: Attack) -> None:
    failures, groups = _failures(attack, range(SAMPLE))
    assert failures == []
    assert set(groups) == set(GROUPS)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_ten_thousand_cases(attack: Attack) -> None:
    failures, groups = _failures(attack, range(SAMPLE, 10_000))
    print(f"{groups.total()} cases, at most {attack.peak_kb >> 10} MiB")  # noqa: T201 - a figure for the record
    assert failures == []


def test_the_operators_are_pythons_and_the_documents() -> None:
    found = run(built_file("tests/prtool-bundle-probe"), "--operators").stdout.split()
    assert found == sorted(OPERATORS)
    text = (REPO / "docs" / "bundle-format.md").read_text().split("<!-- operators -->")[1].split("```")[1]
    assert found == sorted(text.split())
