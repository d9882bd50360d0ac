"""ONNX Runtime's CUDA provider: options, bindings and errors, with a session of the CPU that stands in for the GPU's.

The stand-in takes "device" arrays by their address, as the real one does; what the GPU computes is tested where one is.
"""

import ctypes
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime
import pytest
from models import TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import DeviceEngine, GraphOptions
from prtool.engines.nvidia import Gpu
from prtool.engines.ort import cuda as ort_cuda
from prtool.engines.registry import list_engines, open_engine
from prtool.errors import EngineError, EngineUnavailable, ShapeError
from prtool.runtime.select import select

MODEL = TinyModel()
GPU_PROVIDERS = ["CUDAExecutionProvider", "CPUExecutionProvider"]
RealSession = onnxruntime.InferenceSession


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("gpu") / "bundle", MODEL)


class DeviceTensor:
    """Memory that only its address leads to, as on a GPU."""

    def __init__(self, array: np.ndarray, dtype: str = "") -> None:
        self._array = array
        self.shape = array.shape
        self.dtype = dtype or f"torch.{array.dtype}"

    def is_contiguous(self) -> bool:
        return bool(self._array.flags.c_contiguous)

    def data_ptr(self) -> int:
        return int(self._array.ctypes.data)


class Arrays:
    """A device array library on one stream; counts how often it waits."""

    device = "cuda:0"

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.waits = 0

    def to_device(self, array: object) -> DeviceTensor:
        return DeviceTensor(np.ascontiguousarray(array))

    def to_host(self, array: DeviceTensor) -> np.ndarray:
        return array._array

    def select(self, scores: DeviceTensor, k: int) -> DeviceTensor:
        return DeviceTensor(select(scores._array, k))

    def gather(self, *arguments: object) -> DeviceTensor:
        raise NotImplementedError

    def synchronise(self) -> None:
        self.waits += 1


class Binding:
    """Reads inputs from addresses."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        self.feed: dict[str, np.ndarray] = {}
        self.outputs: list[tuple[str, str, int]] = []
        self.results: list[np.ndarray] = []

    def bind_cpu_input(self, name: str, array: np.ndarray) -> None:
        self.feed[name] = array

    def bind_input(self, name: str, kind: str, device: int, dtype: type, shape: Sequence[int], address: int) -> None:
        assert (kind, device) == ("cuda", 0)
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.feed[name] = np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)

    def bind_output(self, name: str, kind: str, device: int) -> None:
        self.outputs.append((name, kind, device))

    def get_outputs(self) -> list[np.ndarray]:
        return self.results


class Session:
    """A session of the CPU that says it runs on the providers asked for, less those that cannot start."""

    broken: frozenset[str] = frozenset()
    opened: list["Session"]

    def __init__(self, path: str, settings: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int) -> None:
        self.providers = providers
        self.fallback = bool(enable_fallback)
        self.real = RealSession(path, settings, providers=["CPUExecutionProvider"])
        self.runs: list[tuple[Binding, Any]] = []
        Session.opened.append(self)

    def get_providers(self) -> list[str]:
        return [name for name, _ in self.providers if name not in self.broken] + ["CPUExecutionProvider"]

    def disable_fallback(self) -> None:
        self.fallback = False

    def io_binding(self) -> Binding:
        return Binding(self)

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        self.runs.append((binding, options))
        binding.results = self.real.run([name for name, *_ in binding.outputs], binding.feed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


def give(monkeypatch: pytest.MonkeyPatch, arrays: Arrays | None) -> None:
    """These device arrays to every engine that is opened; None says that PyTorch finds no GPU."""

    def cuda_arrays(device: int, *, records: bool) -> Arrays:
        assert not records, "ONNX Runtime allocates while it runs: nothing may be recorded"
        if arrays is None:
            raise EngineUnavailable(f"torch finds no CUDA device {device}")
        return arrays

    monkeypatch.setattr(ort_cuda, "cuda_arrays", cuda_arrays)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Session]]:
    """An ONNX Runtime that says it has GPU providers; without device arrays until a test gives some."""
    Session.opened = []
    monkeypatch.setattr(Session, "broken", frozenset())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    give(monkeypatch, None)
    monkeypatch.setattr(ort_cuda, "gpu", lambda number: Gpu(f"GPU of number {number}", "9.0", "580.1"))
    yield Session
    Session.opened = []


def open_role(bundle: Bundle, role: str, **options: Any) -> Any:
    graph = bundle.graph(role)
    return open_engine("ort-cuda", bundle.file(graph.file), graph.inputs, GraphOptions(**options))


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the GPU package is installed")
def test_the_package_of_the_cpu_is_named_and_what_to_install(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match=r"CPUExecutionProvider.*onnxruntime-gpu"):
        open_role(bundle, "full")
    status = next(item for item in list_engines() if item.name == "ort-cuda")
    assert status.info is None
    assert "CPUExecutionProvider" in status.reason


def test_a_provider_that_did_not_start_is_rejected(bundle: Bundle, gpu: type[Session]) -> None:
    gpu.broken = frozenset({"CUDAExecutionProvider"})
    with pytest.raises(EngineUnavailable, match=r"CUDAExecutionProvider.* started CPUExecutionProvider"):
        open_role(bundle, "full")


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_not_there_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(number: int) -> Gpu:
        raise EngineUnavailable(f"device = {number}, but the NVIDIA driver lists 0")

    monkeypatch.setattr(ort_cuda, "gpu", no_device)
    status = next(item for item in list_engines() if item.name == "ort-cuda")
    assert (status.info, status.reason) == (None, "device = 0, but the NVIDIA driver lists 0")
    with pytest.raises(EngineUnavailable, match="device = 3"):
        open_role(bundle, "full", device=3)


def test_options_of_cuda(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, Arrays(stream=4660))
    open_role(bundle, "full", device=0)
    ((name, options),) = gpu.opened[-1].providers
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "user_compute_stream": "4660"}
    assert not gpu.opened[-1].fallback
    give(monkeypatch, None)
    open_role(bundle, "full", device=1)
    ((_, options),) = gpu.opened[-1].providers
    assert options["device_id"] == "1"
    assert "user_compute_stream" not in options


def test_host_arrays_pass_through(bundle: Bundle, gpu: type[Session]) -> None:
    engine, pixels = open_role(bundle, "fused"), MODEL.pixels(3)
    assert not isinstance(engine, DeviceEngine)
    assert engine.info.name == "ort-cuda"
    assert engine.info.device == "GPU of number 0, CUDAExecutionProvider"
    np.testing.assert_allclose(engine.run({"pixels": pixels, "k": counted(7)})["embedding"], MODEL.embed(pixels, (7,)), atol=1e-5)
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"pixels": pixels, "k": counted(7)})


def test_device_arrays_go_by_address_and_come_from_the_device(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = Arrays(stream=77)
    give(monkeypatch, arrays)
    engine, pixels = open_role(bundle, "fused"), MODEL.pixels(2)
    assert isinstance(engine, DeviceEngine)
    outputs = engine.run_device({"pixels": arrays.to_device(pixels), "k": counted(5)})
    np.testing.assert_allclose(arrays.to_host(outputs["embedding"]), MODEL.embed(pixels, (5,)), atol=1e-5)
    ((binding, options),) = gpu.opened[-1].runs
    assert binding.outputs == [("embedding", "cuda", 0)]
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    assert arrays.waits == 0


@pytest.mark.parametrize(("opened_on", "run_on"), [(77, 88), (0, 0)])
def test_another_stream_waits_on_both_sides(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch, opened_on: int, run_on: int) -> None:
    arrays = Arrays(stream=opened_on)
    give(monkeypatch, arrays)
    engine = open_role(bundle, "full")
    arrays.stream = run_on
    engine.run_device({"pixels": arrays.to_device(MODEL.pixels(1))})
    ((_, options),) = gpu.opened[-1].runs
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "0"
    assert arrays.waits == 1


def test_arrays_stay_on_the_device(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = Arrays(stream=1)
    give(monkeypatch, arrays)
    assert open_role(bundle, "full").arrays is arrays


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (DeviceTensor(MODEL.pixels(1).astype(np.float64)), "float64"),
        (DeviceTensor(MODEL.pixels(1), dtype="torch.bfloat16"), "bfloat16"),
        (DeviceTensor(MODEL.pixels(1)[:, :, :, :7].copy()), r"\(1, 3, 8, 7\)"),
        (DeviceTensor(MODEL.pixels(2).transpose(0, 1, 3, 2)), "pixels.*contiguous"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_wrong_device_arrays_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tensor: DeviceTensor, message: str) -> None:
    give(monkeypatch, Arrays(stream=1))
    with pytest.raises(ShapeError, match=message):
        open_role(bundle, "full").run_device({"pixels": tensor})


@pytest.mark.usefixtures("gpu")
def test_a_failure_on_the_device_is_mapped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = Arrays(stream=1)
    give(monkeypatch, arrays)
    with pytest.raises(EngineError, match=r"fused\.onnx.*pixels \(1, 3, 8, 8\), k \(1,\)") as caught:
        open_role(bundle, "fused").run_device({"pixels": arrays.to_device(MODEL.pixels(1)), "k": counted(17)})
    assert caught.value.__cause__ is not None


@pytest.mark.gpu
def test_ties_and_device_arrays_on_the_gpu(bundle: Bundle) -> None:
    reasons = {status.name: status.reason for status in list_engines()}
    if reasons["ort-cuda"]:
        pytest.skip(reasons["ort-cuda"])
    opened = open_role(bundle, "fused")
    # Equal patches have equal scores.
    same = np.ones_like(MODEL.pixels(2))
    for pixels in (MODEL.pixels(2), same):
        np.testing.assert_allclose(opened.run({"pixels": pixels, "k": counted(5)})["embedding"], MODEL.embed(pixels, (5,)), atol=1e-4)
        if isinstance(opened, DeviceEngine):
            outputs = opened.run_device({"pixels": opened.arrays.to_device(pixels), "k": counted(5)})
            np.testing.assert_allclose(opened.arrays.to_host(outputs["embedding"]), MODEL.embed(pixels, (5,)), atol=1e-4)
