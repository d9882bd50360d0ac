"""The programs of the C++ library, for tests that run them."""

import os
import subprocess
from pathlib import Path

import pytest
from support import REPO

SOURCE = REPO / "runtime" / "cpp"
BUILD = Path(os.environ.get("PRTOOL_CPP_BUILD", SOURCE / "build" / "check-gcc")).resolve()


def built_file(pattern: str) -> Path:
    """A built program or library; skips the test, with the reason, where there is none."""
    path = next(BUILD.glob(pattern), None)
    if path is None:
        pytest.skip(f"not built: {BUILD / pattern} ('make cpp' builds it; PRTOOL_CPP_BUILD names another build folder)")
    return path


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's end, with what it printed."""
    settings = {**os.environ, "TSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'thread_sanitizer.txt'}", **environment}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=240, check=False, env=settings)


def engines() -> list[str]:
    """What the library was built with."""
    return run(built_file("programs/prtool-run"), "--version").stdout.split("engines: ")[1].strip().split(",")
