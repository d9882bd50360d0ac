"""Encoders and other processes: a forked child says what to do and ends cleanly, a pickled encoder loads itself again."""

import importlib.util
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import SIDE, TinyModel, tiny_bundle
from support import REPO

from prtool.engines.base import EngineOptions
from prtool.errors import BundleError, EngineError
from prtool.runtime.encoder import Encoder

MODEL = TinyModel()
FORK = """
import os, signal, sys
import numpy as np
from prtool.engines.base import EngineOptions
from prtool.errors import EngineError
from prtool.runtime.encoder import Encoder
bundle, engine, what = sys.argv[1:]
pixels = np.zeros((4, 3, {side}, {side}), np.float32)
def load():
    return Encoder.load(bundle, engine=engine, options=EngineOptions(threads=2))
encoder = load()
expected = encoder.encode_pixels(pixels)
if (child := os.fork()) == 0:
    signal.alarm(20)
    try:
        if what != "nothing":
            result = (load() if what == "new" else encoder).encode_pixels(pixels)
            print("equal" if np.array_equal(result, expected) else "different")
    except EngineError as error:
        print(error)
    encoder.close()
    sys.exit(0)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
np.testing.assert_array_equal(encoder.encode_pixels(pixels), expected)
print("status", status)
"""
ENGINES = ["ort", "openvino", pytest.param("torch", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("processes") / "bundle", MODEL).path


def forked(bundle: Path, engine: str, what: str) -> list[str]:
    """What the child printed, and the status with which it ended; the parent's encoder works all the while."""
    if not hasattr(os, "fork"):
        pytest.skip("this system has no fork")
    library = {"ort": "onnxruntime"}.get(engine, engine)
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(REPO), os.environ.get("PYTHONPATH", "")))}
    command = [sys.executable, "-c", FORK.format(side=SIDE), str(bundle), engine, what]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.splitlines()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder_that_was_forked_says_what_to_do(bundle: Path, engine: str) -> None:
    message, status = forked(bundle, engine, "use")
    assert "spawn" in message
    assert status == "status 0"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_ends_cleanly(bundle: Path, engine: str) -> None:
    assert forked(bundle, engine, "nothing") == ["status 0"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_new_encoder_in_a_forked_child(bundle: Path, engine: str) -> None:
    message, status = forked(bundle, engine, "new")
    assert message == "equal" if engine == "ort" else f"engine {engine} " in message
    assert status == "status 0"


@pytest.mark.parametrize("mode", ["fused", "split", "full"])
def test_a_pickled_encoder_loads_itself_when_it_is_used(bundle: Path, mode: str) -> None:
    pixels = MODEL.pixels(3)
    with Encoder.load(bundle, mode=mode, options=EngineOptions(threads=1, cache=bundle / "cache")) as encoder:
        again = pickle.loads(pickle.dumps(encoder))
        assert again.manifest == encoder.manifest
        np.testing.assert_array_equal(again.encode_pixels(pixels), encoder.encode_pixels(pixels))
        assert again.info == encoder.info
        assert [item.name for item in again.classify([np.zeros((9, 9, 3), np.uint8)])[0]]
        again.close()
        with pytest.raises(EngineError, match="closed"):
            again.encode_pixels(pixels)
        unused = pickle.loads(pickle.dumps(encoder))
        unused.close()
        with pytest.raises(EngineError, match="closed"):
            unused.encode_pixels(pixels)


def test_a_pickled_encoder_takes_no_other_bundle(tmp_path: Path) -> None:
    with Encoder.load(tiny_bundle(tmp_path / "bundle", MODEL).path) as encoder:
        pickled = pickle.dumps(encoder)
    shutil.rmtree(tmp_path / "bundle")
    tiny_bundle(tmp_path / "bundle", TinyModel(seed=1))
    with pytest.raises(BundleError):
        pickle.loads(pickled).encode_pixels(MODEL.pixels(1))


def test_a_relative_path_is_pickled_absolute(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(bundle.parent)
    with Encoder.load(bundle.name) as encoder:
        pickled = pickle.dumps(encoder)
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickled).encode_pixels(MODEL.pixels(1)).shape == (1, 6)


def test_a_spawned_process(bundle: Path) -> None:
    with Encoder.load(bundle) as encoder, multiprocessing.get_context("spawn").Pool(1) as pool:
        pixels = MODEL.pixels(2)
        np.testing.assert_array_equal(pool.apply(encoder.encode_pixels, (pixels, 5)), encoder.encode_pixels(pixels, 5))


@pytest.mark.slow
def test_joblib(bundle: Path) -> None:
    joblib = pytest.importorskip("joblib", reason="joblib is not installed")
    with Encoder.load(bundle) as encoder:
        batches = [MODEL.pixels(2, seed=seed) for seed in range(4)]
        found = joblib.Parallel(n_jobs=2, backend="loky")(joblib.delayed(encoder.encode_pixels)(pixels) for pixels in batches)
        for result, pixels in zip(found, batches, strict=True):
            np.testing.assert_array_equal(result, encoder.encode_pixels(pixels))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "torch"])
def test_a_data_loader(bundle: Path, engine: str) -> None:
    data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    images = [np.full((9, 9, 3), 20 * number, np.uint8) for number in range(6)]
    with Encoder.load(bundle, engine=engine) as encoder:
        loader = data.DataLoader(images, batch_size=3, num_workers=2, collate_fn=encoder.encode_images, multiprocessing_context="spawn")
        np.testing.assert_allclose(np.concatenate(list(loader)), encoder.encode_images(images), atol=1e-6)
