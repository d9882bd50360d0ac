"""ONNX Runtime's GPU providers: options, bindings and refusals, with a session of the CPU that stands in for the GPU's.

The stand-in takes "device" arrays by their address, as the real one does; what the GPU computes is tested where one is.
"""

import ctypes
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from models import PIXELS, TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines import ort_tensorrt
from prtool.engines.base import BuildOptions, DeviceEngine, GraphOptions, ShapeRange
from prtool.engines.nvidia import Gpu
from prtool.engines.ort import gpu as ort_gpu
from prtool.engines.profiles import profiles
from prtool.engines.registry import available, open_engine
from prtool.errors import ConfigError, EngineError, EngineUnavailable, ShapeError
from prtool.manifest import TensorSpec
from prtool.runtime.select import select

MODEL = TinyModel()
GPU_PROVIDERS = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
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

    def capture(self, step: Callable[[], object]) -> object:  # noqa: ARG002 - as ArrayLibrary
        raise AssertionError("ONNX Runtime allocates while it runs: nothing may be recorded")

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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Session]]:
    """An ONNX Runtime that says it has GPU providers; without device arrays until a test gives some."""
    Session.opened = []
    monkeypatch.setattr(Session, "broken", frozenset())
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: GPU_PROVIDERS)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: None)
    for module in (ort_gpu, ort_tensorrt):
        monkeypatch.setattr(module, "gpu", lambda number: Gpu(f"GPU of number {number}", "9.0", "580.1"))
    yield Session
    Session.opened = []


def open_role(bundle: Bundle, role: str, engine: str = "ort-cuda", **options: Any) -> Any:
    graph = bundle.graph(role)
    return open_engine(engine, bundle.file(graph.file), graph.inputs, GraphOptions(**options))


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt"])
@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="the GPU package is installed")
def test_the_package_of_the_cpu_is_named_and_what_to_install(bundle: Bundle, engine: str, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"has only .*CPUExecutionProvider.*pip install .*onnxruntime-gpu"):
        open_role(bundle, "full", engine, cache=tmp_path)
    status = next(item for item in available() if item.name == engine)
    assert status.info is None
    assert "CPUExecutionProvider" in status.reason


@pytest.mark.parametrize(("engine", "asked"), [("ort-cuda", "CUDAExecutionProvider"), ("ort-tensorrt", "TensorrtExecutionProvider")])
def test_a_provider_that_did_not_start_is_refused(bundle: Bundle, gpu: type[Session], tmp_path: Path, engine: str, asked: str) -> None:
    gpu.broken = frozenset({asked})
    started = "CUDAExecutionProvider, CPUExecutionProvider" if engine == "ort-tensorrt" else "CPUExecutionProvider"
    with pytest.raises(EngineUnavailable, match=f"asked for {asked}, but ONNX Runtime .* started {started}; install the CUDA"):
        open_role(bundle, "full", engine, cache=tmp_path)


@pytest.mark.usefixtures("gpu")
def test_a_device_that_is_not_there_is_named(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(number: int) -> Gpu:
        raise EngineUnavailable(f"device = {number}, but the NVIDIA driver lists 0")

    monkeypatch.setattr(ort_gpu, "gpu", no_device)
    status = next(item for item in available() if item.name == "ort-cuda")
    assert (status.info, status.reason) == (None, "device = 0, but the NVIDIA driver lists 0")
    with pytest.raises(EngineUnavailable, match="device = 3, but"):
        open_role(bundle, "full", device=3)


def test_options_of_cuda(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: Arrays(stream=4660))
    open_role(bundle, "full", device=0)
    ((name, options),) = gpu.opened[-1].providers
    assert name == "CUDAExecutionProvider"
    assert options == {"device_id": "0", "use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "user_compute_stream": "4660"}
    assert not gpu.opened[-1].fallback
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: None)
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
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: arrays)
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
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: arrays)
    engine = open_role(bundle, "full")
    arrays.stream = run_on
    engine.run_device({"pixels": arrays.to_device(MODEL.pixels(1))})
    ((_, options),) = gpu.opened[-1].runs
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "0"
    assert arrays.waits == 1


def test_nothing_is_recorded(bundle: Bundle, gpu: type[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: Arrays(stream=1))
    engine, results = open_role(bundle, "full"), iter("ab")
    recording = engine.arrays.capture(lambda: next(results))
    assert [recording.replay(), recording.replay()] == ["a", "b"]
    assert engine.arrays.device == "cuda:0"


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (DeviceTensor(MODEL.pixels(1).astype(np.float64)), "float64"),
        (DeviceTensor(MODEL.pixels(1), dtype="torch.bfloat16"), "has dtype bfloat16, "),
        (DeviceTensor(MODEL.pixels(1)[:, :, :, :7].copy()), r"\(1, 3, 8, 7\)"),
        (DeviceTensor(MODEL.pixels(2).transpose(0, 1, 3, 2)), "pixels is not contiguous on the device"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_wrong_device_arrays_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tensor: DeviceTensor, message: str) -> None:
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: Arrays(stream=1))
    with pytest.raises(ShapeError, match=message):
        open_role(bundle, "full").run_device({"pixels": tensor})


@pytest.mark.usefixtures("gpu")
def test_a_failure_on_the_device_is_mapped(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = Arrays(stream=1)
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: arrays)
    with pytest.raises(EngineError, match=r"failed in .*fused\.onnx on pixels \(1, 3, 8, 8\), k \(1,\): ") as caught:
        open_role(bundle, "fused").run_device({"pixels": arrays.to_device(MODEL.pixels(1)), "k": counted(17)})
    assert caught.value.__cause__ is not None


def test_options_of_tensorrt(bundle: Bundle, gpu: type[Session], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_gpu, "device_arrays", lambda _: Arrays(stream=9))
    build = BuildOptions(batch=ShapeRange(1, 4, 8), keeps=(5, 9), level=4, workspace_mib=512)
    built = profiles(bundle.manifest, build)
    open_role(bundle, "fused", "ort-tensorrt", cache=tmp_path, build=build, profiles=built, precision="fp16")
    (first, options), (second, cuda) = gpu.opened[-1].providers
    assert (first, second) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["trt_profile_min_shapes"] == "pixels:1x3x8x8,k:5,pixels:1x3x8x8,k:9"
    assert options["trt_profile_opt_shapes"] == "pixels:4x3x8x8,k:5,pixels:4x3x8x8,k:9"
    assert options["trt_profile_max_shapes"] == "pixels:8x3x8x8,k:5,pixels:8x3x8x8,k:9"
    assert options["trt_builder_optimization_level"] == "4"
    assert options["trt_max_workspace_size"] == str(512 * 2**20)
    assert options["user_compute_stream"] == cuda["user_compute_stream"] == "9"
    assert Path(options["trt_engine_cache_path"]).parent == tmp_path / "ort-tensorrt"
    # A flag would let TensorRT choose; without one the types of the graph hold.
    assert not any("fp16" in name or "bf16" in name or "int8" in name for name in options)


def test_a_graph_uses_the_axes_it_has(bundle: Bundle, gpu: type[Session], tmp_path: Path) -> None:
    built = profiles(bundle.manifest, BuildOptions(keeps=(5, 9)))
    for role, shapes in (("pre", "pixels:1x3x8x8"), ("post", "tokens:1x6x12,tokens:1x10x12")):
        open_role(bundle, role, "ort-tensorrt", cache=tmp_path, profiles=built)
        assert gpu.opened[-1].providers[0][1]["trt_profile_min_shapes"] == shapes
    with pytest.raises(ConfigError, match="axis tokens has no range to build for, only batch have"):
        open_role(bundle, "post", "ort-tensorrt", cache=tmp_path, profiles=({"batch": ShapeRange(1, 1, 1)},))


@pytest.mark.usefixtures("gpu")
def test_engines_of_other_graphs_shapes_devices_and_options_lie_apart(bundle: Bundle, tmp_path: Path) -> None:
    inputs = (PIXELS, TensorSpec("k", "int64", (1,)))
    wide, narrow = profiles(bundle.manifest, BuildOptions()), profiles(bundle.manifest, BuildOptions(keeps=(5,)))
    variants = [
        GraphOptions(cache=tmp_path),
        GraphOptions(cache=tmp_path, profiles=wide),
        GraphOptions(cache=tmp_path, profiles=narrow),
        GraphOptions(cache=tmp_path, precision="fp16"),
        GraphOptions(cache=tmp_path, device=1),
        GraphOptions(cache=tmp_path, build=BuildOptions(level=5)),
    ]
    folders = [ort_tensorrt.engine_folder(bundle.file("fused.onnx"), inputs, options) for options in variants]
    folders.append(ort_tensorrt.engine_folder(bundle.file("full.onnx"), inputs, variants[0]))
    assert len(set(folders)) == len(folders)
    assert folders[0] == ort_tensorrt.engine_folder(bundle.file("fused.onnx"), inputs, variants[0])


def test_engines_that_were_not_built_here_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    with ort_tensorrt.built_here(folder):
        (folder / "graph_sm90.engine").write_bytes(b"built")
        (folder / "timing.cache").write_bytes(b"times")
    with ort_tensorrt.built_here(folder):
        (folder / "timing.cache").write_bytes(b"other times")
    with ort_tensorrt.built_here(folder):
        pass
    (folder / "graph_sm90.engine").write_bytes(b"built elsewhere")
    with (
        pytest.raises(EngineError, match=r"graph_sm90\.engine is not what was built here, so it is not loaded; delete the folder"),
        ort_tensorrt.built_here(folder),
    ):
        pass
    (folder / "graph_sm90.engine").write_bytes(b"built")
    (folder / "files.json").write_text("{")
    with pytest.raises(EngineError, match=r"files\.json is damaged"), ort_tensorrt.built_here(folder):
        pass


def test_a_build_that_fails_leaves_nothing_to_trust(tmp_path: Path) -> None:
    folder = tmp_path / "engines"
    with pytest.raises(RuntimeError, match="out of memory"), ort_tensorrt.built_here(folder):
        (folder / "half.engine").write_bytes(b"half")
        raise RuntimeError("out of memory")
    with pytest.raises(EngineError, match=r"half\.engine is not what was built here"), ort_tensorrt.built_here(folder):
        pass
    assert not (folder / "files.json").exists()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt"])
def test_ties_and_device_arrays_on_the_gpu(bundle: Bundle, tmp_path: Path, engine: str) -> None:
    reasons = {status.name: status.reason for status in available()}
    if reasons[engine]:
        pytest.skip(reasons[engine])
    built = profiles(bundle.manifest, BuildOptions(batch=ShapeRange(1, 2, 4)))
    opened = open_role(bundle, "fused", engine, cache=tmp_path, profiles=built)
    # Equal patches have equal scores.
    same = np.ones_like(MODEL.pixels(2))
    for pixels in (MODEL.pixels(2), same):
        np.testing.assert_allclose(opened.run({"pixels": pixels, "k": counted(5)})["embedding"], MODEL.embed(pixels, (5,)), atol=1e-4)
        if isinstance(opened, DeviceEngine):
            outputs = opened.run_device({"pixels": opened.arrays.to_device(pixels), "k": counted(5)})
            np.testing.assert_allclose(opened.arrays.to_host(outputs["embedding"]), MODEL.embed(pixels, (5,)), atol=1e-4)
    assert json.loads(next(tmp_path.rglob("files.json")).read_text()) if engine == "ort-tensorrt" else True
