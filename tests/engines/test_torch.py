"""The PyTorch engine: every operator against ONNX's own reference, real towers against ONNX Runtime, and what goes wrong."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
onnx = pytest.importorskip("onnx", reason="onnx is not installed")
import onnx_ir as ir  # noqa: E402
import onnxruntime  # noqa: E402
from export_sources import make_source  # noqa: E402
from models import TinyModel, tiny_bundle  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from prtool.bundle import Bundle  # noqa: E402
from prtool.engines.base import DeviceEngine, GraphOptions  # noqa: E402
from prtool.engines.pytorch.graph import TorchGraph, load_graph  # noqa: E402
from prtool.engines.pytorch.operators import HOST_OPERATORS, OPERATORS  # noqa: E402
from prtool.engines.registry import open_engine  # noqa: E402
from prtool.errors import EngineError, EngineUnavailable, ShapeError  # noqa: E402
from prtool.export.graphs import compose  # noqa: E402
from prtool.export.graphs.modules import TextGraph, image_graphs  # noqa: E402
from prtool.export.graphs.onnx import to_onnx  # noqa: E402
from prtool.export.precision.half import to_half  # noqa: E402

CPU = torch.device("cpu")
MODEL = TinyModel()
RNG = np.random.default_rng(0)
FLOATS = RNG.standard_normal((2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(FLOATS) + 0.1
WEIGHT = RNG.standard_normal((4, 5)).astype(np.float32)
ROW = RNG.standard_normal(4).astype(np.float32)
BOOLS = FLOATS > 0
INTS = np.array(FLOATS * 10, np.int64)

Tensors = list[np.ndarray | None]
# Operator, inputs (arrays are graph inputs; those in `fixed` are initialisers), attributes.
CASES: list[tuple[str, Tensors, dict[str, Any]]] = [
    *((name, [FLOATS], {}) for name in ("Abs", "Erf", "Exp", "Identity", "Neg", "Relu", "Sigmoid", "Tanh")),
    *((name, [POSITIVE], {}) for name in ("Log", "Reciprocal", "Sqrt")),
    *((name, [FLOATS, POSITIVE[:1]], {}) for name in ("Add", "Div", "Max", "Min", "Mul", "Sub", "Greater", "Less")),
    ("And", [BOOLS, BOOLS[:1]], {}),
    ("Not", [BOOLS], {}),
    ("Equal", [INTS, INTS[::-1].copy()], {}),
    ("Div", [INTS, np.array(-3, np.int64)], {}),
    ("Pow", [POSITIVE, np.array(1.5, np.float32)], {}),
    ("Where", [BOOLS, FLOATS, POSITIVE], {}),
    ("CumSum", [FLOATS, np.array(1, np.int64)], {}),
    ("ArgMax", [FLOATS], {"axis": 1, "keepdims": 0}),
    ("ArgMax", [FLOATS], {"axis": -1}),
    ("Cast", [FLOATS * 10], {"to": TensorProto.INT64}),
    ("Cast", [INTS], {"to": TensorProto.FLOAT16}),
    ("Clip", [FLOATS, np.array(-0.5, np.float32)], {}),
    ("Clip", [FLOATS, None, np.array(0.5, np.float32)], {}),
    ("Concat", [FLOATS, POSITIVE, FLOATS], {"axis": 1}),
    ("Expand", [FLOATS[:, :1], np.array([3, 1])], {}),
    ("Expand", [ROW, np.array([2, 1, 1])], {}),
    ("Gather", [FLOATS, np.array([[1, -1], [0, 2]])], {"axis": 1}),
    ("Gather", [FLOATS, np.array(-1)], {"axis": 2}),
    ("Gather", [FLOATS, np.array([1, -1])], {"axis": -1}),
    ("GatherND", [FLOATS, np.array([[[1], [-1]], [[0], [0]]])], {"batch_dims": 1}),
    ("GatherND", [FLOATS, np.array([[0, 2], [1, -3]])], {}),
    ("Gelu", [FLOATS], {}),
    ("Gelu", [FLOATS], {"approximate": "tanh"}),
    ("Gemm", [FLOATS[0], WEIGHT.T.copy(), WEIGHT[0]], {"transB": 1}),
    ("Gemm", [FLOATS[0], WEIGHT], {}),
    ("Gemm", [FLOATS[0].T.copy(), WEIGHT, WEIGHT[:1]], {"transA": 1, "alpha": 0.5, "beta": 2.0}),
    ("LayerNormalization", [FLOATS, ROW, ROW[::-1].copy()], {"epsilon": 1e-3}),
    ("LayerNormalization", [FLOATS, ROW], {}),
    ("LpNormalization", [FLOATS], {"axis": 1, "p": 2}),
    ("LpNormalization", [FLOATS], {}),
    ("MatMul", [FLOATS, WEIGHT], {}),
    ("Pad", [FLOATS, np.array([0, 1, 0, 0, 0, 2]), np.array(-4, np.float32)], {}),
    ("Pad", [FLOATS, np.array([1, 0, 0, 0, 0, 0])], {}),
    ("ReduceL2", [FLOATS, np.array([-1])], {"keepdims": 1}),
    ("ReduceMax", [FLOATS, np.array([0, 2])], {"keepdims": 0}),
    ("ReduceMean", [FLOATS], {}),
    ("ReduceMean", [FLOATS, np.array([1])], {"keepdims": 0}),
    ("ReduceSum", [FLOATS], {"noop_with_empty_axes": 1}),
    ("Reshape", [FLOATS, np.array([0, -1])], {}),
    ("Reshape", [FLOATS, np.array([4, -1])], {"allowzero": 1}),
    ("Slice", [FLOATS, np.array([-2]), np.array([2**62]), np.array([-1])], {}),
    ("Slice", [FLOATS, np.array([0, 1]), np.array([-1, 3]), np.array([2, 1]), np.array([2, 1])], {}),
    ("Softmax", [FLOATS], {"axis": 1}),
    ("Softmax", [FLOATS], {}),
    ("Split", [FLOATS, np.array([1, 3])], {"axis": 2}),
    ("Split", [FLOATS], {"axis": 2, "num_outputs": 3}),
    ("Squeeze", [FLOATS[:, :1], np.array([-2])], {}),
    ("Squeeze", [FLOATS[:, :1]], {}),
    ("TopK", [np.round(FLOATS), np.array([3])], {}),
    ("TopK", [np.round(FLOATS), np.array([3])], {"largest": 0}),
    ("Transpose", [FLOATS], {"perm": [2, 0, 1]}),
    ("Transpose", [FLOATS], {}),
    ("Unsqueeze", [FLOATS, np.array([-1, 0])], {}),
    (
        "Conv",
        [RNG.standard_normal((2, 3, 7, 9)).astype(np.float32), RNG.standard_normal((4, 3, 3, 2)).astype(np.float32), ROW],
        {"strides": [3, 2]},
    ),
]


def graph_of(nodes: list[Any], inputs: dict[str, np.ndarray], fixed: dict[str, np.ndarray], outputs: list[str], path: Path) -> Any:
    """Writes a graph whose inputs have free sizes."""
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [f"{name}_{place}" for place in range(array.ndim)])
        for name, array in inputs.items()
    ]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    graph = helper.make_graph(nodes, "test", values, results, [numpy_helper.from_array(array, name) for name, array in fixed.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return model


def outputs_of(graph: TorchGraph, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    arguments = [tuple(inputs[name].tolist()) if name in graph.shape_inputs else torch.from_numpy(inputs[name]) for name in graph.inputs]
    with torch.no_grad():
        return [tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy() for tensor in graph.module(*arguments)]


def called(graph: TorchGraph) -> list[str]:
    return [getattr(node.target, "__name__", "") for node in graph.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize(("operator", "arrays", "attributes"), CASES, ids=[f"{place}-{case[0]}" for place, case in enumerate(CASES)])
@pytest.mark.parametrize("how", ["all inputs", "weights"])
def test_operators_equal_onnx_reference(operator: str, arrays: Tensors, attributes: dict[str, Any], how: str, tmp_path: Path) -> None:
    names = [f"x{place}" if array is not None else "" for place, array in enumerate(arrays)]
    given = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    sizes = (1,) if operator == "Conv" else OPERATORS[operator].host_inputs
    # What says sizes is a weight in every graph, and so is a kernel; the rest both ways.
    fixed = {name: array for place, (name, array) in enumerate(given.items()) if place and (how == "weights" or place in sizes)}
    inputs = {name: array for name, array in given.items() if name not in fixed}
    outputs = [f"y{place}" for place in range({"Split": attributes.get("num_outputs", 2), "TopK": 2}.get(operator, 1))]
    model = graph_of([helper.make_node(operator, names, outputs, **attributes)], inputs, fixed, outputs, tmp_path / "one.onnx")
    expected = ReferenceEvaluator(model).run(None, inputs)
    for found, wanted in zip(outputs_of(load_graph(tmp_path / "one.onnx", CPU), inputs), expected, strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


def test_every_operator_of_the_table_is_tested() -> None:
    assert {case[0] for case in CASES} == set(OPERATORS)


def test_arithmetic_on_sizes_equals_onnx_reference(tmp_path: Path) -> None:
    """One chain over every size operator, on two inputs of other sizes than any example."""
    one, two, first, last, none = "one", "two", "first", "last", "none"
    fixed = {one: np.array([1]), two: np.array(2), first: np.array([0]), last: np.array([2**62]), none: np.array([-1])}
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Shape", ["x"], ["batch"], start=0, end=1),
        helper.make_node("Slice", ["s", one, last, first], ["tail"]),
        helper.make_node("Gather", ["s", "zero"], ["scalar"]),
        helper.make_node("Mul", ["scalar", two], ["doubled"]),
        helper.make_node("Unsqueeze", ["doubled", first], ["vector"]),
        helper.make_node("Div", ["vector", "twos"], ["halved"]),
        helper.make_node("Add", ["halved", one], ["more"]),
        helper.make_node("Sub", ["more", one], ["same"]),
        helper.make_node("Max", ["same", one], ["most"]),
        helper.make_node("Min", ["most", "many"], ["least"]),
        helper.make_node("Cast", ["least"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Identity", ["cast"], ["kept"]),
        helper.make_node("ReduceProd", ["tail"], ["product"], keepdims=1),
        helper.make_node("Concat", ["kept", "product"], ["shape"], axis=0),
        helper.make_node("Reshape", ["shape", none], ["flat"]),
        helper.make_node("Reshape", ["x", "flat"], ["y"]),
        helper.make_node("Squeeze", ["batch"], ["count"]),
        helper.make_node("Range", ["zero", "count", "step"], ["numbers"]),
        helper.make_node("Identity", ["shape"], ["as_tensor"]),
    ]
    fixed |= {"zero": np.array(0), "step": np.array(1), "twos": np.array([2]), "many": np.array([10**6])}
    used = {node.op_type for node in nodes} - {"Shape", "Range"}
    assert used == set(HOST_OPERATORS)
    outputs = ["y", "numbers", "as_tensor"]
    for shape in ((3, 4, 5), (1, 2, 2)):
        x = RNG.standard_normal(shape).astype(np.float32)
        model = graph_of(nodes, {"x": x}, fixed, outputs, tmp_path / "sizes.onnx")
        for found, wanted in zip(
            outputs_of(load_graph(tmp_path / "sizes.onnx", CPU), {"x": x}), ReferenceEvaluator(model).run(None, {"x": x}), strict=True
        ):
            np.testing.assert_array_equal(found, wanted)


@pytest.fixture(scope="module", params=["cls", "siglip", pytest.param("attentional", marks=pytest.mark.slow)])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the graphs of one tower in three precisions: ROLE.PRECISION.onnx."""
    source, folder = make_source(request.param), tmp_path_factory.mktemp("graphs")
    specs = source.signatures()
    stages = [to_onnx(image_graphs(source.pruned)["pre"], specs["pre"]), to_onnx(image_graphs(source.pruned)["post"], specs["post"])]
    for precision in ("fp32", "fp16", "bf16"):
        ready = stages if precision == "fp32" else [to_half(stage, precision) for stage in stages]
        for role, model in {"pre": ready[0], "post": ready[1], "fused": compose.fused(ready, source.spec, specs["fused"])}.items():
            ir.save(model, folder / f"{role}.{precision}.onnx")
    if request.param == "cls":
        ir.save(to_onnx(TextGraph(source.model.text), specs["text"]), folder / "text.fp32.onnx")
    return folder


def inputs_of(path: Path, batch: int = 3) -> dict[str, np.ndarray]:
    made: dict[str, np.ndarray] = {}
    for item in onnx.load(path).graph.input:
        shape = [axis.dim_value or {"batch": batch, "tokens": 9}[axis.dim_param] for axis in item.type.tensor_type.shape.dim]
        if item.name == "k":
            made["k"] = np.array([5], np.int64)
        elif item.type.tensor_type.elem_type == TensorProto.INT64:
            made[item.name] = RNG.integers(0, 100, shape)
        else:
            made[item.name] = RNG.standard_normal(shape).astype(np.float32)
    return made


# Largest difference from float32 by largest value; 2^-11 and 2^-8 are the roundings, grown over a few blocks.
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 5e-6), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_towers_equal_onnx_runtime(exported: Path, precision: str, tolerance: float) -> None:
    for path in sorted(exported.glob(f"*.{precision}.onnx")):
        if path.name.startswith("fused") and precision != "fp32":
            # Random scores lie close together, so that rounding chooses other patches: the halves are compared by themselves.
            continue
        reference = path.with_name(f"{path.name.split('.')[0]}.fp32.onnx")
        inputs = inputs_of(reference)
        expected = onnxruntime.InferenceSession(reference, providers=["CPUExecutionProvider"]).run(None, inputs)
        for found, wanted in zip(outputs_of(load_graph(path, CPU), inputs), expected, strict=True):
            assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max(), path.name


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_attention_and_norms_become_one_call(exported: Path, precision: str) -> None:
    for path in exported.glob(f"*.{precision}.onnx"):
        kinds = [node.op_type for node in onnx.load(path).graph.node]
        calls = called(load_graph(path, CPU))
        assert calls.count("attention") == kinds.count("Softmax") > 0
        assert calls.count("layer_norm") == kinds.count("LayerNormalization") > 0
        assert "_softmax" not in calls
        # What is left are the casts at both ends of each half, around the scorer, the first norm and the last.
        assert calls.count("_cast") <= 12


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_cuda_device_would_take_the_graph_and_never_be_waited_for(exported: Path, precision: str) -> None:
    """Tensors without values on a CUDA device that is not there: dtypes and devices are checked as CUDA's kernels do it, and a
    step that asks for a value raises."""
    cuda = torch.device("cuda", 0)
    for path in exported.glob(f"*.{precision}.onnx"):
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            graph = load_graph(path, cuda)
            given = inputs_of(path)
            arguments = [tuple(given[n].tolist()) if n in graph.shape_inputs else torch.from_numpy(given[n]).to(cuda) for n in graph.inputs]
            for result in graph.module(*arguments):
                assert (result.device, result.dtype) == (cuda, torch.float32)


@pytest.mark.parametrize(("half", "rounding"), [(TensorProto.FLOAT16, 2.0**-11), (TensorProto.BFLOAT16, 2.0**-8)])
def test_a_half_norm_equals_its_cast_form_to_rounding(half: int, rounding: float, tmp_path: Path) -> None:
    """Means far from 0 show a sum in half precision; scale and bias are rounded once, the result once."""
    x = RNG.standard_normal((5, 7, 768)).astype(np.float32) * 3 + 20
    scale, bias = RNG.standard_normal((2, 768)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=half),
        helper.make_node("Cast", ["h"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("LayerNormalization", ["f", "scale", "bias"], ["n"]),
        helper.make_node("Cast", ["n"], ["m"], to=half),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    weights = {"scale": scale, "bias": bias}
    graph_of(nodes, {"x": x}, weights, ["y"], tmp_path / "fused.onnx")
    # The same with the inner value as an output, which forbids the fusion.
    graph_of(nodes, {"x": x}, weights, ["y", "n"], tmp_path / "plain.onnx")
    fused, plain = load_graph(tmp_path / "fused.onnx", CPU), load_graph(tmp_path / "plain.onnx", CPU)
    assert called(fused).count("_cast") == 2
    assert called(plain).count("_cast") == 4
    found, wanted = outputs_of(fused, {"x": x})[0], outputs_of(plain, {"x": x})[0]
    normalised = np.abs((wanted - bias) / scale)
    bound = rounding * (np.abs(normalised * scale) + np.abs(bias) + 2 * np.abs(wanted)) + 1e-6
    assert (np.abs(found - wanted) <= 2 * bound).all()


def test_a_sum_of_two_products_is_no_mask(tmp_path: Path) -> None:
    """softmax(q k + a b) v: only a weight is taken for a mask."""
    q, k, v, a, b = (RNG.standard_normal((2, 4, 4)).astype(np.float32) for _ in range(5))
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["p"]),
        helper.make_node("MatMul", ["a", "b"], ["r"]),
        helper.make_node("Add", ["p", "r"], ["s"]),
        helper.make_node("Softmax", ["s"], ["t"]),
        helper.make_node("MatMul", ["t", "v"], ["y"]),
    ]
    inputs = {"q": q, "k": k, "v": v, "a": a, "b": b}
    model = graph_of(nodes, inputs, {}, ["y"], tmp_path / "sum.onnx")
    graph = load_graph(tmp_path / "sum.onnx", CPU)
    assert "attention" not in called(graph)
    np.testing.assert_allclose(outputs_of(graph, inputs)[0], ReferenceEvaluator(model).run(None, inputs)[0], atol=1e-5)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (helper.make_node("Einsum", ["x"], ["y"], equation="bij->b"), "Einsum.* ort"),
        (helper.make_node("TopK", ["x", "one"], ["y", "z"], sorted=0), "TopK.*sorted = 0"),
        (helper.make_node("Reshape", ["x", "n"], ["y"]), "Reshape"),
    ],
)
def test_what_is_not_known_is_named(node: Any, message: str, tmp_path: Path) -> None:
    graph_of([node], {"x": FLOATS, "n": np.array([[4]])}, {"one": np.array([1])}, ["y"], tmp_path / "strange.onnx")
    with pytest.raises(EngineError, match=rf"strange\.onnx.*{message}"):
        load_graph(tmp_path / "strange.onnx", CPU)


def test_a_convolution_with_overlap_and_an_old_opset_are_refused(tmp_path: Path) -> None:
    weight = np.ones((4, 3, 3, 3), np.float32)
    graph_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], strides=[1, 1], kernel_shape=[3, 3])],
        {"x": weight},
        {"w": weight},
        ["y"],
        tmp_path / "conv.onnx",
    )
    with pytest.raises(EngineError, match=r"Conv.*\[3, 3\].*\[1, 1\]"):
        load_graph(tmp_path / "conv.onnx", CPU)
    model = onnx.load(tmp_path / "conv.onnx")
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(EngineError, match=r"13.*18.*20"):
        load_graph(tmp_path / "old.onnx", CPU)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("torch") / "bundle", MODEL)


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[Any]:
    opened = open_engine("torch", bundle.file("fused.onnx"), bundle.graph("fused").inputs, GraphOptions())
    yield opened
    opened.close()


def test_arrays_on_the_device(engine: Any) -> None:
    assert isinstance(engine, DeviceEngine)
    pixels, k = MODEL.pixels(2), np.array([4], np.int64)
    result = engine.run_device({"pixels": engine.arrays.to_device(pixels), "k": k})["embedding"]
    assert isinstance(result, torch.Tensor)
    assert not result.requires_grad
    np.testing.assert_allclose(engine.arrays.to_host(result), MODEL.embed(pixels, (4,)), atol=1e-5)


def test_wrong_arrays_on_the_device_are_refused(engine: Any) -> None:
    pixels, k = torch.from_numpy(MODEL.pixels(2)), np.array([4], np.int64)
    for wrong, message in (
        (pixels.double(), "float64"),
        (pixels.bfloat16(), "bfloat16"),
        (pixels[:, :, :4], r"not contiguous|shape"),
        (pixels[:, :2].contiguous(), r"\(2, 2, 8, 8\)"),
        (pixels.permute(0, 1, 3, 2), "not contiguous"),
        (pixels.numpy()[0], "ndarray"),
        ([1.0], "list"),
    ):
        with pytest.raises(ShapeError, match=message):
            engine.run_device({"pixels": wrong, "k": k})


def test_threads_are_put_back(bundle: Bundle) -> None:
    outside, seen = torch.get_num_threads(), set[int]()
    engine = open_engine("torch", bundle.file("full.onnx"), bundle.graph("full").inputs, GraphOptions(threads=outside + 1))
    call = engine._call  # type: ignore[attr-defined]

    def watched(*arguments: Any) -> Any:
        seen.add(torch.get_num_threads())
        return call(*arguments)

    engine._call = watched  # type: ignore[attr-defined]
    workers = [threading.Thread(target=lambda: engine.run({"pixels": MODEL.pixels(2)})) for _ in range(4)]
    for worker in workers:
        worker.start()
    engine.run({"pixels": MODEL.pixels(1)})
    for worker in workers:
        worker.join()
    assert seen == {outside + 1}
    assert torch.get_num_threads() == outside
    assert f"{outside + 1} threads" in engine.info.device or torch.cuda.is_available()


def test_out_of_memory_says_which_batch_fits(engine: Any) -> None:
    call = engine._call

    def limited(pixels: Any, k: Any) -> Any:
        if len(pixels) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore text")
        return call(pixels, k)

    engine._call = limited
    k = np.array([4], np.int64)
    with pytest.raises(EngineError, match=r"fused\.onnx.*batch 8.*2 GiB.*batch 2"):
        engine.run({"pixels": MODEL.pixels(8), "k": k})
    with pytest.raises(EngineError, match=r"batch 4.*batch 2"):
        engine.run_device({"pixels": torch.from_numpy(MODEL.pixels(4)), "k": k})
    engine._call = lambda _, k: limited(torch.zeros(9, 1), k)
    with pytest.raises(EngineError, match=r"fused\.onnx"):
        engine.run({"pixels": MODEL.pixels(2), "k": k})


def test_an_output_that_is_an_input_is_copied(tmp_path: Path, bundle: Bundle) -> None:
    pixels = MODEL.pixels(1)
    spec = bundle.graph("full").inputs
    graph_of([helper.make_node("Identity", ["pixels"], ["y"])], {"pixels": pixels}, {}, ["y"], tmp_path / "same.onnx")
    result = open_engine("torch", tmp_path / "same.onnx", spec, GraphOptions()).run({"pixels": pixels})["y"]
    assert not np.shares_memory(result, pixels)
    np.testing.assert_array_equal(result, pixels)


def test_a_read_only_array_is_taken_without_a_warning(engine: Any) -> None:
    pixels = MODEL.pixels(2)
    pixels.flags.writeable = False
    assert engine.run({"pixels": pixels, "k": np.array([4], np.int64)})["embedding"].shape == (2, 6)


def test_a_device_that_is_not_there_is_refused(bundle: Bundle) -> None:
    with pytest.raises(EngineUnavailable, match="device = 99"):
        open_engine("torch", bundle.file("full.onnx"), bundle.graph("full").inputs, GraphOptions(device=99))
