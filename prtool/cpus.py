"""How many CPUs this process may use: those that it is bound to, less where a container has a quota (`docker --cpus`)."""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def granted_cpus(root: Path = _ROOT) -> int:
    """CPUs that this process may use, at least 1: the fewer of those that it is bound to (taskset) and its control groups' quota, rounded up.

    Args:
        root: where the system's `proc` and `sys` lie.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min([bound, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs granted by each control group around the process; none on systems without them."""
    groups = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:  # version 2; in a folder of its own where version 1 is mounted as well
            for folder in _around(groups, path) | _around(groups / "unified", path):
                yield from _share(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _around(groups / "cpu", path) | _around(groups / controllers, path):
                yield from _share([*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")])


def _around(mount: Path, path: str) -> set[Path]:
    """The folders of a group and of every group around it; a container often sees its own group as the mount itself."""
    parts = PurePosixPath(path).relative_to("/").parts if path.startswith("/") else ()
    return {mount.joinpath(*parts[:count]) for count in range(len(parts) + 1) if ".." not in parts}


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _share(words: list[str]) -> Iterator[float]:
    """Quota over period; "max" and -1 stand for none."""
    if len(words) == 2 and all(word.isascii() and word.isdigit() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])
