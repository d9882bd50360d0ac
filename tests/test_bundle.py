"""Opening a bundle: what is damaged, unsafe or unknown is refused with a reason."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import TinyModel, tiny_bundle
from support import edit_manifest

from prtool.bundle import Bundle, seal
from prtool.errors import BundleError, ConfigError

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of two precisions."""
    root = tmp_path_factory.mktemp("sealed") / "bundle"
    made = tiny_bundle(root, TinyModel())
    (root / "fp16").mkdir()
    graphs = {role: replace(graph, file=f"fp16/{graph.file}") for role, graph in made.manifest.graphs["fp32"].items() if role != "text"}
    for graph in graphs.values():
        shutil.copy(root / Path(graph.file).name, root / "fp16")
    seal(root, replace(made.manifest, graphs={**made.manifest.graphs, "fp16": graphs}))
    return root


@pytest.fixture
def root(sealed: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sealed, tmp_path / "bundle"))


def test_a_good_bundle_opens(root: Path) -> None:
    bundle = Bundle.open(root)
    assert bundle.graph("full").file == "full.onnx"
    assert bundle.read("fp16/full.onnx", 10**6) == (root / "full.onnx").read_bytes()
    with pytest.raises(ConfigError, match=r"precision = 'int8', but .* holds fp32, fp16"):
        bundle.graph("full", "int8")
    with pytest.raises(ConfigError, match="graph = 'mid_1'"):
        bundle.graph("mid_1")
    with pytest.raises(BundleError, match="no file 'x'"):
        bundle.file("x")


def test_a_changed_byte(root: Path) -> None:
    content = bytearray((root / "full.onnx").read_bytes())
    content[-700] ^= 1
    (root / "full.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"full\.onnx was changed: its SHA-256"):
        Bundle.open(root)
    assert Bundle.open(root, verify=False).manifest.files


def test_a_changed_size_shows_without_digests(root: Path) -> None:
    with (root / "full.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match=r"full\.onnx has \d+ bytes, but the manifest says \d+"):
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
    edit_manifest(root, lambda value: value["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    with pytest.raises(BundleError, match=r"not a plain relative path|is missing"):
        Bundle.open(root)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_are_refused(root: Path, place: str) -> None:
    target, link = (root / "full.onnx", root.parent / "full.onnx") if place == "file" else (root / "fp16", root.parent / "fp16")
    target.rename(link)
    target.symlink_to(link)
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(root)


@pytest.mark.parametrize("schema", [0, 1, 3, 5, "3", None])
def test_an_unknown_schema_names_the_command(root: Path, schema: object) -> None:
    edit_manifest(root, lambda value: value.update(schema=schema))
    with pytest.raises(BundleError, match=r"reads schema 4; make a new one with 'prtool export'"):
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
    edit_manifest(root, change)
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
