"""`python -m benchmarks.gpu`, rehearsed on the CPU as far as it goes there: every part, its result file, and a run that was cut off."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import REPO

pytest.importorskip("torch", reason="torch is not installed")
pytest.importorskip("open_clip", reason="open_clip is not installed")
from models import TinyModel, tiny_bundle


def rehearse(output: Path, *options: str, code: int = 0) -> tuple[dict[str, Any], str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--quick", "--device", "cpu", "-o", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == code, done.stderr
    return json.loads(output.read_text()), done.stdout


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    return rehearse(tmp_path_factory.mktemp("gpu") / "result.json", "--way", "eager", "--part", "speed,agreement,ranking")


def test_it_says_that_it_is_a_rehearsal(rehearsal: tuple[dict[str, Any], str]) -> None:
    found, _ = rehearsal
    assert found["rehearsal"] is True
    assert "mean nothing" in found["note"]
    assert found["versions"]["torch"]


def test_speed_has_every_combination(rehearsal: tuple[dict[str, Any], str]) -> None:
    found, printed = rehearsal
    speed = found["parts"]["speed"]
    assert sorted(speed) == sorted(f"tiny {precision} eager batch {batch}" for precision in ("fp16", "bf16") for batch in (1, 3))
    for name, entry in speed.items():
        rows = entry["result"]["rows"]
        assert [row["keep"] for row in rows] == [None, 1.0, 0.8, 0.6, 0.5]
        assert [row["k"] for row in rows] == [64, 64, 51, 38, 32]
        assert rows[0]["speedup"] == 1.0
        for row in rows[1:]:
            assert row["share_of_theoretical"] == pytest.approx(row["speedup"] / row["theoretical_speedup"])
        # At keep 1.0 the scorer comes on top; below, pruning saves what the blocks from the fourth on cost.
        assert rows[1]["theoretical_speedup"] < 1.0 < rows[3]["theoretical_speedup"] < rows[4]["theoretical_speedup"]
        parts = entry["result"]["parts"]
        assert parts["chain_over_sum"] > 0
        assert f"{name}, keep 0.6: chain / sum of its parts" in printed


def test_halves_agree_with_float32(rehearsal: tuple[dict[str, Any], str]) -> None:
    for name, entry in rehearsal[0]["parts"]["agreement"].items():
        for row in entry["result"]["rows"]:
            same = row.get("cosine_same_patches", row["cosine"])
            assert same["least"] > (0.9999 if "fp16" in name else 0.999), (name, row)


def test_the_ranking_is_next_to_a_plain_forward(rehearsal: tuple[dict[str, Any], str]) -> None:
    (entry,) = rehearsal[0]["parts"]["ranking"].values()
    assert entry["result"]["sequences_per_image"] == 17
    assert [row["what"] for row in entry["result"]["rows"]] == ["search", "plain"]
    assert all(row["images_per_s"] > 0 and row["share_of_plain"] > 0 for row in entry["result"]["rows"])


def test_a_second_run_goes_on_where_the_first_was_cut_off(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    options = ("--way", "eager", "--part", "agreement")
    first, _ = rehearse(output, *options, "--precision", "fp16")
    second, _ = rehearse(output, *options)
    assert sorted(second["parts"]["agreement"]) == ["tiny bf16", "tiny fp16"]
    assert second["parts"]["agreement"]["tiny fp16"] == first["parts"]["agreement"]["tiny fp16"]


@pytest.mark.slow
def test_nothing_new_is_started_when_the_time_is_used_up(tmp_path: Path) -> None:
    found, _ = rehearse(tmp_path / "result.json", "--way", "eager", "--minutes", "0")
    assert not any(found["parts"].values())


def test_a_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    """A bundle on engines that exist, that do not, and that are not installed here."""
    tiny_bundle(tmp_path / "bundle", TinyModel(), text=False)
    options = ("--part", "bundle", "--bundle", str(tmp_path / "bundle"), "--precision", "fp32")
    found, printed = rehearse(tmp_path / "result.json", *options, "--engine", "torch,absent,ort", code=1)
    entries = found["parts"]["bundle"]
    assert [entry["state"] for entry in entries.values()] == ["done", "done", "failed", "failed", "done", "done"]
    assert "KeyError" in entries["tiny fp32 absent batch 1"]["error"]
    assert "failed: bundle: tiny fp32 absent batch 1" in printed
    result = entries["tiny fp32 torch batch 1"]["result"]
    assert (result["engine"], result["precision"], result["arrays_on_device"]) == ("torch", "fp32", True)
    assert [(row["mode"], row["keep"]) for row in result["rows"]][:5] == [
        ("full", None),
        ("split", 1.0),
        ("split", 0.6),
        ("fused", 1.0),
        ("fused", 0.6),
    ]
    for row in result["rows"][5:]:
        assert row["mode"] == "fused" and row["keep"] is None and row["theoretical_speedup"] > 1.0
    assert entries["tiny fp32 ort batch 3"]["result"]["arrays_on_device"] is False


@pytest.mark.slow
def test_compiled_too(tmp_path: Path) -> None:
    found, _ = rehearse(tmp_path / "result.json", "--way", "compile", "--part", "speed", "--precision", "bf16", "--keep", "0.6")
    assert [entry["state"] for entry in found["parts"]["speed"].values()] == ["done", "done"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cpu"), "--device cpu is a rehearsal"),
        (("--quick", "--device", "cpu", "--part", "speed,spede"), "spede"),
    ],
)
def test_wrong_options_are_refused(options: tuple[str, ...], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *options], capture_output=True, text=True, check=False, cwd=REPO)
    assert done.returncode == 2
    assert message in done.stderr
