"""The C++ library's engine cache beside the Python package's: one folder, one digest, one lock, one record."""

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from support import REPO

from prtool.engines.base import BuildOptions, ShapeRange
from prtool.engines.cache.key import EngineKey, onnx_digest
from prtool.engines.cache.record import ENGINE_FILE, RECORD_FILE, default_root
from prtool.engines.cache.store import EngineCache
from prtool.engines.trt.engine import _builder_text
from prtool.engines.trt.shapes import profiles_text
from prtool.errors import EngineError

BUILD = Path(os.environ.get("PRTOOL_CPP_BUILD", REPO / "runtime" / "cpp" / "build" / "check-gcc")).resolve()
KEY = EngineKey(
    "1" * 64, "fp16", "batch 1:8:32, k 2:10:16", "recipe=1 level=3", "tensorrt", "11.4.0.12", "NVIDIA H200", "9.0", "580.65.06, CUDA 13.0"
)
PLAN = "plan" * 1000
KEYS = {
    "a usual one": KEY,
    "without a GPU": EngineKey("2" * 64, "fp32", "", "", "tensorrt_rtx", "1.7.1.116"),
    "letters of other scripts": dataclasses.replace(KEY, device="NVIDIA G\u00e9Force \u2122 \u4e2d\U0001f600"),
    "quotes and controls": dataclasses.replace(KEY, driver='a"b\\c/d\n\t\r\b\f\x01\x1f\x7f\x80', builder="'"),
}


class Probe:
    """The test program over the C++ cache."""

    def __init__(self) -> None:
        self._path = BUILD / "tests" / "prtool-cache-probe"
        if not self._path.exists():
            pytest.skip(f"not built: {self._path} ('make cpp' builds it; PRTOOL_CPP_BUILD names another build folder)")

    def start(self, *words: object, key: EngineKey | None = None) -> "subprocess.Popen[str]":
        """The program at work; `obtain` says "building" on stderr once it builds."""
        running = subprocess.Popen([self._path, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert running.stdin
        running.stdin.write(json.dumps(dataclasses.asdict(key)) if key else "")
        running.stdin.close()
        running.stdin = None  # communicate() would flush it
        return running

    def ask(self, *words: object, key: EngineKey | None = None) -> object:
        """Its answer."""
        return answer(self.start(*words, key=key))

    def refusal(self, *words: object, key: EngineKey) -> str:
        """What it says where it refuses."""
        running = self.start(*words, key=key)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 1, said
        return said.strip()


def answer(running: "subprocess.Popen[str]") -> object:
    found, said = running.communicate(timeout=60)
    assert running.returncode == 0, said
    return json.loads(found)


@pytest.fixture(scope="module")
def probe() -> Probe:
    return Probe()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "engines"


def writes(path: Path) -> None:
    path.write_text(PLAN)


def refuses(path: Path) -> None:
    pytest.fail(f"{path} should have been taken from the cache")


@pytest.mark.parametrize("name", KEYS)
def test_digests_are_the_same(probe: Probe, name: str) -> None:
    assert probe.ask("digest", key=KEYS[name]) == KEYS[name].digest


@pytest.mark.parametrize("name", KEYS)
def test_what_python_built_is_taken(probe: Probe, root: Path, name: str) -> None:
    built = EngineCache(root).obtain(KEYS[name], writes, source="/b\u00fcndel/pre.onnx")
    assert probe.ask("obtain", root, "", "other", 0, key=KEYS[name]) == {
        "path": str(built.path),
        "built": False,
        "reason": "in the cache",
        "content": PLAN,
        "seconds": built.record.seconds,
    }


@pytest.mark.parametrize("name", KEYS)
def test_what_cpp_built_is_taken(probe: Probe, root: Path, name: str) -> None:
    probe.ask("obtain", root, "/b\u00fcndel/pre.onnx", PLAN, 5, key=KEYS[name])
    cache = EngineCache(root)
    found = cache.obtain(KEYS[name], refuses)
    assert found.read().decode() == PLAN
    assert found.record.source == "/b\u00fcndel/pre.onnx"
    assert isinstance(found.record.seconds, float)
    (entry,) = cache.entries()
    assert entry.problem == ""
    assert cache.clear([KEYS[name].digest]).removed == (KEYS[name].digest,)


def test_records_are_the_same_but_for_time(probe: Probe, tmp_path: Path) -> None:
    texts = []
    for root in (tmp_path / "python", tmp_path / "cpp"):
        if root.name == "python":
            EngineCache(root).obtain(KEYS["quotes and controls"], writes, source="/pre.onnx")
        else:
            probe.ask("obtain", root, "/pre.onnx", PLAN, 0, key=KEYS["quotes and controls"])
        folder = root / KEYS["quotes and controls"].digest
        lines = (folder / RECORD_FILE).read_text().splitlines()
        texts.append([line for line in lines if '"seconds"' not in line and '"built_at"' not in line])
        assert len(texts[-1]) == len(lines) - 2
        assert {path.name for path in folder.iterdir()} == {ENGINE_FILE, RECORD_FILE}
    assert texts[0] == texts[1]


def test_both_explain_a_new_build_alike(probe: Probe, root: Path) -> None:
    probe.ask("obtain", root, "/pre.onnx", PLAN, 0, key=KEY)
    changed = dataclasses.replace(KEY, driver="600.1", onnx_sha256="3" * 64)
    reason = "stale: onnx_sha256 changed from '111111111111' to '333333333333', driver changed from '580.65.06, CUDA 13.0' to '600.1'"
    found = probe.ask("obtain", root, "/pre.onnx", PLAN, 0, key=changed)
    assert isinstance(found, dict)
    assert found["reason"] == reason
    EngineCache(root).clear([changed.digest])
    assert EngineCache(root).obtain(changed, writes, source="/pre.onnx").reason == reason


def cut_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).write_text(PLAN[:-1])


def change_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).write_text(PLAN.replace("plan", "plaN", 1))


def lose_plan(folder: Path) -> None:
    (folder / ENGINE_FILE).unlink()


def lose_record(folder: Path) -> None:
    (folder / RECORD_FILE).unlink()


def change_key(folder: Path) -> None:
    value = json.loads((folder / RECORD_FILE).read_text())
    value["key"]["device"] = "another"
    (folder / RECORD_FILE).write_text(json.dumps(value))


def more_fields(folder: Path) -> None:
    value = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps({**value, "more": 1}))


def no_size(folder: Path) -> None:
    value = json.loads((folder / RECORD_FILE).read_text())
    (folder / RECORD_FILE).write_text(json.dumps({**value, "size": "16"}))


def no_object(folder: Path) -> None:
    (folder / RECORD_FILE).write_text("[1]")


DAMAGES = (cut_plan, change_plan, lose_plan, lose_record, change_key, more_fields, no_size, no_object)


@pytest.mark.parametrize("damage", DAMAGES)
def test_both_refuse_damage_in_the_same_words(probe: Probe, root: Path, damage: Callable[[Path], None]) -> None:
    cache = EngineCache(root)
    damage(cache.obtain(KEY, writes).path.parent)
    with pytest.raises(EngineError) as refused:
        cache.obtain(KEY, refuses)
    assert probe.refusal("obtain", root, "", "other", 0, key=KEY) == str(refused.value)


def test_both_refuse_torn_json(probe: Probe, root: Path) -> None:
    cache = EngineCache(root)
    (cache.obtain(KEY, writes).path.parent / RECORD_FILE).write_text('{"schema": 1,')
    with pytest.raises(EngineError, match=r"build.json"):
        cache.obtain(KEY, refuses)
    assert "build.json" in probe.refusal("obtain", root, "", "other", 0, key=KEY)


def test_cpp_waits_for_python(probe: Probe, root: Path) -> None:
    (root / ".locks").mkdir(parents=True)
    with FileLock(root / ".locks" / f"{KEY.digest}.lock"):
        running = probe.start("obtain", root, "", PLAN, 0, key=KEY)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        assert not (root / KEY.digest).exists()
    found = answer(running)
    assert isinstance(found, dict)
    assert found["built"] is True


def test_python_waits_for_cpp(probe: Probe, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    running = probe.start("obtain", root, "", PLAN, 700, key=KEY)
    assert running.stderr
    assert running.stderr.readline() == "building\n"
    found = EngineCache(root).obtain(KEY, refuses)
    assert found.read().decode() == PLAN
    assert [KEY.digest in message for message in caplog.messages] == [True]
    answer(running)


def test_many_programs_build_once(probe: Probe, root: Path) -> None:
    found = [answer(running) for running in [probe.start("obtain", root, "", PLAN, 200, key=KEY) for _ in range(4)]]
    assert sorted(isinstance(one, dict) and one["built"] for one in found) == [False, False, False, True]


def test_both_find_the_engine_used_last(probe: Probe, root: Path) -> None:
    cache = EngineCache(root)
    keys = [dataclasses.replace(KEY, profiles=f"batch 1:{n}:9") for n in (2, 3)]
    for key in keys:
        cache.obtain(key, writes)
    assert probe.ask("latest", root, key=KEY) == keys[1].profiles
    cache.obtain(keys[0], refuses)
    last = cache.latest(KEY, ignoring=("profiles", "builder"))
    assert last is not None
    assert probe.ask("latest", root, key=KEY) == last.key.profiles == keys[0].profiles
    probe.ask("obtain", root, "", "", 0, key=keys[1])
    last = cache.latest(KEY, ignoring=("profiles", "builder"))
    assert last is not None
    assert probe.ask("latest", root, key=KEY) == last.key.profiles == keys[1].profiles
    assert probe.ask("latest", root, key=dataclasses.replace(KEY, precision="bf16")) is None


@pytest.mark.parametrize(
    "names", [(), (b"w.data",), (b"b", b"a", b"b"), (b"missing",), ("w\u00e4\u4e2d.data".encode(),), (b"no\xff",), (b"tab\t",), (b"",)]
)
def test_digests_of_graphs_are_the_same(probe: Probe, tmp_path: Path, names: tuple[bytes, ...]) -> None:
    graph = tmp_path / "g.onnx"
    graph.write_bytes(b"\x08\x0a" + b"".join(b"\x0a\x08location\x12" + bytes([len(name)]) + name for name in names) + b"\x0a\x08locati")
    for name in set(names) - {b"missing", b""}:
        (tmp_path / os.fsdecode(name)).write_bytes(b"weights of " + name)
    assert probe.ask("onnx", graph) == onnx_digest(graph)


def test_words_are_the_same(probe: Probe) -> None:
    profiles = ({"k": ShapeRange(2, 10, 16), "batch": ShapeRange(1, 8, 32)}, {"batch": ShapeRange(1, 1, 1)})
    text = profiles_text(profiles)
    assert probe.ask("recipe", text) == {"profiles": text, "builder": _builder_text(BuildOptions())}


@pytest.mark.parametrize("chosen", ["", "relative/folder", "/absolute/folder"])
def test_the_usual_folder_is_the_same(probe: Probe, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", chosen)
    assert probe.ask("root") == str(default_root())
