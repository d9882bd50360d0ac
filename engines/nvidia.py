"""What NVIDIA's driver says about a GPU, asked through the libraries that come with the driver."""

import ctypes
import functools
import sys
from dataclasses import dataclass
from typing import Any

from prtool.errors import EngineUnavailable

_DRIVER = ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1", "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1")
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_NAME_BYTES = 256
_VERSION_BYTES = 96


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU: its name, its compute capability ("9.0"), and the driver's version with the newest CUDA that it runs."""

    name: str
    compute_capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.compute_capability}, driver {self.driver})"


def gpu(device: int) -> Gpu:
    """The GPU of that number, counted as CUDA counts; raises EngineUnavailable, with the driver's reason, where there is none."""
    cuda = _started()
    count = _number(cuda, cuda.cuDeviceGetCount, "lists no GPU").value
    if device >= count:
        raise EngineUnavailable(f"device = {device}, but the NVIDIA driver lists {count} (from 0); CUDA_VISIBLE_DEVICES may hide others")
    handle = _number(cuda, cuda.cuDeviceGet, f"does not give device {device}", device)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _check(cuda, cuda.cuDeviceGetName(name, _NAME_BYTES, handle), f"does not name device {device}")
    major, minor = (_number(cuda, cuda.cuDeviceGetAttribute, f"does not give attribute {item}", item, handle).value for item in (_MAJOR, _MINOR))
    return Gpu(name.value.decode(), f"{major}.{minor}", _driver_version(cuda))


class DeviceScope:
    """A context manager in which the calling thread's CUDA calls go to one GPU; many threads may be in it at once."""

    def __init__(self, device: int) -> None:
        """Takes hold of the GPU's primary context, which CUDA's runtime and all libraries on it share, for the life of the process."""
        self._cuda = _started()
        self._context = ctypes.c_void_p()
        handle = _number(self._cuda, self._cuda.cuDeviceGet, f"does not give device {device}", device)
        _check(self._cuda, self._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), handle), f"does not start device {device}")

    def __enter__(self) -> None:
        _check(self._cuda, self._cuda.cuCtxPushCurrent_v2(self._context), "does not change the device")

    def __exit__(self, *_: object) -> None:
        left = ctypes.c_void_p()
        _check(self._cuda, self._cuda.cuCtxPopCurrent_v2(ctypes.byref(left)), "does not change the device back")


def free_memory() -> int | None:
    """Free bytes of the GPU that the calling thread uses now; None where that cannot be asked."""
    try:
        cuda = _library(_DRIVER[0])
    except EngineUnavailable:
        return None
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    status = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return None if status else free.value


def is_capturing(stream: int) -> bool:
    """Whether work put on a CUDA stream is being recorded into a CUDA graph instead of being done."""
    try:
        cuda = _library(_DRIVER[0])
    except EngineUnavailable:
        return False
    state = ctypes.c_int()
    status = cuda.cuStreamIsCapturing(ctypes.c_void_p(stream), ctypes.byref(state))
    return status == 0 and state.value != 0


def _started() -> Any:  # noqa: ANN401 - a loaded library
    cuda = _library(_DRIVER[0])
    _check(cuda, cuda.cuInit(0), "cannot be started")
    return cuda


def _number(cuda: Any, call: Any, problem: str, *arguments: object) -> ctypes.c_int:  # noqa: ANN401
    value = ctypes.c_int()
    _check(cuda, call(ctypes.byref(value), *arguments), problem)
    return value


def _driver_version(cuda: Any) -> str:  # noqa: ANN401
    newest = _number(cuda, cuda.cuDriverGetVersion, "has no version").value
    runs = f"CUDA {newest // 1000}.{newest % 1000 // 10}"
    try:
        nvml = _library(_DRIVER[1])
    except EngineUnavailable:
        return runs  # some systems (Jetson, some containers) have a driver without its management library
    text = ctypes.create_string_buffer(_VERSION_BYTES)
    if nvml.nvmlInit_v2() or nvml.nvmlSystemGetDriverVersion(text, _VERSION_BYTES):
        return runs
    return f"{text.value.decode()}, {runs}"


@functools.cache
def _library(name: str) -> Any:  # noqa: ANN401
    try:
        return ctypes.CDLL(name)
    except OSError as cause:
        raise EngineUnavailable(
            f"no NVIDIA driver was found ({cause}); install one, or choose another engine ('prtool doctor' lists them)"
        ) from cause


def _check(cuda: Any, status: int, problem: str) -> None:  # noqa: ANN401
    if status:
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        reason = text.value.decode() if text.value else "unknown"
        raise EngineUnavailable(f"the NVIDIA driver {problem} (error {status}: {reason}); check it with nvidia-smi")
