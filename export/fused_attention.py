"""Graphs for ONNX Runtime alone, with each attention as one operator: kept beside the standard ones, never in their place."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from prtool.errors import ModelError

DOMAIN = "com.microsoft"
_BY_HEAD = (0, 2, 1, 3)
_KEYS_BY_HEAD = (0, 2, 3, 1)


@dataclass(frozen=True, slots=True)
class _Attention:
    """softmax(query x key) x value of one layer: the (batch, tokens, heads, width) values that go in, and the node that gives such a value back."""

    query: ir.Value
    key: ir.Value
    value: ir.Value
    heads: int
    end: ir.Node


def fuse_attention(model: ir.Model) -> ir.Model:
    """A copy in which every attention without a mask is one `com.microsoft.MultiHeadAttention`; equal up to the order of its sums.

    Args:
        model: a float32 graph as the exporter writes it: heads are split by Reshape and Transpose, the scale is
            inside the queries. Unchanged; the copy shares its weights.

    Raises:
        ModelError: the graph has no such attention.
    """
    made = ir.Model(model.graph.clone(), ir_version=model.ir_version, producer_name=model.producer_name)
    found = list(_attentions(made.graph))
    if not found:
        raise ModelError(f"graph {model.graph.name} has no attention of the form that is fused; run it as it is")
    for number, attention in enumerate(found):
        _replace(made.graph, attention, number)
    made.graph.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(made)
    return made


def _attentions(graph: ir.Graph) -> Iterator[_Attention]:
    for softmax in graph:
        if softmax.op_type == "Softmax" and softmax.attributes.get_int("axis", -1) in (-1, 3) and (found := _around(softmax)):
            yield found


def _around(softmax: ir.Node) -> _Attention | None:
    """The attention that a softmax is the middle of; None where it is another one, or has a mask."""
    products, mixed = _producer(softmax.inputs[0], "MatMul"), _only_consumer(softmax, "MatMul")
    if products is None or mixed is None or mixed.inputs[0] is not softmax.outputs[0]:
        return None
    end = _only_consumer(mixed, "Transpose")
    query, key = _by_head(products.inputs[0], _BY_HEAD), _by_head(products.inputs[1], _KEYS_BY_HEAD)
    value = _by_head(mixed.inputs[1], _BY_HEAD)
    if end is None or _order(end) != _BY_HEAD or query is None or key is None or value is None:
        return None
    heads = {_heads(query), _heads(key), _heads(value)}
    count = heads.pop()
    return None if heads or count is None else _Attention(query, key, value, count, end)


def _by_head(value: ir.Value | None, order: tuple[int, ...]) -> ir.Value | None:
    """The value (batch, tokens, heads, width) that a Transpose turns into `order`."""
    transpose = _producer(value, "Transpose")
    return transpose.inputs[0] if transpose is not None and _order(transpose) == order else None


def _heads(value: ir.Value) -> int | None:
    """The third of four axes; None where it is not known."""
    heads = value.shape[2] if value.shape is not None and len(value.shape) == 4 else None
    return heads if isinstance(heads, int) else None


def _producer(value: ir.Value | None, operator: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == operator and node.domain == "" else None


def _only_consumer(node: ir.Node, operator: str) -> ir.Node | None:
    consumers = [use.node for use in node.outputs[0].uses()]
    alone = len(consumers) == 1 and consumers[0].op_type == operator and not node.outputs[0].is_graph_output()
    return consumers[0] if alone else None


def _order(transpose: ir.Node) -> tuple[int, ...]:
    return tuple(transpose.attributes.get_ints("perm", []))


def _replace(graph: ir.Graph, attention: _Attention, number: int) -> None:
    """Puts one operator, and the views that join and split heads around it, where the attention ended."""
    name = f"attention_{number}"
    joined, split = (_constant(graph, f"{name}/{what}", sizes) for what, sizes in (("joined", [0, 0, -1]), ("split", [0, 0, attention.heads, -1])))
    views = [
        ir.node("Reshape", [part, joined], name=f"{name}/{number}") for number, part in enumerate((attention.query, attention.key, attention.value))
    ]
    settings = {"num_heads": attention.heads, "scale": 1.0}
    fused = ir.node("MultiHeadAttention", [view.outputs[0] for view in views], settings, domain=DOMAIN, name=name)
    back = ir.node("Reshape", [fused.outputs[0], split], name=f"{name}/heads")
    old = attention.end.outputs[0]
    for node in (*views, fused, back):
        node.outputs[0].name, node.outputs[0].type = f"{node.name}/out", old.type
    back.outputs[0].shape = old.shape
    graph.insert_after(attention.end, [*views, fused, back])
    old.replace_all_uses_with(back.outputs[0])


def _constant(graph: ir.Graph, name: str, values: list[int]) -> ir.Value:
    value = ir.Value(name=name, const_value=ir.tensor(np.array(values, np.int64), name=name))
    graph.register_initializer(value)
    return value
