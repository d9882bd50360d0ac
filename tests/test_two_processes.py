"""Two processes at once on one run, one bundle and one file: both end well, or one says why."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prtool.bundle import Bundle
from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, write_dataset
from prtool.trainer.runs.checkpoint import RECORD_NAME, Checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
TRAIN = ("train", "--model", "local-dir:model", "--data", "data", "--location", "3", "--set", "distill.steps=4", "--set", "device=cpu")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("project")
    write_dataset(root / "data", SceneCounts(train=2, val=1, test=1), seed=0)
    write_model(root / "model")
    assert [child.returncode for child in together(root, [*TRAIN, "-o", "alone"])] == [0]
    return root


def start(root: Path, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from prtool.cli.main import main; main()", *command],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def together(root: Path, *commands: list[str]) -> list[subprocess.CompletedProcess[str]]:
    children = [start(root, command) for command in commands]
    errors = [child.communicate()[1] for child in children]
    return [subprocess.CompletedProcess(child.args, child.returncode, "", error) for child, error in zip(children, errors, strict=True)]


def hidden(root: Path) -> list[str]:
    return [item.name for item in root.iterdir() if item.name.startswith(".")]


def test_two_trainings_of_one_run(project: Path) -> None:
    ended = together(project, *[[*TRAIN, "-o", "twice"]] * 2)
    assert [child.returncode for child in ended] == [0, 0], [child.stderr for child in ended]
    assert (project / "twice" / RECORD_NAME).read_bytes() == (project / "alone" / RECORD_NAME).read_bytes()


def test_two_trainings_of_other_settings_into_one_folder(project: Path) -> None:
    ended = together(project, *[[*TRAIN, "-o", "contested", "--set", f"seed={seed}"] for seed in (1, 2)])
    assert sorted(child.returncode for child in ended) == [0, 1]
    lost = next(child for child in ended if child.returncode == 1)
    assert "seed = " in lost.stderr and "--overwrite" in lost.stderr
    Checkpoint.load(project / "contested")


def test_two_exports_to_one_bundle(project: Path) -> None:
    ended = together(project, *[["export", "alone", "-o", "bundle", "--keep", keep] for keep in ("0.5", "0.6")])
    assert [child.returncode for child in ended] == [0, 0], [child.stderr for child in ended]
    Bundle.open(project / "bundle")
    assert hidden(project) == []


def test_two_embeddings_into_one_file(project: Path) -> None:
    if not (project / "bundle").exists():
        assert [child.returncode for child in together(project, ["export", "alone"])] == [0]
    ended = together(project, *[["embed", "data/test", "-o", "out.npz"]] * 2)
    assert [child.returncode for child in ended] == [0, 0], [child.stderr for child in ended]
    assert hidden(project) == []


@pytest.mark.parametrize("seconds", [0.3, 2.0])
def test_killed_exports_leave_the_old_bundle_and_the_next_sweeps(project: Path, seconds: float) -> None:
    place = f"killed-{seconds}"
    export = ["export", "alone", "-o", place, "--keep"]
    assert [child.returncode for child in together(project, [*export, "0.5"])] == [0]
    before = (project / place / "prtool.json").read_bytes()
    child = start(project, [*export, "0.6"])
    while child.poll() is None and not hidden(project):
        time.sleep(0.02)
    time.sleep(seconds)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert (project / place / "prtool.json").read_bytes() == before
    Bundle.open(project / place)
    assert [child.returncode for child in together(project, [*export, "0.6"])] == [0]
    assert hidden(project) == []
