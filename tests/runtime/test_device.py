"""The device pipeline: the same embeddings as numpy, recorded once a batch and keep, without a copy through the host."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
import device_fakes  # noqa: E402
from models import SIDE, TinyModel, tiny_bundle  # noqa: E402

from prtool.bundle import Bundle  # noqa: E402
from prtool.engines.base import EngineOptions  # noqa: E402
from prtool.engines.registry import ENGINES  # noqa: E402
from prtool.errors import EngineError, KeepError, ShapeError  # noqa: E402
from prtool.runtime.encoder import Encoder  # noqa: E402
from prtool.runtime.pipeline import modes_of  # noqa: E402
from prtool.runtime.recorder import MAX_RECORDINGS, Recorder  # noqa: E402
from prtool.runtime.select import select  # noqa: E402
from prtool.spec import Keep  # noqa: E402

MODELS = {
    "one location": TinyModel(),
    "three locations": TinyModel((2, 3, 4), prefix_tokens=2, learnable_tokens=1),
    "merge": TinyModel((1, 2, 3), prefix_tokens=2, method="merge"),
    "none": TinyModel((), method="none", side=6),
}
MODES = ["fused", "split", "full"]
WAYS = [(name, mode) for name, model in MODELS.items() for mode in modes_of(model.spec)]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: tiny_bundle(tmp_path_factory.mktemp("device") / "bundle", model) for name, model in MODELS.items()}


@pytest.fixture
def arrays(monkeypatch: pytest.MonkeyPatch) -> Iterator[device_fakes.FakeGpuArrays]:
    """A registry with the engine "fake-gpu", and its arrays with all counts at 0."""
    entry = replace(ENGINES["torch"], module="device_fakes")
    monkeypatch.setattr("prtool.engines.registry.ENGINES", {**ENGINES, "fake-gpu": entry})
    monkeypatch.setattr(device_fakes, "ARRAYS", device_fakes.FakeGpuArrays())
    monkeypatch.setattr(device_fakes.FakeGpuEngine, "runs", [])
    return device_fakes.ARRAYS


def expected(model: TinyModel, pixels: np.ndarray, mode: str, k: int) -> np.ndarray:
    if mode == "full":
        return model.embed_full(pixels)
    return model.embed(pixels, model.spec.counts(k) if model.locations else ())


@pytest.mark.parametrize(("name", "mode"), WAYS)
@pytest.mark.parametrize("engine", ["torch", "fake-gpu"])
def test_every_way_equals_numpy(bundles: dict[str, Bundle], arrays: object, name: str, mode: str, engine: str) -> None:
    """Each size three times: plain, recorded, replayed; with other pixels each time."""
    model = MODELS[name]
    side = SIDE if mode == "full" else model.side
    with Encoder.load(bundles[name], engine=engine, mode=mode) as encoder:
        for seed in range(3):
            for batch, k in ((1, 5), (3, 5), (2, 16), (3, 9)):
                pixels, keep = model.pixels(batch, seed=10 * seed + k, side=side), None if mode == "full" or not model.locations else k
                wanted = expected(model, pixels, mode, k)
                np.testing.assert_allclose(encoder.encode_pixels(pixels, keep), wanted, atol=1e-5)
                result = encoder.encode_device(torch.from_numpy(pixels), keep)
                assert isinstance(result, torch.Tensor)
                np.testing.assert_allclose(result.numpy(), wanted, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_replay_runs_the_whole_chain_as_one(bundles: dict[str, Bundle], arrays: device_fakes.FakeGpuArrays, mode: str) -> None:
    """The fake runs the graphs inside a replay; outside of one, only the first call and the recording do."""
    chain = {"fused": ["fused.onnx"], "split": ["pre.onnx", "post.onnx"], "full": ["full.onnx"]}[mode]
    pixels = MODELS["one location"].pixels(2)
    with Encoder.load(bundles["one location"], engine="fake-gpu", mode=mode) as encoder:
        runs = device_fakes.FakeGpuEngine.runs
        encoder.encode_pixels(pixels)
        assert (runs, arrays.captures, arrays.replays) == (chain, 0, 0)
        encoder.encode_pixels(pixels)
        assert (runs, arrays.captures, arrays.replays) == (chain * 3, 1, 1)
        encoder.encode_pixels(pixels)
        assert (runs, arrays.captures, arrays.replays) == (chain * 4, 1, 2)
        assert arrays.waits == 1
        encoder.encode_pixels(MODELS["one location"].pixels(3))
        assert (arrays.captures, arrays.replays) == (1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_results_belong_to_the_caller(bundles: dict[str, Bundle], arrays: object, mode: str) -> None:
    model = MODELS["one location"]
    with Encoder.load(bundles["one location"], engine="fake-gpu", mode=mode) as encoder:
        inputs = [torch.from_numpy(model.pixels(2, seed=seed)) for seed in range(5)]
        results = [encoder.encode_device(pixels) for pixels in inputs]
        for pixels, result in zip(inputs, results, strict=True):
            np.testing.assert_allclose(result.numpy(), expected(model, pixels.numpy(), mode, 10), atol=1e-5)
        kept = results[-1].clone()
        inputs[-1].zero_()
        results[0].zero_()
        encoder.encode_device(inputs[0])
        torch.testing.assert_close(results[-1], kept, rtol=0, atol=0)


def test_many_threads_and_sizes(bundles: dict[str, Bundle], arrays: device_fakes.FakeGpuArrays) -> None:
    model = MODELS["three locations"]
    calls = [(model.pixels(1 + i % 3, seed=i), 2 + i % 5) for i in range(30)]
    with Encoder.load(bundles["three locations"], engine="fake-gpu", mode="split") as encoder:

        def encode(call: tuple[np.ndarray, int]) -> np.ndarray:
            return encoder.encode_pixels(*call)

        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                for (pixels, k), found in zip(calls, pool.map(encode, calls), strict=True):
                    np.testing.assert_allclose(found, expected(model, pixels, "split", k), atol=1e-5)
    assert arrays.replays > 0


def test_recordings_are_bounded_and_freed_when_the_device_is_done(arrays: device_fakes.FakeGpuArrays) -> None:
    recorder = Recorder(arrays, lambda pixels, counts: pixels * counts[0], most=2)
    pixels = torch.ones(2, 3)
    for k in (1, 2, 3, 1, 2, 3):
        assert recorder(pixels, (k,)).tolist() == [[float(k)] * 3] * 2
    # Each was forgotten before it came again.
    assert (arrays.captures, arrays.synchronisations) == (0, 0)
    for k in (3, 2, 3, 3):
        recorder(pixels, (k,))
    assert arrays.captures == 2
    recorder(pixels, (5,))
    assert arrays.synchronisations == 1
    recorder(pixels, (3,))
    assert arrays.captures == 2
    recorder.clear()
    assert arrays.synchronisations == 2
    assert recorder(pixels, (3,)).tolist() == [[3.0] * 3] * 2
    assert arrays.captures == 2
    assert MAX_RECORDINGS > 1


def test_stages_wait_for_the_device_and_give_numpy(bundles: dict[str, Bundle], arrays: device_fakes.FakeGpuArrays) -> None:
    model = MODELS["three locations"]
    pixels = model.pixels(2)
    with Encoder.load(bundles["three locations"], engine="fake-gpu", mode="split") as encoder:
        steps = encoder.stages(pixels, 4)
        for number in range(1, 8):
            stage = next(steps)
            assert arrays.synchronisations == number
            assert all(isinstance(array, np.ndarray) for array in stage.tensors.values())
        assert (stage.name, sorted(stage.tensors), len(stage.tensors)) == ("post", ["embedding"], 1)
        np.testing.assert_allclose(stage.tensors["embedding"], expected(model, pixels, "split", 4), atol=1e-5)
        assert [stage.name for stage in encoder.stages(pixels, 4)] == ["pre", "select_1", "mid_1", "select_2", "mid_2", "select_3", "post"]
        np.testing.assert_allclose(encoder.scores(pixels), model.scores(pixels), atol=1e-5)
        np.testing.assert_array_equal(next(encoder.stages(pixels, 4)).tensors["scores"].argmax(axis=1), select(encoder.scores(pixels), 1)[:, 0])
        assert encoder.kept(pixels, 4)[-1].tolist() == [model.kept(image.astype(np.float64), model.spec.counts(Keep.count(4))) for image in pixels]


@pytest.mark.parametrize("engine", ["torch", "fake-gpu"])
@pytest.mark.parametrize("mode", MODES)
def test_wrong_input_is_refused_and_leaves_nothing_behind(bundles: dict[str, Bundle], arrays: object, engine: str, mode: str) -> None:
    model = MODELS["one location"]
    with Encoder.load(bundles["one location"], engine=engine, mode=mode) as encoder:
        for _ in range(3):
            for wrong in (torch.zeros(1, 3, 8, 9), torch.zeros(1, 3, 8, 8, dtype=torch.float64), torch.zeros(0, 3, 8, 8), torch.zeros(3, 8, 8)):
                with pytest.raises(ShapeError):
                    encoder.encode_device(wrong)
            with pytest.raises(ShapeError):
                encoder.encode_device("cat.jpg")
            with pytest.raises(KeepError):
                encoder.encode_device(torch.zeros(1, 3, 8, 8), 17)
        assert encoder.encode_device(torch.from_numpy(model.pixels(1))).shape == (1, 6)


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_encoder_replays_nothing(bundles: dict[str, Bundle], arrays: device_fakes.FakeGpuArrays, mode: str) -> None:
    pixels = torch.from_numpy(MODELS["one location"].pixels(1))
    encoder = Encoder.load(bundles["one location"], engine="fake-gpu", mode=mode)
    for _ in range(3):
        encoder.encode_device(pixels)
    encoder.close()
    encoder.close()
    assert arrays.synchronisations == 1
    with pytest.raises(EngineError, match="closed"):
        encoder.encode_device(pixels)


def test_an_engine_of_the_host_says_so(bundles: dict[str, Bundle]) -> None:
    with Encoder.load(bundles["one location"], engine="ort") as encoder, pytest.raises(EngineError, match="ort"):
        encoder.encode_device(torch.zeros(1, 3, 8, 8))


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "mode"), WAYS)
def test_on_cuda_every_way_equals_numpy(tmp_path: Path, name: str, mode: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    model = MODELS[name]
    bundle = tiny_bundle(tmp_path / "bundle", model)
    with Encoder.load(bundle, engine="torch", mode=mode, options=EngineOptions()) as encoder:
        assert "cuda:0" in encoder.info.device
        for seed in range(4):
            for batch in (1, 3):
                pixels = model.pixels(batch, seed=seed, side=SIDE if mode == "full" else model.side)
                with torch.cuda.stream(torch.cuda.Stream()):
                    result = encoder.encode_device(torch.from_numpy(pixels).cuda())
                    np.testing.assert_allclose(result.cpu().numpy(), expected(model, pixels, mode, 10), atol=1e-5)
