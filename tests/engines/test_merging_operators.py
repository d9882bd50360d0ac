"""One merging as every engine runs it, against PyTorch: any number of pairs, ties, registers."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="merging is compared with PyTorch; pip install '.[train]'")
ir = pytest.importorskip("onnx_ir", reason="the graph is made with onnx_ir; pip install '.[export]'")

from prtool.engines.base import Engine, GraphOptions, ShapeRange  # noqa: E402
from prtool.engines.registry import ENGINES, list_engines, open_engine  # noqa: E402
from prtool.export.graphs.compose import Joined, input_value  # noqa: E402
from prtool.export.graphs.merging import Merging  # noqa: E402
from prtool.manifest import GraphSpec, TensorSpec  # noqa: E402
from prtool.trainer.models.merging import match, merge  # noqa: E402

WIDTH, METRIC = 8, 4
INPUTS = (
    TensorSpec("tokens", "float32", ("batch", "tokens", WIDTH)),
    TensorSpec("metric", "float32", ("batch", "tokens", METRIC)),
    TensorSpec("sizes", "float32", ("batch", "tokens")),
    TensorSpec("k", "int64", (1,)),
)
OUTPUTS = (TensorSpec("tokens_out", "float32", ("batch", "left", WIDTH)), TensorSpec("sizes_out", "float32", ("batch", "left")))
SPEC = GraphSpec("merge.onnx", INPUTS, OUTPUTS)
RANGES = {"batch": ShapeRange(1, 2, 4), "tokens": ShapeRange(3, 12, 24), "k": ShapeRange(1, 9, 23)}
SLOW = ("torch-compile",)
Opener = Callable[[int], Engine]


def write_merging(prefix: int, path: Path) -> None:
    """A graph of nothing but one merging."""
    values = [input_value(SPEC, place) for place in range(3)]
    nodes = [ir.node("Identity", [value]) for value in values]
    for node, declared in zip(nodes, INPUTS, strict=False):
        node.outputs[0].name = f"{declared.name}_in"
    graph = ir.Graph(values, [node.outputs[0] for node in nodes], nodes=nodes, opset_imports={"": 20}, name="inputs")
    joined, k = Joined(ir.Model(graph, ir_version=10), "merge"), input_value(SPEC, 3)
    found = Merging(joined, k, prefix, WIDTH).apply(*(joined.outputs[f"{declared.name}_in"] for declared in INPUTS[:3]))
    joined.outputs = dict(zip(("tokens_out", "sizes_out"), found, strict=True))
    ir.save(joined.model(SPEC, (*joined.inputs, k)), path)


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(ENGINES)])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    reasons = {status.name: status.reason for status in list_engines()}
    if reasons[request.param]:
        pytest.skip(reasons[request.param])

    def opened(prefix: int) -> Engine:
        write_merging(prefix, tmp_path / "merge.onnx")
        engine = open_engine(request.param, tmp_path / "merge.onnx", INPUTS, GraphOptions(threads=2, cache=tmp_path, profiles=(RANGES,)))
        request.addfinalizer(engine.close)
        return engine

    return opened


def compared(engine: Engine, prefix: int, arrays: list[np.ndarray], r: int) -> None:
    """Registers, at 1 to prefix - 1, stand aside and stay where they are."""
    patches = arrays[0].shape[1] - prefix
    found = engine.run({**{declared.name: array for declared, array in zip(INPUTS, arrays, strict=False)}, "k": np.array([patches - r], np.int64)})
    inside = [0, *range(prefix, arrays[0].shape[1])]
    tokens, metric, sizes = (torch.from_numpy(array[:, inside]) for array in arrays)
    merged, counted = merge(tokens, sizes, match(metric, r))
    registers = [torch.from_numpy(array[:, 1:prefix]) for array in (arrays[0], arrays[2])]
    for name, new, old in (("tokens_out", merged, registers[0]), ("sizes_out", counted, registers[1])):
        np.testing.assert_allclose(found[name], torch.cat((new[:, :1], old, new[:, 1:]), dim=1).numpy(), atol=1e-5, err_msg=f"{name} with r = {r}")


@pytest.mark.parametrize("prefix", [1, 3])
def test_any_number_of_pairs(opener: Opener, prefix: int) -> None:
    """None, one, and all that there are, of an odd and an even number of tokens."""
    engine, random = opener(prefix), np.random.default_rng(4)
    # torch.compile builds a program for every number of pairs, and gives up behind the eighth.
    for batch, patches in ((2, 12),) if "compile" in engine.info.name else ((2, 12), (1, 13), (3, 2), (1, 3)):
        shape = (batch, prefix + patches)
        arrays = [random.standard_normal((*shape, WIDTH)), random.standard_normal((*shape, METRIC)), random.integers(1, 5, shape)]
        for r in sorted({0, 1, patches // 3, patches // 2}):
            compared(engine, prefix, [array.astype(np.float32) for array in arrays], r)


def test_ties_go_to_the_lower_index(opener: Opener) -> None:
    """Tokens along the axes: every cosine is exactly 0 or 1, so most even tokens are as near to their partner as the next, and to several."""
    engine, random = opener(1), np.random.default_rng(5)
    for patches in (16,) if "compile" in engine.info.name else (16, 23):
        shape = (4, 1 + patches)
        metric = np.eye(METRIC, dtype=np.float32)[random.integers(0, METRIC, shape)]
        tokens, sizes = random.standard_normal((*shape, WIDTH)).astype(np.float32), random.integers(1, 5, shape).astype(np.float32)
        for r in (1, 3, patches // 2 - 1):
            compared(engine, 1, [tokens, metric, sizes], r)
