"""Half-precision graphs: typed as declared, float32 where sums are long, and near to the float32 graph they came from."""

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from export_sources import Progressive, make_source, progressive_source
from onnx.reference import ReferenceEvaluator

from prtool.errors import ModelError
from prtool.export.graphs.compose import fused
from prtool.export.precision.build import stages
from prtool.export.precision.half import to_half
from prtool.export.precision.regions import head, last_norm, scorer
from prtool.export.source import ExportSource
from prtool.graphs.signature import stage_roles

HALF = {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}
# Half the distance of neighbouring numbers near 1, times a few for the blocks in a row.
NEAR = {"fp16": 1e-3, "bf16": 1e-2}


PROGRESSIVE = Progressive((2, 3, 4), ("first", "own"), tokens=2, layers=3)


@pytest.fixture(scope="module", params=["cls", "siglip", "dinov2 registers", "progressive"])
def halves(request: pytest.FixtureRequest) -> Iterator[tuple[ExportSource, dict[str, ir.Model]]]:
    source = progressive_source("cls", PROGRESSIVE) if request.param == "progressive" else make_source(request.param)
    yield source, stages(source)


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value, as ONNX's own inference gives it."""
    graph = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input, *graph.output)}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_types(halves: tuple[ExportSource, dict[str, ir.Model]], precision: str) -> None:
    source, plain = halves
    ready = [to_half(plain[role], precision) for role in stage_roles(source.spec)]
    scoring = {node.name for stage in ready for node in scorer(stage.graph)}
    for stage in (*ready, fused(ready, source.spec, source.signatures()["fused"])):
        proto = ir.to_proto(stage)
        onnx.checker.check_model(proto, full_check=True)
        types = types_of(proto)
        for node in proto.graph.node:
            if node.op_type in ("LayerNormalization", "Softmax"):
                assert types[node.input[0]] == onnx.TensorProto.FLOAT, node.name
        products = [node for node in proto.graph.node if node.op_type in ("MatMul", "Gemm")]
        in_half = [node for node in products if types[node.input[0]] == HALF[precision]]
        in_float = {node.name.rpartition("/")[2] for node in products} - {node.name.rpartition("/")[2] for node in in_half}
        assert in_float <= scoring
        assert in_half
        assert {types[value.name] for value in (*proto.graph.input, *proto.graph.output)} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_values_by_the_reference_evaluator(halves: tuple[ExportSource, dict[str, ir.Model]], precision: str) -> None:
    """ONNX's own evaluator in numpy runs both; it rounds after every operator, as an engine does at most."""
    source, plain = halves
    pixels = torch.randn(2, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(2)).numpy()
    tokens = source.pruned.run_pre(torch.from_numpy(pixels))[0][:, :9].detach().numpy()
    for role, stage in plain.items():
        feed = {"pixels": pixels} if role in ("pre", "full") else {"tokens": tokens}
        wanted = ReferenceEvaluator(ir.to_proto(stage)).run(None, feed)
        found = ReferenceEvaluator(ir.to_proto(to_half(stage, precision))).run(None, feed)
        for first, second in zip(wanted, found, strict=True):
            assert second.dtype == np.float32
            # A count along the sequence is exact; all else is rounded.
            assert role == "mid_1" or np.abs(first - second).max() > 0.0
            assert np.abs(first - second).max() < NEAR[precision] * max(1.0, np.abs(first).max()) * 5


def test_the_graph_it_came_from_is_unchanged(halves: tuple[ExportSource, dict[str, ir.Model]]) -> None:
    before = [ir.to_proto(stage).SerializeToString(deterministic=True) for stage in halves[1].values()]
    for stage in halves[1].values():
        to_half(stage, "fp16")
    assert [ir.to_proto(stage).SerializeToString(deterministic=True) for stage in halves[1].values()] == before


def test_a_weight_beyond_float16_is_refused() -> None:
    source = make_source("cls")
    pre = stages(source)["pre"]
    weight = next(value for value in pre.graph.initializers.values() if value.const_value is not None and len(value.shape or ()) == 2)
    weight.const_value = ir.tensor(np.full(tuple(weight.shape or ()), 7e4, np.float32), name=weight.name)
    with pytest.raises(ModelError, match=r"7e\+04.*65504.*bf16"):
        to_half(pre, "fp16")
    to_half(pre, "bf16")


def test_a_joined_graph_is_refused(halves: tuple[ExportSource, dict[str, ir.Model]]) -> None:
    source, plain = halves
    with pytest.raises(ModelError):
        to_half(fused([plain[role] for role in stage_roles(source.spec)], source.spec, source.signatures()["fused"]), "fp16")


def test_regions_are_found(halves: tuple[ExportSource, dict[str, ir.Model]]) -> None:
    pre, post = halves[1]["pre"], halves[1]["post"]
    assert scorer(post.graph) == ()
    names = [node.name for node in scorer(pre.graph)]
    assert names and len(names) < len(list(pre.graph))
    made_by_scorer = {value.name for node in scorer(pre.graph) for value in node.outputs}
    assert "scores" in made_by_scorer and "tokens" not in made_by_scorer
    assert [node.op_type for node in last_norm(post.graph)] == ["ReduceL2", "Clip", "Div"]
    assert last_norm(pre.graph) == ()
    assert all(node.op_type in ("MatMul", "Gemm") for node in head(post.graph))
