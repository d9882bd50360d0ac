"""What can be read of an NVIDIA GPU while a benchmark runs: energy and memory through NVML, time through CUDA events.

Nothing here needs a GPU to be imported: NVML is the module `pynvml` (pip install nvidia-ml-py) where it is installed,
and CUDA events are torch's where an engine has already loaded torch.
"""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from prtool.engines.base import EngineInfo
from prtool.runtime.bench.timing import Case, Clock

_WORDS = ("cuda", "gpu", "nvidia", "geforce", "rtx", "tesla")


def on_gpu(info: EngineInfo) -> bool:
    """Whether an engine says that it runs on a GPU."""
    return any(word in info.device.lower() for word in _WORDS)


class GpuMeter:
    """Energy and memory of one GPU as the driver counts them, for every process that uses it."""

    def __init__(self, number: int = 0) -> None:
        """Opens NVML; `reason` says why there are no figures.

        Args:
            number: of the GPU, from 0, among those that CUDA_VISIBLE_DEVICES leaves.
        """
        self.reason: str | None = None
        self._handle: Any = None
        self._used_mj = 0
        try:
            self._nvml: Any = importlib.import_module("pynvml")
        except ImportError:
            self.reason = "pynvml is not installed; pip install nvidia-ml-py"
            return
        try:
            self._nvml.nvmlInit()
            self._handle = self._find(number)
            self._used_mj = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except self._nvml.NVMLError as cause:
            self.reason = f"NVML gives no energy of GPU {number}: {cause}"
            self._handle = None

    def joules(self) -> float | None:
        """Energy since the last call or the creation, in joules; None without NVML. The counter moves 10 to 50 times a second."""
        if self._handle is None:
            return None
        now: int = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        used, self._used_mj = now - self._used_mj, now
        return used / 1e3

    def memory_mib(self) -> float | None:
        """Memory in use on the GPU, in MiB; None without NVML."""
        if self._handle is None:
            return None
        used: int = self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used
        return used / 2**20

    def _find(self, number: int) -> Any:  # noqa: ANN401 - NVML's handles are opaque
        visible = [item.strip() for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if item.strip()]
        name = visible[number] if number < len(visible) else str(number)
        if name.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self._nvml.nvmlDeviceGetHandleByUUID(name)


class CudaEvents:
    """Time between two events on torch's current stream: what the device itself saw of a call."""

    def __init__(self, torch: Any) -> None:  # noqa: ANN401 - this folder does not import torch
        self._cuda = torch.cuda
        self._begin = self._cuda.Event(enable_timing=True)
        self._end = self._cuda.Event(enable_timing=True)

    def start(self) -> None:
        """Records the first event."""
        self._begin.record()

    def stop(self) -> int:
        """Records the second and waits for it; nanoseconds between them, exact to about half a microsecond."""
        self._end.record()
        self._end.synchronize()
        return round(1e6 * float(self._begin.elapsed_time(self._end)))


def cuda_events(info: EngineInfo) -> CudaEvents | None:
    """Events for an engine on a GPU, where torch is loaded and sees one; None elsewhere."""
    torch = _torch_with_cuda()
    return CudaEvents(torch) if on_gpu(info) and torch is not None else None


def torch_peak_mib() -> float | None:
    """Most memory that torch's own allocator has held on the current GPU, in MiB; None without torch and a GPU."""
    torch = _torch_with_cuda()
    return None if torch is None else float(torch.cuda.max_memory_allocated()) / 2**20


def joules_per_call(cases: Sequence[Case], meter: GpuMeter, clock: Clock, least_s: float = 1.0) -> list[float | None]:
    """Energy of one call of each case, from calls repeated for `least_s` seconds.

    The driver's counter moves too rarely to be read around single calls. Each case runs at least once; what the
    device takes when idle is part of its figure.
    """
    return [_joules_per_call(case, meter, clock, round(least_s * 1e9)) for case in cases]


def _joules_per_call(case: Case, meter: GpuMeter, clock: Clock, least_ns: int) -> float | None:
    meter.joules()
    started, calls = clock(), 0
    while calls == 0 or clock() - started < least_ns:
        case.run(calls, lambda _: None)
        calls += 1
    used = meter.joules()
    return None if used is None else used / calls


def _torch_with_cuda() -> Any:  # noqa: ANN401
    """The torch module where an engine has loaded it and it sees a GPU; None elsewhere."""
    torch: Any = sys.modules.get("torch")
    return torch if torch is not None and torch.cuda.is_available() else None
