"""`prtool tune`: the search against brute force in a world of formulas, its files, and once for real on a tiny run."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from local_model import write_images, write_model
from PIL import Image
from tune_script import DEPTH, IMAGES, KEEPS, LOCATION, PATCH, SIDE, Script, distance, drop, everything, fastest, share

from prtool.bundle import Bundle
from prtool.cli.run import tune as command
from prtool.engines.base import EngineInfo
from prtool.errors import CheckpointError, ConfigError, DataError, EngineUnavailable, KeepError, ModelError, ParityError
from prtool.progress import SilentProgress
from prtool.spec import MERGE, NONE, RANK, Keep
from prtool.store import read_sealed, write_sealed
from prtool.studies.tune.candidates import Family
from prtool.studies.tune.config import TuneConfig
from prtool.studies.tune.limits import Limits
from prtool.studies.tune.plan import make_plan, smaller_sizes
from prtool.studies.tune.report import TuneReport
from prtool.studies.tune.result import RESULT_NAME, read_result, record_digest
from prtool.studies.tune.run import tune
from prtool.studies.tune.steps import FamilyRun, Task
from prtool.trainer.config import TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, drop_error
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import TokensRecord, read_record
from prtool.trainer.train import train

SMALLER = (56, 48, 40, 32)
NATIVE = {"image_sizes": (0,)}
OWN = {**NATIVE, "methods": (RANK,)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and an untrained run; the tests work on copies of the run's two files."""
    root = tmp_path_factory.mktemp("tune")
    data = write_images(root / "data", {"train": 2, "val": IMAGES // 3 + 1})
    model = write_model(root / "model", image_size=SIDE, patch_size=PATCH, layers=DEPTH)
    settings = {"model": model, "data": str(data), "prune.locations": [LOCATION], "device": "cpu", "phases": ("none",)}
    train(TrainConfig.load(None, settings), root / "run")
    return root


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for item in (home / "run").iterdir():
        (tmp_path / "run" / item.name).write_bytes(item.read_bytes())
    return tmp_path / "run"


def config(limits: Limits | None = None, **given: Any) -> TuneConfig:
    return TuneConfig(limits or Limits(max_drop=1.0), **{"keeps": KEEPS, "budget_s": 0.0, **given})


def place(report: TuneReport) -> tuple[str, int, float]:
    assert report.choice is not None
    side = report.choice.image_size[0]
    return report.choice.family.method, side, report.choice.k / (side // PATCH) ** 2


def rounded(method: str, side: int, kept: float) -> float:
    """Points lost, in whole images."""
    return 100 * round(drop(method, side, kept) * IMAGES / 100) / IMAGES


@pytest.mark.parametrize("most", [0.25, 1.0, 2.5])
def test_the_search_finds_what_trying_everything_finds(run: Path, most: float) -> None:
    report = Script().tune(run, config(Limits(max_drop=most), minutes=0))
    assert place(report) == fastest(everything((SIDE, *SMALLER)), most, rounded)
    # Without a measurement of everything: what another beats was not exported.
    timed = [row for row in report.candidates if row.speed is not None]
    assert len(timed) < len(report.candidates)
    assert [row.gmacs for row in report.candidates[1:]] == sorted((row.gmacs for row in report.candidates[1:]), reverse=True)


def test_the_front_of_the_report_is_that_of_everything(run: Path) -> None:
    report = Script().tune(run, config(Limits(max_drop=1.0), minutes=0))
    places = everything((SIDE, *SMALLER))
    best = {
        each
        for each in places
        if not any(
            Script.time_share(*other) <= Script.time_share(*each) and rounded(*other) <= rounded(*each) and distance(*other) < distance(*each)
            for other in places
        )
    }
    found = {(row.family.method, row.image_size[0], row.k / (row.image_size[0] // PATCH) ** 2) for row in report.candidates if row.speed}
    missing = best - found
    assert not {each for each in missing if share(*each) > 0.3}, missing


def test_the_fastest_within_the_drop_is_written_into_the_run(run: Path) -> None:
    report = Script().tune(run, config(Limits(max_drop=1.0), minutes=0))
    assert report.choice is not None
    found = read_result(run)
    assert found is not None
    assert (found.method, found.locations, found.k) == (report.choice.family.method, report.choice.family.locations, report.choice.k)
    assert found.image_size == report.choice.image_size
    assert Checkpoint.load(run / found.run).prune.method == found.method
    assert (found.checkpoint_sha256, found.run_sha256) == (record_digest(run), record_digest(run / found.run))
    assert found.limits == {"max_drop": 1.0}
    assert report.choice.speed is not None
    assert found.figures["speedup"] == pytest.approx(report.choice.speed.ratio)
    assert found.figures["macs_share"] == pytest.approx(report.choice.macs_share)
    value = json.loads((run / "tune" / "tune.json").read_text())
    assert [row["chosen"] for row in value["results"]].index(True) == value["choice"]
    assert value["results"][value["choice"]]["method"] == found.method
    assert len(report.table()[1]) == len(value["results"])
    with Image.open(run / "tune" / "pareto.png") as picture:
        assert picture.size[0] > 500


def test_the_same_command_says_the_default_limit(run: Path) -> None:
    report = Script().tune(run, config(Limits(), **OWN))
    assert report.limits == Limits(max_drop=0.5)
    assert any("max_drop = 0.5" in note for note in report.notes)


def test_a_limit_on_cost_answers_with_the_best_encoder_of_that_price(run: Path) -> None:
    for most in (8.0, 6.0, 4.0):
        report = Script().tune(run, config(Limits(max_gmacs=most), minutes=0))
        best = min((each for each in everything((SIDE, *SMALLER)) if 10 * share(*each) <= most), key=lambda each: (rounded(*each), distance(*each)))
        assert place(report) == best


def test_other_families_are_sibling_runs_and_only_ranking_trains(run: Path) -> None:
    script = Script()
    script.tune(run, config(locations=((2,), (3,), (2, 3)), image_sizes=(0, 48), minutes=0))
    made = {folder.parent.name: settings for folder, settings in script.trained}
    assert set(made) == {
        *("rank-3", "rank-2-3", "rank-2-48px", "rank-3-48px", "rank-2-3-48px", "merge-2", "merge-3", "merge-2-48px", "merge-3-48px", "none-48px")
    }
    for name, settings in made.items():
        record = Checkpoint.load(run / "tune" / name / "run")
        assert (record.prune.method, record.image_size) == (name.split("-")[0], 48 if name.endswith("48px") else 0)
        assert settings.phases == ("none",)
    assert Checkpoint.load(run / "tune" / "merge-3" / "run").prune.locations == (3, 4, 5)
    # Free ones come first: they show which trainings are worth it.
    order = [folder.parent.name.split("-")[0] for folder, _ in script.trained]
    assert order == sorted(order, key=lambda name: name == RANK)


def test_the_unpruned_embeddings_are_shared(run: Path) -> None:
    stores = set()

    def evaluate(where: Path, data: Path | None, asked: EvalConfig, *_: object) -> EvalReport:
        stores.add(asked.unpruned)
        return script.evaluate(where, data, asked)

    script = Script()
    script.verbs["evaluate_run"] = evaluate
    script.tune(run, config(**NATIVE))
    assert stores == {run / "tune" / "unpruned"}


def test_a_mixture_is_only_tried_where_it_promises_something(run: Path) -> None:
    script, folder = Script(labelled=False), photos(run.parent / "photos")
    # Ranking that is far from the unpruned embeddings at the native size is not trained at another one.
    report = script.tune(run, config(Limits(min_cosine=0.97), minutes=0, keeps=KEEPS[2:], split="test"), folder)
    assert not [folder for folder, settings in script.trained if settings.prune.method == RANK]
    assert {name for name in report.untried if name.startswith("ranking")} == {f"ranking at location 2, {size} px" for size in SMALLER}
    assert all("1.3 times" in report.untried[name] for name in report.untried)
    assert any("ranking at location 2, 56 px" in note for note in report.notes)


def test_the_time_limit_ends_the_search_and_says_what_was_not_tried(run: Path) -> None:
    script = Script(seconds={"train": 60, "evaluate": 30, "export": 60, "bench": 20})
    report = script.tune(run, config(Limits(max_drop=1.0), minutes=20))
    assert script.now < 22 * 60
    assert any("time limit" in reason for reason in report.untried.values())
    assert any(note.startswith("not tried") and "time limit" in note for note in report.notes)
    assert read_result(run) is not None
    # The same command again goes on with what is there, and ends with the answer of a search without limit.
    for _ in range(5):
        script.now = 0.0
        report = script.tune(run, config(Limits(max_drop=1.0), minutes=20))
        if not any("time limit" in reason for reason in report.untried.values()):
            break
    else:
        pytest.fail("five calls did not finish the search")
    assert place(report) == fastest(everything((SIDE, *SMALLER)), 1.0, rounded)


def test_however_little_time_there_is_one_family_is_measured(run: Path) -> None:
    script = Script(seconds={"train": 60, "evaluate": 30, "export": 60, "bench": 20})
    assert script.tune(run, config(Limits(max_drop=50.0), minutes=0.01)).choice is not None
    assert len(script.timed) == 1


def test_a_sibling_whose_tokens_did_not_help_is_evaluated_without(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has tokens, the sibling has none."""
    script, asked = Script(), []

    def evaluate(where: Path, data: Path | None, given: EvalConfig, *_: object) -> EvalReport:
        asked.append(given.methods)
        return script.evaluate(where, data, given)

    checkpoint, own = replace(Checkpoint.load(run), tokens=TokensRecord(visual=2)), Family(RANK, 0, (LOCATION,))
    monkeypatch.setattr("prtool.studies.tune.steps.evaluate_run", evaluate)
    task = Task(run, checkpoint, own, config(), None, "", SilentProgress())
    FamilyRun(task, own).evaluate(0, [48])
    assert asked == [("patch-ranking",)]


@pytest.mark.parametrize("unpruned", range(30, 100, 7))
def test_a_drop_of_exactly_the_limit_is_within_it(run: Path, unpruned: int) -> None:
    """One image of 1,000 is 0.1 points, though 61.1 - 61.0 is more than 0.1 in floating point."""
    script = Script()

    def evaluate(where: Path, data: Path | None, given: EvalConfig, *_: object) -> EvalReport:
        report = script.evaluate(where, data, given)
        rows = [replace(row, images=1000, accuracy=100 * unpruned / 1000, lost=0, won=0) for row in report.rows]
        rows[1:] = [replace(row, accuracy=100 * (unpruned - 1) / 1000, lost=1) for row in rows[1:]]
        return replace(report, rows=tuple(rows))

    script.verbs["evaluate_run"] = evaluate
    report = script.tune(run, config(Limits(max_drop=0.1), **OWN))
    assert place(report) == (RANK, SIDE, 0.25)


def test_finished_work_is_reused_while_all_it_depends_on_is_the_same(run: Path, home: Path) -> None:
    script = Script()
    script.tune(run, config(Limits(max_drop=1.0), **OWN))
    assert script.work == (2, 1, 1)  # few images, then all
    report = script.tune(run, config(Limits(max_latency_ms=50.0), **OWN))
    assert script.work == (2, 1, 1)
    assert place(report) == (RANK, SIDE, 0.5)
    # Another list of keeps: only what is new is evaluated, and all are timed in the same rounds.
    script.tune(run, config(Limits(max_drop=1.0), **OWN, keeps=KEEPS[1:]))
    assert script.work == (2, 1, 2)
    script.tune(run, config(Limits(max_drop=1.0), **OWN, keeps=(*KEEPS, Keep.count(8))))
    assert script.evaluated[-2:] == [(run, (8,), 128), (run, (8,), IMAGES)]
    script.tune(run, config(Limits(max_drop=1.0), **OWN, batch=4))
    assert script.work == (4, 1, 4)
    # A damaged note of what stands, and a bundle that was changed, are made anew.
    damaged = run / "tune" / "rank-2" / "evaluation-val-500.json"
    damaged.write_bytes(damaged.read_bytes().replace(b'"cosine": 0', b'"cosine": 1'))
    (run / "tune" / "rank-2" / "bundle" / "fused.onnx").write_bytes(b"")
    script.tune(run, config(Limits(max_drop=1.0), **OWN))
    assert (len(script.evaluated), len(script.exported)) == (5, 2)
    write_images(home / "other", {"val": 3})
    before = len(script.evaluated)
    script.tune(run, config(Limits(max_drop=1.0), **OWN), home / "other")
    assert len(script.evaluated) == before + 1  # so few that all are looked at once


def test_the_unpruned_model_may_be_the_best(run: Path) -> None:
    script = Script(drops={(RANK, SIDE, k): 2.0 + k / 64 for k in (48, 32, 16)})
    report = script.tune(run, config(Limits(max_drop=1.0), **OWN))
    assert report.choice is report.unpruned
    assert "the unpruned model is best" in report.verdict()
    found = read_result(run)
    assert found is not None
    assert (found.method, found.run, found.is_unpruned, found.kept) == (UNPRUNED, ".", True, Keep.ratio(1.0))
    report = script.tune(run, config(Limits(max_latency_ms=90.0), **OWN))
    assert report.choice is report.unpruned


def test_out_of_reach_names_the_nearest_and_leaves_the_earlier_choice(run: Path) -> None:
    script = Script()
    with pytest.raises(ConfigError, match=r"ranking at location 2, keep 0\.5.*50 ms.*ranking at location 2, keep 0\.25"):
        script.tune(run, config(Limits(max_drop=1.0, max_latency_ms=40.0), **OWN))
    assert read_result(run) is None
    assert json.loads((run / "tune" / "tune.json").read_text())["choice"] is None
    script.tune(run, config(Limits(max_drop=1.0), **OWN))
    earlier = (run / RESULT_NAME).read_bytes()
    with pytest.raises(ConfigError, match="min_images_per_s = 9999"):
        script.tune(run, config(Limits(min_images_per_s=9999.0), **OWN))
    assert (run / RESULT_NAME).read_bytes() == earlier


def test_a_drop_that_the_images_cannot_tell_is_said(run: Path) -> None:
    script = Script(flips=20)
    report = script.tune(run, config(Limits(max_drop=0.6), **OWN))
    lost = round(drop(RANK, SIDE, 0.5) * IMAGES / 100)
    error = drop_error(20 + lost, 20, IMAGES)
    assert error > 0.6
    assert any(f"{100 * lost / IMAGES:.2f} +- {error:.2f}" in note and "location 2, keep 0.5" in note for note in report.notes)
    assert not any("+-" in note for note in script.tune(run, config(Limits(max_drop=50.0), **OWN)).notes)


def test_what_cannot_be_exported_is_said_and_the_rest_goes_on(run: Path) -> None:
    script = Script()

    def export(where: Path, out: Path, *_: object) -> Any:
        if out.parent.name.startswith("merge"):
            raise ParityError("cosine 0.5")
        return script.export(where, out)

    script.verbs["export_run"] = export
    report = script.tune(run, config(Limits(max_drop=2.0), **NATIVE, minutes=0))
    assert report.untried["the time of merging from block 2"] == "cosine 0.5"
    with pytest.raises(ParityError, match=r"cosine 0\.5"):
        script.tune(run, config(Limits(max_drop=2.0), **NATIVE, methods=(MERGE,), minutes=0))


def unavailable(engine: str) -> EngineInfo:
    raise EngineUnavailable(f"engine {engine} finds no device")


@pytest.mark.parametrize(
    ("limits", "given", "error", "word"),
    [
        (Limits(max_drop=1.0), {"locations": ((2,), (7,))}, ConfigError, "7"),
        (Limits(max_drop=1.0), {"locations": ((6,),), "methods": (MERGE,)}, ConfigError, "6"),
        (Limits(max_drop=1.0), {"keeps": (Keep.ratio(0.5), Keep.count(32))}, ConfigError, "32"),
        (Limits(max_drop=1.0), {"keeps": (Keep.count(65),)}, KeepError, "65"),
        (Limits(max_drop=1.0), {"image_sizes": (0, 50)}, ConfigError, "50"),
        (Limits(max_drop=1.0), {"image_sizes": (72,)}, ConfigError, "72"),
        (Limits(max_drop=1.0), {"image_sizes": (0,), "methods": (NONE,)}, ConfigError, "nothing to try"),
        (Limits(max_drop=1.0), {"split": "test"}, DataError, r"'test'.*train, val"),
    ],
)
def test_bad_input_is_rejected_before_any_work(run: Path, limits: Limits, given: dict[str, Any], error: type[Exception], word: str) -> None:
    script = Script()
    with pytest.raises(error, match=word):
        script.tune(run, config(limits, **given))
    with pytest.raises(EngineUnavailable, match="no device"):
        script.verbs["probe"] = unavailable
        script.tune(run, config(limits))
    assert script.work == (0, 0, 0)
    assert script.trained == []
    assert not (run / "tune").exists()


def test_a_model_that_cannot_merge_is_searched_without_unless_it_is_asked_for(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", {"train": 2, "val": 6})
    model = write_model(tmp_path / "model", image_size=SIDE, patch_size=PATCH, layers=DEPTH, pool_type="avg")
    settings = {"model": model, "data": str(data), "prune.locations": [LOCATION], "device": "cpu", "phases": ("none",)}
    train(TrainConfig.load(None, settings), tmp_path / "run")
    report = Script().tune(tmp_path / "run", config(Limits(max_drop=5.0), minutes=0))
    assert "merge" in report.untried["merging"]
    assert {row.family.method for row in report.candidates} == {UNPRUNED, RANK, NONE}
    with pytest.raises(ModelError, match="merge"):
        Script().tune(tmp_path / "run", config(Limits(max_drop=5.0), methods=(MERGE,)))


def test_the_plan_of_a_run_that_merges_on_smaller_images(home: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(home / "run")
    settings = {**checkpoint.config, "image_size": 48, "phases": ["none"], "prune": {"method": "merge", "locations": [3, 4]}}
    made = train(TrainConfig.from_json(settings), tmp_path / "merged")
    tower = made.load_model().native
    assert smaller_sizes(tower) == SMALLER
    plan = make_plan(made, tower, config())
    assert plan.own == Family(MERGE, 48, (3, 4))
    assert plan.own in plan.first
    assert {Family(RANK, 0, (3,)), Family(MERGE, 0, (3, 4)), Family(MERGE, 0, (1,)), *(Family(NONE, size) for size in SMALLER)} < set(plan.first)
    assert Family(MERGE, 48, (3, 4)) not in plan.mixtures
    named = make_plan(made, tower, config(image_sizes=(SIDE, 32), methods=(MERGE,), locations=((2, 5),)))
    assert (named.first, named.mixtures) == ((Family(MERGE, 0, (2,)), Family(MERGE, 32, (2,))), ())


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def apply(run: Path) -> None:
        value = read_sealed(run / RESULT_NAME)
        change(value)
        write_sealed(run / RESULT_NAME, value)

    return apply


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda run: (run / RESULT_NAME).write_text("{"), RESULT_NAME),
        (lambda run: (run / RESULT_NAME).write_text("[" * 100_000), RESULT_NAME),
        (edit(lambda value: value.update(schema=99)), "schema 99"),
        (edit(lambda value: value.update(keep="x")), "keep = 'x'"),
        (edit(lambda value: value.update(method="merge")), "'merge'.*'rank'"),
        (lambda run: (run / RESULT_NAME).write_bytes((run / RESULT_NAME).read_bytes().replace(b"0.5", b"0.6")), "checksum mismatch"),
        (lambda run: train(replace(TrainConfig.from_json(Checkpoint.load(run).config), seed=5), run), "another checkpoint"),
    ],
)
def test_a_choice_that_does_not_fit_is_rejected(run: Path, damage: Callable[[Path], object], word: str) -> None:
    Script().tune(run, config(Limits(max_drop=1.0), **OWN))
    damage(run)
    with pytest.raises(CheckpointError, match=word):
        read_result(run)


def photos(folder: Path) -> Path:
    """Images without labels."""
    folder.mkdir()
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_quality_without_labels_is_the_cosine(run: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    for limits in (Limits(max_drop=1.0), Limits(max_recall_drop=1.0)):
        with pytest.raises(DataError):
            Script().tune(run, config(limits, split="test"), folder)
    script = Script()
    script.verbs["evaluate_run"] = evaluate_run
    found = script.tune(run, config(Limits(min_cosine=0.0), split="test", **OWN), folder)
    assert place(found) == (RANK, SIDE, 0.25)
    assert found.choice is not None
    assert (found.choice.accuracy, found.choice.drop) == (None, None)
    assert found.choice.overlap is not None
    assert any("no labels" in note for note in found.notes)
    value = json.loads((run / "tune" / "tune.json").read_text())["results"][0]
    assert (value["accuracy"], value["drop"]) == (None, None)
    script = Script(labelled=False)
    assert script.tune(run, config(Limits(), split="test", **NATIVE, minutes=0), folder).limits == Limits(min_cosine=0.98)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_for_real_on_a_tiny_run(run: Path) -> None:
    """Train, evaluate, export and time every kind of sibling run, as a person types it."""
    arguments = [str(run), "--image-size", "64,48", "--location", "2,3", "--keep", "0.5", "--batch", "2", "--max-drop", "100", "--json"]
    result = CliRunner().invoke(command, [*arguments, "--set", "budget_s=0", "--set", "minutes=0"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    rows = value["results"]
    assert {(row["method"], row["image_size"][0]) for row in rows} == {
        *((UNPRUNED, SIDE), (RANK, SIDE), (RANK, 48), (MERGE, SIDE), (MERGE, 48), (NONE, 48))
    }
    assert all(row["images_per_s"] > 0 for row in rows if row["latency_ms"] is not None)
    assert sum(row["latency_ms"] is not None for row in rows) >= 2
    assert all(0.0 < row["macs_share"] < 1.0 for row in rows[1:])
    found = read_result(run)
    assert found is not None
    chosen = rows[value["choice"]]
    assert (found.method, list(found.image_size), list(found.locations)) == (chosen["method"], chosen["image_size"], chosen["locations"])
    manifest = Bundle.open(run / "tune" / Family(found.method, found.image_size[0] % SIDE, found.locations).folder / "bundle").manifest
    assert (manifest.prune.method, manifest.preprocess.size, manifest.native_size) == (found.method, found.image_size, (SIDE, SIDE))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_left_of_a_recovered_run_is_recovered_too(tmp_path: Path) -> None:
    """Every family is looked at without recovery, which costs nothing; those that are evaluated on all images have one of their own."""
    data = write_images(tmp_path / "data", {"train": 12, "val": 6})
    model = write_model(tmp_path / "model", image_size=SIDE, patch_size=PATCH, layers=DEPTH)
    settings = {"model": model, "data": str(data), "prune.locations": [LOCATION], "device": "cpu", "phases": ("predictor", "recover")}
    train(TrainConfig.load(None, {**settings, "distill.steps": 2, "recover.steps": 8, "recover.copies": 0, "recover.lr": 1e-4}), tmp_path / "run")
    made = read_record(tmp_path / "run")
    assert made.recovery.kept is not None
    settings = config(Limits(max_drop=100.0), keeps=(Keep.ratio(0.6), Keep.ratio(0.5)), image_sizes=(0, 48), screen_images=12, minutes=0, batch=2)
    report = tune(tmp_path / "run", settings)
    low, high = made.keep_range
    own = [row.k for row in report.candidates if row.family == Family(RANK, 0, (LOCATION,))]
    assert own and all(low <= k <= high for k in own)
    siblings = [row.family for row in report.candidates if row.row.images == 18 and row.family.image_size]
    assert siblings
    for family in siblings:
        place = tmp_path / "run" / "tune" / family.folder
        assert read_record(place / "run").recovery.kept is None
        recovery = read_record(place / "recovered").recovery
        method = {RANK: "patch-ranking", MERGE: "merge", NONE: "smaller-image"}[family.method] if recovery.kept is None else "recovered"
        assert {row.row.method for row in report.candidates if row.family == family} == {method}
    found = read_result(tmp_path / "run")
    assert found is not None and found.run in ("", ".", *(f"tune/{family.folder}/recovered" for family in siblings))
