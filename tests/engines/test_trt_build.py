"""Builds with the real TensorRT-RTX, which needs no GPU for it: what is parsed, what is refused, what the cache does."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from models import TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, GraphOptions, ShapeRange
from prtool.engines.profiles import profiles, profiles_text
from prtool.errors import ConfigError, EngineError, EngineUnavailable

onnx = pytest.importorskip("onnx", reason="onnx alters the test graphs")
trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed; pip install '.[tensorrt-rtx]'")
from prtool.engines.trt import rtx as trt_rtx  # noqa: E402

MODEL = TinyModel()
TWICE = TinyModel((2, 3), prefix_tokens=2, learnable_tokens=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("trt") / "bundle", MODEL)


@pytest.fixture
def options(bundle: Bundle, tmp_path: Path) -> GraphOptions:
    return with_build(bundle, BuildOptions(), tmp_path / "cache")


def with_build(bundle: Bundle, build: BuildOptions, cache: Path) -> GraphOptions:
    return GraphOptions(cache=cache, build=build, profiles=profiles(bundle.manifest, build))


@pytest.mark.parametrize("model", [MODEL, TWICE], ids=["one location", "two locations"])
def test_every_graph_of_a_bundle_parses_and_builds(model: TinyModel, tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", model)
    options = with_build(bundle, BuildOptions(), tmp_path / "cache")
    built = {role: trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options) for role, graph in bundle.manifest.graphs["fp32"].items()}
    assert {"pre", "post", "fused", "full", "text"} <= set(built)
    assert all(item.built and item.record.size > 10_000 for item in built.values())
    assert len({item.path for item in built.values()}) == len(built)
    counts = "k 2:10:16" if model is MODEL else "k[1] 2:13:16, k[2] 2:10:16"
    assert profiles_text(built["fused"].record.key.profiles) == f"batch 1:8:32, {counts}"


def test_a_profile_for_each_count(bundle: Bundle, tmp_path: Path) -> None:
    whole, narrow = with_build(bundle, BuildOptions(), tmp_path), with_build(bundle, BuildOptions(keeps=(5, 9)), tmp_path)
    graph = bundle.graph("fused")
    first = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, whole)
    second = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, narrow)
    assert profiles_text(second.record.key.profiles) == "batch 1:8:32, k 5:5:5 | batch 1:8:32, k 9:9:9"
    assert re.search("profiles.*'batch 1:8:32, k 2:10:16'.*'batch 1:8:32, k 5:5:5 ", second.reason)
    # Two profiles are two programs in one plan.
    assert second.record.size > 1.5 * first.record.size
    pre = bundle.graph("pre")
    assert trt_rtx.build_graph(bundle.file(pre.file), pre.inputs, whole).built
    assert not trt_rtx.build_graph(bundle.file(pre.file), pre.inputs, narrow).built


def test_the_second_build_comes_from_the_cache(bundle: Bundle, options: GraphOptions) -> None:
    graph = bundle.graph("post")
    first = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options)
    again = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options)
    third = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options, rebuild=True)
    assert [item.built for item in (first, again, third)] == [True, False, True]
    key = first.record.key
    assert (key.library, key.library_version, key.precision) == ("tensorrt_rtx", trt.__version__, "fp32")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"level": 0}, "level.*'3'.*'0'"),
        ({"workspace_mib": 512}, "workspace_mib.*'0'.*'512'"),
        ({"batch": ShapeRange(1, 1, 1)}, "profiles.*'batch 1:8:32, tokens 3:11:17'.*'batch 1:1:1, tokens 3:11:17'"),
    ],
)
def test_other_options_build_again(bundle: Bundle, tmp_path: Path, change: dict[str, object], reason: str, caplog: pytest.LogCaptureFixture) -> None:
    graph = bundle.graph("post")
    trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, with_build(bundle, BuildOptions(), tmp_path))
    with caplog.at_level(logging.WARNING):
        second = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, with_build(bundle, BuildOptions(**change), tmp_path))
    assert second.built
    assert re.search(reason, second.reason)
    assert second.reason in caplog.text


def test_an_exported_again_graph_builds_again(bundle: Bundle, options: GraphOptions, tmp_path: Path) -> None:
    graph, path = bundle.graph("post"), tmp_path / "post.onnx"
    path.write_bytes(bundle.file("post.onnx").read_bytes())
    trt_rtx.build_graph(path, graph.inputs, options)
    tiny_bundle(tmp_path / "other", TinyModel(seed=5)).file("post.onnx").rename(path)
    assert "graph_sha256" in trt_rtx.build_graph(path, graph.inputs, options).reason


@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible"])
def test_an_option_that_the_library_lacks_is_refused_by_name(bundle: Bundle, tmp_path: Path, option: str) -> None:
    graph = bundle.graph("post")
    with pytest.raises(ConfigError, match=f"{option} = True"):
        trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, with_build(bundle, BuildOptions(**{option: True}), tmp_path))


def test_a_build_that_the_library_refuses_has_its_reason(bundle: Bundle, tmp_path: Path) -> None:
    """One MiB of scratch memory is less than any kernel of this graph takes."""
    graph = bundle.graph("fused")
    with pytest.raises(EngineError, match=r"fused\.onnx.*workspace"):
        trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, with_build(bundle, BuildOptions(workspace_mib=1), tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [".locks"]


def test_every_complaint_of_the_parser_is_in_the_message(bundle: Bundle, options: GraphOptions, tmp_path: Path) -> None:
    proto = onnx.load(bundle.file("post.onnx"))
    for node in proto.graph.node:
        node.op_type = {"Tanh": "Unheard"}.get(node.op_type, node.op_type)
    onnx.save(proto, tmp_path / "strange.onnx")
    with pytest.raises(EngineError, match=r"strange\.onnx.*Unheard"):
        trt_rtx.build_graph(tmp_path / "strange.onnx", bundle.graph("post").inputs, options)


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "absent"])
def test_a_damaged_graph_is_named(bundle: Bundle, options: GraphOptions, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, content = tmp_path / "damaged.onnx", bundle.file("full.onnx").read_bytes()
    if damage != "absent":
        path.write_bytes({"garbage": b"\x7f" * 500, "empty": b"", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(EngineError, match=r"damaged\.onnx"):
        trt_rtx.build_graph(path, bundle.graph("full").inputs, options)
    assert capfd.readouterr() == ("", "")


def test_a_graph_with_other_inputs_is_refused(bundle: Bundle, options: GraphOptions) -> None:
    with pytest.raises(EngineError, match="k, pixels"):
        trt_rtx.build_graph(bundle.file("fused.onnx"), bundle.graph("full").inputs, options)


def test_weights_in_a_file_of_their_own(bundle: Bundle, options: GraphOptions, tmp_path: Path) -> None:
    path = tmp_path / "post.onnx"
    onnx.save(onnx.load(bundle.file("post.onnx")), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    inputs = bundle.graph("post").inputs
    first = trt_rtx.build_graph(path, inputs, options)
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert "weights_sha256" in trt_rtx.build_graph(path, inputs, options).reason
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(EngineError, match=r"post\.onnx"):
        trt_rtx.build_graph(path, inputs, replace(options, cache=tmp_path / "other"))
    assert first.path.is_file()


def test_a_profile_that_lacks_an_axis_is_refused(bundle: Bundle, options: GraphOptions) -> None:
    graph = bundle.graph("fused")
    with pytest.raises(ConfigError, match="k"):
        trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, replace(options, profiles=()))


def without_gpu() -> bool:
    try:
        trt_rtx.probe()
    except EngineUnavailable:
        return True
    return False


def test_running_without_a_gpu_is_refused_and_building_names_it(bundle: Bundle, options: GraphOptions) -> None:
    if not without_gpu():
        pytest.skip("this machine has a GPU")
    graph = bundle.graph("pre")
    with pytest.raises(EngineUnavailable, match=r"NVIDIA driver|CUDA device|PyTorch"):
        trt_rtx.open_graph(bundle.file(graph.file), graph.inputs, options)
    assert trt_rtx.build_target(0).startswith("no device: ")
    key = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options).record.key
    assert (key.device, key.compute_capability, key.driver) == ("no device",) * 3


def test_a_plan_that_the_library_does_not_take_is_refused(bundle: Bundle, options: GraphOptions) -> None:
    """The cache holds what was written to it; a runtime that does not understand it says so (here also for want of a driver)."""
    from prtool.engines.trt.engine import _load

    graph = bundle.graph("pre")
    built = trt_rtx.build_graph(bundle.file(graph.file), graph.inputs, options)
    built.path.write_bytes(b"no plan" * 100)
    with pytest.raises(EngineError, match=r"engine\.plan"):
        _load(trt_rtx.LIBRARY, built, bundle.file(graph.file))
    import hashlib

    content = built.path.read_bytes()
    forged = replace(built, record=replace(built.record, size=len(content), sha256=hashlib.sha256(content).hexdigest()))
    with pytest.raises(EngineError, match=r"engine\.plan.*tensorrt_rtx .*--rebuild"):
        _load(trt_rtx.LIBRARY, forged, bundle.file(graph.file))
