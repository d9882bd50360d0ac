"""The main road as a person types it: train, eval, export, verify, bench, classify, show, on a few drawn scenes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from support import REPO

from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.spec import Keep
from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, patch_coverage, read_mask, write_dataset
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.runs.checkpoint import Checkpoint


def run(*arguments: str) -> Result:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder in which train and export have run with their short forms."""
    root = tmp_path_factory.mktemp("project")
    write_dataset(root / "data", SceneCounts(train=2, val=1, test=1), seed=0)
    write_model(root / "model")
    settings = f'model = "local-dir:{root / "model"}"\ndata = "{root / "data"}"\n[prune]\nlocations = [3]\n[fit]\nepochs = 8\n'
    (root / "prtool.toml").write_text(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run("train")
        run("export", "--keep", "0.6")
        yield root


def test_train_writes_a_run_and_points_latest_at_it(project: Path) -> None:
    checkpoint = Checkpoint.load(project / "runs" / "latest")
    assert checkpoint.scorer_trained
    assert checkpoint.prune.locations == (3,)
    found = {row.m: row for row in checkpoint.metrics.matching}
    assert all(row.predictor > row.random for row in found.values())


def test_eval_prints_the_stable_names(project: Path) -> None:
    value = json.loads(run("eval", "--keep", "1.0,0.5", "--method", "patch-ranking,golden,random", "--json").stdout)
    names = {"method", "keep", "accuracy", "images", "gmacs", "matching_rate"}
    assert all(names <= set(row) for row in value["results"])
    assert {row["method"] for row in value["results"]} == {"unpruned", "patch-ranking", "golden", "random"}
    assert (project / "runs" / "latest" / "eval-test.png").stat().st_size > 1000


def test_golden_ranking_and_predictor_prefer_the_object(project: Path) -> None:
    """The masks know where the object is, and neither the ranking nor the predictor ever saw them."""
    from prtool import Encoder
    from prtool.runtime.images.preprocess import prepare_batch
    from prtool.trainer.data.load import load_split
    from prtool.trainer.models.dual_encoder import load_model
    from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch
    from prtool.trainer.objectives.golden_store import rank_images

    images = load_split(project / "data", "test")
    files = [images.file(i) for i in range(len(images))]
    with Encoder.load("bundle") as encoder:
        manifest = encoder.manifest
        coverage = np.stack([patch_coverage(read_mask(file), manifest.prune.grid) for file in files])
        kept = encoder.kept(prepare_batch(files, manifest.preprocess), keep=0.5)[-1]
    golden = rank_images(GoldenSearch(load_model(f"local-dir:{project / 'model'}"), 3, GoldenConfig()), images, None)
    half = np.asarray(golden.ranking)[:, : manifest.prune.patches // 2].astype(np.int64)
    for chosen in (half, kept):
        share = np.take_along_axis(coverage, chosen, axis=1).sum() / coverage.sum()
        assert share > 0.6, f"half of the patches hold {share:.0%} of the object, which chance would reach"


def test_export_verify_and_bench(project: Path) -> None:
    manifest = Bundle.open(project / "bundle").manifest
    assert manifest.parity["cosine"] > 0.99999
    assert str(project) not in (project / "bundle" / "prtool.json").read_text(), "a bundle travels"
    assert manifest.default_keep == Keep.ratio(0.6).resolve(144)
    verified = json.loads(run("verify", "--data", "data", "--json").stdout)
    assert verified["probe"]["cosine"] > 0.99999
    assert all(row["cosine_mean"] > 0.99999 for row in verified["images"]["rows"])
    rows = json.loads(run("bench", "--batch", "2", "--keep", "0.5", "--set", "budget_s=0", "--json").stdout)["rows"]
    assert {row["mode"] for row in rows} == {"full", "fused"}


def test_embed_classify_and_show(project: Path) -> None:
    run("embed", "data/test", "--keep", "0.7", "-o", "out.npz")
    with np.load(project / "out.npz", allow_pickle=False) as written:
        assert written["embeddings"].shape == (48, 64)
    picture = sorted((project / "data" / "test").glob("*/*.png"))[0]
    run("classify", str(picture))
    run("show", str(picture), "-o", "patches.png")  # its default keeps, of those that a recovered bundle allows
    assert (project / "patches.png").is_file()


def test_an_untrained_predictor_is_marked_and_warned_of(project: Path) -> None:
    run("train", "--phase", "none", "-o", "runs/untrained")
    report = evaluate_run(project / "runs" / "untrained", None, EvalConfig(keeps=(Keep.ratio(0.5),), methods=("patch-ranking",), images=8))
    assert any("untrained" in note for note in report.notes)
    (project / "runs" / "latest").unlink()
    (project / "runs" / "latest").symlink_to(next(item for item in (project / "runs").iterdir() if item.name not in ("latest", "untrained")).name)


@pytest.mark.parametrize("example", ["service.py", "search.py"])
def test_examples_run(project: Path, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    import runpy

    pictures = [str(path) for path in sorted((project / "data" / "test").glob("red_*/*.png"))[:3]]
    main = runpy.run_path(str(REPO / "examples" / example))["main"]
    if example == "search.py":
        main("bundle", "a photo of a red circle.", pictures)
        assert "red_circle" in capsys.readouterr().out.splitlines()[0]
    else:
        main("bundle", pictures)
        assert capsys.readouterr().out.count("cosine") == len(pictures)
