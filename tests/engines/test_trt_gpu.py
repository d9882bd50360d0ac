"""TensorRT on a GPU: whole calls, device arrays, recording and limits, against plain numpy."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from models import TinyModel, tiny_bundle

from prtool.engines.base import BuildOptions, DeviceEngine, EngineOptions, ShapeRange
from prtool.engines.registry import list_engines
from prtool.errors import EngineError, ShapeError
from prtool.runtime.pipeline import Graphs

pytestmark = pytest.mark.gpu
MODEL = TinyModel()


@pytest.fixture(params=["trt", "trt-rtx"])
def graphs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Graphs]:
    reason = next(status.reason for status in list_engines() if status.name == request.param)
    if reason:
        pytest.skip(reason)
    build = BuildOptions(batch=ShapeRange(1, 2, 4))
    bundle = tiny_bundle(tmp_path / "bundle", MODEL)
    opened = Graphs(bundle, request.param, "fp32", EngineOptions(cache=tmp_path / "cache", build=build))
    yield opened
    opened.close()


def device(graphs: Graphs, role: str) -> DeviceEngine:
    engine = graphs.engine(role)
    assert isinstance(engine, DeviceEngine)
    return engine


def counted(k: int) -> np.ndarray:
    return np.array([k], np.int64)


def test_fused_at_every_batch_and_count(graphs: Graphs) -> None:
    for batch, k in ((1, 2), (4, 5), (2, 16), (1, 9), (4, 5)):
        pixels = MODEL.pixels(batch, seed=k)
        np.testing.assert_allclose(graphs.run("fused", {"pixels": pixels, "k": counted(k)})["embedding"], MODEL.embed(pixels, (k,)), atol=1e-5)


def test_split_stays_on_the_device(graphs: Graphs) -> None:
    pre, post = device(graphs, "pre"), device(graphs, "post")
    arrays, pixels = pre.arrays, MODEL.pixels(3)
    outputs = pre.run_device({"pixels": arrays.to_device(pixels)})
    tokens = arrays.gather(outputs["tokens"], arrays.select(outputs["scores"], 5), 1, 0)
    embedding = arrays.to_host(post.run_device({"tokens": tokens})["embedding"])
    np.testing.assert_allclose(embedding, MODEL.embed(pixels, (5,)), atol=1e-5)


def test_a_recording_gives_what_a_call_gives(graphs: Graphs) -> None:
    engine = device(graphs, "fused")
    static = engine.arrays.to_device(MODEL.pixels(2, seed=1))
    recording = engine.arrays.capture(lambda: engine.run_device({"pixels": static, "k": counted(5)})["embedding"])
    other = MODEL.pixels(2, seed=2)
    static[...] = engine.arrays.to_device(other)
    np.testing.assert_allclose(engine.arrays.to_host(recording()), MODEL.embed(other, (5,)), atol=1e-5)
    np.testing.assert_allclose(engine.run({"pixels": other, "k": counted(5)})["embedding"], MODEL.embed(other, (5,)), atol=1e-5)


def test_many_threads(graphs: Graphs) -> None:
    engine = graphs.engine("fused")
    failures: list[str] = []

    def work(seed: int) -> None:
        for step in range(20):
            pixels, k = MODEL.pixels(1 + step % 4, seed=seed), 2 + (seed + step) % 15
            if not np.allclose(engine.run({"pixels": pixels, "k": counted(k)})["embedding"], MODEL.embed(pixels, (k,)), atol=1e-5):
                failures.append(f"seed {seed}, step {step}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_calls_outside_and_after_close_are_refused(graphs: Graphs) -> None:
    engine = graphs.engine("fused")
    with pytest.raises(ShapeError, match="batch = 5"):
        engine.run({"pixels": MODEL.pixels(5), "k": counted(5)})
    with pytest.raises(ShapeError, match="k = 17"):
        engine.run({"pixels": MODEL.pixels(1), "k": counted(17)})
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.run({"pixels": MODEL.pixels(1), "k": counted(5)})


def test_weights_put_back_give_the_same(graphs: Graphs, tmp_path: Path) -> None:
    build = BuildOptions(batch=ShapeRange(1, 2, 4), strip_weights=True)
    options = EngineOptions(cache=tmp_path / "stripped", build=build)
    stripped = Graphs(graphs.bundle, graphs.engine("full").info.name, "fp32", options)
    pixels = MODEL.pixels(2)
    np.testing.assert_allclose(stripped.run("full", {"pixels": pixels})["embedding"], MODEL.embed(pixels, (16,)), atol=1e-5)
    stripped.close()
