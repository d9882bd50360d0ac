"""OpenVINO: what its rows of the contract do not ask: ties, precisions, streams, and sizes that are compiled in."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from models import WIDTH, GraphMaker, TinyModel, tiny_bundle
from onnx import TensorProto, helper, numpy_helper

from prtool.bundle import Bundle
from prtool.cpus import granted_cpus
from prtool.engines.base import BuildOptions, Engine, EngineOptions, GraphOptions, Profile, ShapeRange
from prtool.engines.profiles import profiles
from prtool.engines.registry import list_engines, open_engine
from prtool.errors import ConfigError, EngineError, EngineUnavailable, KeepError, ShapeError
from prtool.manifest import TensorSpec
from prtool.runtime.encoder import Encoder
from prtool.runtime.select import select

openvino = pytest.importorskip("openvino", reason="openvino is not installed; pip install '.[openvino]'")

MODEL = TinyModel()
PATCHES = 196
Opener = Callable[..., Engine]
needs_threads = pytest.mark.skipif(granted_cpus() < 2, reason="streams need two CPUs")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("ov") / "bundle", MODEL)


@pytest.fixture
def opener(bundle: Bundle) -> Iterator[Opener]:
    opened: list[Engine] = []

    def open_role(role: str, **options: Any) -> Engine:
        graph = bundle.graph(role)
        opened.append(open_engine("openvino", bundle.file(graph.file), graph.inputs, GraphOptions(**{"threads": 1} | options)))
        return opened[-1]

    yield open_role
    for engine in opened:
        engine.close()


def has_bf16() -> bool:
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this CPU has no bf16 arithmetic")


def ranks(path: Path) -> tuple[Path, tuple[TensorSpec, ...]]:
    """A graph that only selects: scores (batch, patches), k -> indices (batch, k)."""
    inputs = (TensorSpec("scores", "float32", ("batch", PATCHES)), TensorSpec("k", "int64", (1,)))
    values = [
        helper.make_tensor_value_info(spec.name, {"float32": TensorProto.FLOAT}.get(spec.dtype, TensorProto.INT64), spec.shape) for spec in inputs
    ]
    node = helper.make_node("TopK", ["scores", "k"], ["values", "indices"], axis=1, largest=1, sorted=1)
    output = helper.make_tensor_value_info("indices", TensorProto.INT64, ("batch", "kept"))
    model = helper.make_model(helper.make_graph([node], "ranks", values, [output]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path, inputs


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("fixed_k", [False, True])
def test_of_equal_scores_the_lower_index_comes_first(tmp_path: Path, precision: str, fixed_k: bool) -> None:
    path, inputs = ranks(tmp_path / "ranks.onnx")
    counts = (1, 2, 3, 49, 98, 99, 195, 196)
    built = tuple({"k": ShapeRange(k, k, k)} for k in counts) if fixed_k else ()
    engine = open_engine("openvino", path, inputs, GraphOptions(threads=1, precision=precision, profiles=built))
    rng = np.random.default_rng(0)
    for k in counts:
        for batch in (1, 2, 7):
            # Few values, exact in bfloat16 too: most scores have equals.
            scores = rng.integers(0, 4, (batch, PATCHES)).astype(np.float32)
            np.testing.assert_array_equal(engine.run({"scores": scores, "k": np.array([k])})["indices"], select(scores, k))


@needs_threads
def test_streams_give_the_same_bits(opener: Opener) -> None:
    for role in ("full", "fused", "pre"):
        alone, cut = opener(role), opener(role, threads=2, streams=2)
        for batch in (1, 2, 3, 8):
            feed = {"pixels": MODEL.pixels(batch, seed=batch)} | ({"k": np.array([9])} if role == "fused" else {})
            whole, joined = alone.run(feed), cut.run(feed)
            assert list(joined) == list(whole)
            for name, array in whole.items():
                np.testing.assert_array_equal(joined[name], array)


@needs_threads
def test_streams_from_many_threads(opener: Opener) -> None:
    engine = opener("fused", threads=2, streams=2)
    calls = [{"pixels": MODEL.pixels(1 + i % 5, seed=i), "k": np.array([1 + i % 16])} for i in range(20)]
    with ThreadPoolExecutor(6) as pool:
        for outputs, call in zip(pool.map(engine.run, calls * 5), calls * 5, strict=True):
            np.testing.assert_allclose(outputs["embedding"], MODEL.embed(call["pixels"], (int(call["k"][0]),)), atol=1e-5)


@needs_threads
def test_a_part_that_fails_is_mapped_and_the_engine_goes_on(opener: Opener) -> None:
    engine, pixels = opener("fused", threads=2, streams=2), MODEL.pixels(4)
    for _ in range(3):
        with pytest.raises(EngineError, match=r"fused\.onnx.*pixels \(4, 3, 8, 8\), k \(1,\).*17"):
            engine.run({"pixels": pixels, "k": np.array([17])})
        np.testing.assert_allclose(engine.run({"pixels": pixels, "k": np.array([5])})["embedding"], MODEL.embed(pixels, (5,)), atol=1e-5)


def test_more_streams_than_threads_are_refused(opener: Opener) -> None:
    with pytest.raises(ConfigError, match=r"streams = 3.* 2"):
        opener("full", threads=2, streams=3)


def test_the_information_has_the_threads_that_run(opener: Opener) -> None:
    assert opener("full", threads=1).info.device.endswith(", 1 thread")
    assert opener("full", threads=10_000).info.device.endswith(f", {granted_cpus()} thread{'s' if granted_cpus() > 1 else ''}")


def test_counts_that_are_compiled_in_run_and_others_are_refused(opener: Opener, bundle: Bundle) -> None:
    built = profiles(bundle.manifest, BuildOptions(keeps=(5, 9)))
    fused, post, split = opener("fused", profiles=built), opener("post", profiles=built), opener("pre", profiles=built)
    for k in (9, 5):
        for batch in (2, 40):
            pixels = MODEL.pixels(batch, seed=k)
            wanted = MODEL.embed(pixels, (k,))
            np.testing.assert_allclose(fused.run({"pixels": pixels, "k": np.array([k])})["embedding"], wanted, atol=1e-5)
            halves = split.run({"pixels": pixels})
            best = select(halves["scores"], k)[:, :, None] + 1
            tokens = np.concatenate([halves["tokens"][:, :1], np.take_along_axis(halves["tokens"], best, axis=1)], axis=1)
            np.testing.assert_allclose(post.run({"tokens": tokens})["embedding"], wanted, atol=1e-5)
    with pytest.raises(ShapeError, match=r"fused\.onnx.*k = 5.*k = 9.*k = 6"):
        fused.run({"pixels": MODEL.pixels(1), "k": np.array([6])})
    with pytest.raises(ShapeError, match=r"post\.onnx.*tokens = 6.*tokens = 10.*tokens = 17"):
        post.run({"tokens": np.zeros((1, 17, WIDTH), np.float32)})


@pytest.mark.parametrize("streams", [1, pytest.param(2, marks=needs_threads)])
def test_a_fixed_batch_is_compiled_in_and_cut(opener: Opener, streams: int) -> None:
    engine = opener("full", threads=streams, streams=streams, profiles=({"batch": ShapeRange(3, 3, 3)},))
    pixels = MODEL.pixels(3)
    np.testing.assert_allclose(engine.run({"pixels": pixels})["embedding"], MODEL.embed(pixels, (16,)), atol=1e-5)
    with pytest.raises(ShapeError, match=r"batch = 3.*batch = 2"):
        engine.run({"pixels": MODEL.pixels(2)})


def test_wide_profiles_leave_every_size_open(opener: Opener, bundle: Bundle) -> None:
    wide: Sequence[Profile] = profiles(bundle.manifest, BuildOptions(batch=ShapeRange(1, 2, 4)))
    engine, pixels = opener("fused", profiles=wide), MODEL.pixels(6)
    np.testing.assert_allclose(engine.run({"pixels": pixels, "k": np.array([1])})["embedding"], MODEL.embed(pixels, (1,)), atol=1e-5)


def test_a_count_that_the_graph_lacks_is_refused_when_it_is_compiled_in(opener: Opener) -> None:
    with pytest.raises(KeepError, match=r"k = 17.* 16"):
        opener("fused", profiles=({"k": ShapeRange(17, 17, 17)},))


def test_sizes_that_do_not_fit_the_graph_fail_while_it_is_compiled(tmp_path: Path) -> None:
    inputs = (TensorSpec("tokens", "float32", ("batch", "tokens", "width")),)
    maker = GraphMaker(MODEL)
    maker.save(tmp_path / "post.onnx", inputs, {maker.block("tokens", 1): TensorSpec("out", "float32", ("batch", "tokens", WIDTH))})
    with pytest.raises(EngineError, match=r"post\.onnx.*width = 7.*[Ii]ncompatible") as caught:
        open_engine("openvino", tmp_path / "post.onnx", inputs, GraphOptions(threads=1, profiles=({"width": ShapeRange(7, 7, 7)},)))
    assert caught.value.__cause__ is not None


@needs_bf16
def test_bf16_computes_otherwise_than_float32_and_stays_near(opener: Opener) -> None:
    pixels = MODEL.pixels(4)
    exact, rounded = opener("full").run({"pixels": pixels})["embedding"], opener("full", precision="bf16").run({"pixels": pixels})["embedding"]
    assert rounded.dtype == np.float32
    assert not np.allclose(rounded, exact, atol=1e-6)
    assert (rounded * exact).sum(axis=1).min() > 0.999


@needs_bf16
def test_an_encoder_runs_bf16_on_the_graphs_of_float32(bundle: Bundle) -> None:
    with Encoder.load(bundle, engine="openvino", precision="bf16") as fused, Encoder.load(bundle, engine="openvino") as exact:
        pixels = MODEL.pixels(3)
        cosines = (fused.encode_pixels(pixels) * exact.encode_pixels(pixels)).sum(axis=1)
    assert 0.99 < cosines.min() < 1 - 1e-7


def test_bf16_on_a_processor_without_it_is_refused(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldProcessor:
        def get_property(self, device: str, name: str) -> object:  # noqa: ARG002 - as openvino's Core
            return {"OPTIMIZATION_CAPABILITIES": ["FP32", "INT8"], "FULL_DEVICE_NAME": "Old CPU "}[name]

    monkeypatch.setattr("prtool.engines.ov.engine.core", OldProcessor)
    with pytest.raises(EngineUnavailable, match=r"precision = bf16.*Old CPU.*FP32, INT8"):
        opener("full", precision="bf16")


def test_a_precision_that_only_others_have_is_refused(opener: Opener) -> None:
    with pytest.raises(ConfigError, match=r"precision = 'fp16'.*fp32, bf16, int8"):
        opener("full", precision="fp16")


def test_an_int8_graph_rounds_as_it_says(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    # 7 bits: a CPU without VNNI adds pairs of products in 16 bits, which 255 x 127 x 2 would pass.
    weights = rng.integers(-63, 64, (WIDTH, 5)).astype(np.int8)
    scales = {"x_scale": np.float32(0.05), "w_scale": np.float32(0.01), "x_zero": np.int8(0), "w_zero": np.int8(0), "weights": weights}
    nodes = [
        helper.make_node("QuantizeLinear", ["tokens", "x_scale", "x_zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "x_scale", "x_zero"], ["x"]),
        helper.make_node("DequantizeLinear", ["weights", "w_scale", "w_zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "int8",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, ("batch", WIDTH))],
        [helper.make_tensor_value_info("product", TensorProto.FLOAT, ("batch", 5))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in scales.items()],
    )
    path = tmp_path / "int8.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())
    tokens = rng.standard_normal((4, WIDTH)).astype(np.float32) * 4
    rounded = np.clip(np.rint(tokens / np.float32(0.05)), -128, 127).astype(np.int64) @ weights.astype(np.int64)
    for engine in ("openvino", "ort"):
        opened = open_engine(engine, path, (TensorSpec("tokens", "float32", ("batch", WIDTH)),), GraphOptions(threads=1, precision="int8"))
        np.testing.assert_allclose(opened.run({"tokens": tokens})["product"], rounded * np.float64(0.05 * 0.01), rtol=1e-5, atol=1e-4)
        assert np.abs(tokens @ (weights * np.float32(0.01)) - rounded * 0.0005).max() > 0.01


def test_read_only_arrays_run_and_inputs_stay_as_they_are(opener: Opener) -> None:
    engine, pixels = opener("full"), MODEL.pixels(2)
    before = pixels.copy()
    pixels.flags.writeable = False
    first = engine.run({"pixels": pixels})["embedding"]
    np.testing.assert_array_equal(first, engine.run({"pixels": before})["embedding"])
    np.testing.assert_array_equal(pixels, before)
    assert first.flags.owndata or first.base is not None
    first[:] = 0


def test_an_operator_that_openvino_lacks_is_named(tmp_path: Path) -> None:
    maker = GraphMaker(MODEL)
    tokens = maker.op("Reshape", "tokens", maker.ints(0, 0, WIDTH))
    inputs = (TensorSpec("tokens", "float32", ("batch", "tokens", WIDTH)),)
    maker.save(tmp_path / "strange.onnx", inputs, {tokens: TensorSpec("out", "float32", ("batch", "tokens", WIDTH))})
    model = onnx.load(tmp_path / "strange.onnx")
    model.graph.node[0].op_type, model.graph.node[0].domain = "Nonsense", "test.domain"
    model.opset_import.append(helper.make_opsetid("test.domain", 1))
    (tmp_path / "strange.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(EngineError, match=r"strange\.onnx.*Nonsense"):
        open_engine("openvino", tmp_path / "strange.onnx", inputs, GraphOptions(threads=1))


def test_the_registry_finds_it() -> None:
    status = next(item for item in list_engines() if item.name == "openvino")
    assert status.info is not None
    assert status.info.version == openvino.__version__.split("-")[0]
    assert f"{granted_cpus()} threads" in status.info.device


@pytest.mark.parametrize(("index", "row"), [(2, 2), (3, 2), (10**11, 2), (-1, 0), (-(10**11), 0)])
def test_indices_never_leave_their_data(tmp_path: Path, index: int, row: int) -> None:
    """OpenVINO itself reads whatever memory a GatherND points to."""
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    graph = helper.make_graph(
        [helper.make_node("GatherND", ["table", "places"], ["found"])],
        "gather",
        [helper.make_tensor_value_info("places", TensorProto.INT64, ["batch", 1])],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(table, "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "gather.onnx")
    inputs = (TensorSpec("places", "int64", ("batch", 1)),)
    engine = open_engine("openvino", tmp_path / "gather.onnx", inputs, GraphOptions(threads=1))
    np.testing.assert_array_equal(engine.run({"places": np.array([[index]])})["found"], table[[row]])
    engine.close()


def test_a_count_of_merging_may_be_built_in(tmp_path: Path) -> None:
    """Merging chooses among half of the tokens, which says nothing of the patches that it leaves."""
    model = TinyModel((1,), prefix_tokens=2, method="merge")
    bundle = tiny_bundle(tmp_path / "bundle", model)
    options = EngineOptions(build=BuildOptions(keeps=(8, 12, 16)))
    with Encoder.load(bundle, engine="openvino", options=options) as encoder:
        for k in (8, 12, 16):
            np.testing.assert_allclose(encoder.encode_pixels(model.pixels(3), k), model.embed(model.pixels(3), (k,)), atol=1e-5)
        with pytest.raises(ShapeError, match="k = 10"):
            encoder.encode_pixels(model.pixels(3), 10)
