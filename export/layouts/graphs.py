"""The graphs of a layout: FUSED and the text graph of a bundle with other inputs and outputs, made from the files without PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common as passes

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.graphs.signature import GraphSpec, TensorSpec
from prtool.spec import Preprocess

MAX_INSIDE_BYTES = 1_900_000_000
"""Weights of more bytes go into a file of their own: protobuf ends at 2 GiB."""
EXTERNAL_SUFFIX = "_data"
_FLOAT = int(ir.DataType.FLOAT)
_INT64 = int(ir.DataType.INT64)


def load_graph(bundle: Bundle, role: str, precision: str = "fp32") -> ir.Model:
    """One graph of a bundle with its weights in memory; raises BundleError where the bundle has changed since it was opened."""
    with bundle.unchanged(bundle.graph(role, precision).file) as path:
        return ir.external_data.load_to_model(ir.load(path))


def image_graph(model: ir.Model, spec: GraphSpec, counts: Sequence[int], preprocess: Preprocess) -> ir.Model:
    """FUSED without its input `k`; the same model, changed.

    Args:
        model: FUSED of any method.
        spec: its new input, (batch, 3, height, width) float32 normalised or (batch, height, width, 3) uint8, and output.
        counts: patches kept at each location; () where there is none.
        preprocess: mean and std for uint8 pixels.
    """
    if counts:
        (given,) = (value for value in model.graph.inputs if value.name == "k")
        model.graph.inputs.remove(given)
        front = _Front(model, "kept")
        front.put(given, front.constant(np.array(counts, np.int64)))
    if spec.inputs[0].dtype == "uint8":
        _take_bytes(model, spec.inputs[0], preprocess)
    return _named(model, spec)


def text_graph(model: ir.Model, spec: GraphSpec, context: int, pad_id: int) -> ir.Model:
    """The text graph with another input; the same model, changed.

    Args:
        model: reads (batch, context) int64.
        spec: its new input, int64 or int32; where the second axis is dynamic, shorter prompts are filled up with `pad_id`.
        context: token ids of a prompt.
        pad_id: a token id.
    """
    wanted = spec.inputs[0]
    if wanted.dtype != "int64" or not isinstance(wanted.shape[1], int):
        front = _Front(model, "tokens")
        tokens = front.input(wanted)
        ids = tokens if wanted.dtype == "int64" else front.add("Cast", [tokens], {"to": _INT64})
        front.put(model.graph.inputs[0], ids if isinstance(wanted.shape[1], int) else _filled_up(front, ids, context, pad_id), tokens)
    return _named(model, spec)


def save_graph(model: ir.Model, path: Path) -> None:
    """Writes a graph with its weights inside, or above `MAX_INSIDE_BYTES` in a file next to it, named `path` and "_data"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = (value.const_value for value in model.graph.initializers.values())
    is_large = sum(tensor.nbytes for tensor in tensors if tensor is not None) > MAX_INSIDE_BYTES
    ir.save(model, path, external_data=path.name + EXTERNAL_SUFFIX if is_large else None)


class _Front:
    """Nodes in front of a graph; their names begin with `prefix`."""

    def __init__(self, model: ir.Model, prefix: str) -> None:
        self._graph, self._prefix = model.graph, f"layout/{prefix}"
        self._nodes: list[ir.Node] = []
        self._constants = 0

    def input(self, spec: TensorSpec) -> ir.Value:
        """A new input, which `put` adds."""
        return ir.Value(name=spec.name, shape=ir.Shape(spec.shape), type=ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype))))

    def constant(self, values: Array) -> ir.Value:
        """Adds a constant."""
        name = f"{self._prefix}/constant_{self._constants}"
        self._constants += 1
        tensor = ir.tensor(values, name=name)
        made = ir.Value(name=name, shape=ir.Shape(values.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self._graph.register_initializer(made)
        return made

    def add(self, operator: str, inputs: Sequence[ir.Value], attributes: dict[str, int | list[int]] | None = None) -> ir.Value:
        """Adds one operator; returns its output."""
        name = f"{self._prefix}/{operator}_{len(self._nodes)}"
        node = ir.node(operator, inputs, attributes, name=name)
        node.outputs[0].name = f"{name}/0"
        self._nodes.append(node)
        return node.outputs[0]

    def put(self, old: ir.Value, new: ir.Value, given: ir.Value | None = None) -> None:
        """Feeds the graph with `new` in place of `old`; `given`, if any, takes the place of `old` among its inputs."""
        old.replace_all_uses_with(new)
        if given is not None:
            self._graph.inputs[self._graph.inputs.index(old)] = given
        if self._nodes:
            self._graph.insert_before(self._graph[0], self._nodes)


def _take_bytes(model: ir.Model, spec: TensorSpec, preprocess: Preprocess) -> None:
    """Puts the normalisation in front, in the order of operations of `prtool.runtime.images.preprocess`, for the same bits."""
    front = _Front(model, "pixels")
    pixels = front.input(spec)
    # Transposed as bytes: a quarter of the memory.
    values = front.add("Cast", [front.add("Transpose", [pixels], {"perm": [0, 3, 1, 2]})], {"to": _FLOAT})
    mean, std = (np.array(each, np.float32)[:, None, None] for each in (preprocess.mean, preprocess.std))
    for operator, constant in (("Div", np.array(255, np.float32)), ("Sub", mean), ("Div", std)):
        values = front.add(operator, [values, front.constant(constant)])
    front.put(model.graph.inputs[0], values, pixels)


def _filled_up(front: _Front, ids: ir.Value, context: int, pad_id: int) -> ir.Value:
    """(batch, any length) -> (batch, context); a longer prompt passes unchanged, and the engine rejects it."""
    length = front.add("Shape", [ids], {"start": 1, "end": 2})
    missing = front.add("Max", [front.add("Sub", [front.constant(np.array([context], np.int64)), length]), front.constant(np.array([0], np.int64))])
    amounts = front.add("Concat", [front.constant(np.array([0, 0, 0], np.int64)), missing], {"axis": 0})
    return front.add("Pad", [ids, amounts, front.constant(np.array(pad_id, np.int64))])


def _named(model: ir.Model, spec: GraphSpec) -> ir.Model:
    for value, wanted in zip((*model.graph.inputs, *model.graph.outputs), (*spec.inputs, *spec.outputs), strict=True):
        value.name = wanted.name
    # An inner value may bear one of these names ("text"); inputs and outputs keep theirs.
    passes.NameFixPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    return model
