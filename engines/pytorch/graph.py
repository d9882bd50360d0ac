"""From an ONNX file to a torch.fx GraphModule that computes the same.

onnx2torch (1.5.15) stops at opset 17: it has no Gelu, GatherND, Clip or ReduceL2 of opset 20, and turns sizes into tensors.
"""

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import helper, numpy_helper
from onnx.external_data_helper import ExternalDataInfo
from torch import Tensor, fx, nn

from prtool.engines.base import check_file, reason
from prtool.engines.pytorch.fusion import ATTENTION, HALF_NORM, Node, fuse
from prtool.engines.pytorch.operators import (
    HOST_OPERATORS,
    OPERATORS,
    Operator,
    UnsupportedOperator,
    arange,
    as_tensor,
    attention,
    dtype_of,
    gather_at,
    layer_norm,
    shape_of,
)
from prtool.errors import EngineError

_NEWEST_OPSET = 20
_OLDEST_OPSET = 18
_FUSED = {ATTENTION: Operator(attention), HALF_NORM: Operator(layer_norm, lambda attributes: {"epsilon": attributes.get("epsilon", 1e-5)})}


@dataclass(frozen=True, slots=True)
class TorchGraph:
    """An ONNX graph as a PyTorch module.

    Attributes:
        module: takes the inputs in order, and returns a tuple of the outputs in order; its weights are buffers on the device.
        inputs: names of the inputs.
        shape_inputs: those inputs that are shapes ("k"); the module takes them as tuples of int.
        outputs: names of the outputs.
    """

    module: fx.GraphModule
    inputs: tuple[str, ...]
    shape_inputs: frozenset[str]
    outputs: tuple[str, ...]


def load_graph(path: Path, device: torch.device) -> TorchGraph:
    """Reads an ONNX file of opset 18 to 20, whose weights may lie in a file next to it; raises EngineError where it cannot."""
    check_file(path)
    try:
        return _Translator(_read(path), path.parent, device).result()
    except UnsupportedOperator as cause:
        raise EngineError(f"PyTorch cannot load {path}: the engine does not know {cause}; use engine ort, or report the operator") from cause
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError, KeyError, TypeError, RuntimeError) as cause:
        raise EngineError(f"PyTorch cannot load {path}: {reason(cause, 1)}; copy or export the bundle again") from cause


def _read(path: Path) -> Any:  # noqa: ANN401 - onnx has no types
    model = onnx.load(path, load_external_data=False)
    if not model.graph.output:
        raise ValueError("it holds no graph")
    for item in model.opset_import:
        if item.domain not in ("", "ai.onnx"):
            raise UnsupportedOperator(f"operators of {item.domain}")
        if not _OLDEST_OPSET <= item.version <= _NEWEST_OPSET:
            raise UnsupportedOperator(f"opset {item.version} (only {_OLDEST_OPSET} to {_NEWEST_OPSET})")
    return model.graph


class _Translator:
    """Writes one fx call for each ONNX node."""

    def __init__(self, graph: Any, folder: Path, device: torch.device) -> None:  # noqa: ANN401
        self.onnx = graph
        self.folder = folder
        self.device = device
        self.weights = {item.name: item for item in graph.initializer}
        self.inputs = tuple(item.name for item in graph.input if item.name not in self.weights)
        self.outputs = tuple(item.name for item in graph.output)
        self.shape_inputs = frozenset(item.name for item in graph.input if item.name in self.inputs and _is_shape(item))
        self.root = nn.Module()
        self.fx = fx.Graph()
        # What the nodes give: fx nodes, or what is known now (an int or a tuple). Names in `sizes` are Python numbers when the graph runs.
        self.values: dict[str, Any] = {}
        self.sizes = set(self.shape_inputs)
        self.buffers: dict[tuple[str, torch.dtype | None], fx.Node] = {}

    def result(self) -> TorchGraph:
        for number, name in enumerate(self.inputs):
            self.values[name] = self.fx.placeholder(f"input_{number}")
        nodes = list(self._nodes())
        types = {item.name: item.type.tensor_type.elem_type for item in self.onnx.input if item.name in self.inputs}
        for node in fuse(nodes, self.outputs, {name: item.data_type for name, item in self.weights.items()}, types):
            try:
                self._translate(node)
            except UnsupportedOperator as cause:
                raise UnsupportedOperator(f"{node.operator} ({cause})" if str(cause) else node.operator) from cause
        self.fx.output(tuple(self._tensor(name) for name in self.outputs))
        self.fx.eliminate_dead_code()
        module = fx.GraphModule(self.root, self.fx).eval()
        module.delete_all_unused_submodules()
        return TorchGraph(module, self.inputs, self.shape_inputs, self.outputs)

    def _nodes(self) -> Iterator[Node]:
        for item in self.onnx.node:
            attributes = {entry.name: helper.get_attribute_value(entry) for entry in item.attribute}
            if item.op_type == "Constant":
                self._constant(item.output[0], attributes)
            else:
                yield Node(item.op_type, tuple(item.input), tuple(item.output), attributes)

    def _constant(self, name: str, attributes: dict[str, Any]) -> None:
        value = attributes.get("value")
        if value is None:
            kind, plain = next(iter(attributes.items()))
            value = numpy_helper.from_array(np.array(plain, np.int64 if kind in ("value_int", "value_ints") else np.float32))
        self.weights[name] = value

    def _translate(self, node: Node) -> None:
        if node.operator == "Shape":
            attributes = {name: node.attributes[name] for name in ("start", "end") if name in node.attributes}
            self._set(node, self.fx.call_function(shape_of, (self._tensor(node.inputs[0]),), attributes), host=True)
        elif node.operator == "Range":
            self._set(node, self.fx.call_function(arange, tuple(self._host(name) for name in node.inputs), {"device": self.device}))
        elif node.operator in HOST_OPERATORS and self._all_host(node):
            row = HOST_OPERATORS[node.operator]
            self._set(node, self.fx.call_function(row.run, tuple(self._host(name) for name in node.inputs), row.settings(node.attributes)), host=True)
        elif node.operator == "Gather" and self._is_known_integer(node.inputs[1]):
            axis = {"axis": node.attributes.get("axis", 0)}
            self._set(node, self.fx.call_function(gather_at, (self._tensor(node.inputs[0]), self._host(node.inputs[1])), axis))
        else:
            self._call(node)

    def _call(self, node: Node) -> None:
        row = OPERATORS.get(node.operator) or _FUSED.get(node.operator)
        if row is None:
            raise UnsupportedOperator
        dtype = dtype_of(node.attributes["to"]) if node.operator == HALF_NORM else None
        arguments = [
            None if not name else self._host(name) if place in row.host_inputs else self._tensor(name, dtype)
            for place, name in enumerate(node.inputs)
        ]
        attributes = node.attributes
        if node.operator == "Conv" and node.inputs[1] in self.weights:
            # The attribute may be left out, and then the weight tells.
            attributes = {"kernel_shape": list(self.weights[node.inputs[1]].dims[2:]), **attributes}
        self._set(node, self.fx.call_function(row.run, tuple(arguments), row.settings(attributes)))

    def _set(self, node: Node, made: fx.Node, host: bool = False) -> None:
        self.sizes.update(node.outputs if host else ())
        if len(node.outputs) == 1 and node.operator not in ("Split", "TopK"):
            self.values[node.outputs[0]] = made
            return
        for place, name in enumerate(node.outputs):
            if name:
                self.values[name] = self.fx.call_function(operator.getitem, (made, place))

    def _all_host(self, node: Node) -> bool:
        """Whether a node works on sizes alone: at least one that is found while the graph runs, the others known integers."""
        names = [name for name in node.inputs if name]
        return not self.sizes.isdisjoint(names) and all(name in self.sizes or self._is_known_integer(name) for name in names)

    def _is_known_integer(self, name: str) -> bool:
        item = self.weights.get(name)
        return item is not None and item.data_type in (6, 7) and len(item.dims) <= 1

    def _host(self, name: str) -> Any:  # noqa: ANN401 - an fx node, an int or a tuple
        """A size or shape, to be used as Python numbers."""
        if not name:
            return None
        if name in self.values:
            if name not in self.sizes:
                raise UnsupportedOperator(f"{name}, which is computed on the device, is used as a size")
            return self.values[name]
        if not self._is_known_integer(name):
            raise UnsupportedOperator(f"{name} is used as a size, but is no vector of integers")
        found = _array(self.weights[name], self.folder).tolist()
        return tuple(found) if isinstance(found, list) else found

    def _tensor(self, name: str, dtype: torch.dtype | None = None) -> fx.Node:
        """A value as a tensor: a weight becomes a buffer when it is first used, converted to `dtype` if that is given."""
        if name in self.values:
            value: fx.Node = self.values[name]
            return self.fx.call_function(as_tensor, (value, self.device)) if name in self.sizes else value
        if (name, dtype) not in self.buffers:
            place = f"weight_{len(self.buffers)}"
            tensor = _weight(self.weights[name], self.folder)
            self.root.register_buffer(place, tensor.to(self.device, dtype or tensor.dtype), persistent=False)
            self.buffers[name, dtype] = self.fx.get_attr(place)
        return self.buffers[name, dtype]


def _is_shape(item: Any) -> bool:  # noqa: ANN401
    """Whether an input is a vector of int64 of fixed length: no data is, and counts of patches are."""
    kind = item.type.tensor_type
    return bool(kind.elem_type == onnx.TensorProto.INT64 and len(kind.shape.dim) == 1 and kind.shape.dim[0].dim_value)


def _array(item: Any, folder: Path) -> Any:  # noqa: ANN401
    """The values of a weight; external data are mapped, so that graphs and processes share their memory."""
    if item.data_location != onnx.TensorProto.EXTERNAL:
        return numpy_helper.to_array(item).copy()
    info = ExternalDataInfo(item)
    if Path(info.location).name != info.location:
        raise ValueError(f"the weight {item.name} lies in another folder")
    # Copy on write: PyTorch has no tensors that cannot be written.
    return np.memmap(folder / info.location, helper.tensor_dtype_to_np_dtype(item.data_type), "c", info.offset or 0, tuple(item.dims))


def _weight(item: Any, folder: Path) -> Tensor:  # noqa: ANN401
    array = _array(item, folder)
    if item.data_type == onnx.TensorProto.BFLOAT16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
