"""The C++ library beside the Python package: the same bundles, the same numbers, the same refusals."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cpp_programs import BUILD, SOURCE, built_file, engines, noise_photographs, run
from models import SIDE, TinyModel, onnx, tiny_bundle
from support import edit_manifest

from prtool.bundle import Bundle
from prtool.errors import BundleError
from prtool.runtime.encoder import Encoder

MODELS = {
    "one location": TinyModel(),
    "three locations": TinyModel((2, 3, 4), prefix_tokens=2, learnable_tokens=3),
}


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("cpp") / "bundle", MODELS[request.param])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise in several forms; the last file is no image."""
    return noise_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.mark.parametrize("name", ["tests/prtool-unit", "tests/prtool-c-header"])
def test_the_librarys_own_checks(name: str) -> None:
    found = run(built_file(name))
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_public_headers_on_a_bundle(bundle: Bundle) -> None:
    found = run(built_file("tests/prtool-api"), PRTOOL_TEST_BUNDLE=str(bundle.path))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 failed" in found.stdout


RUNS = [(mode, keep) for mode in ("fused", "split", "full") for keep in ("1.0", "0.6", "5", "") if mode != "full" or keep in ("1.0", "")]


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize(("mode", "keep"), RUNS)
def test_embeddings_are_pythons(bundle: Bundle, photographs: list[Path], tmp_path: Path, engine: str, mode: str, keep: str) -> None:
    if engine not in engines():
        pytest.skip(f"the library was built without engine {engine}")
    out = tmp_path / "embeddings.npy"
    options = ["--engine", engine, "--mode", mode, "--batch", 2, *(["--keep", keep] if keep else [])]
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0].parent, "-o", out, *options)
    assert found.returncode == 0, found.stderr
    assert "skipped: " in found.stderr and "broken, or not.jpg" in found.stderr
    assert "5 of 6" in found.stderr
    readable = [path for path in photographs if "broken" not in path.name]
    assert (tmp_path / "embeddings.paths.jsonl").read_text().splitlines() == [json.dumps(str(path)) for path in readable]
    asked = None if not keep else float(keep) if "." in keep else int(keep)
    with Encoder.load(bundle, mode=mode) as encoder:
        np.testing.assert_allclose(np.load(out), encoder.encode_images(readable, asked), atol=1e-6)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_count_for_each_location(tmp_path: Path, photographs: list[Path]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", MODELS["three locations"])
    readable = [path for path in photographs if "broken" not in path.name]
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, *readable, "--keep", "12,12,3", "-o", tmp_path / "out.npy")
    assert found.returncode == 0, found.stderr
    with Encoder.load(bundle) as encoder:
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(readable, (12, 12, 3)), atol=1e-6)


def test_classes_are_pythons(bundle: Bundle, photographs: list[Path]) -> None:
    found = run(built_file("programs/prtool-run"), "classify", bundle.path, photographs[0].parent, "--top", 3)
    assert found.returncode == 0, found.stderr
    rows = list(csv.DictReader(io.StringIO(found.stdout)))
    readable = [path for path in photographs if "broken" not in path.name]
    with Encoder.load(bundle) as encoder:
        wanted = [prediction for predictions in encoder.classify(readable, top=3) for prediction in predictions]
    assert [(row["path"], row["rank"]) for row in rows] == [(str(path), str(rank)) for path in readable for rank in (1, 2, 3)]
    assert [(int(row["label"]), row["class"]) for row in rows] == [(prediction.label, prediction.name) for prediction in wanted]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], [prediction.probability for prediction in wanted], rtol=1e-4)


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda root: edit_manifest(root, change)


def _resealed(content: bytes) -> Callable[[Path], object]:
    """A manifest of these bytes, all but the closing brace, with its seal."""
    ending = f',\n "seal": "{hashlib.sha256(content).hexdigest()}"\n}}\n'.encode()
    return lambda root: (root / "prtool.json").write_bytes(content + ending)


def _link(root: Path) -> None:
    (root / "post.onnx").rename(root.parent / "post.onnx")
    (root / "post.onnx").symlink_to(root.parent / "post.onnx")


def _link_manifest(root: Path) -> None:
    (root / "prtool.json").rename(root.parent / "prtool.json")
    (root / "prtool.json").symlink_to(root.parent / "prtool.json")


def _fifo(name: str) -> Callable[[Path], None]:
    def replace(root: Path) -> None:
        (root / name).unlink()
        os.mkfifo(root / name)

    return replace


def _flip(root: Path) -> None:
    content = (root / "prtool.json").read_bytes()
    (root / "prtool.json").write_bytes(content.replace(b"0.2", b"0.6", 1))


def _rename(name: str) -> Callable[[Path], None]:
    return _edit(lambda manifest: manifest["files"].update({name: manifest["files"].pop("post.onnx")}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda root: (root / "prtool.json").unlink(), "is not a bundle"),
    "no seal": (lambda root: (root / "prtool.json").write_bytes(b'{"schema": 1}'), "seal"),
    "one bit of std": (_flip, "SHA-256"),
    "no JSON": (_resealed(b'{"schema" 4'), "export"),
    "nested": (_resealed(b'{"schema": ' + b"[" * 200_000), "export"),
    "no UTF-8": (_resealed(b'{"schema": 1, "\xff": 1'), "export"),
    "twice": (_resealed(b'{"schema": 1, "schema": 1'), "export"),
    "401 digits": (_resealed(b'{"schema": 1, "a": 1' + b"0" * 400), "export"),
    "infinity": (_resealed(b'{"schema": 1, "a": 1e999'), "export"),
    "large": (lambda root: (root / "prtool.json").write_bytes(b" " * (16 * 2**20 + 1)), "export"),
    "manifest is a pipe": (_fifo("prtool.json"), "regular file"),
    "manifest is a link": (_link_manifest, "is a link"),
    "graph is a pipe": (_fifo("post.onnx"), "regular file"),
    "graph is a folder": (lambda root: ((root / "post.onnx").unlink(), (root / "post.onnx").mkdir()), "regular file"),
    "other schema": (_edit(lambda manifest: manifest.update(schema=3)), "export"),
    "field missing": (_edit(lambda manifest: manifest.pop("prune")), "prune"),
    "field unknown": (_edit(lambda manifest: manifest["prune"].update(speed=9)), "speed"),
    "long field": (_edit(lambda manifest: manifest["prune"].update({"\x1b[2J" + "x" * 1_000_000: 9})), "x1b"),
    "wrong kind": (_edit(lambda manifest: manifest["model"].update(embed_dim="6")), "embed_dim"),
    "no whole number": (_edit(lambda manifest: manifest["prune"].update(depth=2.5)), "depth"),
    "too deep": (_edit(lambda manifest: manifest["prune"].update(depth=1001)), "1000"),
    "locations fall": (_edit(lambda manifest: manifest["prune"].update(locations=[3, 2])), "locations"),
    "a million locations": (_edit(lambda manifest: manifest["prune"].update(locations=list(range(1, 1_000_001)))), "locations"),
    "a wide grid": (_edit(lambda manifest: manifest["prune"].update(grid=[4, 1025])), "1024"),
    "keeps more than all": (_edit(lambda manifest: manifest.update(keep_range=[2, 17])), "keep_range"),
    "a large image": (_edit(lambda manifest: manifest["preprocess"].update(size=[8, 8193])), "8192"),
    "many pixels": (_edit(lambda manifest: manifest["preprocess"].update(size=[4096, 4097])), "16777216"),
    "other image than the graphs": (
        _edit(lambda manifest: (manifest["preprocess"].update(size=[8, 4]), manifest["cost"].update(native_tokens=18))),
        "pixels",
    ),
    "other native image than the graphs": (
        _edit(lambda manifest: (manifest.update(native_size=[8, 16]), manifest["cost"].update(native_tokens=18))),
        "pixels",
    ),
    "a native image below the other": (_edit(lambda manifest: manifest.update(native_size=[8, 7])), "native_size"),
    "no native image": (_edit(lambda manifest: manifest.pop("native_size")), "native_size"),
    "another method": (_edit(lambda manifest: manifest["prune"].update(method="pool")), "rank, merge, none"),
    "merging, of other graphs": (
        _edit(lambda manifest: (manifest["prune"].update(method="merge", depth=3), manifest.update(keep_range=[8, 16]))),
        "full, fused",
    ),
    "merging below half": (_edit(lambda manifest: manifest["prune"].update(method="merge", depth=3)), "keep_range"),
    "merging in the last block": (_edit(lambda manifest: manifest["prune"].update(method="merge")), "locations"),
    "no method, but locations": (_edit(lambda manifest: manifest["prune"].update(method="none")), "locations"),
    "no location": (_edit(lambda manifest: manifest["prune"].update(locations=[])), "locations"),
    "native tokens of no larger image": (_edit(lambda manifest: manifest["cost"].update(native_tokens=18)), "native_tokens"),
    "a part above the whole": (_edit(lambda manifest: manifest["cost"].update(attention_token_macs=21)), "attention_token_macs"),
    "other width than the graphs": (_edit(lambda manifest: manifest["model"].update(embed_dim=7)), "embedding"),
    "free": (_edit(lambda manifest: manifest["cost"].update(dict.fromkeys(manifest["cost"], 0))), "cost"),
    "vocabulary": (_edit(lambda manifest: manifest["text"].update(vocab_size=0)), "vocab_size"),
    "no classes": (_edit(lambda manifest: manifest["classes"].update(names=[])), "names"),
    "role missing": (_edit(lambda manifest: manifest["graphs"]["fp32"].pop("full")), "full"),
    "role unknown": (_edit(lambda manifest: manifest["graphs"]["fp32"].update(other=manifest["graphs"]["fp32"]["full"])), "other"),
    "other suffix": (_edit(lambda manifest: manifest["graphs"]["fp32"]["full"].update(file="probe.safetensors")), "probe.safetensors"),
    "changed byte": (lambda root: (root / "post.onnx").write_bytes((root / "post.onnx").read_bytes()[:-1] + b"\x00"), "SHA-256"),
    "shorter": (lambda root: (root / "post.onnx").write_bytes(b""), "post.onnx"),
    "missing": (lambda root: (root / "post.onnx").unlink(), "post.onnx"),
    "link": (_link, "is a link"),
    "parent": (_rename("../post.onnx"), "post.onnx"),
    "absolute": (_rename("/post.onnx"), "post.onnx"),
    "empty part": (_rename("a//post.onnx"), "post.onnx"),
    "backslash": (_rename("a\\post.onnx"), "post.onnx"),
    "line break": (_rename("a\npost.onnx"), "post.onnx"),
    "256 bytes": (_rename("x" * 256), "xxx"),
    "1025 bytes": (_rename("/".join(["x" * 205] * 5)), "xxx"),
    "graph not listed": (_edit(lambda manifest: manifest["files"].pop("fused.onnx")), "fused.onnx"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundles_are_rejected_alike(tmp_path: Path, photographs: list[Path], damage: str) -> None:
    root = tmp_path / "bundle"
    tiny_bundle(root, TinyModel())
    break_it, words = DAMAGES[damage]
    break_it(root)
    with pytest.raises(BundleError):
        Bundle.open(root)
    found = run(built_file("programs/prtool-run"), "embed", root, photographs[0])
    assert found.returncode == 1
    assert words in found.stderr
    assert len(found.stderr) < 1100
    assert (found.stderr.count("\n"), found.stdout) == (1, "")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["embed"], 2, "bundle"),
        (["encode", "b", "p"], 2, "embed"),
        (["embed", "b", "p", "--fast"], 2, "--fast"),
        (["embed", "b", "p", "--keep"], 2, "--keep"),
        (["embed", "b", "p", "--keep", "1"], 2, "1.0"),
        (["embed", "b", "p", "--keep", "most"], 2, "most"),
        (["embed", "b", "p", "--batch", "0"], 2, "--batch"),
        (["embed", "b", "p", "-o", "x.txt"], 1, ".npy or .csv"),
        (["embed", "b", "p", "-o", "/nowhere/x.npy"], 1, "/nowhere"),
        (["embed", "/nowhere", "p"], 1, "/nowhere"),
        (["--help"], 0, ""),
        (["--version"], 0, ""),
    ],
)
def test_wrong_words_are_named(words: list[str], status: int, message: str) -> None:
    found = run(built_file("programs/prtool-run"), *words)
    assert (found.returncode, message in found.stderr) == (status, True), found.stderr


def test_keep_and_engine_out_of_range(tmp_path: Path, photographs: list[Path]) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", TinyModel(), classes=())
    for options, message in {
        ("--keep", "17"): "17",
        ("--keep", "0.0"): "0.0",
        ("--engine", "onnx"): "onnx",
        ("--precision", "fp16"): "fp16",
    }.items():
        found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], *options)
        assert (found.returncode, message in found.stderr) == (1, True), found.stderr
    found = run(built_file("programs/prtool-run"), "classify", bundle.path, photographs[0])
    assert (found.returncode, found.stderr.count("\n")) == (1, 1)


@pytest.mark.parametrize("engine", ["ort-cuda", "trt", "trt-rtx", "openvino"])
def test_an_engine_that_cannot_run_says_what_is_missing(bundle: Bundle, photographs: list[Path], engine: str) -> None:
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--engine", engine)
    if found.returncode == 0:
        pytest.skip(f"{engine} runs here")
    built = f"built without engine {engine}, but with {', '.join(engines())}; build it with -DPRTOOL_"
    assert (built if engine not in engines() else "NVIDIA") in found.stderr
    assert found.stdout == ""


def _only_two_images(root: Path) -> None:
    """The fused graph fails while it runs for any batch but 2."""
    graph = onnx.load(root / "fused.onnx")
    for node in graph.graph.node:
        node.input[:] = ["pairs" if name == "pixels" else name for name in node.input]
    graph.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 3, SIDE, SIDE], np.int64), "two"))
    graph.graph.node.insert(0, onnx.helper.make_node("Reshape", ["pixels", "two"], ["pairs"]))
    onnx.save(graph, root / "fused.onnx")
    content = (root / "fused.onnx").read_bytes()
    listed = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    edit_manifest(root, lambda manifest: manifest["files"].update({"fused.onnx": listed}))


@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_an_error_while_it_runs_is_seen_with_one_thread(photographs: list[Path], tmp_path: Path, engine: str) -> None:
    if engine not in engines():
        pytest.skip(f"the library was built without engine {engine}")
    bundle = tiny_bundle(tmp_path / "bundle", TinyModel())
    _only_two_images(bundle.path)
    options = ["--engine", engine, "--threads", 1, "--batch", 2]
    assert run(built_file("programs/prtool-run"), "embed", bundle.path, *photographs[:2], *options).returncode == 0
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, *photographs[:3], *options)
    assert (found.returncode, "fused.onnx" in found.stderr, found.stdout) == (1, True, ""), found.stderr


def test_the_examples_run(bundle: Bundle, photographs: list[Path]) -> None:
    names = [str(photographs[0]), str(photographs[2])]
    with Encoder.load(bundle) as encoder:
        rows = encoder.encode_images(names, 0.6)
        best = {name: predictions[0].name for name, predictions in zip(names, encoder.classify(names, top=1), strict=True)}
    found = run(built_file("examples/prtool-example-embed"), bundle.path, *names)
    assert found.returncode == 0, found.stderr
    for line, row, name in zip(found.stdout.splitlines(), rows, names, strict=True):
        assert line.endswith(name)
        np.testing.assert_allclose([float(word) for word in line.split()[:4]], row[:4], atol=6e-5)
    lines = "\n".join([*names * 5, "/nowhere.jpg"])
    found = subprocess.run(
        [built_file("examples/prtool-example-server"), bundle.path, "3"], input=lines, capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stderr
    answers = [line.split("\t") for line in found.stdout.splitlines()]
    assert len(answers) == 11
    assert all(best[path] == name for path, name, _ in answers if path != "/nowhere.jpg")
    assert [(name, "/nowhere.jpg" in reason) for path, name, reason in answers if path == "/nowhere.jpg"] == [("error", True)]


def test_cuda_graphs_are_refused_where_there_are_none(bundle: Bundle, photographs: list[Path]) -> None:
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--cuda-graphs")
    assert (found.returncode, found.stderr.count("\n"), "ort" in found.stderr) == (1, 1, True)


@pytest.mark.timeout(600)
def test_a_project_elsewhere_builds_with_find_package(bundle: Bundle, photographs: list[Path], tmp_path: Path) -> None:
    built_file("programs/prtool-run")
    if "PRTOOL_SANITIZE:STRING=\n" not in (BUILD / "CMakeCache.txt").read_text():
        pytest.skip("a library under sanitizers links into programs under the same ones only")
    assert run("cmake", "--install", BUILD, "--prefix", tmp_path / "installed").returncode == 0
    shutil.copytree(SOURCE / "examples" / "consumer", tmp_path / "consumer")
    made = run("cmake", "-S", tmp_path / "consumer", "-B", tmp_path / "made", f"-DCMAKE_PREFIX_PATH={tmp_path / 'installed'}")
    assert made.returncode == 0, made.stderr
    built = run("cmake", "--build", tmp_path / "made")
    assert built.returncode == 0, built.stdout + built.stderr
    found = run(tmp_path / "made" / "consumer", bundle.path, photographs[0])
    assert found.returncode == 0, found.stderr
    with Encoder.load(bundle) as encoder:
        ((best,),) = encoder.classify([photographs[0]], 0.6, top=1)
    assert found.stdout.startswith(best.name)
    folder = next((tmp_path / "installed").rglob("pkgconfig"))
    flags = run("pkg-config", "--cflags", "--libs", "prtool", PKG_CONFIG_PATH=str(folder))
    assert "-lprtool" in flags.stdout


@pytest.mark.timeout(600)
def test_the_readmes_program_builds_and_runs(bundle: Bundle, photographs: list[Path], tmp_path: Path) -> None:
    example = (SOURCE / "README.md").read_text().split("```cpp\n")[1].split("```")[0]
    (tmp_path / "main.cpp").write_text(example)
    (tmp_path / "bundle").symlink_to(bundle.path)
    for name in ("cat.jpg", "dog.jpg"):
        shutil.copy(photographs[0], tmp_path / name)
    library = built_file("libprtool.*")
    sanitizers = next(line for line in (BUILD / "CMakeCache.txt").read_text().splitlines() if line.startswith("PRTOOL_SANITIZE:")).split("=")[1]
    if sanitizers or library.suffix == ".a":
        pytest.skip("compiled by hand, it links a shared library without sanitizers only")
    linked = [f"-L{BUILD}", "-lprtool", f"-Wl,-rpath,{BUILD}"]
    made = run("c++", "-std=c++17", tmp_path / "main.cpp", f"-I{SOURCE / 'include'}", *linked, "-o", tmp_path / "main")
    assert made.returncode == 0, made.stderr
    found = subprocess.run([tmp_path / "main"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    with Encoder.load(bundle) as encoder:
        ((best,),) = encoder.classify([photographs[0]], 0.6, top=1)
    assert (found.returncode, found.stdout) == (0, f"{best.name}\n" * 2), found.stderr
