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


def outside(made: Bundle, entries: dict[str, str], data: int = TensorProto.EXTERNAL) -> Change:
    """Puts the first weight into another file."""

    def apply(proto: Any) -> None:
        weight = proto.graph.initializer[0]
        size = len(weight.raw_data)
        weight.ClearField("raw_data")
        weight.data_location = data
        for key, value in entries.items():
            weight.external_data.add(key=key, value=value.replace("SIZE", str(size)))

    return apply


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"location": "*/_ORT_MEM_ADDR_/*", "offset": "94000000000000", "length": "SIZE"}, "full.onnx"),
        ({"location": "../secret.data"}, "full.onnx"),
        ({"location": "/etc/hostname"}, "full.onnx"),
        ({"location": "unlisted.data"}, "full.onnx"),
        ({"location": "./listed.data"}, "full.onnx"),
        ({"location": ""}, "full.onnx"),
        ({}, "full.onnx"),
        ({"location": "listed.data", "offset": "100000", "length": "SIZE"}, "65536"),
        ({"location": "listed.data", "offset": "-8"}, "full.onnx"),
        ({"location": "listed.data", "length": "9" * 30}, "full.onnx"),
        ({"location": "listed.data", "length": "8"}, "8 bytes"),
        ({"location": "listed.data", "basepath": "/"}, "basepath"),
    ],
)
def test_external_data_lies_in_files_of_the_bundle(made: Bundle, entries: dict[str, str], words: str) -> None:
    (made.path.parent / "secret.data").write_bytes(bytes(1 << 16))
    (made.path / "listed.data").write_bytes(bytes(1 << 16))
    with pytest.raises(BundleError, match=words):
        changed(made, outside(made, entries))


def test_external_data_that_is_unlisted_or_a_link(made: Bundle) -> None:
    """The manifest is sealed before the file is put there."""
    with pytest.raises(BundleError, match=r"full.onnx"):
        changed(made, outside(made, {"location": "late.data"}))
    (made.path / "late.data").symlink_to("/dev/zero")
    with pytest.raises(BundleError, match=r"full.onnx"):
        Bundle.open(made.path)


def test_external_data_in_a_listed_file(made: Bundle) -> None:
    (made.path / "listed.data").write_bytes(bytes(1 << 16))
    changed(made, outside(made, {"location": "listed.data", "offset": "64", "length": "SIZE"}))


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
    found = re.search(r"<!-- operators -->\n```\n(.*?)```", text, re.DOTALL)
    assert found is not None
    assert found[1].split() == sorted(OPERATORS)
