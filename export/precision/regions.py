"""Parts of a graph that keep float32 in every precision: what makes the scores or the metric, and what follows the last product."""

from collections.abc import Iterable

import onnx_ir as ir

_DECIDING = ("scores", "metric")
"""Outputs that decide which tokens go."""


def scorer(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The nodes that only the scores, or the metric of merging, need: all that leads there and not to another output; none without."""
    deciding = [value for value in graph.outputs if value.name in _DECIDING]
    others = _ancestors([value for value in graph.outputs if value.name not in _DECIDING])
    own = _ancestors(deciding)
    return tuple(node for node in graph if id(node) in own and id(node) not in others)


def last_norm(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The L2 norm of the embedding and all that follows it."""
    found: set[int] = set()
    for node in graph:
        fed = any(value is not None and (producer := value.producer()) is not None and id(producer) in found for value in node.inputs)
        if node.op_type == "ReduceL2" or fed:
            found.add(id(node))
    return tuple(node for node in graph if id(node) in found)


def head(graph: ir.Graph) -> tuple[ir.Node, ...]:
    """The last product before the L2 norm: the projection to the embedding, if there is one."""
    norms = [node for node in last_norm(graph) if node.op_type == "ReduceL2"]
    producers = [value.producer() for node in norms for value in node.inputs[:1] if value is not None]
    return tuple(node for node in producers if node is not None and node.op_type in ("MatMul", "Gemm"))


def _ancestors(values: Iterable[ir.Value]) -> set[int]:
    found: set[int] = set()
    waiting = [value.producer() for value in values]
    while waiting:
        node = waiting.pop()
        if node is not None and id(node) not in found:
            found.add(id(node))
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found
