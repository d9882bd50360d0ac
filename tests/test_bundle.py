"""Opening a bundle: what is damaged, unsafe or unknown is refused with a reason."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_manifest

from prtool.bundle import Bundle, seal
from prtool.errors import BundleError, ConfigError
from prtool.manifest import GraphSpec, TensorSpec

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sealed bundle of two small files."""
    folder = tmp_path / "bundle"
    (folder / "fp16").mkdir(parents=True)
    (folder / "full.onnx").write_bytes(b"not really a graph")
    (folder / "fp16" / "full.onnx").write_bytes(b"nor this")
    pixels = TensorSpec("pixels", "float32", ("batch", 3, 32, 32))
    graphs = {"fp32": {"full": GraphSpec("full.onnx", (pixels,), ())}, "fp16": {"full": GraphSpec("fp16/full.onnx", (pixels,), ())}}
    seal(folder, dataclasses.replace(fake_manifest(), graphs=graphs))
    return folder


def edit(root: Path, change: Change) -> None:
    path = root / "prtool.json"
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value))


def test_a_good_bundle_opens(root: Path) -> None:
    bundle = Bundle.open(root)
    assert set(bundle.manifest.files) == {"full.onnx", "fp16/full.onnx"}
    assert bundle.graph("full").file == "full.onnx"
    assert bundle.file("fp16/full.onnx").read_bytes() == b"nor this"
    with pytest.raises(ConfigError, match=r"precision = 'int8', but .* holds fp32, fp16"):
        bundle.graph("full", "int8")
    with pytest.raises(ConfigError, match="graph = 'fused'"):
        bundle.graph("fused")
    with pytest.raises(BundleError, match="no file 'x'"):
        bundle.file("x")


def test_a_changed_byte(root: Path) -> None:
    content = bytearray((root / "full.onnx").read_bytes())
    content[3] ^= 1
    (root / "full.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"full\.onnx was changed: its SHA-256"):
        Bundle.open(root)
    assert Bundle.open(root, verify=False).manifest.files


def test_a_changed_size_shows_without_digests(root: Path) -> None:
    with (root / "full.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match="has 19 bytes, but the manifest says 18"):
        Bundle.open(root, verify=False)


def test_a_missing_file(root: Path) -> None:
    (root / "fp16" / "full.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp16/full\.onnx is missing; copy the whole bundle again"):
        Bundle.open(root, verify=False)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "fp16/../../secret", "", ".", "a//b", "fp16/", "C:\\x", "a\\..\\b", "con:", "./full.onnx", "nul\x00"]
)
def test_a_name_that_leaves_the_bundle(root: Path, name: str) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    edit(root, lambda value: value["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match=r"not a plain relative path|is missing"):
        Bundle.open(root)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_are_refused(root: Path, place: str) -> None:
    target, link = (root / "full.onnx", root.parent / "full.onnx") if place == "file" else (root / "fp16", root.parent / "fp16")
    target.rename(link)
    target.symlink_to(link)
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(root)


@pytest.mark.parametrize("schema", [0, 1, 2, 4, "3", None])
def test_an_unknown_schema_names_the_command(root: Path, schema: object) -> None:
    edit(root, lambda value: value.update(schema=schema))
    with pytest.raises(BundleError, match=r"reads schema 3; make a new one with 'prtool export'"):
        Bundle.open(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("prune"), "the field prune"),
        (lambda v: v.update(extra=1), "no field named extra"),
        (lambda v: v.update(default_keep="many"), "manifest.default_keep should be int"),
        (lambda v: v["prune"].update(locations=[9, 1]), "do not fit together"),
        (lambda v: v["graphs"]["fp32"]["full"].update(file="other.onnx"), "not among the bundle's files"),
    ],
)
def test_a_damaged_manifest(root: Path, change: Change, words: str) -> None:
    edit(root, change)
    with pytest.raises(BundleError, match=words):
        Bundle.open(root)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_an_unreadable_manifest(root: Path, content: bytes) -> None:
    (root / "prtool.json").write_bytes(content)
    with pytest.raises(BundleError, match="export"):
        Bundle.open(root)


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no prtool\.json"):
            Bundle.open(path)
