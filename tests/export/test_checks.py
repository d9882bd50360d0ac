"""What is known of an export before any graph is made: the run, its data, and what int8 needs of them."""

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from prtool.errors import CheckpointError, ConfigError, DataError, KeepError
from prtool.export.checks import check_export
from prtool.records import to_plain
from prtool.spec import Keep, PruneSpec
from prtool.store import write_sealed
from prtool.trainer.config import TrainConfig
from prtool.trainer.runs.record import RECORD_NAME, SCHEMA, DataInfo, Record
from prtool.trainer.settings import ScorerConfig

KEEP = Keep.ratio(0.5)


def make_data(folder: Path, images: int) -> Path:
    for name in ("cat", "dog"):
        (folder / "train" / name).mkdir(parents=True)
        for number in range(images // 2):
            Image.new("RGB", (8, 8)).save(folder / "train" / name / f"{number}.png")
    return folder


def make_run(folder: Path, root: str) -> Path:
    spec = PruneSpec(locations=(1,), depth=2, prefix_tokens=1, grid=(3, 4))
    record = Record(SCHEMA, "ViT-B-16", "", 0, "0" * 64, 8, spec, ScorerConfig(), True, (), (), TrainConfig().to_json())
    folder.mkdir()
    write_sealed(folder / RECORD_NAME, to_plain(dataclasses.replace(record, data=DataInfo(root=root))))
    return folder


def test_the_runs_data_are_taken_while_they_are_there(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 4)
    run = make_run(tmp_path / "run", str(data))
    assert check_export(run, tmp_path / "bundle", KEEP, ("fp32",)) == str(data)
    data.rename(tmp_path / "gone")
    assert check_export(run, tmp_path / "bundle", KEEP, ("fp32", "bf16")) is None
    assert check_export(run, tmp_path / "bundle", KEEP, ("fp32",), tmp_path / "gone") == str(tmp_path / "gone")


def test_data_that_were_given_must_be_there(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", str(make_data(tmp_path / "data", 4)))
    with pytest.raises(DataError, match="elsewhere"):
        check_export(run, tmp_path / "bundle", KEEP, ("fp32",), tmp_path / "elsewhere")


def test_int8_needs_images_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF: pip install '.[int8]'")
    few, enough = make_data(tmp_path / "few", 14), make_data(tmp_path / "enough", 16)
    run = make_run(tmp_path / "run", str(few))
    for data, words in ((None, "14"), (few, "14")):
        with pytest.raises(ConfigError, match=words):
            check_export(run, tmp_path / "bundle", KEEP, ("fp32", "int8"), data)
    assert check_export(run, tmp_path / "bundle", KEEP, ("fp32", "int8"), enough) == str(enough)
    few.rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="few"):
        check_export(run, tmp_path / "bundle", KEEP, ("int8",))
    with pytest.raises(ConfigError):
        check_export(make_run(tmp_path / "bare", ""), tmp_path / "bundle", KEEP, ("int8",))


def test_the_run_the_keep_and_the_place(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "")
    with pytest.raises(CheckpointError, match="nothing"):
        check_export(tmp_path / "nothing", tmp_path / "bundle", KEEP, ("fp32",))
    with pytest.raises(KeepError, match="13"):
        check_export(run, tmp_path / "bundle", Keep.count(13), ("fp32",))
    with pytest.raises(ConfigError, match="run"):
        check_export(run, run, KEEP, ("fp32",))
