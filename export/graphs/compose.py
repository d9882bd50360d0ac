"""Compose graphs: FUSED, with selection inside, TOKENS, which also gives the patch tokens, and FULL, which drops nothing."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from prtool.engines.base import Array
from prtool.export.graphs.onnx import OPSET, check_axes, clean
from prtool.manifest import GraphSpec, TensorSpec
from prtool.spec import PruneSpec

_IR_VERSION = 10


def fused(stages: Sequence[ir.Model], prune: PruneSpec, spec: GraphSpec) -> ir.Model:
    """PRE, then for each location a selection and the graph behind it.

    Args:
        stages: PRE, MID graphs if any, POST; unchanged.
        prune: which tokens are never dropped.
        spec: inputs pixels and k, one count a location.
    """
    joined, counts, *_ = _selected(stages, prune, spec)
    return joined.model(spec, (*joined.inputs, counts))


def with_patch_tokens(stages: Sequence[ir.Model], prune: PruneSpec, spec: GraphSpec) -> ir.Model:
    """FUSED whose last stage also gives the patches' tokens: these in row-major order, and their patches' numbers."""
    joined, counts, last, orders = _selected(stages, prune, spec)
    patches, trailing = orders[0], joined.constants("patch_tokens", [-1])
    for order in orders[1:]:
        patches = joined.add("GatherND", [patches, joined.add("Unsqueeze", [order, *trailing])], {"batch_dims": 1})
    # TopK of float32, which every engine has; numbers up to 2^24 are exact.
    falling = joined.add("Neg", [joined.add("Cast", [patches], {"to": ir.DataType.FLOAT.value})])
    places = joined.add("TopK", [falling, last], {"axis": 1, "largest": 1, "sorted": 1}, outputs=2, place=1)
    rising = joined.add("Neg", [joined.nodes[-1].outputs[0]])
    rows = joined.add("Unsqueeze", [places, *trailing])
    joined.outputs["patch_tokens"] = joined.add("GatherND", [joined.outputs["patch_tokens"], rows], {"batch_dims": 1})
    joined.outputs["indices"] = joined.add("Cast", [rising], {"to": ir.DataType.INT64.value})
    return joined.model(spec, (*joined.inputs, counts))


def _selected(stages: Sequence[ir.Model], prune: PruneSpec, spec: GraphSpec) -> tuple["Joined", ir.Value, ir.Value, list[ir.Value]]:
    """The stages with selections between them.

    Returns:
        The graph so far; its input k; the count of the last location; and what each selection took, (batch, k) int64, of those that arrived.
    """
    joined, orders = Joined(stages[0]), list[ir.Value]()
    counts = last = input_value(spec, 1)
    for place, stage in enumerate(stages[1:], start=1):
        last = joined.count(counts, place, len(prune.locations))
        chosen, order = _select(joined, last, prune, f"select_{place}")
        orders.append(order)
        joined.append(stage, f"stage_{place}", {"tokens": chosen})
    return joined, counts, last, orders


def full(stages: Sequence[ir.Model], spec: GraphSpec) -> ir.Model:
    """The same graphs end to end, without scorer and selection: the unpruned model."""
    joined = Joined(stages[0])
    for place, stage in enumerate(stages[1:], start=1):
        joined.append(stage, f"stage_{place}", {"tokens": joined.tokens})
    return joined.model(spec, joined.inputs)


def _select(joined: "Joined", k: ir.Value, prune: PruneSpec, name: str) -> tuple[ir.Value, ir.Value]:
    """Adds TopK and the gather of whole tokens: (batch, prefix + k + learnable, D), and the selected patches (batch, k) int64."""
    tokens, scores = joined.tokens, joined.outputs["scores"]
    # TopK puts the lower index first among equal scores, as `select` in trainer and runtime does.
    order = joined.add("TopK", [scores, k], {"axis": 1, "largest": 1, "sorted": 1}, outputs=2, place=1)
    first, axis, trailing = joined.constants(name, [prune.prefix_tokens], [1], [-1])
    rows = joined.add("Unsqueeze", [joined.add("Add", [order, first]), trailing])
    # Whole rows: faster than GatherElements, which needs an index for every channel.
    parts = [joined.add("GatherND", [tokens, rows], {"batch_dims": 1})]
    if prune.prefix_tokens:
        start, end = joined.constants(f"{name}_prefix", [0], [prune.prefix_tokens])
        parts.insert(0, joined.add("Slice", [tokens, start, end, axis]))
    if prune.learnable_tokens:
        start, end = joined.constants(f"{name}_learnable", [-prune.learnable_tokens], [2**62])
        parts.append(joined.add("Slice", [tokens, start, end, axis]))
    return parts[0] if len(parts) == 1 else joined.add("Concat", parts, {"axis": 1}), order


class Joined:
    """Nodes and weights of several graphs, end to end; every name carries its graph's."""

    def __init__(self, stage: ir.Model, prefix: str = "select") -> None:
        """Begins with PRE, which keeps its inputs; the names of nodes that `add` makes begin with `prefix`."""
        self.prefix = prefix
        self.nodes: list[ir.Node] = []
        self.weights: list[ir.Value] = []
        self.inputs: tuple[ir.Value, ...] = ()
        self.outputs: dict[str, ir.Value] = {}
        self.append(stage, "pre", {})

    @property
    def tokens(self) -> ir.Value:
        """The tokens of the last graph; a MID graph has an input `tokens`, so its output has another name."""
        return self.outputs["tokens_out"] if "tokens_out" in self.outputs else self.outputs["tokens"]

    def append(self, stage: ir.Model, name: str, feeds: dict[str, ir.Value]) -> None:
        """Adds a copy of a graph, which shares its weights, fed by existing values."""
        graph = stage.graph.clone()
        self.outputs = {str(value.name): value for value in graph.outputs}
        kept = []
        for value in tuple(graph.inputs):
            fed = feeds.get(str(value.name))
            if fed is None:
                kept.append(value)
            else:
                value.replace_all_uses_with(fed)
        self.inputs = (*self.inputs, *kept)
        nodes, weights = list(graph), list(graph.initializers.values())
        graph.inputs.clear()
        graph.outputs.clear()
        graph.initializers.clear()
        graph.remove(nodes)
        for value in (*weights, *(output for node in nodes for output in node.outputs)):
            value.name = f"{name}/{value.name}"
        for node in nodes:
            node.name = f"{name}/{node.name}"
        self.nodes += nodes
        self.weights += weights

    def count(self, counts: ir.Value, place: int, locations: int) -> ir.Value:
        """Adds what reads the count of location number `place`, from 1, as a vector of one."""
        return counts if locations == 1 else self.add("Slice", [counts, *self.constants(f"k_{place}", [place - 1], [place], [0])])

    def add(
        self, operator: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | list[int]] | None = None, outputs: int = 1, place: int = 0
    ) -> ir.Value:
        """Adds one operator; returns its output number `place`."""
        name = f"{self.prefix}/{operator}_{len(self.nodes)}"
        node = ir.node(operator, inputs, attributes, num_outputs=outputs, name=name)
        for number, value in enumerate(node.outputs):
            value.name = f"{name}/{number}"
        self.nodes.append(node)
        return node.outputs[place]

    def constants(self, name: str, *lists: list[int]) -> list[ir.Value]:
        """Adds int64 constants of one dimension."""
        return [self.constant(f"{name}/constant_{number}", np.array(values, np.int64)) for number, values in enumerate(lists)]

    def constant(self, name: str, values: Array) -> ir.Value:
        """Adds a constant."""
        made = ir.Value(name=name, const_value=ir.tensor(values, name=name))
        self.weights.append(made)
        return made

    def model(self, spec: GraphSpec, inputs: Sequence[ir.Value]) -> ir.Model:
        """One model of everything that the last graph's outputs need."""
        for declared in spec.outputs:
            output = self.outputs[declared.name]
            output.name = declared.name
            output.shape, output.type = ir.Shape(declared.shape), _type(declared)
        graph = ir.Graph(
            inputs,
            [self.outputs[declared.name] for declared in spec.outputs],
            nodes=self.nodes,
            initializers=self.weights,
            opset_imports={"": OPSET},
            name=spec.file.removesuffix(".onnx"),
        )
        model = ir.Model(graph, ir_version=_IR_VERSION)
        clean(model)
        check_axes(model, spec)
        return model


def input_value(spec: GraphSpec, place: int) -> ir.Value:
    """A new value that stands for an input of a graph."""
    declared = spec.inputs[place]
    return ir.Value(name=declared.name, shape=ir.Shape(declared.shape), type=_type(declared))


def _type(declared: TensorSpec) -> ir.TensorType:
    return ir.TensorType(ir.DataType.from_numpy(np.dtype(declared.dtype)))
