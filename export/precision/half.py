"""Half-precision graphs from float32 ones: explicit types, with layer norms, softmax, scores and the last norm in float32.

The types are explicit because TensorRT 11 has no precision flags and existing converters fail on dynamic axes.
Inputs and outputs stay float32 in every precision, so one selection and one manifest serve all.
"""

from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes import common as passes

from prtool.errors import ModelError
from prtool.export.precision.regions import last_norm, scorer

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
# Sums over many values, where half precision changes the ranking and the cosine.
_FLOAT32_OPERATORS = frozenset({"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "Softmax", "LogSoftmax"})
_FP16_MOST = 65504.0


def to_half(model: ir.Model, precision: str) -> ir.Model:
    """A copy of a float32 graph that computes in half precision.

    Args:
        model: float32 PRE, MID or POST, every value of which has a type; unchanged. FUSED and FULL are composed of the results.
        precision: "fp16" or "bf16".

    Raises:
        ModelError: a weight is too large for float16 (above 65504), or a value has no type.
    """
    made = ir.Model(model.graph.clone(), ir_version=model.ir_version)
    made.producer_name = model.producer_name
    passes.LiftConstantsToInitializersPass()(made)
    _Rewriter(made.graph, precision).run()
    passes.RemoveUnusedNodesPass()(made)
    return made


class _Rewriter:
    """Gives every value its type, and inserts a Cast where the types of two neighbours differ."""

    def __init__(self, graph: ir.Graph, precision: str) -> None:
        self.graph = graph
        self.precision = precision
        self.half = HALVES[precision]
        self.opset = graph.opset_imports[""]
        # The nodes that compute in float32; all others compute in half precision.
        self.float32 = {id(node) for node in (*scorer(graph), *last_norm(graph))}
        self.casts: dict[tuple[int, ir.DataType], ir.Value] = {}
        self.initializers = {id(value) for value in graph.initializers.values()}

    def run(self) -> None:
        for node in tuple(self.graph):
            if any(value.dtype is None for value in node.outputs):
                raise ModelError(f"node {node.name} of {self.graph.name} gives a value without a type; convert the stages before they are joined")
            wanted = ir.DataType.FLOAT if self._in_float32(node) else self.half
            for place, value in enumerate(node.inputs):
                if value is not None and value.dtype in (ir.DataType.FLOAT, self.half) and value.dtype != wanted:
                    node.replace_input_with(place, self._as(value, wanted, node))
            self._give_types(node, wanted)
        for place, output in enumerate(tuple(self.graph.outputs)):
            if output.dtype == self.half:
                self._restore_output(place, output)

    def _in_float32(self, node: ir.Node) -> bool:
        return id(node) in self.float32 or node.op_type in _FLOAT32_OPERATORS or not _takes(node.op_type, self.opset, self.half)

    def _give_types(self, node: ir.Node, wanted: ir.DataType) -> None:
        if node.op_type == "Cast" and wanted == self.half and node.attributes["to"].as_int() == ir.DataType.FLOAT:
            node.attributes["to"] = ir.AttrInt64("to", int(self.half))
        for value in node.outputs:
            if value.dtype == ir.DataType.FLOAT:
                value.type = ir.TensorType(wanted)

    def _as(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        key = (id(value), wanted)
        if key not in self.casts:
            self.casts[key] = self._converted(value, wanted) if id(value) in self.initializers else self._cast(value, wanted, user)
        return self.casts[key]

    def _converted(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        """A weight in the other precision, named `<name>.<precision>`."""
        if value.const_value is None:
            raise ModelError(f"weight {value.name} has no values; export the model again")
        array = value.const_value.numpy()
        if wanted == ir.DataType.FLOAT16 and array.size and float(np.abs(array).max()) > _FP16_MOST:
            raise ModelError(f"weight {value.name} holds {float(np.abs(array).max()):.4g}, but float16 ends at {_FP16_MOST:.0f}; export bf16 instead")
        name = f"{value.name}.{self.precision}"
        tensor = ir.tensor(array.astype(wanted.numpy()), dtype=wanted, name=name)
        made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted), const_value=tensor)
        self.graph.register_initializer(made)
        return made

    def _cast(self, value: ir.Value, wanted: ir.DataType, user: ir.Node) -> ir.Value:
        node = ir.node("Cast", [value], {"to": int(wanted)}, name=f"cast/{value.name}/{wanted.name.lower()}")
        node.outputs[0].name = f"{node.name}/0"
        node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(wanted)
        # Nodes are visited in order, so the first user's cast serves all of them.
        self.graph.insert_before(user, node)
        return node.outputs[0]

    def _restore_output(self, place: int, output: ir.Value) -> None:
        """Casts an output to float32 under its own name."""
        name, output.name = output.name, f"{output.name}/{self.precision}"
        node = ir.node("Cast", [output], {"to": int(ir.DataType.FLOAT)}, name=f"cast/{name}")
        restored = node.outputs[0]
        restored.name, restored.shape, restored.type = name, output.shape, ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        self.graph.outputs[place] = restored


def _takes(operator: str, opset: int, dtype: ir.DataType) -> bool:
    """Whether an operator's schema allows a half-precision type (Conv had no bfloat16 before opset 22)."""
    text = f"tensor({dtype.name.lower()})"
    schema = onnx.defs.get_schema(operator, opset)
    constraints: Iterable[onnx.defs.OpSchema.TypeConstraintParam] = schema.type_constraints
    floats = [c for c in constraints if "tensor(float)" in c.allowed_type_strs]
    return all(text in c.allowed_type_strs for c in floats)
