"""What a benchmark reads while it runs: energy of processor (RAPL) and GPU (NVML), memory of the GPU, and its own clock (CUDA events).

Nothing here needs a GPU to be imported: NVML is the module `pynvml` (pip install nvidia-ml-py) where it is installed, and CUDA
events are torch's where an engine has already loaded torch.
"""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from prtool.engines.base import EngineInfo
from prtool.runtime.machine import system_text

_POWERCAP = Path("/sys/class/powercap")
_GPU_NAMES = ("cuda", "gpu", "nvidia", "geforce", "rtx", "tesla")


class EnergyMeter:
    """Energy of the processor packages, from the RAPL counters of Linux.

    The counters include other jobs and idle power, and are updated about once a millisecond: they describe many calls
    together, not one. `reason` is why there are no readable counters, else None.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        """Looks for readable counters under `root`."""
        zones = sorted(zone for zone in root.glob("*:*") if system_text(zone / "name").startswith("package"))
        closed = [zone / "energy_uj" for zone in zones if not os.access(zone / "energy_uj", os.R_OK)]
        self.reason: str | None = None
        if not zones:
            self.reason = f"{root} lists no processor package; the system or its hypervisor offers no RAPL counters"
        elif closed:
            self.reason = f"{closed[-1]} may not be read; run as root, or make it readable"
        # Each zone's counter starts again at 0 above its range.
        self._ranges = {zone / "energy_uj": int(system_text(zone / "max_energy_range_uj")) for zone in zones if self.reason is None}
        self._last = {file: int(system_text(file)) for file in self._ranges}

    def joules(self) -> float | None:
        """Energy of all packages since the last call or the creation, in joules; None without counters."""
        if not self._ranges:
            return None
        before, self._last = self._last, {file: int(system_text(file)) for file in self._ranges}
        return sum((now - before[file]) % self._ranges[file] for file, now in self._last.items()) / 1e6


class GpuMeter:
    """Energy and memory of one GPU as the driver counts them, for every process that uses it; `reason` is why there are none."""

    def __init__(self, number: int = 0) -> None:
        """Opens NVML for a GPU, counted from 0 among those that CUDA_VISIBLE_DEVICES leaves."""
        self.reason: str | None = None
        self._handle: Any = None
        self._used_mj = 0
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            self.reason = "pynvml is not installed; pip install nvidia-ml-py"
            return
        visible = [item.strip() for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item.strip()]
        name = visible[number] if number < len(visible) else str(number)
        try:
            self._nvml.nvmlInit()
            self._handle = self._nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else self._nvml.nvmlDeviceGetHandleByUUID(name)
            self._used_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as cause:
            self.reason = f"NVML gives no energy of GPU {number}: {cause}"
            self._handle = None

    def joules(self) -> float | None:
        """Energy since the last call or the creation, in joules; None without NVML. The counter is updated 10 to 50 times a second."""
        if self._handle is None:
            return None
        now: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        used, self._used_mj = now - self._used_mj, now
        return used / 1e3

    def memory_mib(self) -> float | None:
        """Memory in use on the GPU, in MiB; None without NVML."""
        return None if self._handle is None else float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used) / 2**20


class CudaEvents:
    """Time between two events on torch's current stream: the device's own view of a call."""

    def __init__(self, torch: Any) -> None:  # noqa: ANN401 - this folder does not import torch
        self._begin = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def start(self) -> None:
        """Records the first event."""
        self._begin.record()

    def stop(self) -> int:
        """Records the second and waits for it; nanoseconds between them, exact to about half a microsecond."""
        self._end.record()
        self._end.synchronize()
        return round(1e6 * float(self._begin.elapsed_time(self._end)))


def on_gpu(info: EngineInfo) -> bool:
    """Whether an engine says that it runs on a GPU."""
    return any(name in info.device.lower() for name in _GPU_NAMES)


def cuda_events(info: EngineInfo) -> CudaEvents | None:
    """Events for an engine on a GPU, where torch is loaded and finds one; None elsewhere."""
    torch = _torch_with_cuda()
    return CudaEvents(torch) if on_gpu(info) and torch is not None else None


def torch_peak_mib() -> float | None:
    """Most memory that torch's own allocator has held on the current GPU, in MiB; None without torch and a GPU."""
    torch = _torch_with_cuda()
    return None if torch is None else float(torch.cuda.max_memory_allocated()) / 2**20


def _torch_with_cuda() -> Any:  # noqa: ANN401
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
