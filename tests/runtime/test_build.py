"""`prtool build` and `prtool engine-cache`: every graph of a bundle, by the real TensorRT-RTX, which builds without a GPU."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner, Result
from models import TinyModel, tiny_bundle

import prtool
from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.engines.base import BuildOptions, EngineOptions, GraphOptions, ShapeRange
from prtool.engines.cache.store import EngineCache
from prtool.engines.profiles import choose_profile, profiles
from prtool.engines.registry import ENGINES, builder
from prtool.errors import ConfigError, EngineError, EngineUnavailable, KeepError
from prtool.progress import SilentProgress
from prtool.runtime.build import BuildReport, build_bundle
from prtool.spec import Keep

MODEL = TinyModel((2, 3), prefix_tokens=2, learnable_tokens=1)
ROLES = ["pre", "mid_1", "post", "full", "fused"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("build") / "bundle", MODEL)


@pytest.fixture
def rtx() -> str:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; pip install '.[tensorrt-rtx]'")
    return "trt-rtx"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def built(bundle: Bundle, cache: Path, rebuild: bool = False, **options: object) -> BuildReport:
    chosen = EngineOptions(cache=cache, build=BuildOptions(**options))
    return build_bundle(bundle, "trt-rtx", "fp32", chosen, SilentProgress(), rebuild=rebuild)


def test_every_image_graph_is_built_once(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    first, again, forced = built(bundle, tmp_path), built(bundle, tmp_path), built(bundle, tmp_path, rebuild=True)
    assert sorted(item.role for item in first.graphs) == sorted(ROLES)
    assert [{item.built for item in report.graphs} for report in (first, again, forced)] == [{True}, {False}, {True}]
    for item in first.graphs:
        assert Path(item.engine_file).stat().st_size == item.size
        assert item.graph == bundle.graph(item.role).file
    assert (first.engine, first.library, first.precision) == ("trt-rtx", "tensorrt_rtx", "fp32")
    assert len(EngineCache(tmp_path).entries()) == len(ROLES)


def test_graphs_without_tokens_are_taken_when_only_the_counts_change(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    built(bundle, tmp_path)
    second = built(bundle, tmp_path, keeps=(5, 9))
    assert {item.role: item.built for item in second.graphs} == {"pre": False, "full": False, "mid_1": True, "post": True, "fused": True}


@pytest.mark.parametrize("model", [TinyModel((1, 2), prefix_tokens=2, method="merge", side=6), TinyModel((), method="none", side=6)])
def test_bundles_without_stages_are_built(model: TinyModel, rtx: str, tmp_path: Path) -> None:
    """Counts of merging are read on the host; a smaller image alone has none, so that every keep has the same engine."""
    made = tiny_bundle(tmp_path / "bundle", model)
    first = built(made, tmp_path / "cache")
    assert {item.role: item.built for item in first.graphs} == {"fused": True, "full": True}
    low, high = made.manifest.keep_range
    again = built(made, tmp_path / "cache", keeps=(low, high) if low < high else (high,))
    assert {item.role: item.built for item in again.graphs} == {"fused": bool(model.locations), "full": False}


def test_without_a_gpu_the_report_says_so(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    from prtool.engines.trt import rtx as trt_rtx

    try:
        trt_rtx.probe()
    except EngineUnavailable:
        report = built(bundle, tmp_path)
        assert report.target.startswith("no device: ")
        assert report.state == "built, not run: no device"
    else:
        pytest.skip("this machine has a GPU")


@pytest.mark.parametrize("engine", [name for name, entry in ENGINES.items() if not entry.builds_ahead])
def test_engines_that_do_not_build_ahead_are_refused(bundle: Bundle, engine: str) -> None:
    with pytest.raises(ConfigError, match=rf"{engine}\b.*trt, trt-rtx"):
        build_bundle(bundle, engine, "fp32", EngineOptions(), SilentProgress())
    with pytest.raises(ConfigError, match="builds nothing ahead"):
        builder(engine)


def test_a_precision_that_the_bundle_lacks_is_refused(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"precision = 'fp16'.*fp32"):
        build_bundle(bundle, "trt-rtx", "fp16", EngineOptions(cache=tmp_path), SilentProgress())
    with pytest.raises(ConfigError, match=r"precision = 'int8'.*trt-rtx.*fp32, fp16, bf16"):
        build_bundle(bundle, "trt-rtx", "int8", EngineOptions(cache=tmp_path), SilentProgress())


@pytest.mark.parametrize("keeps", [(), (5, 9)])
def test_profiles_hold_the_counts_of_every_location(bundle: Bundle, keeps: tuple[int, ...]) -> None:
    """What a call with a kept count puts into the graphs lies in a profile, at each location."""
    built_for = profiles(bundle.manifest, BuildOptions(keeps=keeps))
    always = MODEL.prefix_tokens + MODEL.learnable_tokens
    for k in keeps or range(2, MODEL.patches + 1):
        counts = MODEL.spec.counts(Keep.count(k))
        assert len(counts) == 2
        sizes = [{"k[1]": counts[:1], "k[2]": counts[1:]}, *({"tokens": (always + count,)} for count in counts)]
        for size in sizes:
            choose_profile(built_for, size, "graph", "trt")


class Builder:
    """In place of TensorRT: notes the options that it is to build with."""

    asked: ClassVar[list[GraphOptions]] = []

    def build_target(self, device: int) -> str:
        return f"device {device}"

    def build_graph(self, _path: Path, _inputs: object, options: GraphOptions, **_: bool) -> Any:
        self.asked.append(options)
        raise EngineError("enough")


def test_arguments_of_a_build(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prtool.engines.registry.builder", lambda _: Builder())
    monkeypatch.setattr("prtool.runtime.build.builder", lambda _: Builder())
    keeps = [0.5, Keep.count(9), 8]
    for batch in ((1, 4, 16), 8):
        with pytest.raises(EngineError, match="enough"):
            prtool.build(bundle.path, engine="trt", batch=batch, keep=keeps, settings={"level": 5, "strip_weights": True, "cache": "here"})
    ranged, fixed = Builder.asked
    assert ranged.build == BuildOptions(batch=ShapeRange(1, 4, 16), keeps=(8, 9), level=5, strip_weights=True)
    assert (ranged.cache, fixed.build.batch) == (Path("here"), ShapeRange(8, 8, 8))


@pytest.mark.parametrize("batch", ["", "1:2", "a", "1:8:32:64", "-1", "1.5", "8:4:1", "0"])
def test_a_batch_that_is_no_range_is_rejected(bundle: Bundle, batch: str) -> None:
    assert run("build", "--bundle", bundle.path, "--engine", "trt", "--batch", batch).exit_code in (1, 2)


@pytest.mark.parametrize(
    ("settings", "message"), [({"batchs": 3}, "batchs"), ({"speed": 3}, "speed"), ({"level": True}, "True"), ({"level": 9}, "9")]
)
def test_unusable_settings_are_rejected(bundle: Bundle, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prtool.build(bundle.path, engine="trt", settings=settings)


def test_a_count_beyond_the_bundle_is_rejected(bundle: Bundle) -> None:
    with pytest.raises(KeepError, match="17"):
        prtool.build(bundle.path, engine="trt", keep=17)


def test_the_commands(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    cache = tmp_path / "engines"
    place, settings = ("--engine-cache", cache), ("--set", "level=1", "--set", f"cache={cache}")
    call = ("build", "--bundle", bundle.path, "--engine", rtx, "--batch", "1:2:4", "--keep", "0.5,9", *settings)
    first = run(*call, "--json")
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert [item["built"] for item in report["graphs"]] == [True] * len(ROLES)
    again = run(*call)
    assert again.exit_code == 0
    assert [item["built"] for item in json.loads(run(*call, "--json").stdout)["graphs"]] == [False] * len(ROLES)
    forced = run(*call, "--rebuild", "--set", "timing_cache=false", "--json")
    assert [item["built"] for item in json.loads(forced.stdout)["graphs"]] == [True] * len(ROLES)

    listed = json.loads(run("engine-cache", "list", *place, "--json").stdout)
    assert len(listed["engines"]) == 2 * len(ROLES)
    assert listed["mib"] > 1
    some = listed["engines"][0]["id"]
    assert some in run("engine-cache", "list", *place).stdout
    assert "1" in run("engine-cache", "clear", some, *place).output
    assert "0" in run("engine-cache", "clear", "--older-than", 1, *place).output
    refused = run("engine-cache", "clear", *place)
    assert (refused.exit_code, "--all" in refused.output) == (1, True)
    assert f"{2 * len(ROLES) - 1}" in run("engine-cache", "clear", "--all", *place).output


def test_a_damaged_engine_is_refused_until_it_is_rebuilt(bundle: Bundle, rtx: str, tmp_path: Path) -> None:
    call = ("build", "--bundle", bundle.path, "--engine", rtx, "--set", f"cache={tmp_path}")
    report = json.loads(run(*call, "--json").stdout)
    plan = Path(report["graphs"][0]["engine_file"])
    plan.write_bytes(plan.read_bytes()[:-1])
    refused = run(*call)
    assert refused.exit_code == 1
    assert str(plan) in refused.output
    assert run(*call, "--rebuild").exit_code == 0
    assert run(*call).exit_code == 0


def test_engines_and_options_that_cannot_be_used_end_with_one_line(bundle: Bundle, tmp_path: Path) -> None:
    for engine, message in (("ort", "ort"), ("trtt", "trt")):
        result = run("build", "--bundle", bundle.path, "--engine", engine)
        assert (result.exit_code, message in result.output, result.output.count("\n")) == (1, True, 1)
    assert run("build", "--bundle", bundle.path).exit_code == 2


def test_a_missing_library_has_the_pip_line(bundle: Bundle) -> None:
    try:
        import tensorrt  # noqa: F401 - whether it is there
    except (ImportError, OSError):
        result = run("build", "--bundle", bundle.path, "--engine", "trt")
        assert (result.exit_code, "pip install '.[tensorrt]'" in result.output) == (1, True)
    else:
        pytest.skip("tensorrt is installed")
