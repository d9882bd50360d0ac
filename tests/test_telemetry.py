"""No library that prtool imports connects to anything or writes into HOME; counted in child processes, at the level of libc."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from models import SIDE, TinyModel, tiny_bundle
from support import REPO

HERE = Path(__file__).parent
ENCODE = """
import time
import numpy as np
from prtool.runtime.encoder import Encoder
with Encoder.load({bundle!r}, engine={engine!r}) as encoder:
    encoder.encode_pixels(np.zeros((1, 3, {side}, {side}), np.float32))
    encoder.encode_text(["a photo of a cat"])
time.sleep(1)  # reports are sent by threads
"""
COMMAND = "from prtool.cli.main import main\nmain({arguments!r})"
EXPORT = """
from pathlib import Path
from export_sources import make_source
from prtool.export.write import ExportOptions, write_bundle
from prtool.progress import SilentProgress
from prtool.spec import Keep
write_bundle(make_source("cls", classes=True), Path({out!r}), ExportOptions(Keep.ratio(0.6)), SilentProgress())
"""


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that counts connections and look-ups of names."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("counting connections needs Linux and a C compiler")
    library = tmp_path_factory.mktemp("guard") / "connections.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(HERE / "connections.c"), "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("telemetry") / "bundle", TinyModel()).path


def traces(guard: Path, tmp_path: Path, code: str, **variables: str) -> tuple[list[str], list[str]]:
    """Connections and look-ups of a child process, and the files that it left in an empty HOME."""
    home, log = tmp_path / "home", tmp_path / "connections"
    home.mkdir()
    log.touch()
    kept = {name: value for name, value in os.environ.items() if "TELEMETRY" not in name and not name.startswith("XDG_")}
    paths = os.pathsep.join((str(HERE), str(REPO), os.environ.get("PYTHONPATH", "")))
    added = {"HOME": str(home), "LD_PRELOAD": str(guard), "CONNECTIONS": str(log), "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", code], env=kept | added | variables, check=True, capture_output=True, cwd=tmp_path)
    return log.read_text().splitlines(), [str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()]


def test_the_guard_counts(guard: Path, tmp_path: Path) -> None:
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: pass\nopen('home/file', 'w').close()"
    assert traces(guard, tmp_path, code) == (["127.0.0.1", "connect"], ["file"])


@pytest.mark.parametrize("engine", ["ort", "openvino", pytest.param("torch", marks=pytest.mark.slow)])
def test_encoding_is_silent(guard: Path, bundle: Path, tmp_path: Path, engine: str) -> None:
    library = {"ort": "onnxruntime"}.get(engine, engine)
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    assert traces(guard, tmp_path, ENCODE.format(bundle=str(bundle), engine=engine, side=SIDE)) == ([], [])


@pytest.mark.slow
def test_export_is_silent(guard: Path, tmp_path: Path) -> None:
    assert traces(guard, tmp_path, EXPORT.format(out=str(tmp_path / "bundle"))) == ([], [])


@pytest.mark.slow
def test_quantisation_is_silent(guard: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("nncf") is None:
        pytest.skip("nncf is not installed")
    assert traces(guard, tmp_path, "import prtool, time, nncf\ntime.sleep(1)") == ([], [])


@pytest.mark.slow
def test_doctor_is_silent(guard: Path, tmp_path: Path) -> None:
    assert traces(guard, tmp_path, COMMAND.format(arguments=["doctor"])) == ([], [])


@pytest.mark.slow
def test_bench_is_silent(guard: Path, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "bundle", TinyModel())
    arguments = ["bench", "--batch", "2", "--keep", "0.5", "--set", "budget_s=0"]
    assert traces(guard, tmp_path, COMMAND.format(arguments=arguments)) == ([], [])


def test_a_variable_of_the_users_own_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    from prtool.telemetry import switch_off

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    switch_off()
    assert (os.environ["ORT_DISABLE_TELEMETRY"], os.environ["HF_HUB_DISABLE_TELEMETRY"]) == ("0", "1")
