"""What a measurement ran on: processor, granted threads, load, memory, energy counters and versions."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prtool.cpus import granted_cpus
from prtool.version import __version__

_POWERCAP = Path("/sys/class/powercap")
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Machine:
    """The host, as it was when the measurement started.

    Attributes:
        cpu: the processor's model name.
        cores: logical processors of the machine.
        threads_granted: logical processors that this process may use (taskset and quotas of containers lower it).
        system: operating system and architecture.
        load_average: runnable jobs of the machine over the last minute, before the measurement; None where the system has no such figure.
    """

    cpu: str
    cores: int
    threads_granted: int
    system: str
    load_average: float | None


def this_machine() -> Machine:
    """Reads what the system says about itself."""
    cores = os.cpu_count() or 1
    granted = granted_cpus()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Machine(_cpu_name(), cores, granted, f"{platform.system()} {platform.release()} {platform.machine()}", load)


def library_versions() -> dict[str, str]:
    """Versions of prtool, Python and the libraries that every engine shares."""
    libraries = {name: version(name) for name in ("numpy", "pillow")}
    return {"prtool": __version__, "python": platform.python_version(), **libraries}


def peak_memory_mib() -> float | None:
    """Highest resident memory of this process since it started, in MiB (2^20 bytes); None on Windows, which does not count it here."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bytes_per_unit = 1 if sys.platform == "darwin" else 1024
    return round(peak * bytes_per_unit / 2**20, 1)


def available_memory_mib(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Memory that this process can still take without swapping, in MiB: the system's, or less where its container grants less.

    None where the system does not say (outside Linux).
    """
    found = [line.split() for line in _text(proc / "meminfo").splitlines() if line.startswith("MemAvailable:")]
    if not found:
        return None
    available = int(found[0][1]) / 1024
    limit, used = _text(cgroup / "memory.max"), _text(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        # Cached files count as used there, but give way; meminfo's figure has them already.
        cached = sum(int(line.split()[1]) for line in _text(cgroup / "memory.stat").splitlines() if line.startswith("inactive_file "))
        available = min(available, (int(limit) - int(used) + cached) / 2**20)
    return round(available, 1)


class EnergyMeter:
    """Energy of the processor packages, from the RAPL counters of Linux.

    The counters see everything that the packages do, other jobs and idle power included, and move about once
    a millisecond: they describe many calls together, not one.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        """Looks for readable counters under `root`; `reason` says why there are none."""
        self._counters: Sequence[_Counter] = ()
        packages = sorted(zone for zone in root.glob("*:*") if _text(zone / "name").startswith("package"))
        self.reason: str | None = None if packages else f"{root} lists no processor package; the system or its hypervisor offers no RAPL counters"
        for zone in packages:
            if not os.access(zone / "energy_uj", os.R_OK):
                self.reason = f"{zone / 'energy_uj'} may not be read; run as root, or make it readable"
        if self.reason is None:
            self._counters = [_Counter(zone) for zone in packages]

    def joules(self) -> float | None:
        """Energy of all packages since the last call or the creation, in joules; None without counters."""
        if not self._counters:
            return None
        return sum(counter.microjoules() for counter in self._counters) / 1e6


class _Counter:
    """One package's counter, which starts again at 0 above its range."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int(_text(zone / "max_energy_range_uj"))
        self._last = int(_text(self._file))

    def microjoules(self) -> int:
        now = int(_text(self._file))
        used = now - self._last
        self._last = now
        return used if used >= 0 else used + self._range


def _cpu_name() -> str:
    names = [line.partition(":")[2].strip() for line in _text(_CPUINFO).splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _text(path: Path) -> str:
    """The file's text; "" where the system has no such file."""
    return path.read_text().strip() if path.is_file() else ""
