"""The benchmark of bundles that merge tokens or take smaller images: each mode's own pixels, against the unpruned model at its native size."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_lab import FakeLab
from click.testing import CliRunner
from models import SIDE, TinyModel, tiny_bundle

from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.errors import ConfigError, KeepError
from prtool.runtime.bench import BenchConfig, bench
from prtool.runtime.bench.files import output_files, write_report
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.plot import plot_report
from prtool.runtime.images.preprocess import prepare_batch
from prtool.spec import Keep

MODELS = {
    "rank": TinyModel(side=6),
    "merge": TinyModel((1, 2), method="merge", side=6),
    "none": TinyModel((), method="none", side=6),
}
QUICK = BenchConfig(batches=(2,), budget_s=0.0, max_rounds=5)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: tiny_bundle(tmp_path_factory.mktemp("bundle") / "b", model) for name, model in MODELS.items()}


@pytest.mark.parametrize("name", MODELS)
def test_a_real_run(bundles: dict[str, Bundle], name: str) -> None:
    bundle, spec = bundles[name], MODELS[name].spec
    least = bundle.manifest.keep_range[0]
    keeps = [keep for keep in (1.0, 0.8, 0.6, 0.5) if Keep.ratio(keep).resolve(9) >= least]
    assert len(keeps) == {"rank": 4, "merge": 4, "none": 1}[name]
    report = bench(bundle.path, QUICK)
    expected = [("full", 1.0, 16, (SIDE, SIDE)), *(("fused", keep, Keep.ratio(keep).resolve(9), (6, 6)) for keep in keeps)]
    assert [(row.scope, row.mode, row.keep, row.k, row.image_size) for row in report.rows] == [
        (scope, *row) for scope in ("encoder", "end-to-end") for row in expected
    ]
    cost = bundle.manifest.cost
    full = cost.gmacs([cost.native_tokens] * spec.depth) + (cost.native_embed_macs - cost.embed_macs) / 1e9
    for row in report.rows:
        own = full if row.is_baseline else cost.pruned_gmacs(spec, spec.counts(row.k))
        assert row.theoretical_speedup == pytest.approx(full / own) and row.gmacs == pytest.approx(own)
    assert report.model["method"] == name
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("name", MODELS)
def test_each_mode_is_fed_images_of_its_own_size(bundles: dict[str, Bundle], name: str) -> None:
    lab, photos = FakeLab(), sample_photos(3)
    lab.bench(bundles[name], replace(QUICK, keeps=(1.0,), images=tuple(photos)))
    fed = {(mode, content) for (mode, *_), content in zip(lab.calls, lab.inputs[2], strict=True)}
    for mode in ("full", "fused"):
        own = bundles[name].manifest.preprocess_for(mode)
        wanted = {prepare_batch([photos[first], photos[(first + 1) % 3]], own).tobytes() for first in range(3)}
        found = {content for fed_mode, content in fed if fed_mode == mode}
        noise = found - wanted
        assert found > wanted and len(noise) == 1, "the photographs in turn, and one batch of noise"
        assert np.frombuffer(noise.pop(), np.float32).size == 2 * 3 * own.size[0] ** 2


def test_what_a_bundle_lacks_is_rejected_before_anything_is_loaded(bundles: dict[str, Bundle]) -> None:
    lab = FakeLab()
    for name in ("merge", "none"):
        for modes in (("split",), ("fused", "split")):
            with pytest.raises(ConfigError, match=f"'split'.*'{name}'.*fused, full"):
                lab.bench(bundles[name], replace(QUICK, modes=modes))
    with pytest.raises(KeepError, match=r"merging.* 3 to 9"):
        lab.bench(bundles["merge"], replace(QUICK, keeps=(1.0, 2)))
    with pytest.raises(KeepError, match="'none'"):
        lab.bench(bundles["none"], replace(QUICK, keeps=(1.0, 0.8)))
    assert not lab.loaded


def test_where_no_default_keep_is_allowed_the_bundles_own_is_measured(bundles: dict[str, Bundle]) -> None:
    manifest = replace(bundles["rank"].manifest, default_keep=3, keep_range=(2, 4))
    assert BenchConfig().chosen_keeps(manifest) == (Keep.count(3),)
    assert BenchConfig(keeps=(0.2,)).chosen_keeps(manifest) == (Keep.ratio(0.2),)


def test_a_smaller_image_that_is_not_faster_is_noted(bundles: dict[str, Bundle]) -> None:
    report = FakeLab(pruned_share=1.0).bench(bundles["none"], replace(QUICK, scopes=("encoder",), min_rounds=99, max_rounds=99))
    assert any("not worth it" in note and "theoretical" in note for note in report.notes)


@pytest.mark.parametrize("name", MODELS)
def test_table_and_files_name_method_and_image_sizes(bundles: dict[str, Bundle], name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    report = FakeLab().bench(bundles[name], QUICK)
    assert name in report.title and "6x6" in report.title and report.title.endswith("8x8")
    columns, cells = report.table()
    assert {row[columns.index("image")] for row in cells if row[columns.index("mode")] == "fused"} == {"6x6"}
    write_report(report, output_files(tmp_path / "bench"), plot_report)
    with (tmp_path / "bench.csv").open() as stream:
        assert {(row["mode"], row["image_size"]) for row in csv.DictReader(stream)} == {("full", "8x8"), ("fused", "6x6")}
    assert json.loads((tmp_path / "bench.json").read_text())["rows"][0]["image_size"] == [8, 8]
    assert (tmp_path / "bench.png").stat().st_size > 5000


def test_the_command(bundles: dict[str, Bundle]) -> None:
    words = ["bench", "--bundle", str(bundles["none"].path), "--batch", "1", "--set", "budget_s=0.0", "--set", "max_rounds=5"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "prune method none" in result.output and "end-to-end" in result.output and "6x6" in result.output
