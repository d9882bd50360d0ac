"""The engine cache: what makes an engine stale, what is refused, and many builders at once."""

import dataclasses
import errno
import hashlib
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from prtool.engines.base import ShapeRange
from prtool.engines.cache import store as cache_module
from prtool.engines.cache.record import ENGINE_FILE, NO_DEVICE, RECORD_FILE, EngineKey, default_root, graph_digests
from prtool.engines.cache.store import EngineCache
from prtool.engines.cache.view import CacheView, clear
from prtool.errors import ConfigError, EngineError, StorageError
from prtool.graphs.signature import WEIGHTS_NAME

KEY = EngineKey(
    *("1" * 64, "2" * 64, "fp32"),
    profiles=({"batch": ShapeRange(1, 8, 32)},),
    options={"level": 3, "strip_weights": False},
    builder="1",
    library="tensorrt",
    library_version="11.4",
    device="NVIDIA H200",
    compute_capability="9.0",
    driver="580.65",
    system="Linux",
    architecture="x86_64",
)
TEXTS = [item.name for item in dataclasses.fields(EngineKey) if item.name not in ("profiles", "options")]
PLAN = b"plan" * 1000


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def writes(content: bytes = PLAN) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.write_bytes(content)

    return build


def refuses(path: Path) -> None:
    pytest.fail(f"{path} should have been taken from the cache")


def test_what_was_built_is_taken_next_time(cache: EngineCache) -> None:
    first = cache.obtain(KEY, writes(), source="pre.onnx")
    again = cache.obtain(dataclasses.replace(KEY), refuses, source="pre.onnx")
    assert (first.built, again.built) == (True, False)
    assert first.path == again.path
    assert again.read() == PLAN
    assert again.record == first.record


def test_the_record_describes_the_file(cache: EngineCache) -> None:
    built = cache.obtain(KEY, writes(), source="/bundle/pre.onnx")
    value = json.loads((built.path.parent / RECORD_FILE).read_text())
    assert value["schema"] == 1
    assert value["key"]["profiles"] == [{"batch": {"min": 1, "opt": 8, "max": 32}}]
    assert value["key"]["options"] == {"level": 3, "strip_weights": False}
    assert {name: value["key"][name] for name in TEXTS} == {name: getattr(KEY, name) for name in TEXTS}
    assert (value["size"], value["source"]) == (len(PLAN), "/bundle/pre.onnx")
    assert subprocess.run(["sha256sum", built.path], capture_output=True, text=True, check=True).stdout.split()[0] == value["sha256"]


@pytest.mark.parametrize("field", TEXTS)
def test_every_field_of_the_key_makes_a_new_engine_and_says_so(cache: EngineCache, field: str, caplog: pytest.LogCaptureFixture) -> None:
    cache.obtain(KEY, writes(), source="pre.onnx")
    changed = dataclasses.replace(KEY, **{field: "another"})
    with caplog.at_level(logging.WARNING):
        second = cache.obtain(changed, writes(b"other"), source="pre.onnx")
    assert second.built
    assert re.search(f"{field} .*{re.escape(str(getattr(KEY, field))[:12])}.*'another'", second.reason)
    (message,) = caplog.messages
    assert "pre.onnx" in message and second.reason in message
    assert cache.obtain(KEY, refuses).read() == PLAN


def test_other_shapes_and_options_make_a_new_engine_and_say_so(cache: EngineCache) -> None:
    cache.obtain(KEY, writes(), source="pre.onnx")
    wide = cache.obtain(dataclasses.replace(KEY, profiles=({"batch": ShapeRange(1, 8, 64)},)), writes(), source="pre.onnx")
    assert wide.reason == "stale: profiles changed from 'batch 1:8:32' to 'batch 1:8:64'"
    fast = cache.obtain(dataclasses.replace(KEY, options={"level": 5, "strip_weights": False}), writes(), source="pre.onnx")
    assert fast.reason == "stale: level changed from '3' to '5'"


def test_the_nearest_earlier_engine_explains(cache: EngineCache) -> None:
    cache.obtain(dataclasses.replace(KEY, driver="1", device="2", precision="3"), writes(), source="a.onnx")
    cache.obtain(dataclasses.replace(KEY, driver="570.10"), writes(), source="a.onnx")
    cache.obtain(dataclasses.replace(KEY, builder="0"), writes(), source="b.onnx")
    assert re.search(r"driver .*'570\.10'.*'580\.65'", cache.obtain(KEY, writes(), source="a.onnx").reason)


def test_another_graph_is_no_reason(cache: EngineCache) -> None:
    cache.obtain(dataclasses.replace(KEY, driver="570.10"), writes(), source="a.onnx")
    assert "570.10" not in cache.obtain(KEY, writes(), source="b.onnx").reason


def test_keys_without_a_device_say_so() -> None:
    key = EngineKey("1" * 64, "", "fp32", (), {}, "1", "tensorrt_rtx", "1.7")
    assert (key.device, key.compute_capability, key.driver) == (NO_DEVICE,) * 3
    assert key.system
    assert key.architecture


def test_rebuild_builds_again(cache: EngineCache) -> None:
    cache.obtain(KEY, writes())
    again = cache.obtain(KEY, writes(b"new"), rebuild=True)
    assert (again.built, again.read()) == (True, b"new")
    assert cache.obtain(KEY, refuses).read() == b"new"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda plan: plan.write_bytes(PLAN[:100]), r"engine\.plan.* 100 bytes.* 4000"),
        (lambda plan: plan.write_bytes(b"x" + PLAN[1:]), r"engine\.plan.*SHA-256"),
        (lambda plan: plan.unlink(), r"engine\.plan"),
        (lambda plan: (plan.parent / RECORD_FILE).unlink(), r"build\.json"),
        (lambda plan: (plan.parent / RECORD_FILE).write_text("{"), r"build\.json"),
        (lambda plan: (plan.parent / RECORD_FILE).write_text("[]"), r"build\.json"),
        (lambda plan: (plan.parent / RECORD_FILE).write_bytes(b"[" * 100_000), r"build\.json"),
    ],
)
def test_a_damaged_engine_is_refused(cache: EngineCache, damage: Callable[[Path], object], message: str) -> None:
    plan = cache.obtain(KEY, writes()).path
    damage(plan)
    with pytest.raises(EngineError, match=message) as caught:
        cache.obtain(KEY, refuses)
    assert f"prtool engine-cache clear {KEY.digest} --engine-cache {cache.root}" in str(caught.value)
    assert "--rebuild" in str(caught.value)
    assert cache.obtain(KEY, writes(), rebuild=True).read() == PLAN


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "SHA-256"),
        ({"size": 4001}, "4000 bytes.* 4001"),
        ({"size": "4000"}, r"build\.json"),
        ({"key": {**dataclasses.asdict(KEY), "device": "another"}}, "key"),
        ({"key": {**dataclasses.asdict(KEY), "device": 3}}, r"build\.json"),
        ({"key": {**dataclasses.asdict(KEY), "profiles": [{"batch": {"min": 2, "opt": 1, "max": 3}}]}}, "2:1:3"),
        ({"key": {**dataclasses.asdict(KEY), "profiles": [{"batch": 3}]}}, r"build\.json"),
        ({"key": {**dataclasses.asdict(KEY), "options": {"level": "3"}}}, r"build\.json"),
        ({"key": {name: "" for name in TEXTS}}, r"build\.json"),
        ({"key": []}, r"build\.json"),
        ({"more": 1}, r"build\.json"),
    ],
)
def test_an_altered_record_is_refused(cache: EngineCache, change: dict[str, object], message: str) -> None:
    path = cache.obtain(KEY, writes()).path.parent / RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(EngineError, match=message):
        cache.obtain(KEY, refuses)
    (entry,) = cache.entries()
    assert (entry.record is None) == bool(entry.problem)


def test_a_record_of_another_schema_is_stale(cache: EngineCache) -> None:
    path = cache.obtain(KEY, writes()).path.parent / RECORD_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 0}))
    again = cache.obtain(KEY, writes())
    assert again.built and "schema 1" in again.reason


def test_bytes_that_change_after_the_check_are_refused(cache: EngineCache) -> None:
    found = cache.obtain(KEY, writes())
    found.path.write_bytes(b"x" * len(PLAN))
    with pytest.raises(EngineError, match=r"engine\.plan"):
        found.read()
    found.path.unlink()
    with pytest.raises(EngineError, match=r"engine\.plan"):
        found.read()


def test_a_failed_build_leaves_nothing(cache: EngineCache) -> None:
    def fails(path: Path) -> None:
        path.write_bytes(b"half")
        raise EngineError("no tactic")

    with pytest.raises(EngineError, match="no tactic"):
        cache.obtain(KEY, fails)
    with pytest.raises(EngineError, match="wrote nothing"):
        cache.obtain(KEY, writes(b""))
    assert [path.name for path in cache.root.iterdir()] == [".locks"]


def test_a_full_disk_leaves_nothing(cache: EngineCache) -> None:
    def fills(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=r"engine\.plan"):
        cache.obtain(KEY, fills)
    assert [path.name for path in cache.root.iterdir()] == [".locks"]
    assert cache.obtain(KEY, writes()).built


def test_a_disk_that_fills_at_the_record_leaves_nothing(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_module, "write_json", full)
    with pytest.raises(StorageError, match="engine"):
        cache.obtain(KEY, writes())
    assert cache.entries() == []
    assert [path.name for path in cache.root.iterdir()] == [".locks"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        EngineCache(tmp_path / "file" / "engines").obtain(KEY, writes())


def test_a_read_only_cache_serves_what_it_has(cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.obtain(KEY, writes())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(FileLock, "acquire", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert cache.obtain(KEY, refuses).read() == PLAN
    with pytest.raises(StorageError, match="read-only"):
        cache.obtain(dataclasses.replace(KEY, driver="1"), writes())


BUILDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_cache import KEY
from prtool.engines.cache.store import EngineCache
import logging
logging.basicConfig(stream=sys.stderr)

def build(path):
    with open({log!r}, "a") as stream:
        stream.write("built\\n")
    Path({started!r}).touch()
    while not Path({go!r}).exists():
        time.sleep(0.01)
    path.write_bytes(b"from a process")

found = EngineCache(Path({root!r})).obtain(KEY, build)
print(found.built, found.read().decode())
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_of_two_processes_one_builds_and_the_other_takes_its_result(tmp_path: Path) -> None:
    root, log, started, go = (tmp_path / name for name in ("engines", "log", "started", "go"))
    names = {"tests": str(Path(__file__).parent), "log": str(log), "started": str(started), "go": str(go), "root": str(root)}
    program = [sys.executable, "-c", BUILDER.format(**names)]
    errors = tmp_path / "second"
    with (
        errors.open("w") as stream,
        subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as first,
    ):
        wait_for(started.exists)
        with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=stream, text=True) as second:
            wait_for(lambda: "waiting for it" in errors.read_text())
            busy = EngineCache(root).clear([KEY.digest])
            go.touch()
            answers = sorted([first.communicate()[0].strip(), second.communicate()[0].strip()])
    assert busy.busy == (KEY.digest,)
    assert answers == ["False from a process", "True from a process"]
    assert log.read_text() == "built\n"


def test_of_many_threads_one_builds(cache: EngineCache) -> None:
    builds: list[int] = []

    def build(path: Path) -> None:
        builds.append(1)
        time.sleep(0.05)
        path.write_bytes(PLAN)

    threads = [threading.Thread(target=cache.obtain, args=(KEY, build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == [1]


def test_a_killed_build_is_swept_by_the_next(cache: EngineCache) -> None:
    left = cache.root / f".{KEY.digest}.0123abcd.part"
    left.mkdir(parents=True)
    (left / ENGINE_FILE).write_bytes(b"half")
    assert cache.entries() == []
    cache.obtain(KEY, writes())
    assert not left.exists()


def test_entries_are_listed_the_last_used_first(cache: EngineCache) -> None:
    other = dataclasses.replace(KEY, precision="fp16")
    for key, used in ((KEY, 1000.0), (other, 2000.0)):
        folder = cache.obtain(key, writes()).path.parent
        for path in folder.iterdir():
            os.utime(path, (used, used))
    assert [entry.digest for entry in cache.entries()] == [other.digest, KEY.digest]
    cache.obtain(KEY, refuses)
    first, second = cache.entries()
    assert (first.digest, second.digest) == (KEY.digest, other.digest)
    assert first.record is not None
    assert first.record.key == KEY
    assert first.size == sum(path.stat().st_size for path in (cache.root / KEY.digest).iterdir())
    assert clear(cache, days=1).removed == (other.digest,)


def test_the_latest_of_several_builds(cache: EngineCache) -> None:
    for place, profiles in enumerate(shapes := (({"batch": ShapeRange(1, 8, 64)},), ({"batch": ShapeRange(1, 1, 1)},))):
        folder = cache.obtain(dataclasses.replace(KEY, profiles=profiles), writes()).path.parent
        for path in folder.iterdir():
            os.utime(path, (1000 - place, 1000 - place))
    assert cache.latest(dataclasses.replace(KEY, options={"level": 0})) == dataclasses.replace(KEY, profiles=shapes[0])
    assert cache.latest(dataclasses.replace(KEY, driver="1")) is None


def test_the_ones_used_longest_ago_go_beyond_a_size(cache: EngineCache) -> None:
    keys = [dataclasses.replace(KEY, driver=str(place)) for place in range(4)]
    for place, key in enumerate(keys):
        folder = cache.obtain(key, writes()).path.parent
        for path in folder.iterdir():
            os.utime(path, (place + 1, place + 1))
    size = cache.entries()[0].size
    assert clear(cache, max_mib=(2 * size + 10) / (1 << 20)).removed == (keys[1].digest, keys[0].digest)
    assert clear(cache, max_mib=0).removed == (keys[3].digest, keys[2].digest)


def test_clearing(cache: EngineCache) -> None:
    other = dataclasses.replace(KEY, precision="fp16")
    for key in (KEY, other):
        cache.obtain(key, writes())
    assert cache.clear([KEY.digest, "0" * 32, "../.."]).removed == (KEY.digest,)
    assert [entry.digest for entry in cache.entries()] == [other.digest]
    (cache.root / f".{KEY.digest}.0123abcd.part").mkdir()
    cache.timing_folder.mkdir()
    assert cache.clear_all().removed == (other.digest, KEY.digest)
    assert [path.name for path in cache.root.iterdir()] == [".locks"]
    assert EngineCache(cache.root / "absent").clear_all().removed == ()


def test_clearing_leaves_what_is_not_the_caches(cache: EngineCache) -> None:
    cache.obtain(KEY, writes())
    theirs = [cache.root / "notes.txt", cache.root / ("a" * 32) / "thesis.txt", cache.timing_folder / "race.csv"]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert cache.clear_all().removed == (KEY.digest,)
    assert cache.clear(["a" * 32]).removed == ()
    assert [path.read_text() for path in theirs] == ["mine"] * 3


def test_default_root_follows_the_custom_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "prtool" / "engines"
    for unusable in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        monkeypatch.setattr(sys, "platform", "linux")
        assert default_root() == Path.home() / ".cache" / "prtool" / "engines"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert default_root() == Path.home() / "Library" / "Caches" / "prtool" / "engines"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert default_root() == tmp_path / "prtool" / "engines"


def test_the_digests_of_a_graph_and_its_weights(tmp_path: Path) -> None:
    graph, weights = tmp_path / "pre.onnx", tmp_path / WEIGHTS_NAME
    graph.write_bytes(b"graph")
    assert graph_digests(graph) == (hashlib.sha256(b"graph").hexdigest(), "")
    weights.write_bytes(b"one")
    assert graph_digests(graph)[1] == hashlib.sha256(b"one").hexdigest()
    weights.write_bytes(b"three")
    assert graph_digests(graph)[1] == hashlib.sha256(b"three").hexdigest()
    with pytest.raises(EngineError, match=r"post\.onnx"):
        graph_digests(tmp_path / "post.onnx")


def test_the_view_shows_whole_and_damaged_engines(cache: EngineCache) -> None:
    cache.obtain(KEY, writes(), source="/bundle/pre.onnx")
    broken = cache.obtain(dataclasses.replace(KEY, precision="fp16"), writes()).path.parent
    (broken / RECORD_FILE).write_text("{")
    view = CacheView(cache.root, tuple(cache.entries()))
    columns, rows = view.table()
    by_id = {row[0]: dict(zip(columns, row, strict=True)) for row in rows}
    assert by_id[KEY.digest]["graph"] == "/bundle/pre.onnx"
    assert by_id[KEY.digest]["device"] == "NVIDIA H200"
    assert "build.json" in by_id[broken.name]["graph"]
    assert {item["id"]: bool(item["problem"]) for item in json.loads(json.dumps(view.to_json()))["engines"]} == {KEY.digest: False, broken.name: True}
    assert clear(cache, [broken.name]).removed == (broken.name,)


def test_what_to_clear_must_be_said(cache: EngineCache) -> None:
    cache.obtain(KEY, writes())
    with pytest.raises(ConfigError, match=r"--older-than.*--max-mib.*--all"):
        clear(cache)
    with pytest.raises(ConfigError, match="id = 'abc'"):
        clear(cache, ["abc"])
    assert clear(cache, days=1).removed == ()
    assert clear(cache, max_mib=1).removed == ()
    assert clear(cache, days=0, max_mib=0).removed == (KEY.digest,)
    assert clear(cache, everything=True).removed == ()
