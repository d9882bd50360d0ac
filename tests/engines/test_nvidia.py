"""What the driver says, through a stand-in for its libraries, and without one."""

# ruff: noqa: ARG002 - stand-ins have the parameters of the C functions

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from prtool.engines import nvidia
from prtool.engines.nvidia import DeviceScope, Gpu, free_memory, gpu, is_capturing
from prtool.errors import EngineUnavailable


def give(reference: Any, value: int) -> int:
    reference._obj.value = value
    return 0


class Driver:
    """libcuda and libnvidia-ml as their C functions answer: 0 is success, results go to the references."""

    def __init__(self, start: int = 0, count: int = 2) -> None:
        self.start, self.count = start, count
        self.current: list[int] = []

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

    def cuStreamIsCapturing(self, stream: ctypes.c_void_p, state: Any) -> int:
        return 906 if stream.value is None else give(state, int(stream.value == 5))

    def cuDevicePrimaryCtxRetain(self, context: Any, handle: ctypes.c_int) -> int:
        return give(context, 40 + handle.value)

    def cuCtxPushCurrent_v2(self, context: ctypes.c_void_p) -> int:
        self.current.append(context.value or 0)
        return self.start

    def cuCtxPopCurrent_v2(self, context: Any) -> int:
        return give(context, self.current.pop())

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text: Any, size: int) -> int:
        text.value = b"580.65.06"
        return 0


Installed = Callable[..., None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Installed]:
    def install(driver: Driver, *names: str) -> None:
        def load(name: str) -> Driver:
            if not any(known in name for known in names):
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(nvidia.ctypes, "CDLL", load)
        nvidia._library.cache_clear()

    yield install
    nvidia._library.cache_clear()


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
    with pytest.raises(EngineUnavailable, match=r"libcuda\.so\.1: cannot open"):
        gpu(0)
    assert free_memory() is None


def test_the_reason_of_the_driver_is_passed_on(installed: Installed) -> None:
    installed(Driver(start=100), "libcuda")
    with pytest.raises(EngineUnavailable, match="100"):
        gpu(0)


def test_a_number_beyond_the_gpus_is_refused(installed: Installed) -> None:
    installed(Driver(count=1), "libcuda")
    with pytest.raises(EngineUnavailable, match="device = 1"):
        gpu(1)


def test_whether_a_stream_is_recorded(installed: Installed) -> None:
    installed(Driver(), "libcuda")
    assert [is_capturing(stream) for stream in (5, 6, 0)] == [True, False, False]
    installed(Driver())
    assert not is_capturing(5)


def test_a_scope_is_left_as_it_was_found(installed: Installed) -> None:
    driver = Driver()
    installed(driver, "libcuda")
    scope = DeviceScope(1)
    driver.current.append(1)
    with scope, scope:
        assert driver.current == [1, 48, 48]
    assert driver.current == [1]
    driver.start = 201
    with pytest.raises(EngineUnavailable), scope:
        pass
