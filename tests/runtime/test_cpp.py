"""The C++ library beside the Python package: the same bundles, the same numbers, the same refusals."""

import csv
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
from models import SIDE, TinyModel, tiny_bundle
from PIL import Image
from support import REPO

from prtool.bundle import Bundle
from prtool.errors import BundleError
from prtool.runtime.encoder import Encoder

SOURCE = REPO / "runtime" / "cpp"
BUILD = Path(os.environ.get("PRTOOL_CPP_BUILD", SOURCE / "build" / "check-gcc")).resolve()
MODELS = {
    "one location": TinyModel(),
    "three locations": TinyModel((2, 3, 4), prefix_tokens=2, appended_tokens=3),
}


def built_file(pattern: str) -> Path:
    """A built program or library; skips the test, with the reason, where there is none."""
    path = next(BUILD.glob(pattern), None)
    if path is None:
        pytest.skip(f"not built: {BUILD / pattern} ('make cpp' builds it; PRTOOL_CPP_BUILD names another build folder)")
    return path


def run(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program's end, with what it printed."""
    settings = {**os.environ, "TSAN_OPTIONS": f"suppressions={SOURCE / 'tests' / 'thread_sanitizer.txt'}", **environment}
    return subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=240, check=False, env=settings)


def engines() -> list[str]:
    """What the library was built with."""
    return run(built_file("programs/prtool-run"), "--version").stdout.split("engines: ")[1].strip().split(",")


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("cpp") / "bundle", MODELS[request.param])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise in several forms; the last file is no image."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(4)
    for number, (width, height) in enumerate([(SIDE, SIDE), (40, 31), (7, 90), (1, 1), (64, 64)]):
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        image.save(folder / f"{number}.{'png' if number % 2 else 'jpg'}")
    (folder / "broken, or not.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    return sorted(folder.iterdir())


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
    assert "5 of 6 images" in found.stderr
    readable = [path for path in photographs if "broken" not in path.name]
    assert (tmp_path / "embeddings.paths.txt").read_text().splitlines() == [str(path) for path in readable]
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
    assert [(int(row["label"]), row["class"]) for row in rows] == [(prediction.index, prediction.name) for prediction in wanted]
    np.testing.assert_allclose([float(row["probability"]) for row in rows], [prediction.probability for prediction in wanted], rtol=1e-4)


def _edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        manifest = json.loads((root / "prtool.json").read_text())
        change(manifest)
        (root / "prtool.json").write_text(json.dumps(manifest))

    return edit


def _link(root: Path) -> None:
    (root / "post.onnx").rename(root.parent / "post.onnx")
    (root / "post.onnx").symlink_to(root.parent / "post.onnx")


def _rename(name: str) -> Callable[[Path], None]:
    return _edit(lambda manifest: manifest["files"].update({name: manifest["files"].pop("post.onnx")}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no manifest": (lambda root: (root / "prtool.json").unlink(), "is not a bundle"),
    "no JSON": (lambda root: (root / "prtool.json").write_bytes(b'{"schema": 3'), "export the bundle again"),
    "nested": (lambda root: (root / "prtool.json").write_bytes(b"[" * 200_000), "export the bundle again"),
    "no UTF-8": (lambda root: (root / "prtool.json").write_bytes(b'{"schema": 3, "\xff": 1}'), "export the bundle again"),
    "other schema": (_edit(lambda manifest: manifest.update(schema=4)), "make a new one with 'prtool export'"),
    "field missing": (_edit(lambda manifest: manifest.pop("prune")), "prune"),
    "field unknown": (_edit(lambda manifest: manifest["prune"].update(speed=9)), "speed"),
    "wrong kind": (_edit(lambda manifest: manifest["model"].update(embed_dim="6")), "embed_dim"),
    "huge number": (_edit(lambda manifest: manifest["prune"].update(depth=2.5)), "depth"),
    "locations fall": (_edit(lambda manifest: manifest["prune"].update(locations=[3, 2])), "locations"),
    "changed byte": (lambda root: (root / "post.onnx").write_bytes((root / "post.onnx").read_bytes()[:-1] + b"\x00"), "was changed"),
    "shorter": (lambda root: (root / "post.onnx").write_bytes(b""), "has 0 bytes"),
    "missing": (lambda root: (root / "post.onnx").unlink(), "is missing"),
    "link": (_link, "is a link"),
    "parent": (_rename("../post.onnx"), "not a plain relative path"),
    "absolute": (_rename("/post.onnx"), "not a plain relative path"),
    "empty part": (_rename("a//post.onnx"), "not a plain relative path"),
    "backslash": (_rename("a\\post.onnx"), "not a plain relative path"),
    "graph not listed": (_edit(lambda manifest: manifest["files"].pop("fused.onnx")), "fused.onnx"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_bundles_are_refused_alike(tmp_path: Path, photographs: list[Path], damage: str) -> None:
    root = tmp_path / "bundle"
    tiny_bundle(root, TinyModel())
    break_it, words = DAMAGES[damage]
    break_it(root)
    with pytest.raises(BundleError):
        Bundle.open(root)
    found = run(built_file("programs/prtool-run"), "embed", root, photographs[0])
    assert found.returncode == 1
    assert words in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["embed"], 2, "needs a bundle"),
        (["encode", "b", "p"], 2, "must be embed or classify"),
        (["embed", "b", "p", "--fast"], 2, "no option --fast"),
        (["embed", "b", "p", "--keep"], 2, "needs a value"),
        (["embed", "b", "p", "--keep", "1"], 2, "write 1.0"),
        (["embed", "b", "p", "--keep", "most"], 2, "must be a ratio"),
        (["embed", "b", "p", "--batch", "0"], 2, "from 1 to"),
        (["embed", "b", "p", "-o", "x.txt"], 1, "must end in .npy or .csv"),
        (["embed", "b", "p", "-o", "/nowhere/x.npy"], 1, "cannot be written to"),
        (["embed", "/nowhere", "p"], 1, "is not a bundle"),
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
        ("--keep", "17"): "allows 2 to 16",
        ("--keep", "0.0"): "above 0.0",
        ("--engine", "onnx"): "must be one of ort",
        ("--precision", "fp16"): "cannot compute in fp16",
    }.items():
        found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], *options)
        assert (found.returncode, message in found.stderr) == (1, True), found.stderr
    found = run(built_file("programs/prtool-run"), "classify", bundle.path, photographs[0])
    assert "has no classes" in found.stderr


@pytest.mark.parametrize("engine", ["ort-cuda", "ort-tensorrt", "trt", "trt-rtx", "openvino"])
def test_an_engine_that_cannot_run_says_what_is_missing(bundle: Bundle, photographs: list[Path], engine: str) -> None:
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--engine", engine)
    if found.returncode == 0:
        pytest.skip(f"{engine} runs here")
    built = f"built without engine {engine}, but with {', '.join(engines())}; build it with -DPRTOOL_"
    assert (built if engine not in engines() else "NVIDIA") in found.stderr
    assert found.stdout == ""


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
    assert (found.returncode, found.stderr) == (1, "error: engine ort records no CUDA graphs; trt and trt-rtx do\n")


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
