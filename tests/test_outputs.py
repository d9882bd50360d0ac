"""What each command may replace: its own earlier output, and never a link, an input or somebody else's file."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder
from PIL import Image

from prtool.errors import ConfigError
from prtool.files import PICTURE, check_output
from prtool.runtime.bench.files import output_files
from prtool.runtime.embed import EmbedResult, save_embeddings
from prtool.runtime.embed import check_output as check_embeddings
from prtool.runtime.show import show
from prtool.spec import Keep, PruneSpec

THESIS = b"PK\x03\x04 three years of work"


def tree(path: Path) -> dict[str, bytes]:
    return {str(item.relative_to(path)): item.read_bytes() for item in path.rglob("*") if item.is_file()}


def bench_report(path: Path) -> None:
    output_files(path)


def reproduce_report(path: Path) -> None:
    from prtool.studies.paper.report import report_files

    report_files(path.stem, path.parent)


def picture(path: Path) -> None:
    check_output(path, PICTURE)


@pytest.mark.parametrize(
    ("writes", "name"),
    [
        (check_embeddings, "out.npz"),
        (check_embeddings, "out.parquet"),
        (bench_report, "out.json"),
        (bench_report, "out.csv"),
        (bench_report, "out.png"),
        (bench_report, "out"),
        (reproduce_report, "out.md"),
        (reproduce_report, "out.csv"),
        (picture, "out.png"),
    ],
)
@pytest.mark.parametrize("kind", ["foreign", "link", "folder"])
def test_a_file_of_another_kind_stays(tmp_path: Path, writes: Callable[[Path], None], name: str, kind: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    place = tmp_path / (name if "." in name else f"{name}.csv")
    (tmp_path / "thesis").write_bytes(THESIS)
    if kind == "foreign":
        place.write_bytes(THESIS)
    elif kind == "link":
        place.symlink_to("thesis")
    else:
        place.mkdir()
    before = tree(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(str(place))):
        writes(tmp_path / name)
    assert tree(tmp_path) == before
    assert place.is_symlink() == (kind == "link")


def test_an_own_file_is_replaced(tmp_path: Path) -> None:
    result = EmbedResult(["a.jpg"], np.ones((1, 4), np.float32), 3, [], 1.0)
    for name in ("out.npz", "out.parquet"):
        if name.endswith("parquet"):
            pytest.importorskip("pyarrow")
        for _ in range(2):
            save_embeddings(result, tmp_path / name)


def test_somebody_elses_npz_and_png_stay(tmp_path: Path) -> None:
    np.savez(tmp_path / "features.npz", features=np.ones(3))
    Image.new("RGB", (8, 8)).save(tmp_path / "holiday.png")
    with pytest.raises(ConfigError, match=r"features\.npz"):
        check_embeddings(tmp_path / "features.npz")
    with pytest.raises(ConfigError, match=r"holiday\.png"):
        picture(tmp_path / "holiday.png")


def write_bundle(folder: Path) -> None:
    (folder / "int8").mkdir(parents=True)
    (folder / "pre.onnx").write_bytes(b"graph")
    (folder / "int8" / "pre.onnx").write_bytes(b"graph")
    (folder / "prtool.json").write_text(json.dumps({"schema": 1, "files": {"pre.onnx": {}, "int8/pre.onnx": {}}}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "thesis.txt").write_bytes(THESIS),
        lambda folder: (folder / "int8" / "thesis.txt").write_bytes(THESIS),
        lambda folder: (folder / "photographs").mkdir(),
        lambda folder: (folder / "link").symlink_to("pre.onnx"),
        lambda folder: (folder / "prtool.json").write_text("{"),
        lambda folder: (folder / "prtool.json").rename(folder / "prtool.json.txt"),
    ],
)
def test_a_bundle_with_anything_else_in_it_stays(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    write = pytest.importorskip("prtool.export.write", reason="export needs torch and onnx")
    write_bundle(tmp_path / "bundle")
    check_output(tmp_path / "bundle", write.BUNDLE)
    spoil(tmp_path / "bundle")
    with pytest.raises(ConfigError, match="bundle"):
        check_output(tmp_path / "bundle", write.BUNDLE)


def test_export_looks_at_its_place_before_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = pytest.importorskip("prtool.export.run", reason="export needs torch and onnx")
    record = pytest.importorskip("prtool.trainer.runs.record")

    class Recorded:
        model, pretrained, data = f"local-dir:{tmp_path / 'model'}", "", record.DataInfo(str(tmp_path / "data"))
        prune = PruneSpec((14, 14), 12)

    for name in ("run", "model", "data", "thesis"):
        (tmp_path / name).mkdir()
    (tmp_path / "thesis" / "a.txt").write_bytes(THESIS)
    write_bundle(tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    monkeypatch.setattr("prtool.export.checks.read_record", lambda _: Recorded)
    monkeypatch.setattr(run, "source_of", lambda _: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path / "data")
    for name in ("run", "model", "data", "thesis", "link", "."):
        with pytest.raises(ConfigError, match=name):
            run.export_run(tmp_path / "run", tmp_path / name, run.ExportOptions(Keep.ratio(0.6)))
    assert (tmp_path / "thesis" / "a.txt").read_bytes() == THESIS


def test_show_does_not_take_the_place_of_its_own_input(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    show(FakeEncoder(), [noise], [Keep.ratio(0.5)], tmp_path / "a.png")
    show(FakeEncoder(), [noise], [Keep.ratio(0.5)], tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"a\.png"):
        show(FakeEncoder(), [tmp_path / "a.png"], [Keep.ratio(0.5)], tmp_path / "a.png")


def test_the_demo_leaves_other_folders_alone(tmp_path: Path) -> None:
    demo = pytest.importorskip("prtool.studies.demo.run", reason="the demo needs torch and onnx")
    (tmp_path / "report.md").write_bytes(THESIS)
    (tmp_path / "thesis.txt").write_bytes(THESIS)
    with pytest.raises(ConfigError, match="prtool demo"):
        demo.run_demo(tmp_path, False, None)
