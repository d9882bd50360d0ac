"""Validate a graph file from its protobuf bytes before any engine sees it; docs/bundle-format.md, section 9, is normative.

An engine is native code that follows what a file says: loops, functions, external files. Only graphs that the exporter can
write pass here. Payloads of tensors are skipped, so the time grows with the number of nodes, not with the weights.
"""

import math
import os
import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from prtool.errors import BundleError
from prtool.graphs.protobuf import Field, MalformedMessage, MessageReader
from prtool.graphs.signature import WEIGHTS_ALIGNMENT, WEIGHTS_NAME, GraphSpec, TensorSpec
from prtool.text_safety import printable

OPSET = 20
# OpenVINO's time grows with the square: a chain of 10,000 additions took it 196 s.
MAX_NODES = 10_000
MAX_VALUES = 1 << 20
MAX_AXES = 64
_OPERATORS = """
    Add And ArgMax Cast Clip Concat Conv CumSum DequantizeLinear Div Equal Expand Gather GatherElements GatherND Gelu Gemm
    Identity IsNaN LayerNormalization Log LpNormalization MatMul Max Mul Neg Not Pad Pow QuantizeLinear Range Reciprocal
    ReduceL2 ReduceMax ReduceMean ReduceSum Relu Reshape Shape Sigmoid Slice Softmax Split Sqrt Squeeze Sub Tanh TopK
    Transpose Unsqueeze Where
"""
OPERATORS = frozenset(_OPERATORS.split())
"""Every operator that the exporter writes, over all towers and precisions."""
_EXTERNAL = 1
_NOWHERE = (0, 0)
_VALUE_FIELDS = (4, 5, 7)
_ENTRIES = ("location", "offset", "length")
# onnx.TensorProto.DataType -> numpy's name, bytes of one element, and the field of values that are not in raw_data.
_TYPES = {
    1: ("float32", 4, 4),
    2: ("uint8", 1, 5),
    3: ("int8", 1, 5),
    6: ("int32", 4, 5),
    7: ("int64", 8, 7),
    9: ("bool", 1, 5),
    10: ("float16", 2, 5),
    16: ("bfloat16", 2, 5),
}

# The fields of onnx.proto by number; what is not here is rejected.
_NUMBER, _BYTES, _TEXT, _FLOAT = Field("number"), Field("bytes"), Field("text"), Field("float")
_NUMBERS, _SEVERAL, _FLOATS = Field("number", repeated=True), Field("bytes", repeated=True), Field("float", repeated=True)
_MODEL = {1: _NUMBER, 2: _BYTES, 3: _BYTES, 4: _BYTES, 5: _NUMBER, 6: _BYTES, 7: _BYTES, 8: _SEVERAL, 14: _SEVERAL}
_OPSET_ID = {1: _TEXT, 2: _NUMBER}
_GRAPH = {1: _SEVERAL, 2: _BYTES, 5: _SEVERAL, 10: _BYTES, 11: _SEVERAL, 12: _SEVERAL, 13: _SEVERAL, 16: _SEVERAL}
_NODE = {1: _SEVERAL, 2: _SEVERAL, 3: _BYTES, 4: _BYTES, 5: _SEVERAL, 6: _BYTES, 7: _BYTES, 9: _SEVERAL}
_ATTRIBUTE = {1: _BYTES, 2: _FLOAT, 3: _NUMBER, 4: _BYTES, 5: _BYTES, 7: _FLOATS, 8: _NUMBERS, 9: _SEVERAL, 13: _BYTES, 20: _NUMBER}
_TENSOR = {1: _NUMBERS, 2: _NUMBER, 4: _FLOATS, 5: _NUMBERS, 7: _NUMBERS, 8: _BYTES, 9: _BYTES, 12: _BYTES, 13: _SEVERAL, 14: _NUMBER, 16: _SEVERAL}
_ENTRY = {1: _TEXT, 2: _TEXT}
_VALUE = {1: _TEXT, 2: _BYTES, 3: _BYTES, 4: _SEVERAL}
_TYPE = {1: _BYTES, 6: _BYTES}
_TENSOR_TYPE = {1: _NUMBER, 2: _BYTES}
_SHAPE = {1: _SEVERAL}
_AXIS = {1: _NUMBER, 2: _TEXT, 3: _BYTES}


def check_graph(stream: BinaryIO, where: str, spec: GraphSpec, sizes: Mapping[str, int]) -> None:
    """Walks one graph file, from its beginning; raises BundleError where it is no ONNX graph that the exporter can write.

    `where` is its path for messages, `spec` what the manifest says of it, `sizes` the bytes of every file of the bundle by name.
    """
    reader = MessageReader(stream, os.fstat(stream.fileno()).st_size)
    try:
        _Graph(reader, where, spec, sizes).check()
    except MalformedMessage as cause:
        raise BundleError(f"{where} is not a readable ONNX file ({cause}); copy or export the bundle again") from cause


class _Graph:
    """One walk; every method takes the range of bytes of one message."""

    def __init__(self, reader: MessageReader, where: str, spec: GraphSpec, sizes: Mapping[str, int]) -> None:
        self.reader = reader
        self.where = where
        self.spec = spec
        self.sizes = sizes
        self.folder = posixpath.dirname(spec.file)

    def check(self) -> None:
        """Walks the model."""
        graph: tuple[int, int] | None = None
        opsets: list[tuple[str, int]] = []
        for number, start, end in self.reader.message(0, self.reader.size, _MODEL, "the model"):
            if number == 7:
                graph = (start, end)
            elif number == 8 and len(opsets) < 2:
                found = self.reader.fields(start, end, _OPSET_ID, "an operator set")
                opsets.append((found.get(1, ""), found.get(2, 0)))
        if opsets != [("", OPSET)]:
            self._reject(f"uses the operator sets {opsets}, but only set {OPSET} of the standard domain is read")
        if graph is None:
            self._reject("holds no graph")
        self._graph(*graph)

    def _graph(self, start: int, end: int) -> None:
        values: dict[int, list[TensorSpec]] = {11: [], 12: []}
        parts: dict[int, Callable[[int, int], object]] = {1: self._node, 5: self._tensor, 13: self._value}
        counts = dict.fromkeys(parts, 0)
        for number, first, last in self.reader.message(start, end, _GRAPH, "the graph"):
            if number in values:
                values[number].append(self._value(first, last))
                if len(values[number]) > MAX_AXES:
                    self._reject(f"has more than {MAX_AXES} inputs or outputs")
            elif number in parts:
                counts[number] += 1
                if counts[number] > MAX_NODES:
                    self._reject(f"holds more than {MAX_NODES} nodes or values")
                parts[number](first, last)
        for kind, found, wanted in (("inputs", values[11], self.spec.inputs), ("outputs", values[12], self.spec.outputs)):
            if tuple(found) != wanted:
                self._reject(f"has the {kind} {_listed(found)}, but the manifest says {_listed(wanted)}")

    def _node(self, start: int, end: int) -> None:
        operator, domain = "", ""
        for number, first, last in self.reader.message(start, end, _NODE, "a node"):
            if number == 4:
                operator = self.reader.text(first, last)
            elif number == 5:
                self._attribute(first, last)
            elif number == 7:
                domain = self.reader.text(first, last)
        if domain or operator not in OPERATORS:
            name = f"{domain}:{operator}" if domain else operator
            self._reject(f"uses the operator {ascii(name)[:80]}, which the exporter never writes")

    def _attribute(self, start: int, end: int) -> None:
        for number, first, last in self.reader.message(start, end, _ATTRIBUTE, "an attribute"):
            if number == 5:
                self._tensor(first, last)

    def _tensor(self, start: int, end: int) -> None:
        """Checks the number of bytes of a tensor, inline or external, against its dtype and shape."""
        tensor = self._read_tensor(start, end)
        if tensor.dtype not in _TYPES or any(axis < 0 for axis in tensor.shape):
            self._reject(f"holds the tensor {tensor.name} of type {tensor.dtype} and shape {tensor.shape[:8]}, which the exporter never writes")
        _, width, field_number = _TYPES[tensor.dtype]
        needed = math.prod(tensor.shape) * width
        places = [tensor.place == _EXTERNAL, tensor.raw is not None, bool(tensor.values)]
        if sum(places) > 1 or tensor.values.keys() - {field_number} or bool(tensor.entries) != places[0] or tensor.place not in (0, _EXTERNAL):
            self._reject(f"keeps the values of the tensor {tensor.name} in several places, or where its type has none")
        held = self._external(tensor) if places[0] else tensor.raw or tensor.values.get(field_number, 0) * width
        if held != needed:
            self._reject(f"holds {held} bytes of the tensor {tensor.name}, but its type and shape need {needed}")

    def _read_tensor(self, start: int, end: int) -> "_Tensor":
        tensor = _Tensor()
        for number, first, last in self.reader.message(start, end, _TENSOR, "a tensor"):
            if number == 1:
                tensor.shape.append(first)
            elif number == 2:
                tensor.dtype = first
            elif number in _VALUE_FIELDS:
                tensor.values[number] = tensor.values.get(number, 0) + ((last - first) // 4 if number == 4 else 1)
            elif number == 8:
                tensor.name = ascii(self.reader.text(first, last))[:80]
            elif number == 9:
                tensor.raw = last - first
            elif number == 13:
                self._entry(first, last, tensor.entries)
            elif number == 14:
                tensor.place = first
            if len(tensor.shape) > MAX_AXES or max(tensor.values.values(), default=0) > MAX_VALUES:
                self._reject(f"holds a tensor of more than {MAX_AXES} axes, or more than {MAX_VALUES} values one by one")
        return tensor

    def _entry(self, start: int, end: int, entries: list[tuple[str, str]]) -> None:
        found = self.reader.fields(start, end, _ENTRY, "an external location")
        entries.append((found.get(1, ""), found.get(2, "")))
        if len(entries) > len(_ENTRIES):
            self._reject(f"has an external location of more than {len(_ENTRIES)} entries")

    def _external(self, tensor: "_Tensor") -> int:
        """The bytes of a tensor in the weights file of the graph's folder."""
        keys = tuple(key for key, _ in tensor.entries)
        if keys != _ENTRIES:
            self._reject(f"has {ascii(keys)[:80]} in the external location of the tensor {tensor.name}, but it must be {_ENTRIES}")
        location, *numbers = (value for _, value in tensor.entries)
        file = posixpath.join(self.folder, WEIGHTS_NAME)
        if location != WEIGHTS_NAME or file not in self.sizes:
            self._reject(f"keeps the tensor {tensor.name} in {ascii(location)[:80]}, but only {file} holds weights, if the manifest lists it")
        if not all(number.isascii() and number.isdigit() and len(number) <= 16 for number in numbers):
            self._reject(f"keeps the tensor {tensor.name} at {ascii(numbers)[:80]} of {file}, which are no numbers of bytes")
        offset, length = map(int, numbers)
        if offset % WEIGHTS_ALIGNMENT or offset + length > self.sizes[file]:
            self._reject(
                f"keeps the tensor {tensor.name} at bytes {offset} to {offset + length} of {file}, "
                f"which has {self.sizes[file]} and holds tensors at multiples of {WEIGHTS_ALIGNMENT}"
            )
        return length

    def _value(self, start: int, end: int) -> TensorSpec:
        """The name, dtype and axes of an input, output or inner value."""
        found = self.reader.fields(start, end, _VALUE, "a value")
        first, last = found.get(2, _NOWHERE)
        first, last = self.reader.fields(first, last, _TYPE, "a type").get(1, _NOWHERE)
        tensor = self.reader.fields(first, last, _TENSOR_TYPE, "a tensor's type")
        dtype = _TYPES[tensor[1]][0] if tensor.get(1) in _TYPES else "?"
        return TensorSpec(found.get(1, ""), dtype, self._axes(*tensor.get(2, _NOWHERE)))

    def _axes(self, start: int, end: int) -> tuple[int | str, ...]:
        axes: list[int | str] = []
        for _, first, last in self.reader.message(start, end, _SHAPE, "a shape"):
            found = self.reader.fields(first, last, _AXIS, "an axis")
            found.pop(3, None)  # denotation
            axes.append(next(reversed(found.values()), "?"))  # of a size and a name the last counts, as for every reader of protobuf
            if len(axes) > MAX_AXES:
                self._reject(f"has a value of more than {MAX_AXES} axes")
        return tuple(axes)

    def _reject(self, reason: str) -> NoReturn:
        raise BundleError(f"{self.where} {reason}; do not use this bundle, or export it again")


@dataclass(slots=True)
class _Tensor:
    """A tensor's name, dtype by number and shape; its bytes of raw_data, its number of values by field, or its external location."""

    name: str = "?"
    dtype: int = 0
    shape: list[int] = field(default_factory=list)
    raw: int | None = None
    values: dict[int, int] = field(default_factory=dict)
    place: int = 0
    entries: list[tuple[str, str]] = field(default_factory=list)


def _listed(specs: Collection[TensorSpec]) -> str:
    """Tensors for a message, shortened."""
    return printable(", ".join(map(str, specs)), 200) or "nothing"
