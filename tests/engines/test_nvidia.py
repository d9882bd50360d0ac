"""What the driver says, through a stand-in for its libraries, and without one."""

# ruff: noqa: ARG002 - stand-ins have the parameters of the C functions

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from prtool.engines import nvidia
from prtool.engines.nvidia import Gpu, free_memory, gpu
from prtool.errors import EngineUnavailable


def give(reference: Any, value: int) -> int:
    reference._obj.value = value
    return 0


class Driver:
    """libcuda and libnvidia-ml as their C functions answer: 0 is success, results go to the references."""

    def __init__(self, start: int = 0, count: int = 2) -> None:
        self.start, self.count = start, count

    def cuInit(self, flags: int) -> int:
        return self.start

    def cuGetErrorString(self, status: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        return give(count, self.count)

    def cuDeviceGet(self, handle: Any, device: int) -> int:
        return give(handle, device + 7)

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = f"NVIDIA Test {handle.value}".encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        return give(value, {75: 9, 76: 0}[attribute])

    def cuDriverGetVersion(self, version: Any) -> int:
        return give(version, 13010)

    def cuMemGetInfo_v2(self, free: Any, total: Any) -> int:
        give(total, 80 << 30)
        return give(free, 3 << 30)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0


Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    def install(driver: Driver, *names: str) -> None:
        def load(name: str) -> Driver:
            if not any(known in name for known in names):
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(nvidia.ctypes, "CDLL", load)

    return install


def test_a_gpu_and_its_driver(installed: Installed) -> None:
    installed(Driver(), "cuda", "nv")
    assert gpu(1) == Gpu("NVIDIA Test 8", "9.0", "580.65.06, CUDA 13.1")
    assert str(gpu(0)) == "NVIDIA Test 7 (compute capability 9.0, driver 580.65.06, CUDA 13.1)"
    assert free_memory() == 3 << 30


def test_a_driver_without_its_management_library(installed: Installed) -> None:
    installed(Driver(), "libcuda")
    assert gpu(0).driver == "CUDA 13.1"


def test_no_driver_is_named(installed: Installed) -> None:
    installed(Driver())
    with pytest.raises(EngineUnavailable, match=r"no NVIDIA driver was found \(libcuda\.so\.1: cannot open"):
        gpu(0)
    assert free_memory() is None


def test_the_reason_of_the_driver_is_passed_on(installed: Installed) -> None:
    installed(Driver(start=100), "libcuda")
    with pytest.raises(EngineUnavailable, match=r"error 100: no CUDA-capable device is detected"):
        gpu(0)


def test_a_number_beyond_the_gpus_is_refused(installed: Installed) -> None:
    installed(Driver(count=1), "libcuda")
    with pytest.raises(EngineUnavailable, match="device = 1, but the NVIDIA driver lists 1"):
        gpu(1)
