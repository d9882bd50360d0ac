"""Graph files: what the exporter never writes is rejected before an engine sees it."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import EMBED, TinyModel, tiny_bundle
from support import REPO

from prtool.bundle import Bundle, seal
from prtool.errors import BundleError
from prtool.graphs.graph_reader import OPERATORS, OPSET, check_graph
from prtool.manifest import Manifest

onnx = pytest.importorskip("onnx", reason="onnx makes the test graphs")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

Change = Callable[[Any], object]


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return tiny_bundle(tmp_path / "bundle", TinyModel())


def changed(made: Bundle, change: Change, role: str = "full") -> None:
    """Seals the bundle again around a changed graph, and opens it."""
    path = made.file(made.graph(role).file)
    proto = onnx.load(path, load_external_data=False)
    content = change(proto)
    path.write_bytes(content if isinstance(content, bytes) else proto.SerializeToString())
    reopen(made.path, made.manifest)


def reopen(root: Path, manifest: Manifest) -> None:
    seal(root, manifest)
    Bundle.open(root)


def node(*arguments: Any, **attributes: Any) -> Change:
    return lambda proto: proto.graph.node.append(helper.make_node(*arguments, **attributes))


def empty() -> Any:
    return helper.make_graph([], "inner", [], [])


def function(proto: Any) -> None:
    proto.functions.append(
        helper.make_function("", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])], [helper.make_opsetid("", OPSET)])
    )


def sequence(proto: Any) -> None:
    proto.graph.value_info.append(helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, [1]))


def sparse(proto: Any) -> None:
    values, places = helper.make_tensor("v", TensorProto.FLOAT, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [0])
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4]))


def shorter(proto: Any) -> None:
    proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]


def many(proto: Any) -> None:
    proto.graph.node.extend([helper.make_node("Identity", ["pixels"], [f"copy_{i}"]) for i in range(10_001)])


def output(**change: Any) -> Change:
    settings = {"name": "embedding", "type": TensorProto.FLOAT, "shape": ["batch", EMBED], **change}

    def apply(proto: Any) -> None:
        del proto.graph.output[:]
        proto.graph.output.append(helper.make_tensor_value_info(settings["name"], settings["type"], settings["shape"]))

    return apply


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (node("If", ["pixels"], ["y"], then_branch=empty(), else_branch=empty()), "6"),
        (node("Loop", ["", "pixels"], ["y"]), "Loop"),
        (node("Scan", ["pixels"], ["y"]), "Scan"),
        (node("Add", ["pixels", "pixels"], ["y"], domain="com.microsoft"), "com.microsoft:Add"),
        (node("Optional", [], ["y"], type=helper.make_tensor_type_proto(1, [1])), "14"),
        (function, "25"),
        (sequence, "4"),
        (sparse, "15"),
        (shorter, r"\d+ bytes"),
        (many, "10000"),
        (lambda proto: setattr(proto.opset_import[0], "version", 21), "21"),
        (lambda proto: proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)), "operator sets"),
        (lambda proto: proto.training_info.add(), "20"),
        (lambda proto: proto.graph.initializer[0].dims.extend([1] * 65), "64"),
        (lambda proto: proto.SerializeToString() * 2, "twice"),
        (lambda proto: proto.SerializeToString()[:-3], "ends inside"),
        (lambda _: b"", "operator sets"),
        (lambda _: b"\xff" * 40, "too long"),
        (output(name="other"), "other float32"),
        (output(shape=["batch", EMBED + 1]), "embedding float32"),
        (output(shape=[2, EMBED]), r"\[2, 6\]"),
        (output(type=TensorProto.FLOAT16), "embedding float16"),
        (output(type=TensorProto.STRING), r"embedding \? \["),
    ],
)
def test_a_graph_that_is_never_exported(made: Bundle, change: Change, words: str) -> None:
    with pytest.raises(BundleError, match=rf"full\.onnx .*{words}"):
        changed(made, change)


KEYS = ("location", "offset", "length")


def entries(location: str = "weights.bin", offset: str = "0", length: str = "SIZE") -> list[tuple[str, str]]:
    return list(zip(KEYS, (location, offset, length), strict=True))


def outside(entries: list[tuple[str, str]], data: int = TensorProto.EXTERNAL) -> Change:
    """Puts the first weight into another file."""

    def apply(proto: Any) -> None:
        weight = proto.graph.initializer[0]
        size = len(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = data
        for key, value in entries:
            weight.external_data.add(key=key, value=value.replace("SIZE", str(size)))

    return apply


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (entries("*/_ORT_MEM_ADDR_/*", "94000000000000"), "_ORT_MEM_ADDR_"),
        (entries("../weights.bin"), "'../weights.bin'"),
        (entries("/etc/hostname"), "'/etc/hostname'"),
        (entries("other.bin"), "'other.bin'"),
        (entries("./weights.bin"), "'./weights.bin'"),
        (entries("fp16/weights.bin"), "'fp16/weights.bin'"),
        (entries(""), "''"),
        ([], "tensor"),
        (entries(offset="65536"), "65536"),
        (entries(offset="9" * 16), "65536"),
        (entries(offset="8"), "64"),
        (entries(offset="-64"), "-64"),
        (entries(offset="0x40"), "0x40"),
        (entries(offset="\u0660"), "weights.bin"),
        (entries(length="9" * 30), "9" * 30),
        (entries(length=""), "weights.bin"),
        (entries(length="8"), "8 bytes"),
        (entries()[:1], "location"),
        (entries()[:2], "location"),
        (entries()[::-1], "location"),
        ([*entries()[:2], ("offset", "64")], "location"),
        ([*entries(), ("offset", "64")], "3"),
        ([*entries(), ("checksum", "0")], "3"),
        ([*entries()[:2], ("basepath", "/")], "basepath"),
    ],
)
def test_external_data_lies_in_the_weights_file(made: Bundle, found: list[tuple[str, str]], value: str) -> None:
    (made.path.parent / "weights.bin").write_bytes(bytes(1 << 16))
    for name in ("weights.bin", "other.bin", "fp16/weights.bin"):
        (made.path / name).parent.mkdir(exist_ok=True)
        (made.path / name).write_bytes(bytes(1 << 16))
    with pytest.raises(BundleError, match=rf"full\.onnx .*{re.escape(value)}"):
        changed(made, outside(found))


def test_a_weights_file_that_is_unlisted_or_a_link(made: Bundle) -> None:
    """The manifest is sealed before the file is put there."""
    with pytest.raises(BundleError, match=r"full\.onnx"):
        changed(made, outside(entries()))
    (made.path / "weights.bin").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"full\.onnx"):
        Bundle.open(made.path)


def test_external_data_in_the_weights_file(made: Bundle) -> None:
    """Two tensors may name the same bytes."""
    (made.path / "weights.bin").write_bytes(bytes(1 << 16))
    for role in ("full", "fused"):
        changed(made, outside(entries(offset="64")), role)


class Counted(io.FileIO):
    """A file that counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> Any:
        content = super().read(size)
        self.count += len(content or b"")
        return content


def test_weights_are_skipped(made: Bundle) -> None:
    """A graph with 16 MiB of weights more is read as quickly."""
    path = made.file("full.onnx")
    proto = onnx.load(path)
    proto.graph.initializer.insert(1, numpy_helper.from_array(np.zeros(1 << 22, np.float32), "large"))
    path.write_bytes(proto.SerializeToString())
    with Counted(path) as stream:
        check_graph(stream, "full.onnx", made.graph("full"), {})
    assert path.stat().st_size > 1 << 24
    assert stream.count < 1 << 18


def test_the_document_lists_the_same_operators() -> None:
    text = (REPO / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- operators -->\s*```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert found[1].split() == sorted(OPERATORS)
