"""What a measurement ran on: processor, granted threads, load, memory and versions."""

import os
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from prtool.cpus import granted_cpus
from prtool.version import __version__

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
    cpu = _cpuinfo().get("model name") or platform.processor() or platform.machine()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Machine(cpu, os.cpu_count() or 1, granted_cpus(), f"{platform.system()} {platform.release()} {platform.machine()}", load)


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
    found = [line.split() for line in system_text(proc / "meminfo").splitlines() if line.startswith("MemAvailable:")]
    if not found:
        return None
    available = int(found[0][1]) / 1024
    limit, used = system_text(cgroup / "memory.max"), system_text(cgroup / "memory.current")
    if limit.isdigit() and used.isdigit():
        # Cached files count as used there, but give way; meminfo's figure has them already.
        cached = sum(int(line.split()[1]) for line in system_text(cgroup / "memory.stat").splitlines() if line.startswith("inactive_file "))
        available = min(available, (int(limit) - int(used) + cached) / 2**20)
    return round(available, 1)


def cpu_flags() -> set[str]:
    """Instruction sets of the processor, as Linux names them ("avx512_vnni", "asimd"); empty on other systems."""
    facts = _cpuinfo()
    return set(facts.get("flags", facts.get("Features", "")).split())


def _cpuinfo() -> dict[str, str]:
    """The last processor's entries of /proc/cpuinfo."""
    lines = [line.partition(":") for line in system_text(_CPUINFO).splitlines()]
    return {name.strip(): value.strip() for name, _, value in lines if value}


def system_text(path: Path) -> str:
    """The file's text; "" where the system has no such file."""
    return path.read_text().strip() if path.is_file() else ""
