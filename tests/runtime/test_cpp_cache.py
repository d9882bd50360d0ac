"""Engine files that the Python package built, found by the C++ library."""

import dataclasses
import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from models import TinyModel, tiny_bundle
from support import REPO

from prtool.engines.base import EngineOptions, ShapeRange
from prtool.engines.cache.record import ENGINE_FILE, RECORD_FILE, EngineKey, default_root, graph_digests
from prtool.engines.cache.store import EngineCache
from prtool.errors import EngineError
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.progress import SilentProgress
from prtool.runtime.build import build_bundle

BUILD = Path(os.environ.get("PRTOOL_CPP_BUILD", REPO / "runtime" / "cpp" / "build" / "check-gcc")).resolve()
KEY = EngineKey(
    *("1" * 64, "", "fp16"),
    profiles=({"batch": ShapeRange(1, 8, 32), "k": ShapeRange(2, 10, 16)},),
    options={"level": 3, "strip_weights": False, "version_compatible": True},
    builder="1",
    library="tensorrt",
    library_version="11.4.0.12",
    device="NVIDIA H200",
    compute_capability="9.0",
    driver="580.65.06, CUDA 13.0",
)
PLAN = "plan" * 1000
COMMAND = "prtool build --engine trt"


class Probe:
    """The test program over the C++ library's search."""

    def __init__(self) -> None:
        self._path = BUILD / "tests" / "prtool-plan-probe"
        if not self._path.exists():
            pytest.skip(f"not built: {self._path} ('make cpp' builds it; PRTOOL_CPP_BUILD names another build folder)")

    def run(self, *words: object, given: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([self._path, *map(str, words)], check=False, input=json.dumps(given or {}), capture_output=True, text=True, timeout=60)

    def ask(self, *words: object, given: Mapping[str, str] | None = None) -> object:
        """Its answer."""
        found = self.run(*words, given=given)
        assert found.returncode == 0, found.stderr
        return json.loads(found.stdout)

    def error(self, root: Path, key: EngineKey = KEY) -> str:
        """What it says where it finds nothing that it loads."""
        found = self.run("find", root, COMMAND, given=texts(key))
        assert (found.returncode, found.stdout) == (1, ""), found.stderr
        return found.stderr.strip()


def texts(key: EngineKey) -> dict[str, str]:
    """The fields that both languages compare."""
    return {name: value for name, value in dataclasses.asdict(key).items() if name not in ("profiles", "options")}


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def writes(path: Path) -> None:
    path.write_text(PLAN)


@pytest.mark.parametrize("change", [{}, {"device": "NVIDIA G\u00e9Force \u2122 \u4e2d\U0001f600"}, {"driver": 'a"b\\c/d\n\t\x01\x7f\x80'}])
def test_what_python_wrote_is_found(probe: Probe, root: Path, change: dict[str, str]) -> None:
    key = dataclasses.replace(KEY, **change)
    built = EngineCache(root).obtain(key, writes, source="/b\u00fcndel/pre.onnx")
    assert probe.ask("find", root, COMMAND, given=texts(key)) == {
        "path": str(built.path),
        "sha256": hashlib.sha256(PLAN.encode()).hexdigest(),
        "profiles": "batch 1:8:32, k 2:10:16",
        "version_compatible": True,
        "strip_weights": False,
    }


@pytest.mark.parametrize("change", [{"driver": "600.1"}, {"precision": "bf16"}, {"graph_sha256": "3" * 64}])
def test_another_key_is_named_with_the_command(probe: Probe, root: Path, change: dict[str, str]) -> None:
    EngineCache(root).obtain(KEY, writes)
    said = probe.error(root, dataclasses.replace(KEY, **change))
    ((name, value),) = change.items()
    assert all(part in said for part in (name, value[:32], getattr(KEY, name)[:32], COMMAND))


def test_both_take_the_engine_used_last(probe: Probe, root: Path) -> None:
    cache = EngineCache(root)
    keys = [dataclasses.replace(KEY, profiles=({"batch": ShapeRange(1, n, 9)},)) for n in (2, 3)]
    for place, key in enumerate(keys):
        folder = cache.obtain(key, writes).path.parent
        for path in folder.iterdir():
            os.utime(path, (1000 + place, 1000 + place))
    for last, text in ((keys[1], "batch 1:3:9"), (keys[0], "batch 1:2:9")):
        os.utime(root / last.digest / RECORD_FILE)
        found = probe.ask("find", root, COMMAND, given=texts(KEY))
        assert isinstance(found, dict)
        assert (found["profiles"], cache.latest(KEY)) == (text, last)


def cut_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).write_text(PLAN[:-1])


def change_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).write_text(PLAN.replace("plan", "plaN", 1))


def lose_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).unlink()


def lose_record(folder: Path) -> None:
    (folder / RECORD_FILE).unlink()


def more_fields(folder: Path) -> None:
    value = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps({**value, "more": 1}))


def torn(folder: Path) -> None:
    (folder / RECORD_FILE).write_text('{"schema": 1,')


@pytest.mark.parametrize("damage", [cut_plan, change_plan, lose_plan, lose_record, more_fields, torn])
def test_neither_loads_what_is_damaged(probe: Probe, root: Path, damage: Callable[[Path], None]) -> None:
    cache = EngineCache(root)
    folder = cache.obtain(KEY, writes).path.parent
    damage(folder)
    with pytest.raises(EngineError, match=folder.name):
        cache.obtain(KEY, writes)
    assert folder.name in probe.error(root)


@pytest.mark.parametrize("weights", [b"", b"weights"])
def test_keys_of_graphs_are_the_same(probe: Probe, tmp_path: Path, weights: bytes) -> None:
    graph = tmp_path / "pre.onnx"
    graph.write_bytes(b"graph")
    if weights:
        (tmp_path / WEIGHTS_NAME).write_bytes(weights)
    given = {name: value for name, value in texts(KEY).items() if name in ("precision", "library", "library_version", "device")}
    found = probe.ask("key", graph, given=given)
    key = dataclasses.replace(KEY, graph_sha256=graph_digests(graph)[0], weights_sha256=graph_digests(graph)[1])
    assert found == {name: value for name, value in texts(key).items() if name not in ("compute_capability", "driver")}


def test_what_tensorrt_rtx_built_is_found(probe: Probe, root: Path, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; pip install '.[tensorrt-rtx]'")
    bundle = tiny_bundle(tmp_path / "bundle", TinyModel())
    report = build_bundle(bundle, "trt-rtx", "fp32", EngineOptions(cache=root), SilentProgress())
    for graph in report.graphs:
        record = json.loads((Path(graph.engine_file).parent / RECORD_FILE).read_text())
        given = {name: record["key"][name] for name in ("device", "compute_capability", "driver")}
        key = probe.ask(
            "key", bundle.file(graph.graph), given={**given, "precision": "fp32", "library": "tensorrt_rtx", "library_version": trt.__version__}
        )
        assert isinstance(key, dict)
        found = probe.ask("find", root, COMMAND, given=key)
        assert isinstance(found, dict)
        assert (found["path"], found["sha256"]) == (graph.engine_file, record["sha256"])


@pytest.mark.parametrize("chosen", ["", "relative/folder", "/absolute/folder"])
def test_the_default_folder_is_the_same(probe: Probe, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    assert probe.ask("root") == str(default_root())
