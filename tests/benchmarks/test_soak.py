"""The soak itself: a short one that holds, and that wrong results and growth are found."""

import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from models import TinyModel, tiny_bundle

from benchmarks.soak import Case, Sample, Soak, main, make_cases, run
from prtool.runtime.encoder import Encoder
from prtool.runtime.pipeline import modes_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and open files are read from /proc")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ort", "openvino"])
def test_a_short_soak(tmp_path: Path, engine: str) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine), reason=f"{engine} is not installed")
    tiny_bundle(tmp_path / "bundle", TinyModel(locations=(2, 3)))
    result = CliRunner().invoke(main, [str(tmp_path / "bundle"), "--engine", engine, "--seconds", "20"])
    assert result.exit_code == 0, result.output
    assert "every result equal" in result.output


@pytest.mark.parametrize(
    "model",
    [TinyModel((2, 3), side=6), TinyModel((1, 2), method="merge"), TinyModel((), method="none", side=6)],
    ids=lambda model: str(model.method),
)
def test_calls_of_every_kind_of_bundle(tmp_path: Path, model: TinyModel) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", model)
    encoders = {mode: Encoder.load(bundle, mode=mode) for mode in modes_of(model.spec)}
    cases = make_cases(encoders, seed=0)
    assert {case.name.split(", ")[1] for case in cases} == set(encoders)
    assert any(case.name.startswith("kept") for case in cases) is ("split" in encoders)
    assert run(cases[:8], 2, 0.5, lambda _: None).wrong == []
    for encoder in encoders.values():
        encoder.close()


def test_a_result_that_differs_is_found() -> None:
    case = Case("a call", lambda: np.zeros(3), np.array([0.0, 0.0, 1e-9]))
    assert run([case], 2, 5.0, lambda _: None).wrong[0].startswith("a call")


def test_growth_is_found() -> None:
    flat = [Sample(second, 1, 300.0, 9, 9) for second in range(100)]
    assert Soak([*flat, Sample(100, 1, 310.0, 9, 9)]).problems(60.0) == []
    assert "memory" in Soak([*flat, Sample(100, 1, 400.0, 9, 9)]).problems(60.0)[0]
    assert "files" in Soak([*flat, Sample(100, 1, 300.0, 10, 9)]).problems(60.0)[0]
