"""The contract of every engine in the registry: the same checks, whatever the library."""

import importlib.metadata
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from models import EMBED, SIDE, TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import BuildOptions, DeviceEngine, Engine, EngineOptions, GraphOptions, Profile, ShapeRange, check_outputs
from prtool.engines.profiles import profiles
from prtool.engines.registry import ENGINES, list_engines, open_engine
from prtool.errors import ConfigError, EngineError, EngineUnavailable, ShapeError
from prtool.manifest import GraphSpec, TensorSpec
from prtool.runtime.pipeline import Graphs
from prtool.runtime.select import gather, select

MODEL = TinyModel()
Opener = Callable[..., Engine]
# For engines that compile ahead: every size that a test asks for.
RANGES = {"batch": ShapeRange(1, 2, 8), "tokens": ShapeRange(2, 10, 19)} | dict.fromkeys(("k", "k[1]", "k[2]", "k[3]"), ShapeRange(1, 9, 16))
PROGRESSIVE = TinyModel((2, 3, 4), prefix_tokens=2, learnable_tokens=1)
REDUCED = {
    "merge": TinyModel((1, 2, 3), prefix_tokens=2, method="merge"),
    "merge at 6 px": TinyModel((1,), method="merge", side=6),
    "none": TinyModel((), method="none", side=6),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("engines") / "bundle", MODEL)


@pytest.fixture(scope="module")
def progressive(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("engines") / "progressive", PROGRESSIVE)


@pytest.fixture(scope="module", params=REDUCED)
def reduced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyModel, Bundle]:
    model = REDUCED[request.param]
    return model, tiny_bundle(tmp_path_factory.mktemp("engines") / "reduced", model)


# Engines that take seconds to minutes for their first call.
SLOW = ("torch-compile",)
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in sorted(ENGINES)]


@pytest.fixture(params=NAMES)
def engine_name(request: pytest.FixtureRequest) -> str:
    reasons = {status.name: status.reason for status in list_engines()}
    if reasons[request.param]:
        pytest.skip(reasons[request.param])
    return str(request.param)


@pytest.fixture
def opener(engine_name: str, bundle: Bundle, tmp_path: Path) -> Iterator[Opener]:
    """Opens one role of the bundle; closes it after the test."""
    yield from openings(engine_name, bundle, tmp_path)


@pytest.fixture
def progressive_opener(engine_name: str, progressive: Bundle, tmp_path: Path) -> Iterator[Opener]:
    """The same of a bundle with three locations and learnable tokens."""
    yield from openings(engine_name, progressive, tmp_path)


@pytest.fixture
def reduced_opener(engine_name: str, reduced: tuple[TinyModel, Bundle], tmp_path: Path) -> Iterator[Opener]:
    """The same of a bundle that merges patches, or takes smaller images alone."""
    yield from openings(engine_name, reduced[1], tmp_path, profiles(reduced[1].manifest, BuildOptions(batch=ShapeRange(1, 2, 8))))


def openings(engine_name: str, bundle: Bundle, tmp_path: Path, ranges: tuple[Profile, ...] = (RANGES,)) -> Iterator[Opener]:
    opened: list[Engine] = []
    usual = GraphOptions(threads=2, cache=tmp_path / "engines", profiles=ranges)

    def open_role(role: str, path: Path | None = None, options: GraphOptions | None = None) -> Engine:
        graph = bundle.graph(role)
        opened.append(open_engine(engine_name, path or bundle.file(graph.file), graph.inputs, options or usual))
        return opened[-1]

    yield open_role
    for engine in opened:
        engine.close()


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


def test_outputs_equal_numpy_at_every_batch_and_count(opener: Opener) -> None:
    engine = opener("fused")
    for batch, k in ((1, 1), (3, 5), (2, 16), (1, 9)):
        pixels = MODEL.pixels(batch, seed=k)
        outputs = engine.run({"pixels": pixels, "k": counted(k)})
        assert set(outputs) == {"embedding"}
        assert outputs["embedding"].dtype == np.float32
        np.testing.assert_allclose(outputs["embedding"], MODEL.embed(pixels, (k,)), atol=1e-5)


def test_a_count_for_each_location(progressive_opener: Opener) -> None:
    engine = progressive_opener("fused")
    for batch, counts in ((1, (16, 16, 16)), (3, (12, 8, 4)), (2, (5, 5, 1))):
        pixels = PROGRESSIVE.pixels(batch, seed=batch)
        outputs = engine.run({"pixels": pixels, "k": np.array(counts, np.int64)})
        np.testing.assert_allclose(outputs["embedding"], PROGRESSIVE.embed(pixels, counts), atol=1e-5)
    with pytest.raises(ShapeError, match=r"k has shape \(2,\)"):
        engine.run({"pixels": PROGRESSIVE.pixels(1), "k": np.array([8, 4], np.int64)})


def test_merging_and_smaller_images_equal_numpy(reduced_opener: Opener, reduced: tuple[TinyModel, Bundle]) -> None:
    """Merging has its counts at run time; a smaller image alone has none; FULL reads the native size."""
    model, bundle = reduced
    fused, full, (low, high) = reduced_opener("fused"), reduced_opener("full"), bundle.manifest.keep_range
    for batch, k in ((1, low), (3, high), (2, (low + high) // 2)):
        pixels, counts = model.pixels(batch, seed=k), model.spec.counts(k)
        inputs = {"pixels": pixels, "k": np.array(counts, np.int64)} if counts else {"pixels": pixels}
        np.testing.assert_allclose(fused.run(inputs)["embedding"], model.embed(pixels, counts), atol=1e-5)
        native = model.pixels(batch, seed=k, side=SIDE)
        np.testing.assert_allclose(full.run({"pixels": native})["embedding"], model.embed_full(native), atol=1e-5)
    with pytest.raises(ShapeError, match="pixels" if model.locations else "k"):
        fused.run({"pixels": model.pixels(1)} if model.locations else {"pixels": model.pixels(1), "k": np.array([9], np.int64)})


def test_stages_in_a_row_equal_numpy(progressive_opener: Opener) -> None:
    """PRE, two middle graphs at lengths of their own, and POST; selection between them is the runtime's."""
    pixels, counts = PROGRESSIVE.pixels(3), (11, 7, 2)
    outputs, name = progressive_opener("pre").run({"pixels": pixels}), "tokens"
    for role, k in zip(("mid_1", "mid_2", "post"), counts, strict=True):
        outputs, name = progressive_opener(role).run({"tokens": gather(outputs[name], select(outputs["scores"], k), 2, 1)}), "tokens_out"
        if role != "post":
            assert {output: array.shape for output, array in outputs.items()} == {"tokens_out": (3, 3 + k, 12), "scores": (3, k)}
    np.testing.assert_allclose(outputs["embedding"], PROGRESSIVE.embed(pixels, counts), atol=1e-5)


def test_every_output_is_named(opener: Opener) -> None:
    outputs = opener("pre").run({"pixels": MODEL.pixels(2)})
    assert {name: array.shape for name, array in outputs.items()} == {"tokens": (2, 17, 12), "scores": (2, 16)}
    np.testing.assert_allclose(outputs["scores"], MODEL.scores(MODEL.pixels(2)), atol=1e-5)


def test_integer_inputs(opener: Opener) -> None:
    ids = np.arange(14, dtype=np.int64).reshape(2, 7) % 11
    np.testing.assert_allclose(opener("text").run({"tokens": ids})["embedding"], MODEL.embed_text(ids), atol=1e-5)


def test_outputs_belong_to_the_caller(opener: Opener) -> None:
    engine = opener("full")
    first = engine.run({"pixels": MODEL.pixels(1, seed=1)})["embedding"]
    copy = first.copy()
    engine.run({"pixels": MODEL.pixels(1, seed=2)})
    np.testing.assert_array_equal(first, copy)
    first += 1.0


def test_memory_order_does_not_matter(opener: Opener) -> None:
    engine, pixels = opener("full"), MODEL.pixels(2)
    channels_last = np.asfortranarray(pixels)
    assert not channels_last.flags.c_contiguous
    np.testing.assert_array_equal(engine.run({"pixels": channels_last})["embedding"], engine.run({"pixels": pixels})["embedding"])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((1, 3, SIDE, SIDE)), r"float64.*astype\('float32'\)"),
        (np.zeros((1, 3, SIDE, SIDE), ">f4"), "dtype"),
        (np.zeros((3, SIDE, SIDE), np.float32), r"\(3, 8, 8\).*\(batch, 3, 8, 8\)"),
        (np.zeros((1, 3, SIDE, SIDE + 1), np.float32), r"\(1, 3, 8, 9\)"),
        (np.zeros((0, 3, SIDE, SIDE), np.float32), "pixels"),
    ],
)
def test_wrong_arrays_are_refused(opener: Opener, pixels: np.ndarray, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        opener("full").run({"pixels": pixels})


@pytest.mark.parametrize("names", [[], ["image"], ["pixels", "k"]])
def test_wrong_names_are_refused(opener: Opener, names: Sequence[str]) -> None:
    with pytest.raises(ShapeError, match="pixels"):
        opener("full").run({name: MODEL.pixels(1) for name in names})


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("k", [17, -1])
def test_a_failure_inside_the_graph_is_mapped(opener: Opener, k: int, threads: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """An engine that compiled for a range of counts rejects others before the graph runs; the call after a failure is right again."""
    engine = opener("fused", options=GraphOptions(threads=threads, cache=tmp_path / "engines", profiles=(RANGES,)))
    usual = {"pixels": MODEL.pixels(2), "k": counted(5)}
    before = engine.run(usual)["embedding"]
    with pytest.raises((EngineError, ShapeError), match=r"fused\.onnx") as caught:
        engine.run({"pixels": MODEL.pixels(1), "k": counted(k)})
    assert isinstance(caught.value, ShapeError) or caught.value.__cause__ is not None
    assert str(caught.value).isprintable()
    np.testing.assert_array_equal(engine.run(usual)["embedding"], before)
    assert capfd.readouterr() == ("", "")


UNLIKE_DECLARED = {
    "name": TensorSpec("features", "float32", ("batch", EMBED)),
    "dtype": TensorSpec("embedding", "float64", ("batch", EMBED)),
    "rank": TensorSpec("embedding", "float32", ("batch", EMBED, 1)),
    "width": TensorSpec("embedding", "float32", ("batch", EMBED + 1)),
    "batch": TensorSpec("embedding", "float32", (3, EMBED)),
}


@pytest.mark.parametrize("difference", UNLIKE_DECLARED)
def test_outputs_unlike_the_declared_ones_are_rejected(engine_name: str, bundle: Bundle, tmp_path: Path, difference: str) -> None:
    full = replace(bundle.graph("full"), outputs=(UNLIKE_DECLARED[difference],))
    manifest = replace(bundle.manifest, graphs={"fp32": {**bundle.manifest.graphs["fp32"], "full": full}})
    graphs = Graphs(replace(bundle, manifest=manifest), engine_name, "fp32", EngineOptions(threads=1, cache=tmp_path / "engines"))
    pixels, engine = MODEL.pixels(2), graphs.engine("full")
    with pytest.raises(EngineError, match=r"full\.onnx.*embedding"):
        graphs.run("full", {"pixels": pixels})
    if isinstance(engine, DeviceEngine):
        with pytest.raises(EngineError, match=r"full\.onnx.*embedding"):
            graphs.run("full", {"pixels": engine.arrays.to_device(pixels)}, on_device=True)
    graphs.close()


def test_outputs_have_the_batch_of_the_inputs() -> None:
    graph = GraphSpec(
        "x.onnx", (TensorSpec("a", "float32", ("batch", 3)),), (TensorSpec("b", "float32", ("batch", "n")), TensorSpec("c", "int64", ("n",)))
    )
    given = {"a": np.zeros((2, 3), np.float32)}
    check_outputs(graph, given, {"b": np.zeros((2, 4), np.float32), "c": np.zeros(4, np.int64)})
    for b, c in ((np.zeros((1, 4), np.float32), np.zeros(4, np.int64)), (np.zeros((2, 4), np.float32), np.zeros(5, np.int64)), ([], "text")):
        with pytest.raises(EngineError, match=r"x\.onnx.* [bc] "):
            check_outputs(graph, given, {"b": b, "c": c})


def test_many_threads_give_what_one_gives(opener: Opener) -> None:
    engine = opener("fused")
    calls = [{"pixels": MODEL.pixels(1 + i % 3, seed=i), "k": counted(1 + i % 16)} for i in range(25)]
    serial = [engine.run(call)["embedding"] for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for results in pool.map(lambda _: [engine.run(call)["embedding"] for call in calls], range(8)):
            for parallel, alone in zip(results, serial, strict=True):
                np.testing.assert_allclose(parallel, alone, atol=1e-6)


def test_a_closed_engine_fails_and_closes_twice(opener: Opener) -> None:
    engine = opener("full")
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"pixels": MODEL.pixels(1)})


@pytest.mark.parametrize("spinning", [True, False])
def test_options_change_no_result(opener: Opener, spinning: bool) -> None:
    engine = opener("full", options=GraphOptions(threads=1, spinning=spinning))
    np.testing.assert_allclose(engine.run({"pixels": MODEL.pixels(2)})["embedding"], MODEL.embed(MODEL.pixels(2), (16,)), atol=1e-5)


def test_info_names_what_runs(opener: Opener, engine_name: str) -> None:
    info = opener("full").info
    assert info.name == engine_name
    assert info.version
    assert info.device


def test_a_missing_file_is_named(opener: Opener, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"absent\.onnx"):
        opener("full", path=tmp_path / "absent.onnx")


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated"])
def test_a_damaged_file_is_named(opener: Opener, bundle: Bundle, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "damaged.onnx"
    content = bundle.file("full.onnx").read_bytes()
    path.write_bytes({"garbage": b"\x7f" * 500, "empty": b"", "truncated": content[: len(content) // 2]}[damage])
    with pytest.raises(EngineError, match=r"damaged\.onnx") as caught:
        opener("full", path=path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


def test_a_file_with_other_inputs_is_refused(opener: Opener, bundle: Bundle, tmp_path: Path) -> None:
    shutil.copy(bundle.file("fused.onnx"), tmp_path / "full.onnx")
    with pytest.raises(EngineError, match="k, pixels"):
        opener("full", path=tmp_path / "full.onnx")


@pytest.mark.parametrize("name", [name for name, entry in ENGINES.items() if not entry.has_gpu])
def test_an_engine_of_the_cpu_takes_no_gpu_number(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"device = 1.*{name}.*torch"):
        open_engine(name, tmp_path / "a.onnx", (), GraphOptions(device=1))


def test_unknown_engine_lists_all_and_near_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine = 'orrt'.*ort.*ort"):
        open_engine("orrt", tmp_path / "x.onnx", (), GraphOptions())


def test_missing_library_names_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(ENGINES["ort"], module="prtool.engines.absent", install="pip install absent")
    monkeypatch.setattr("prtool.engines.registry.ENGINES", {"absent": entry})
    with pytest.raises(EngineUnavailable, match="pip install absent"):
        open_engine("absent", tmp_path / "x.onnx", (), GraphOptions())
    (status,) = list_engines()
    assert status.info is None
    assert "pip install" in status.reason


def test_available_reports_the_library_version() -> None:
    status = next(item for item in list_engines() if item.name == "ort")
    assert status.info is not None
    assert status.info.version == importlib.metadata.version("onnxruntime")
    assert status.reason == ""
