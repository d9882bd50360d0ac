"""The folder of a run: its default name, what may stand there, and one trainer at a time."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from local_model import write_images

from prtool.errors import ConfigError
from prtool.files import check_output
from prtool.trainer.config import TrainConfig
from prtool.trainer.runs.folder import RUN, only_trainer, run_name


def test_default_names_tell_apart_what_the_settings_tell_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("A/photos", "B/photos", "犬", "猫"):
        write_images(tmp_path / name, {"train": 1})
    base = TrainConfig(model="local-dir:m", data="A/photos")
    others = [replace(base, data=name) for name in ("B/photos", "犬", "猫")]
    others += [TrainConfig.load(None, {**base.to_json(), **change}) for change in ({"prune": {"locations": [6]}}, {"phases": ["none"]}, {"seed": 1})]
    names = [run_name(config) for config in (base, *others)]
    assert len(set(names)) == len(names)
    assert [name.rpartition("-")[0] for name in names] == ["m-photos", "m-photos", "m-犬", "m-猫", "m-photos", "m-photos", "m-photos"]


def test_default_names_are_the_same_where_a_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_images(tmp_path / "photos", {"train": 1})
    base = TrainConfig(data="photos")
    same = [replace(base, phases=("tokens",)), replace(base, data=str(data)), replace(base, data="./photos/")]
    same.append(TrainConfig.load(None, {**base.to_json(), "tokens": {"epochs": 3}}))
    assert {run_name(config) for config in same} == {run_name(base)}
    assert run_name(TrainConfig(data="x" * 200)) != run_name(TrainConfig(data="x" * 201))
    assert len(run_name(TrainConfig(data="犬" * 80)).encode()) < 200


@pytest.mark.parametrize(
    "content",
    [{"notes.txt": "mine"}, {"checkpoint.json": '{"epoch": 3}'}, {"tensors.safetensors": "", "model.py": ""}, {"checkpoint.json": "{"}],
)
def test_only_a_run_may_stand_there(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError):
        check_output(tmp_path, RUN)


def test_an_unfinished_run_or_a_finished_one_may_stand_there(tmp_path: Path) -> None:
    (tmp_path / "run" / "golden").mkdir(parents=True)
    (tmp_path / "run" / "fit.safetensors").write_bytes(b"")
    (tmp_path / "latest").symlink_to("run")
    check_output(tmp_path / "latest", RUN)
    (tmp_path / "run" / "checkpoint.json").write_text(json.dumps({"schema": 1, "scorer_config": {}, "config": {}}))
    (tmp_path / "run" / "notes.txt").write_text("mine")
    check_output(tmp_path / "run", RUN)


WAITS = """
import sys
from pathlib import Path
from prtool.trainer.runs.folder import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("in", flush=True)
"""


def test_two_trainers_take_turns(tmp_path: Path) -> None:
    with only_trainer(tmp_path / "run"):
        other = subprocess.Popen([sys.executable, "-c", WAITS, str(tmp_path / "run")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None
        assert other.stderr.readline() == f"another process works in {tmp_path / 'run'}; waiting for it\n"
    assert other.communicate() == ("in\n", "")
