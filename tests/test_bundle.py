"""Opening a bundle: what is damaged, unsafe or unknown is refused with a reason."""

import contextlib
import hashlib
import itertools
import os
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import TinyModel, tiny_bundle
from support import edit_manifest

from prtool import bundle as bundle_module
from prtool.bundle import Bundle, seal
from prtool.errors import BundleError, ConfigError
from prtool.store import unseal

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
    with pytest.raises(ConfigError, match=r"precision = 'int8'.*fp32, fp16"):
        bundle.graph("full", "int8")
    with pytest.raises(ConfigError, match="graph = 'mid_1'"):
        bundle.graph("mid_1")
    with pytest.raises(BundleError, match="'x'"):
        bundle.file("x")


def test_a_changed_byte(root: Path) -> None:
    content = bytearray((root / "full.onnx").read_bytes())
    content[-700] ^= 1
    (root / "full.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"full\.onnx"):
        Bundle.open(root)
    assert Bundle.open(root, verify=False).manifest.files


def test_a_changed_size_shows_without_digests(root: Path) -> None:
    with (root / "full.onnx").open("ab") as stream:
        stream.write(b"!")
    with pytest.raises(BundleError, match=r"full\.onnx.* \d+ bytes.* \d+"):
        Bundle.open(root, verify=False)


def test_a_missing_file(root: Path) -> None:
    (root / "fp16" / "full.onnx").unlink()
    with pytest.raises(BundleError, match=r"fp16/full\.onnx"):
        Bundle.open(root, verify=False)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "fp16/../../secret", "", ".", "a//b", "fp16/", "C:\\x", "a\\..\\b", "con:", "./full.onnx", "nul\x00"]
)
def test_a_name_that_leaves_the_bundle(root: Path, name: str) -> None:
    (root.parent / "secret").write_bytes(b"secret")
    edit_manifest(root, lambda value: value["files"].update({name: {"size": 6, "sha256": "0" * 64}}))
    with pytest.raises(BundleError):
        Bundle.open(root)


@pytest.mark.parametrize("place", ["file", "folder"])
def test_links_are_refused(root: Path, place: str) -> None:
    target, link = (root / "full.onnx", root.parent / "full.onnx") if place == "file" else (root / "fp16", root.parent / "fp16")
    target.rename(link)
    target.symlink_to(link)
    with pytest.raises(BundleError, match="is a link"):
        Bundle.open(root)


@pytest.mark.parametrize("schema", [0, 2, 5, "1", None])
def test_an_unknown_schema_names_the_command(root: Path, schema: object) -> None:
    edit_manifest(root, lambda value: value.update(schema=schema))
    with pytest.raises(BundleError, match=r"prtool export"):
        Bundle.open(root)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("prune"), "prune"),
        (lambda v: v.update(extra=1), "extra"),
        (lambda v: v.update(default_keep="many"), "manifest.default_keep"),
        (lambda v: v["prune"].update(locations=[9, 1]), "locations"),
        (lambda v: v["graphs"]["fp32"]["full"].update(file="other.onnx"), "other.onnx"),
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
        with pytest.raises(BundleError, match=r"prtool\.json"):
            Bundle.open(path)


def test_every_bit_of_the_manifest(root: Path) -> None:
    """All of them against the seal, some of them through the whole way in."""
    path = root / "prtool.json"
    good = path.read_bytes()
    for place, bit in itertools.product(range(len(good)), range(8)):
        content = bytearray(good)
        content[place] ^= 1 << bit
        with pytest.raises(ValueError, match="seal"):
            unseal(bytes(content))
        if (8 * place + bit) % 97 == 0:
            path.write_bytes(content)
            with pytest.raises(BundleError, match="seal"):
                Bundle.open(root)


def socket_at(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


KINDS: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "folder": Path.mkdir,
    "socket": socket_at,
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a good file": lambda path: path.symlink_to(path.parent.parent / "outside"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["prtool.json", "full.onnx", "classes.safetensors", "tokenizer.json"])
def test_only_regular_files_are_opened(root: Path, name: str, kind: str) -> None:
    (root / name).rename(root.parent / "outside")
    KINDS[kind](root / name)
    with pytest.raises(BundleError, match=name) as caught:
        Bundle.open(root)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(20)
def test_a_manifest_of_100_megabytes_takes_no_memory(root: Path) -> None:
    os.truncate(root / "prtool.json", 100 << 20)
    tracemalloc.start()
    with pytest.raises(BundleError, match="16777216"):
        Bundle.open(root)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "extra",
    [
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 100_000,
        b"1" + b"0" * 400,
        b"-9007199254740993",
        b"0." + b"3" * 100_000,
        b"1e999",
        b"NaN",
        b'"' + b"x" * 10_000_000 + b'"',
        b'"\\u001b[31m' + b"\\n" * 1000 + b'"',
        b"[" + b"[]," * 100_000 + b"0]",
    ],
)
@pytest.mark.parametrize("field", [b"extra", b"default_keep", b"schema"])
def test_hostile_text_ends_in_one_short_line(root: Path, extra: bytes, field: bytes) -> None:
    body = b'{\n "' + field + b'": ' + extra
    seal_of = f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}\n'
    (root / "prtool.json").write_bytes(body + seal_of.encode())
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_an_unreadable_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root no mode keeps a file from being read."""
    real = os.open

    def reject(path: Any, *arguments: Any, **options: Any) -> int:
        if str(path).endswith("post.onnx"):
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", reject)
    with pytest.raises(BundleError, match=r"post\.onnx"):
        Bundle.open(root)


@pytest.mark.parametrize("count", [10_000, 10_001])
def test_so_many_files(root: Path, count: int) -> None:
    edit_manifest(root, lambda value: value["files"].update({f"f{i}": {"size": 1, "sha256": ""} for i in range(count - len(value["files"]))}))
    with pytest.raises(BundleError, match="f0" if count == 10_000 else "10001"):
        Bundle.open(root)


def test_a_file_that_changes_later(root: Path) -> None:
    bundle = Bundle.open(root)
    content = bundle.read("classes.safetensors", 10**6)
    replacement = root.parent / "new"
    replacement.write_bytes(content)
    replacement.replace(root / "classes.safetensors")
    for call in (lambda: bundle.read("classes.safetensors", 10**6), lambda: bundle.unchanged("full.onnx").__enter__()):
        with pytest.raises(BundleError, match=r"classes\.safetensors"):
            call()
    assert Bundle.open(root).read("classes.safetensors", 10**6) == content
    with pytest.raises(BundleError, match="10"):
        Bundle.open(root).read("classes.safetensors", 10)


@pytest.mark.parametrize("moment", ["before the first file", "before the last check"])
def test_a_bundle_that_is_replaced_while_it_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    other = Path(shutil.copytree(root, root.parent / "other"))
    real = bundle_module.check_graph
    swapped = []

    def swap(*arguments: Any) -> None:
        real(*arguments)
        if not swapped and (moment == "before the first file" or arguments[2].file == "text.onnx"):
            swapped.append(root.rename(root.parent / "old"))
            other.rename(root)

    monkeypatch.setattr(bundle_module, "check_graph", swap)
    with pytest.raises(BundleError):
        Bundle.open(root, verify=False)


def test_a_file_that_is_named_as_two_graphs(root: Path) -> None:
    edit_manifest(root, lambda value: value["graphs"]["fp32"]["full"].update(file="fused.onnx"))
    with pytest.raises(BundleError, match=r"fused\.onnx"):
        Bundle.open(root)
