"""The commands: exit codes, messages on stderr, results on stdout, and the whole road on a small world."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.cli.main import app


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("command", sorted(app.commands))
def test_every_option_has_help(command: str) -> None:
    assert run(command, "--help").exit_code == 0
    for parameter in app.commands[command].params:
        if parameter.param_type_name == "option":
            assert getattr(parameter, "help", None), f"{command} {parameter.name}"


@pytest.mark.parametrize("keep", ["0", "1", "1.5", "nan", "-0.2", "half"])
def test_a_bad_keep_is_wrong_usage(keep: str) -> None:
    result = run("export", "--keep", keep)
    assert result.exit_code == 2
    assert "keep" in result.stderr


def test_our_errors_are_one_line(tmp_path: Path) -> None:
    result = run("bench", "--bundle", str(tmp_path / "nothing"))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "bundle" in result.stderr


def test_unknown_settings_name_near_ones() -> None:
    result = run("train", "--set", "golden.goup=1")
    assert result.exit_code == 1
    assert "group" in result.stderr
    assert run("train", "--set", "nonsense").exit_code == 2


def test_show_config_reads_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = run("train", "--model", "ViT-B-32", "--set", "fit.epochs=7", "--show-config").stdout
    Path("prtool.toml").write_text(shown)
    assert run("train", "--show-config").stdout == shown
    assert 'model = "ViT-B-32"' in shown
    assert "epochs = 7" in shown


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny bundle and four photographs, one of them broken."""
    tiny_bundle(tmp_path / "bundle", TinyModel())
    (tmp_path / "photos").mkdir()
    random = np.random.RandomState(0)
    for name in ("a.png", "b.jpg", "c.png"):
        Image.fromarray(random.randint(0, 255, (40, 60, 3), dtype=np.uint8)).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"\xff\xd8 not a photograph")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_embed_skips_and_counts_unreadable_images(project: Path) -> None:
    result = run("embed", "photos", "-o", "out.npz")
    assert result.exit_code == 0
    assert "broken.jpg" in result.stderr
    assert "1 skipped" in result.stderr
    with np.load(project / "out.npz", allow_pickle=False) as written:
        assert [Path(path).name for path in written["paths"]] == ["a.png", "b.jpg", "c.png"]
        np.testing.assert_allclose(np.linalg.norm(written["embeddings"], axis=1), 1.0, rtol=1e-5)


def test_the_bundle_is_an_option(project: Path) -> None:
    (project / "bundle").rename(project / "other")
    assert "bundle" in run("embed", "photos").stderr
    assert run("embed", "--bundle", "other", "photos/a.png", "--keep", "0.5", "-o", "out.npz").exit_code == 0


@pytest.mark.parametrize("command", ["embed", "classify", "show"])
def test_a_bundle_among_the_images_is_an_error(project: Path, command: str) -> None:
    (project / "bundle").rename(project / "other")
    result = run(command, "other", "photos/a.png")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "--bundle other" in result.stderr


@pytest.mark.parametrize("command", ["embed", "classify", "show"])
def test_a_missing_path_is_an_error_before_the_bundle_is_opened(project: Path, command: str) -> None:
    """A misspelt bundle must not pass for an image that cannot be read, which embed skips."""
    result = run(command, "bundel", "photos/a.png", "--bundle", "nothing")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "bundel" in result.stderr


@pytest.mark.parametrize("command", ["embed", "classify", "show", "verify", "bench", "build"])
def test_a_folder_that_lost_its_manifest_is_no_bundle(project: Path, command: str) -> None:
    (project / "bundle" / "prtool.json").rename(project / "prtool.json")
    words = [] if command in ("verify", "bench", "build") else ["photos/a.png"]
    result = run(command, *words, *(["--engine", "trt-rtx"] if command == "build" else []))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "bundle" in result.stderr or "tensorrt" in result.stderr.lower()


@pytest.mark.parametrize("command", ["classify", "show"])
def test_folders_of_images_are_for_embed(project: Path, command: str) -> None:
    assert "photos" in run(command, "photos").stderr


def test_mode_full_runs_the_unpruned_encoder(project: Path) -> None:
    assert run("embed", "photos/a.png", "--mode", "full", "-o", "full.npz").exit_code == 0
    assert run("embed", "photos/a.png", "--keep", "1.0", "-o", "all.npz").exit_code == 0
    with np.load("full.npz") as full, np.load("all.npz") as everything:
        assert full["keep"] == everything["keep"]
        np.testing.assert_allclose(full["embeddings"], everything["embeddings"], atol=1e-5)
    assert run("classify", "photos/a.png", "--mode", "full").exit_code == 0
    assert "'full'" in run("classify", "photos/a.png", "--mode", "full", "--keep", "0.5").stderr


def test_classify_names_classes(project: Path) -> None:
    found = json.loads(run("classify", "photos/a.png", "photos/b.jpg", "--top", "2", "--json").stdout)["results"]
    assert [row["path"] for row in found] == ["photos/a.png", "photos/b.jpg"]
    names = json.loads(Path("bundle/prtool.json").read_text())["classes"]["names"]
    assert all(names[item["label"]] == item["name"] for row in found for item in row["classes"])
    assert all(row["classes"][0]["probability"] >= row["classes"][1]["probability"] for row in found)
    assert run("classify", "photos/a.png").exit_code == 0
    assert run("classify", "photos/broken.jpg").exit_code == 1


def test_show_draws_a_picture(project: Path) -> None:
    assert run("show", "photos/a.png", "--keep", "1.0,0.5", "-o", "out.png").exit_code == 0
    with Image.open(project / "out.png") as picture:
        assert picture.size[0] > 100


def test_bench_prints_the_stable_names(project: Path) -> None:
    value = json.loads(
        run(*["bench", "--batch", "2", "--keep", "0.5", "--mode", "fused,split", "--set", "budget_s=0", "--json", "-o", "bench.json"]).stdout
    )
    assert {"engines", "device", "versions", "rows"} <= set(value)
    names = {"engine", "device", "batch", "keep", "mode", "precision", "p50_ms", "p90_ms", "images_per_s"}
    names |= {"speedup", "theoretical_speedup", "share_of_theoretical"}
    assert all(names <= set(row) for row in value["rows"])
    assert json.loads((project / "bench.json").read_text()) == value


def test_doctor_tells_versions_and_state(project: Path) -> None:
    facts = json.loads(run("doctor", "--json").stdout)
    assert facts["libraries"]["onnxruntime"] != "not installed"
    assert facts["run"].startswith("none")
    assert "keep" in facts["bundle"]
    assert run("doctor").exit_code == 0
