"""Hostile graphs: what no exporter writes, in files that are valid ONNX or nearly so."""

import math
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hostile.sealing import read_manifest, reseal

_TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
SECRET = b"never read this " * 4096


def _role(root: Path, chance: random.Random) -> str:
    return chance.choice(sorted(read_manifest(root)["graphs"]["fp32"]))


def change_bytes(root: Path, chance: random.Random) -> str:
    """Changes bytes of one graph, and seals the bundle again."""
    path = root / f"{_role(root, chance)}.onnx"
    content = bytearray(path.read_bytes())
    kind = chance.choice(["bits", "bytes", "cut", "repeat", "insert", "zeros", "structure"])
    place = chance.randrange(len(content))
    if kind == "bits":
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    elif kind == "structure":
        # The first bytes hold lengths and names, the rest mostly weights.
        for _ in range(chance.randint(1, 3)):
            content[chance.randrange(min(len(content), 600))] = chance.randrange(256)
    elif kind == "bytes":
        content[place : place + 16] = chance.randbytes(16)
    elif kind == "cut":
        del content[place:]
    elif kind == "repeat":
        content[place:place] = content[place // 2 : place]
    elif kind == "insert":
        content[place:place] = chance.randbytes(chance.randint(1, 300))
    else:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    path.write_bytes(content)
    reseal(root, read_manifest(root))
    return f"{kind} at {place} of {path.name}"


def declare(path: Path, graph: dict[str, Any]) -> None:
    """Gives a graph file the inputs and outputs of a manifest; what it computes stays."""
    proto = onnx.load(path, load_external_data=False)
    for values, specs in ((proto.graph.input, graph["inputs"]), (proto.graph.output, graph["outputs"])):
        del values[:]
        for spec in specs:
            axes = [axis if isinstance(axis, str) or -(2**63) <= axis < 2**63 else 1 for axis in spec["shape"]]
            values.append(helper.make_tensor_value_info(spec["name"], _TYPES.get(spec["dtype"], TensorProto.FLOAT), axes))
    path.write_bytes(proto.SerializeToString())


def change_graph(root: Path, outside: Path, chance: random.Random, kind: str) -> str:
    """Makes one hostile graph in place of a good one, and seals the bundle again."""
    role = _role(root, chance)
    graph = read_manifest(root)["graphs"]["fp32"][role]
    path = root / graph["file"]
    proto = onnx.load(path, load_external_data=False)
    late = GRAPHS[kind](proto, _Place(root, outside, graph, chance))
    path.write_bytes(proto.SerializeToString())
    reseal(root, read_manifest(root))
    if late is not None:
        late()
    return f"{kind} in {path.name}"


class _Place:
    def __init__(self, root: Path, outside: Path, graph: dict[str, Any], chance: random.Random) -> None:
        self.root, self.outside, self.graph, self.chance = root, outside, graph, chance


Late = Callable[[], object] | None
Make = Callable[[Any, _Place], Late]


def _node(make: Callable[[], Any]) -> Make:
    def apply(proto: Any, _: _Place) -> None:
        proto.graph.node.append(make())

    return apply


def _ahead(*nodes: Any) -> Make:
    """Nodes whose result flows into the first output, so that no engine can leave them out."""

    def apply(proto: Any, _: _Place) -> None:
        output = proto.graph.output[0].name
        for node in proto.graph.node:
            node.output[:] = ["before" if name == output else name for name in node.output]
            node.input[:] = ["before" if name == output else name for name in node.input]
        proto.graph.node.extend(nodes)
        proto.graph.node.append(helper.make_node("Add", ["before", "extra"], [output]))

    return apply


def _constant(name: str, values: Any, dtype: Any = np.int64) -> Any:
    return numpy_helper.from_array(np.array(values, dtype), name)


def _with(make: Make, *constants: Any) -> Make:
    def apply(proto: Any, place: _Place) -> Late:
        proto.graph.initializer.extend(constants)
        return make(proto, place)

    return apply


def _inner(name: str) -> Any:
    value = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Identity", ["one"], [name])], "inner", [], [value])


def _loop() -> Any:
    condition = helper.make_tensor_value_info("go_in", TensorProto.BOOL, [])
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_in"], ["go_out"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), condition],
        [helper.make_tensor_value_info("go_out", TensorProto.BOOL, [])],
    )
    return helper.make_node("Loop", ["", "go"], [], body=body)


def _functions(proto: Any, _: _Place) -> None:
    """Each of 40 functions calls the one before it twice."""
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    for number in range(40):
        call = "Identity" if number == 0 else f"F{number - 1}"
        domain = "" if number == 0 else "own"
        nodes = [helper.make_node(call, ["x"], [f"y{i}"], domain=domain) for i in range(2)] + [helper.make_node("Add", ["y0", "y1"], ["y"])]
        proto.functions.append(helper.make_function("own", f"F{number}", ["x"], ["y"], nodes, sets))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.graph.node.append(helper.make_node("F39", [proto.graph.input[0].name], ["z"], domain="own"))


Entries = list[tuple[str, str]]


def _moved(change: Callable[[Entries], Entries], late: Callable[[_Place], object] | None = None) -> Make:
    """Changes where one tensor says that its values lie; `late` is done when the manifest is sealed."""

    def apply(proto: Any, place: _Place) -> Late:
        weight = place.chance.choice([weight for weight in proto.graph.initializer if weight.data_type == TensorProto.FLOAT])
        length = 4 * math.prod(weight.dims)
        found = [(entry.key, entry.value) for entry in weight.external_data] or _at(length=str(length))
        weight.ClearField("raw_data")
        weight.ClearField("external_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, value in change(found):
            weight.external_data.add(key=key, value=value)
        return None if late is None else lambda: late(place)

    return apply


def _at(location: str = "weights.bin", offset: str = "0", length: str = "4") -> Entries:
    return [("location", location), ("offset", offset), ("length", length)]


def _entry(key: str, value: str, late: Callable[[_Place], object] | None = None) -> Make:
    return _moved(lambda entries: [(name, value if name == key else old) for name, old in entries], late)


def _weights(change: Callable[[Path], object]) -> Make:
    """Changes the weights file itself, before it is sealed."""

    def apply(_: Any, place: _Place) -> None:
        change(place.root / "weights.bin")

    return apply


def _linked(path: Path) -> None:
    path.rename(path.with_name("other.bin"))
    path.symlink_to("other.bin")


def _output(change: Callable[[Any], object]) -> Make:
    def apply(proto: Any, _: _Place) -> None:
        change(proto.graph.output[0])

    return apply


def _axis(place: int, value: int | str) -> Callable[[Any], object]:
    def change(output: Any) -> None:
        axes = output.type.tensor_type.shape.dim
        axis = axes[min(place, len(axes) - 1)]
        axis.ClearField("value")
        setattr(axis, "dim_value" if isinstance(value, int) else "dim_param", value)

    return change


def _computes(*nodes: Any, constants: tuple[Any, ...] = ()) -> Make:
    """Keeps every declaration, but computes the first output from the first input in another way."""

    def apply(proto: Any, _: _Place) -> None:
        first, output = proto.graph.input[0].name, proto.graph.output[0].name
        keep = [node for node in proto.graph.node if output not in node.output]
        del proto.graph.node[:]
        proto.graph.node.extend(keep)
        proto.graph.initializer.extend(constants)
        for node in nodes:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [first if name == "IN" else name for name in copy.input]
            copy.output[:] = [output if name == "OUT" else name for name in copy.output]
            proto.graph.node.append(copy)

    return apply


def _chain(count: int) -> Make:
    def apply(proto: Any, _: _Place) -> None:
        first = proto.graph.input[0].name
        proto.graph.node.extend(helper.make_node("Identity", [first if i == 0 else f"c{i - 1}"], [f"c{i}"]) for i in range(count))

    return apply


_FLAT = (helper.make_node("Cast", ["IN"], ["f"], to=TensorProto.FLOAT), helper.make_node("Reshape", ["f", "flat"], ["r"]))
_ONE = _constant("one", [1.0], np.float32)


def _sequence(proto: Any, _: _Place) -> None:
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["batch", 6])))


def _nested(proto: Any, _: _Place) -> None:
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    for _ in range(20):
        kind = helper.make_sequence_type_proto(kind)
    proto.graph.value_info.append(helper.make_value_info("deep", kind))


def _as_input(proto: Any, _: _Place) -> None:
    weight = proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims)))


def _edit(change: Callable[[Any, random.Random], object]) -> Make:
    def apply(proto: Any, place: _Place) -> None:
        change(proto, place.chance)

    return apply


GRAPHS: dict[str, Make] = {
    "If": _with(
        _node(lambda: helper.make_node("If", ["go"], ["z"], then_branch=_inner("a"), else_branch=_inner("b"))), _constant("go", True, bool), _ONE
    ),
    "endless Loop": _with(_node(_loop), _constant("go", True, bool)),
    "doubling functions": _functions,
    "other domain": _node(lambda: helper.make_node("FusedMatMul", ["x", "x"], ["z"], domain="com.microsoft")),
    "random operator": _edit(
        lambda proto, chance: setattr(
            chance.choice(proto.graph.node), "op_type", chance.choice(["Loop", "Scan", "NonZero", "Add", "Tanh", "Hardmax", ""])
        )
    ),
    "memory address": _moved(lambda _: _at("*/_ORT_MEM_ADDR_/*", str(id(SECRET)))),
    "memory address 0": _entry("location", "*/_ORT_MEM_ADDR_/*"),
    "weights outside by ..": _entry("location", "../outside/secret.data"),
    "weights outside by ../bundle": _entry("location", "../bundle/../outside/secret.data"),
    "weights outside, absolute": _entry("location", "/etc/passwd"),
    "weights in a device": _entry("location", "/dev/zero"),
    "weights in an unlisted file": _entry("location", "w.data", lambda place: (place.root / "w.data").write_bytes(bytes(1 << 16))),
    "weights in an unlisted link": _entry("location", "w.link", lambda place: (place.root / "w.link").symlink_to(place.outside / "secret.data")),
    "weights in another listed file": _entry("location", "classes.safetensors"),
    "weights in the manifest": _entry("location", "prtool.json"),
    "weights in a graph": _entry("location", "full.onnx"),
    "weights at a path with a slash": _entry("location", "./weights.bin"),
    "weights beyond the end": _entry("offset", "4096000"),
    "weights at 10^15": _entry("offset", "9" * 15 + "968"),
    "weights at a negative offset": _entry("offset", "-64"),
    "weights at a hexadecimal offset": _entry("offset", "0x40"),
    "weights at an unaligned offset": _entry("offset", "4"),
    "weights at another tensor's offset": _entry("offset", "64"),
    "weights of a long length": _entry("length", "9" * 40),
    "weights of length 0": _entry("length", "0"),
    "weights of another length": _entry("length", "12345"),
    "weights with an offset twice": _moved(lambda entries: [*entries, ("offset", "64")]),
    "weights with an offset in place of a length": _moved(lambda entries: [*entries[:2], ("offset", "64")]),
    "weights with entries in another order": _moved(lambda entries: entries[::-1]),
    "weights without an offset": _moved(lambda entries: [entries[0], entries[2]]),
    "weights without a location": _moved(lambda entries: entries[1:]),
    "weights with another entry": _moved(lambda entries: [*entries, ("checksum", "0")]),
    "weights without entries": _moved(lambda _: []),
    "weights file cut": _weights(lambda path: os.truncate(path, 64)),
    "weights file empty": _weights(lambda path: path.write_bytes(b"")),
    "weights file gone": _weights(lambda path: path.unlink()),
    "weights file a link": _weights(_linked),
    "weights file of NaN": _weights(lambda path: path.write_bytes(b"\xff" * path.stat().st_size)),
    "output renamed": _output(lambda output: setattr(output, "name", "other")),
    "output of another width": _output(_axis(1, 63)),
    "output of batch 1": _output(_axis(0, 1)),
    "output of another dtype": _output(lambda output: setattr(output.type.tensor_type, "elem_type", TensorProto.DOUBLE)),
    "output of strings": _output(lambda output: setattr(output.type.tensor_type, "elem_type", TensorProto.STRING)),
    "output of a free axis": _output(_axis(1, "free")),
    "output without a shape": _output(lambda output: output.type.tensor_type.ClearField("shape")),
    "output a sequence": _sequence,
    "outputs none": _edit(lambda proto, _: proto.graph.ClearField("output")),
    "input renamed": _edit(lambda proto, _: setattr(proto.graph.input[0], "name", "other")),
    "weight as input": _as_input,
    "nested types": _nested,
    "computes a scalar": _computes(helper.make_node("Cast", ["IN"], ["f"], to=1), helper.make_node("ReduceSum", ["f"], ["OUT"], keepdims=0)),
    "computes one row": _computes(
        *_FLAT,
        helper.make_node("Slice", ["r", "zero", "six"], ["OUT"]),
        constants=(_constant("flat", [1, -1]), _constant("zero", [0, 0]), _constant("six", [1, 6])),
    ),
    "computes all": _computes(*_FLAT, helper.make_node("Identity", ["r"], ["OUT"]), constants=(_constant("flat", [1, -1]),)),
    "computes NaN": _computes(
        *_FLAT,
        helper.make_node("Slice", ["r", "zero", "six"], ["s"]),
        helper.make_node("Sub", ["s", "s"], ["d"]),
        helper.make_node("Div", ["d", "d"], ["OUT"]),
        constants=(_constant("flat", [1, -1]), _constant("zero", [0, 0]), _constant("six", [1, 6])),
    ),
    "computes half": _computes(helper.make_node("Cast", ["IN"], ["OUT"], to=TensorProto.FLOAT16)),
    "computes a cycle": _computes(
        helper.make_node("Add", ["IN", "y"], ["x"]), helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["y"], ["OUT"])
    ),
    "gathers far outside": _with(_ahead(helper.make_node("GatherND", ["one", "far"], ["extra"])), _ONE, _constant("far", [[10**11]])),
    "gathers near outside": _with(_ahead(helper.make_node("GatherND", ["one", "near"], ["extra"])), _ONE, _constant("near", [[-100_000]])),
    "gathers rows outside": _with(_ahead(helper.make_node("Gather", ["one", "rows"], ["extra"])), _ONE, _constant("rows", [10**9])),
    "expands to 4 TB": _with(
        _ahead(helper.make_node("Expand", ["one", "large"], ["wide"]), helper.make_node("ReduceSum", ["wide"], ["extra"], keepdims=0)),
        _ONE,
        _constant("large", [10**6, 10**6]),
    ),
    "range of 10^12": _with(
        _ahead(
            helper.make_node("Range", ["start", "stop", "step"], ["wide"]),
            helper.make_node("Cast", ["wide"], ["cast"], to=1),
            helper.make_node("ReduceSum", ["cast"], ["extra"], keepdims=0),
        ),
        _constant("start", 0),
        _constant("stop", 10**12),
        _constant("step", 1),
    ),
    "doubles 40 times": _with(
        _ahead(
            *(helper.make_node("Concat", ["one" if i == 0 else f"d{i - 1}"] * 2, [f"d{i}"], axis=0) for i in range(40)),
            helper.make_node("ReduceSum", ["d39"], ["extra"], keepdims=0),
        ),
        _ONE,
    ),
    "chain of 3,000": _chain(3000),
    "chain of 10,001": _chain(10_001),
    "chain of 100,000": _chain(100_000),
    "weight of no bytes": _edit(lambda proto, chance: chance.choice([w for w in proto.graph.initializer if w.raw_data]).ClearField("raw_data")),
    "weight of huge shape": _edit(lambda proto, chance: chance.choice(proto.graph.initializer).dims.extend([2**31, 2**31])),
    "weight of 2^63 axes": _edit(lambda proto, chance: chance.choice(proto.graph.initializer).dims.extend([2**62, 4])),
    "weight of negative shape": _edit(lambda proto, chance: chance.choice(proto.graph.initializer).dims.append(-1)),
    "weight of strings": _edit(lambda proto, chance: setattr(chance.choice(proto.graph.initializer), "data_type", TensorProto.STRING)),
    "weight of another type": _edit(
        lambda proto, chance: setattr(chance.choice(proto.graph.initializer), "data_type", chance.choice([1, 6, 7, 10, 11, 16, 23, 999]))
    ),
    "opset 1": _edit(lambda proto, _: setattr(proto.opset_import[0], "version", 1)),
    "opset 10^9": _edit(lambda proto, _: setattr(proto.opset_import[0], "version", 10**9)),
    "ir version": _edit(lambda proto, chance: setattr(proto, "ir_version", chance.choice([0, 1, 99, -1, 2**40]))),
    "metadata": _edit(lambda proto, _: helper.set_model_props(proto, {"ort_config": '{"session_options": {"inter_op_num_threads": 99}}'})),
    "attribute gone": _edit(lambda proto, chance: chance.choice(proto.graph.node).ClearField("attribute")),
    "node gone": _edit(lambda proto, chance: proto.graph.node.pop(chance.randrange(len(proto.graph.node)))),
    "nodes shuffled": _edit(lambda proto, _: proto.graph.node.reverse()),
    "axis attribute": _edit(
        lambda proto, chance: proto.graph.node.append(
            helper.make_node("Concat", [proto.graph.input[0].name], ["z"], axis=chance.choice([-(2**63), 2**62, 99]))
        )
    ),
    "names of 100,000 characters": _edit(lambda proto, _: setattr(proto.graph.node[0], "name", "n" * 100_000)),
    "name that is no UTF-8": _edit(lambda proto, _: setattr(proto.graph, "name", "\x1b[31m")),
    "reshape of a negative size": _edit(lambda proto, _: proto.graph.initializer.append(_constant("negative", [-5]))),
}
