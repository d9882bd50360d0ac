"""The order of calls, addresses, contexts and streams of the TensorRT engine, with a stand-in for the library on host memory.

The stand-in (tests/fake_tensorrt.py) computes with ONNX Runtime.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from fake_tensorrt import MODEL, SCRATCH, HostArray, HostArrays, Library
from models import tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, DeviceEngine, Engine, EngineInfo, GraphOptions, ShapeRange
from prtool.engines.profiles import graph_profiles, profiles
from prtool.engines.registry import open_engine
from prtool.engines.trt import run as trt_run
from prtool.engines.trt.run import CONTEXTS_KEPT, TrtEngine, TrtPlan, fitting_batch
from prtool.errors import EngineError, ShapeError


@dataclass
class Setup:
    engine: TrtEngine
    library: Library
    arrays: HostArrays


Maker = Callable[..., Setup]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("trt_run") / "bundle", MODEL)


@pytest.fixture
def make(bundle: Bundle) -> Iterator[Maker]:
    opened: list[Engine] = []

    def make_engine(role: str, build: BuildOptions | None = None, room: int = 1 << 30) -> Setup:
        graph, chosen = bundle.graph(role), build or BuildOptions()
        built = graph_profiles(graph.inputs, profiles(bundle.manifest, chosen), chosen)
        opened.append(open_engine("ort", bundle.file(graph.file), graph.inputs, GraphOptions(threads=1)))
        library, arrays = Library(opened[-1], bundle, role, built), HostArrays(room=room)
        plan = TrtPlan(
            graph=graph.file,
            engine="trt",
            inputs=graph.inputs,
            outputs={spec.name: spec.dtype for spec in graph.outputs},
            profiles=built,
            new_context=library.new_context,
            failure=library.failure,
            on_device=contextlib.nullcontext(),
        )
        return Setup(TrtEngine(plan, arrays, EngineInfo("trt", "11.4", "NVIDIA Test")), library, arrays)

    yield make_engine
    for engine in opened:
        engine.close()


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


def test_it_is_a_device_engine(make: Maker) -> None:
    setup = make("fused")
    assert isinstance(setup.engine, DeviceEngine)
    assert setup.engine.arrays is setup.arrays
    assert setup.engine.info.device == "NVIDIA Test"


def test_outputs_equal_numpy_at_every_batch_and_count(make: Maker) -> None:
    engine = make("fused").engine
    for batch, k in ((1, 2), (3, 5), (2, 16), (1, 9), (3, 5)):
        pixels = MODEL.pixels(batch, seed=k)
        outputs = engine.run({"pixels": pixels, "k": counted(k)})
        assert set(outputs) == {"embedding"}
        np.testing.assert_allclose(outputs["embedding"], MODEL.embed(pixels, (k,)), atol=1e-5)


def test_every_graph_runs_from_and_to_device_arrays(make: Maker) -> None:
    pre, post = make("pre"), make("post")
    pixels = pre.arrays.to_device(MODEL.pixels(2))
    outputs = pre.engine.run_device({"pixels": pixels})
    assert {name: (array.shape, type(array)) for name, array in outputs.items()} == {
        "tokens": ((2, 17, 12), HostArray),
        "scores": ((2, 16), HostArray),
    }
    np.testing.assert_allclose(outputs["scores"], MODEL.scores(MODEL.pixels(2)), atol=1e-5)
    embedding = post.engine.run_device({"tokens": outputs["tokens"]})["embedding"]
    np.testing.assert_allclose(embedding, MODEL.embed(MODEL.pixels(2), (16,)), atol=1e-5)


def test_arrays_on_the_device_are_used_where_they_lie(make: Maker) -> None:
    setup = make("full")
    pixels = setup.arrays.to_device(MODEL.pixels(2))
    outputs = setup.engine.run_device({"pixels": pixels})
    (context,) = setup.library.contexts
    assert context.addresses == {"pixels": pixels.data_ptr(), "embedding": outputs["embedding"].data_ptr()}
    assert setup.arrays.waits == 0


def test_outputs_belong_to_the_caller(make: Maker) -> None:
    setup = make("full")
    first = setup.engine.run({"pixels": MODEL.pixels(1, seed=1)})["embedding"]
    copy = first.copy()
    setup.engine.run({"pixels": MODEL.pixels(1, seed=2)})
    np.testing.assert_array_equal(first, copy)


def test_one_context_for_each_batch_and_count(make: Maker) -> None:
    setup = make("fused")
    for batch, k in ((1, 5), (2, 5), (1, 9), (1, 5), (2, 5)):
        setup.engine.run({"pixels": MODEL.pixels(batch), "k": counted(k)})
    assert len(setup.library.contexts) == 3
    assert setup.library.calls.count("set_optimization_profile_async") == 3
    assert setup.library.calls.count("infer_shapes") == 3
    assert [shape for shape, dtype in setup.arrays.made if dtype == "uint8"] == [(SCRATCH,), (2 * SCRATCH,), (SCRATCH,)]


def test_contexts_use_the_narrow_profile(make: Maker) -> None:
    setup = make("fused", BuildOptions(keeps=(5, 9)))
    for k in (9, 5):
        setup.engine.run({"pixels": MODEL.pixels(1), "k": counted(k)})
    assert [context.profile for context in setup.library.contexts] == [1, 0]
    with pytest.raises(ShapeError, match=r"k = 7.*fused\.onnx.* 5, 9.*--keep 5,7,9"):
        setup.engine.run({"pixels": MODEL.pixels(1), "k": counted(7)})


def test_the_contexts_used_last_are_kept(make: Maker) -> None:
    setup = make("full")
    for batch in [*range(1, CONTEXTS_KEPT + 1), 1, CONTEXTS_KEPT + 1]:
        setup.engine.run({"pixels": MODEL.pixels(batch)})
    assert len(setup.library.contexts) == CONTEXTS_KEPT + 1
    waits = setup.arrays.waits
    setup.engine.run({"pixels": MODEL.pixels(1)})
    assert len(setup.library.contexts) == CONTEXTS_KEPT + 1
    setup.engine.run({"pixels": MODEL.pixels(2)})
    assert len(setup.library.contexts) == CONTEXTS_KEPT + 2
    assert setup.arrays.waits == waits + 1


def test_work_goes_to_the_current_stream_and_each_stream_has_its_contexts(make: Maker) -> None:
    setup = make("full")
    for stream in (7, 8, 7):
        setup.arrays.stream = stream
        setup.engine.run({"pixels": MODEL.pixels(1)})
    assert [context.streams for context in setup.library.contexts] == [[7, 7, 7], [8, 8]]


def test_a_recorded_context_is_not_used_again(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make("full")
    setup.engine.run({"pixels": MODEL.pixels(1)})
    monkeypatch.setattr(trt_run, "is_capturing", lambda stream: stream == 9)
    setup.arrays.stream = 9
    setup.engine.run({"pixels": MODEL.pixels(1)})
    (recorded,) = setup.library.contexts
    assert recorded.streams == [7, 7, 9]
    with pytest.raises(EngineError, match="batch = 1"):
        setup.engine.run({"pixels": MODEL.pixels(1)})
    setup.arrays.stream = 7
    setup.engine.run({"pixels": MODEL.pixels(1)})
    assert recorded.streams == [7, 7, 9]
    assert len(setup.library.contexts) == 2


def test_many_threads_give_what_one_gives(make: Maker) -> None:
    setup = make("fused")
    calls = [{"pixels": MODEL.pixels(1 + i % 3, seed=i), "k": counted(2 + i % 15)} for i in range(25)]
    serial = [setup.engine.run(call)["embedding"] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: [setup.engine.run(call)["embedding"] for call in calls], range(4)):
            for parallel, alone in zip(results, serial, strict=True):
                np.testing.assert_allclose(parallel, alone, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"pixels": np.zeros((1, 3, 8, 8), np.float64)}, r"float64.*astype\('float32'\)"),
        ({"pixels": np.zeros((1, 3, 8, 9), np.float32)}, r"\(1, 3, 8, 9\)"),
        ({"pixels": np.zeros((0, 3, 8, 8), np.float32)}, "pixels"),
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "pixels.*image"),
        ({"pixels": np.zeros((33, 3, 8, 8), np.float32)}, r"batch = 33.*full\.onnx.*1 to 32.*--batch 1:8:33"),
    ],
)
@pytest.mark.parametrize("on_device", [False, True])
def test_wrong_arrays_are_refused(make: Maker, inputs: dict[str, np.ndarray], message: str, on_device: bool) -> None:
    setup = make("full")
    given = {name: setup.arrays.to_device(array) for name, array in inputs.items()} if on_device else inputs
    with pytest.raises(ShapeError, match=message):
        (setup.engine.run_device if on_device else setup.engine.run)(given)
    assert setup.library.contexts == []


def test_a_device_array_must_be_contiguous(make: Maker) -> None:
    setup = make("full")
    pixels = setup.arrays.to_device(np.asfortranarray(MODEL.pixels(2)).transpose(0, 1, 2, 3))
    flipped = np.moveaxis(np.moveaxis(pixels, 1, 3).copy(), 3, 1)
    with pytest.raises(ShapeError, match=r"pixels.*contiguous"):
        setup.engine.run_device({"pixels": flipped})
    host = np.asarray(flipped)
    np.testing.assert_allclose(setup.engine.run({"pixels": host})["embedding"], MODEL.embed(host, (16,)), atol=1e-5)


def test_an_array_of_a_dtype_without_a_name_is_refused(make: Maker) -> None:
    class Strange:
        dtype, shape = "torch.float4_odd", (1, 3, 8, 8)

        def is_contiguous(self) -> bool:
            return True

        def data_ptr(self) -> int:
            return 0

    with pytest.raises(ShapeError, match=r"pixels.*torch\.float4_odd"):
        make("full").engine.run_device({"pixels": Strange()})


@pytest.mark.parametrize("call", ["new_context", "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_each_failure_of_the_library_has_its_reason(make: Maker, call: str) -> None:
    setup = make("fused")
    setup.library.refuses = call
    with pytest.raises(EngineError, match=r"fused\.onnx.*the reason"):
        setup.engine.run({"pixels": MODEL.pixels(1), "k": counted(5)})
    setup.library.refuses = ""
    setup.engine.run({"pixels": MODEL.pixels(1), "k": counted(5)})


def broken(shape: tuple[int, ...], dtype: str) -> None:
    raise RuntimeError("an illegal address")


def test_out_of_memory_says_which_batch_fits(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make("full", BuildOptions(batch=ShapeRange(1, 8, 64)), room=SCRATCH * 20)
    monkeypatch.setattr(trt_run, "free_memory", lambda: SCRATCH * 20)
    with pytest.raises(EngineError, match=r"full\.onnx.*batch = 64.*batch = 16.*CUDA out of memory") as caught:
        setup.engine.run({"pixels": MODEL.pixels(64)})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(setup.engine.run({"pixels": MODEL.pixels(16)})["embedding"]) == 16
    monkeypatch.setattr(trt_run, "free_memory", lambda: None)
    with pytest.raises(EngineError, match="batch = 32"):
        setup.engine.run({"pixels": MODEL.pixels(64)})
    monkeypatch.setattr(setup.arrays, "empty", broken)
    with pytest.raises(EngineError, match=r"full\.onnx.*cuda:0.*batch = 64.*an illegal address"):
        setup.engine.run({"pixels": MODEL.pixels(64)})
    monkeypatch.undo()
    setup.arrays.room = 10
    with pytest.raises(EngineError, match="batch = 1"):
        setup.engine.run({"pixels": MODEL.pixels(1)})


def test_the_batch_that_fits_is_the_largest_half(bundle: Bundle) -> None:
    for batch, free in itertools.product((1, 8, 48, 64), (0, 5, 10, 63, 64, 1000)):
        needed = batch * 10
        halves = [batch >> i for i in range(8) if batch >> i]
        assert fitting_batch(batch, needed, free) == max([half for half in halves if half * 10 <= free], default=0)


def test_a_closed_engine_fails_and_closes_twice(make: Maker) -> None:
    setup = make("full")
    setup.engine.run({"pixels": MODEL.pixels(1)})
    setup.engine.close()
    setup.engine.close()
    assert setup.arrays.waits == 1
    with pytest.raises(EngineError, match="closed"):
        setup.engine.run({"pixels": MODEL.pixels(1)})
    with pytest.raises(EngineError, match="closed"):
        setup.engine.run_device({"pixels": setup.arrays.to_device(MODEL.pixels(1))})
