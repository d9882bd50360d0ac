"""Opening a TensorRT engine: key, cache, load and run in one, with real builds and a stand-in for what needs a GPU."""

import hashlib

# ruff: noqa: ARG002, ARG005 - stand-ins have the parameters of what they stand for
import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import MODEL, HostArrays, Library
from models import tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, DeviceEngine, Engine, GraphOptions, Profile, ShapeRange
from prtool.engines.nvidia import Gpu
from prtool.engines.profiles import graph_profiles, profiles
from prtool.engines.registry import open_engine
from prtool.engines.trt import engine as trt_engine
from prtool.engines.trt.build import TrtLibrary
from prtool.engines.trt.run import TrtEngine
from prtool.errors import ConfigError, EngineError, EngineUnavailable, ShapeError
from prtool.manifest import TensorSpec

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; pip install '.[tensorrt-rtx]'")
from prtool.engines.trt import rtx as trt_rtx  # noqa: E402

H200 = Gpu("NVIDIA H200", "9.0", "580.65")


class Runtime:
    """trt.Runtime of the stand-in: takes any bytes, and remembers them."""

    loaded: bytes | None = None

    def __init__(self, machine: "Machine") -> None:
        self.machine = machine
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, content: bytes) -> Any:
        self.machine.loaded.append((content, self.engine_host_code_allowed))
        return self.machine.engine()


class Machine:
    """A GPU with TensorRT on it, whose role of the bundle can be opened."""

    def __init__(self, bundle: Bundle, cache: Path) -> None:
        self.bundle, self.cache = bundle, cache
        self.arrays = HostArrays()
        self.loaded: list[tuple[bytes, bool]] = []
        self.reference: list[Engine] = []
        self.takes_plans = True
        self.role = "fused"
        self.built = ""
        parts = {name: getattr(trt, name) for name in dir(trt) if not name.startswith("_")}
        module = SimpleNamespace(**{**parts, "__name__": "tensorrt_test", "__version__": "11.4", "Runtime": lambda logger: Runtime(self)})
        self.library = TrtLibrary("trt", "TensorRT", module, trt_rtx.LIBRARY.messages, times_kernels=False, lacks={})

    def engine(self) -> Any:
        """ICudaEngine of the role that is being opened."""
        if not self.takes_plans:
            return None
        graph = self.bundle.graph(self.role)
        self.reference.append(open_engine("ort", self.bundle.file(graph.file), graph.inputs, GraphOptions(threads=1)))
        names = [spec.name for spec in (*graph.inputs, *graph.outputs)]
        library = Library(self.reference[-1], self.bundle, self.role, self.last_profiles())
        return SimpleNamespace(
            num_io_tensors=len(names),
            get_tensor_name=names.__getitem__,
            get_tensor_mode=lambda name: trt.TensorIOMode.OUTPUT if name in [spec.name for spec in graph.outputs] else trt.TensorIOMode.INPUT,
            get_tensor_dtype=lambda name: trt.float32,
            create_execution_context=lambda strategy: library.new_context(),
        )

    def last_profiles(self) -> tuple[Profile, ...]:
        from prtool.engines.cache.store import EngineCache

        content = hashlib.sha256(self.loaded[-1][0]).hexdigest()
        records = [entry.record for entry in EngineCache(self.cache).entries()]
        return next(record.key.profiles for record in records if record and record.sha256 == content)

    def graph(self, role: str, **build: Any) -> tuple[Path, tuple[TensorSpec, ...], GraphOptions]:
        self.role = role
        graph, options = self.bundle.graph(role), BuildOptions(**build)
        chosen = GraphOptions(cache=self.cache, build=options, profiles=profiles(self.bundle.manifest, options))
        return self.bundle.file(graph.file), graph.inputs, chosen

    def open(self, role: str, **build: Any) -> TrtEngine:
        return trt_engine.open_graph(self.library, *self.graph(role, **build))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("trt_engine") / "bundle", MODEL)


class Scope:
    """`DeviceScope` without a GPU."""

    def __init__(self, device: int) -> None:
        self.device = device

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def machine(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(bundle, tmp_path / "cache")
    monkeypatch.setattr(trt_engine, "gpu", lambda device: H200)
    monkeypatch.setattr(trt_engine, "cuda_arrays", lambda device: made.arrays)
    monkeypatch.setattr(trt_engine, "DeviceScope", Scope)
    yield made
    for engine in made.reference:
        engine.close()


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


def test_open_builds_loads_and_runs(machine: Machine) -> None:
    engine = machine.open("fused")
    assert isinstance(engine, DeviceEngine)
    assert engine.info.device == "NVIDIA H200 (compute capability 9.0, driver 580.65)"
    for batch, k in itertools.product((1, 3), (2, 9, 16)):
        pixels = MODEL.pixels(batch, seed=k)
        np.testing.assert_allclose(engine.run({"pixels": pixels, "k": counted(k)})["embedding"], MODEL.embed(pixels, (k,)), atol=1e-5)
    engine.close()


def test_the_plan_that_was_built_is_the_one_that_is_loaded(machine: Machine) -> None:
    built = trt_engine.build_graph(machine.library, *machine.graph("post"))
    machine.open("post")
    assert machine.loaded == [(built.path.read_bytes(), False)]
    key = built.record.key
    assert (key.library, key.library_version, key.device, key.compute_capability, key.driver) == (
        "tensorrt_test",
        "11.4",
        "NVIDIA H200",
        "9.0",
        "580.65",
    )


def test_a_damaged_plan_never_reaches_the_library(machine: Machine) -> None:
    path = trt_engine.build_graph(machine.library, *machine.graph("post")).path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(EngineError, match="SHA-256"):
        machine.open("post")
    assert machine.loaded == []


def test_what_was_built_last_is_taken_where_nothing_is_asked_for(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    trt_engine.build_graph(machine.library, *machine.graph("fused", batch=ShapeRange(1, 8, 64), keeps=(5, 9), level=1))
    with caplog.at_level(logging.INFO):
        engine = machine.open("fused")
    assert caplog.messages == []
    assert len(engine.run({"pixels": MODEL.pixels(64), "k": counted(9)})["embedding"]) == 64
    with pytest.raises(ShapeError, match=r"k = 6.* 5, 9"):
        engine.run({"pixels": MODEL.pixels(1), "k": counted(6)})
    trt_engine.build_graph(machine.library, *machine.graph("fused"))
    assert machine.open("fused").run({"pixels": MODEL.pixels(1), "k": counted(6)})["embedding"].shape == (1, 6)


def test_what_is_asked_for_is_built_although_another_is_there(machine: Machine) -> None:
    trt_engine.build_graph(machine.library, *machine.graph("fused"))
    engine = machine.open("fused", keeps=(5,))
    with pytest.raises(ShapeError, match="k = 6"):
        engine.run({"pixels": MODEL.pixels(1), "k": counted(6)})


@pytest.mark.parametrize(("now", "reason"), [(replace(H200, name="NVIDIA L4"), "device"), (replace(H200, driver="590.1"), "driver")])
def test_another_gpu_or_driver_builds_again_with_the_reason(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, now: Gpu, reason: str
) -> None:
    machine.open("post")
    monkeypatch.setattr(trt_engine, "gpu", lambda device: now)
    with caplog.at_level(logging.WARNING):
        machine.open("post")
    assert f"{reason} " in caplog.text


def test_an_engine_built_without_a_gpu_is_built_again_for_the_one_that_runs_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(device: int) -> Gpu:
        raise EngineUnavailable("no NVIDIA driver was found")

    monkeypatch.setattr(trt_engine, "gpu", absent)
    first = trt_engine.build_graph(machine.library, *machine.graph("post"))
    with pytest.raises(EngineUnavailable):
        machine.open("post")
    monkeypatch.setattr(trt_engine, "gpu", lambda device: H200)
    second = trt_engine.build_graph(machine.library, *machine.graph("post"))
    assert first.record.key.device == "no device"
    assert re.search("device.*'no device'.*'NVIDIA H200'", second.reason)


def test_another_version_of_the_library_builds_again(machine: Machine) -> None:
    trt_engine.build_graph(machine.library, *machine.graph("post"))
    machine.library.module.__version__ = "11.5"
    assert re.search("library_version.*'11.4'.*'11.5'", trt_engine.build_graph(machine.library, *machine.graph("post")).reason)


def test_a_plan_that_the_library_refuses(machine: Machine) -> None:
    machine.takes_plans = False
    with pytest.raises(EngineError, match=r"engine\.plan.*tensorrt_test 11\.4.*NVIDIA H200"):
        machine.open("post")


def test_plans_with_a_part_of_the_library_may_bring_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt_engine, "build_plan", lambda *_: b"a plan with its own runtime")
    machine.open("post", version_compatible=True)
    assert machine.loaded == [(b"a plan with its own runtime", True)]


@pytest.mark.parametrize("works", [True, False])
def test_weights_are_put_back_from_the_onnx_file(machine: Machine, monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """The order of calls of a plan that was built without weights."""
    calls: list[str] = []

    class Parser:
        num_errors = 1

        def __init__(self, refitter: Any, logger: Any) -> None:
            pass

        def refit_from_file(self, path: str) -> bool:
            calls.append(path)
            return works

        def get_error(self, place: int) -> Any:
            return SimpleNamespace(desc=lambda: "a weight is missing")

    machine.library.module.Refitter = lambda engine, logger: SimpleNamespace(refit_cuda_engine=lambda: calls.append("refit") or True)
    machine.library.module.OnnxParserRefitter = Parser
    monkeypatch.setattr(trt_engine, "build_plan", lambda *_: b"a plan without weights")
    if works:
        machine.open("post", strip_weights=True)
        assert calls == [str(machine.bundle.file("post.onnx")), "refit"]
        machine.open("post")
        assert len(calls) == 4
        return
    with pytest.raises(EngineError, match=r"post\.onnx.*a weight is missing"):
        machine.open("post", strip_weights=True)


def test_an_option_that_this_version_lacks_is_refused(machine: Machine) -> None:
    machine.library.module.BuilderFlag = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"strip_weights = True.*11\.4"):
        trt_engine.build_graph(machine.library, *machine.graph("post", strip_weights=True))


def test_probe_names_the_gpu(machine: Machine) -> None:
    info = trt_engine.probe(machine.library)
    assert (info.name, info.version, info.device) == ("trt", "11.4", str(H200))
    assert trt_engine.build_target(0) == str(H200)


@pytest.mark.parametrize("damaged", [False, True])
def test_timings_are_kept_and_checked(machine: Machine, damaged: bool, caplog: pytest.LogCaptureFixture) -> None:
    """TensorRT-RTX takes no timings, so the builder here is a stand-in."""
    given: list[bytes] = []

    class Config:
        builder_optimization_level = 0

        def clear_flag(self, flag: Any) -> None:
            pass

        def add_optimization_profile(self, profile: Any) -> int:
            return 0

        def create_timing_cache(self, content: bytes) -> Any:
            given.append(content)
            return SimpleNamespace(serialize=lambda: content + b"+")

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            return not ignore_mismatch

    made = SimpleNamespace(
        create_network=lambda flags: SimpleNamespace(num_inputs=1, get_input=lambda place: SimpleNamespace(name="tokens", is_shape_tensor=False)),
        create_builder_config=Config,
        create_optimization_profile=lambda: SimpleNamespace(set_shape=lambda *_: None),
        build_serialized_network=lambda network, config: b"plan",
    )
    machine.library.module.Builder = lambda logger: made
    machine.library.module.OnnxParser = lambda network, logger: SimpleNamespace(parse_from_file=lambda path: True)
    library = replace(machine.library, times_kernels=True)
    for rebuild in (False, True):
        trt_engine.build_graph(library, *machine.graph("post"), rebuild=rebuild)
        if damaged:
            (file,) = (machine.cache / "timing").iterdir()
            file.write_bytes(file.read_bytes() + b"?")
    assert given == [b"", b"" if damaged else b"+"]
    assert any("timing" in text for text in caplog.messages) is damaged
    trt_engine.build_graph(library, *machine.graph("post", timing_cache=False))
    assert len(given) == 2


def test_a_builder_that_needs_a_gpu_says_so(machine: Machine) -> None:
    def nothing(logger: Any) -> Any:
        logger.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    machine.library.module.Builder = nothing
    with pytest.raises(EngineUnavailable, match=r"CUDA initialization failure .*nvidia-smi"):
        trt_engine.build_graph(machine.library, *machine.graph("post"))


def test_profiles_of_the_key_are_those_of_the_graph(machine: Machine) -> None:
    path, inputs, options = machine.graph("post", keeps=(5, 9))
    key = trt_engine.build_graph(machine.library, path, inputs, options).record.key
    assert key.profiles == graph_profiles(inputs, options.profiles, options.build)
