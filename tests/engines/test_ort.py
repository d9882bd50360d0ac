"""ONNX Runtime on the CPU: what its rows of the contract do not ask."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from models import PIXELS, TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.engines.base import GraphOptions
from prtool.engines.ort.cpu import open_session, session_settings
from prtool.engines.registry import graph_precision, open_engine
from prtool.errors import ConfigError, EngineError

MODEL = TinyModel()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("ort") / "bundle", MODEL)


@pytest.mark.parametrize("spinning", [True, False])
def test_the_settings_reach_the_session(bundle: Bundle, spinning: bool) -> None:
    session = open_session(bundle.file("full.onnx"), session_settings(3, spinning), ["CPUExecutionProvider"])
    options = session.get_session_options()
    assert options.intra_op_num_threads == 3
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == str(int(spinning))
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"
    assert session.get_providers() == ["CPUExecutionProvider"]


def test_a_provider_that_fails_is_not_exchanged(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(self: Any, providers: object, *others: object) -> None:
        calls.append(providers)
        raise RuntimeError("the provider cannot start")

    calls: list[object] = []
    monkeypatch.setattr(onnxruntime.InferenceSession, "_create_inference_session", refuse)
    with pytest.raises(EngineError, match=r"full\.onnx.*the provider cannot start"):
        open_engine("ort", bundle.file("full.onnx"), (PIXELS,), GraphOptions())
    assert calls == [["CPUExecutionProvider"]]
    assert capfd.readouterr() == ("", "")


def test_precisions_of_the_cpu() -> None:
    assert graph_precision("ort", "int8") == "int8"
    with pytest.raises(ConfigError, match=r"precision = 'bf16'.*ort.*fp32, int8.*openvino"):
        graph_precision("ort", "bf16")


def test_threads_that_were_asked_for_are_named(bundle: Bundle) -> None:
    engine = open_engine("ort", bundle.file("full.onnx"), (PIXELS,), GraphOptions(threads=3))
    assert engine.info.device == "CPU, 3 threads"
    np.testing.assert_allclose(engine.run({"pixels": MODEL.pixels(2)})["embedding"], MODEL.embed(MODEL.pixels(2), (16,)), atol=1e-5)


def test_a_folder_in_place_of_a_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=re.escape(str(tmp_path))):
        open_engine("ort", tmp_path, (PIXELS,), GraphOptions())
