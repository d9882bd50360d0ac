"""`prtool tune`: choosing against brute force, measuring with scripted verbs, and once for real on a tiny run."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_lab import FakeLab
from click.testing import CliRunner
from local_model import write_images, write_model
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.bundle import Bundle
from prtool.cli.run import tune as command
from prtool.engines.base import EngineInfo
from prtool.errors import CheckpointError, ConfigError, DataError, EngineUnavailable, KeepError
from prtool.progress import SilentProgress
from prtool.runtime.bench import BenchConfig
from prtool.spec import Keep
from prtool.store import read_sealed, write_sealed
from prtool.studies.tune.config import TuneConfig
from prtool.studies.tune.front import Candidate, Limits, choose, nearest, pareto_front
from prtool.studies.tune.report import TuneReport
from prtool.studies.tune.result import RESULT_NAME, read_result, record_digest
from prtool.studies.tune.run import tune
from prtool.studies.tune.steps import LocationSet
from prtool.trainer.config import TrainConfig
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.report import UNPRUNED, EvalReport, EvalRow, drop_error
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import TokensRecord
from prtool.trainer.train import train

LOCATION, PATCHES, IMAGES = 2, 16, 400
KEEPS = tuple(Keep.ratio(value) for value in (1.0, 0.75, 0.5))


def candidate(gmacs: float, latency_ms: float, accuracy: float | None, cosine: float = 0.9, locations: tuple[int, ...] = (4,)) -> Candidate:
    drop = None if accuracy is None else 80.0 - accuracy
    return Candidate(locations, 0.5, 98, gmacs, 8, latency_ms, 100 / latency_ms, 1.0, 2.0, cosine, accuracy, drop, 0.1)


def crowd(seed: int, size: int = 12) -> list[Candidate]:
    """Candidates on a coarse grid, so that ties of every kind occur."""
    rng = np.random.default_rng(seed)
    return [candidate(*rng.integers(1, 5, 2).tolist(), 78.0 + int(rng.integers(0, 4)), int(rng.integers(90, 94)) / 100) for _ in range(size)]


@pytest.mark.parametrize("seed", range(30))
def test_the_front_is_what_no_other_point_beats(seed: int) -> None:
    points = [(row.gmacs, row.latency_ms, row.accuracy or 0.0) for row in crowd(seed)]
    expected = []
    for mine in points:
        beaten = False
        for other in points:
            no_worse = [other[0] <= mine[0], other[1] <= mine[1], other[2] >= mine[2]]
            better = [other[0] < mine[0], other[1] < mine[1], other[2] > mine[2]]
            beaten = beaten or (all(no_worse) and any(better))
        expected.append(not beaten)
    assert pareto_front(points) == tuple(expected)
    assert any(expected)


@pytest.mark.parametrize("seed", range(30))
def test_with_a_limit_on_quality_the_fastest_is_chosen(seed: int) -> None:
    rows = crowd(seed)
    for limit in (0.0, 1.0, 2.0):
        chosen = choose(rows, Limits(max_drop=limit))
        fit = [row for row in rows if 80.0 - (row.accuracy or 0.0) <= limit]
        if not fit:
            assert chosen is None
            continue
        assert chosen in fit
        quick = [row for row in fit if row.latency_ms == min(row.latency_ms for row in fit)]
        # Times here are whole numbers: none but equal ones are the same time. Of those the most accurate, then the nearest by cosine.
        assert chosen in quick
        assert (chosen.accuracy, chosen.cosine) == max((row.accuracy, row.cosine) for row in quick)


@pytest.mark.parametrize("seed", range(30))
def test_with_a_limit_on_speed_the_most_accurate_is_chosen(seed: int) -> None:
    rows = crowd(seed)
    for most in (0.5, 1.0, 2.0, 4.0):
        for limits in (Limits(max_latency_ms=most), Limits(min_images_per_s=8000 / most)):
            chosen = choose(rows, limits)
            fit = sorted((-(row.accuracy or 0.0), -row.cosine, row.latency_ms) for row in rows if row.latency_ms <= most)
            assert (chosen is None) == (not fit)
            if chosen is not None:
                assert (-(chosen.accuracy or 0.0), -chosen.cosine, chosen.latency_ms) == fit[0]


@pytest.mark.parametrize("seed", range(30))
def test_both_limits_hold(seed: int) -> None:
    rows = crowd(seed)
    limits = Limits(max_drop=1.0, max_latency_ms=2.0)
    chosen, fit = choose(rows, limits), [row for row in rows if (row.drop or 0.0) <= 1.0 and row.latency_ms <= 2.0]
    assert (chosen is None) == (not fit)
    if chosen is not None:
        assert chosen.latency_ms == min(row.latency_ms for row in fit)
    close = nearest(rows, limits)
    within = [row.latency_ms for row in rows if (row.drop or 0.0) <= 1.0]
    assert close.latency_ms == min(within) if within else close.accuracy == max(row.accuracy or 0.0 for row in rows)


def test_times_within_two_percent_are_one_step_of_the_staircase() -> None:
    slow, better = candidate(3, 10.1, 79.9), candidate(4, 10.0, 79.1)
    assert choose([slow, better], Limits(max_drop=1.0)) is slow
    assert choose([replace(slow, latency_ms=10.3), better], Limits(max_drop=1.0)) is better


def test_without_labels_cosine_counts() -> None:
    rows = [candidate(1, 1, None, 0.95), candidate(2, 2, None, 0.97), candidate(3, 3, None, 0.99)]
    assert choose(rows, Limits(min_cosine=0.96)) is rows[1]
    assert choose(rows, Limits(max_latency_ms=2)) is rows[1]
    assert choose(rows, Limits(max_drop=5.0)) is None


@pytest.mark.parametrize(("lost", "won", "images"), [(0, 0, 50), (7, 2, 100), (30, 30, 1000)])
def test_the_error_of_a_drop_is_that_of_paired_differences(lost: int, won: int, images: int) -> None:
    """The variance of a mean of differences -1, 0 and 1, each of the four cells with half an image more."""
    values, weights = np.array([1.0, -1.0, 0.0]), np.array([lost + 0.5, won + 0.5, images - lost - won + 1.0])
    mean = np.average(values, weights=weights)
    variance = np.average((values - mean) ** 2, weights=weights) / weights.sum()
    assert drop_error(lost, won, images) == pytest.approx(100 * 1.96 * math.sqrt(variance), rel=1e-4)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "limit"),
        ({"max_drop": -0.1}, "max_drop"),
        ({"max_drop": math.nan}, "max_drop"),
        ({"min_cosine": 1.2}, "min_cosine"),
        ({"max_latency_ms": 0.0}, "max_latency_ms"),
        ({"min_images_per_s": math.inf}, "min_images_per_s"),
        ({"max_latency_ms": 10.0, "min_images_per_s": 900.0}, r"max_latency_ms.*min_images_per_s"),
    ],
)
def test_limits_that_make_no_sense(given: dict[str, float], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        Limits(**given)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"keeps": ()}, "keeps"),
        ({"engine": "ortt"}, "ortt"),
        ({"precision": "fp16"}, "fp16"),
        ({"batch": 0}, "batch"),
        ({"locations": ((6, 4),)}, r"6.*4"),
        ({"locations": ((0,),)}, "0"),
        ({"locations": ((2,), (2,))}, "2"),
        ({"split": "valid"}, "split"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        TuneConfig(Limits(max_drop=1.0), **given)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set and an untrained run; the tests work on copies of the run's two files."""
    root = tmp_path_factory.mktemp("tune")
    data = write_images(root / "data", {"train": 2, "val": 2})
    settings = {"model": write_model(root / "model"), "data": str(data), "prune.locations": [LOCATION], "device": "cpu", "phases": ("none",)}
    train(TrainConfig.load(None, settings), root / "run")
    return root


@pytest.fixture
def run(home: Path, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for item in (home / "run").iterdir():
        (tmp_path / "run" / item.name).write_bytes(item.read_bytes())
    return tmp_path / "run"


@dataclass
class Script:
    """Verbs that follow a script and write down what they were asked.

    `drops` are points of accuracy lost, and `shares` the time of a call against the unpruned 80 ms, by location and kept patches.
    """

    drops: dict[tuple[int, ...], dict[int, float]]
    shares: dict[tuple[int, ...], dict[int, float]]
    trained: list[tuple[Path, TrainConfig]] = field(default_factory=list)
    evaluated: list[tuple[Path, tuple[int, ...]]] = field(default_factory=list)
    exported: list[Path] = field(default_factory=list)
    timed: list[Path] = field(default_factory=list)
    flips: int = 0
    verbs: dict[str, Callable[..., Any]] = field(default_factory=dict)

    @property
    def work(self) -> tuple[int, int, int, int]:
        return len(self.trained), len(self.evaluated), len(self.exported), len(self.timed)

    def train(self, config: TrainConfig, run: Path, *_: object, **_options: object) -> Checkpoint:
        self.trained.append((run, config))
        return train(config, run)

    def evaluate(self, run: Path, data: Path | None, config: EvalConfig, *_: object) -> EvalReport:
        where = Checkpoint.load(run).prune.locations
        counts = tuple(keep.resolve(PATCHES) for keep in config.keeps)
        self.evaluated.append((run, counts))

        def row(method: str, k: int, drop: float) -> EvalRow:
            lost = round(drop * IMAGES / 100)
            return EvalRow(method, k / PATCHES, 80.0 - drop, IMAGES, 1.0 + k / 10, None, 1.0 - drop / 100, lost + self.flips, self.flips)

        rows = (row(UNPRUNED, PATCHES, 0.0), *(row(config.methods[0], k, self.drops[where][k]) for k in counts))
        return EvalReport(rows, "tiny", "", "0" * 64, str(data), config.split, 0, where, PATCHES, True, ())

    def export(self, _run: Path, out: Path, *_: object) -> Any:
        self.exported.append(out)
        return tiny_bundle(out, TinyModel()).manifest

    def bench(self, bundle: Path, config: BenchConfig, *_: object) -> Any:
        self.timed.append(bundle)
        lab = FakeLab()
        where = tuple(int(part) for part in bundle.parent.name.removeprefix("at-").split("-"))
        lab.noise, lab.shares = 0.0, self.shares[where]
        return lab.bench(bundle, config)

    def probe(self, engine: str) -> EngineInfo:
        return EngineInfo(engine, "9.9", "thin air")

    def tune(self, run: Path, config: TuneConfig, data: Path | None = None) -> TuneReport:
        """`tune` with these verbs."""
        with pytest.MonkeyPatch.context() as patch:
            own = {"train": self.train, "evaluate_run": self.evaluate, "export_run": self.export, "bench": self.bench, "probe": self.probe}
            for name, verb in (own | self.verbs).items():
                patch.setattr(f"prtool.studies.tune.steps.{name}", verb)
            patch.setattr("prtool.studies.tune.run.probe", self.verbs.get("probe", self.probe))
            return tune(run, config, data)


def script() -> Script:
    drops = {(2,): {16: 0.0, 12: 0.5, 8: 1.5}, (3,): {16: 0.0, 12: 0.25, 8: 0.75}, (2, 3): {16: 0.0, 12: 0.25, 8: 1.0}}
    shares = {(2,): {16: 1.05, 12: 0.8, 8: 0.6}, (3,): {16: 1.05, 12: 0.9, 8: 0.7}, (2, 3): {16: 1.05, 12: 0.85, 8: 0.65}}
    return Script(drops, shares)


def config(limits: Limits, **given: Any) -> TuneConfig:
    return TuneConfig(limits, keeps=given.pop("keeps", KEEPS), budget_s=0.0, **given)


def test_the_fastest_within_the_drop_is_written_into_the_run(run: Path) -> None:
    report = script().tune(run, config(Limits(max_drop=1.0)))
    assert report.choice is not None
    assert (report.choice.locations, report.choice.k, report.choice.drop) == ((2,), 12, 0.5)
    assert report.choice.latency_ms == pytest.approx(64.0)
    assert report.unpruned.latency_ms == pytest.approx(80.0)
    found = read_result(run)
    assert found is not None
    assert (found.run, found.locations, found.keep, found.kept) == (".", (2,), 0.75, Keep.count(12))
    assert found.checkpoint_sha256 == found.run_sha256 == record_digest(run)
    assert found.limits == {"max_drop": 1.0}
    assert found.figures["speedup"] == pytest.approx(1.25)
    value = json.loads((run / "tune" / "tune.json").read_text())
    assert [row["chosen"] for row in value["results"]] == [False, False, True, False]
    assert value["choice"] == 2
    with Image.open(run / "tune" / "pareto.png") as picture:
        assert picture.size[0] > 500


def test_other_locations_are_sibling_runs(run: Path) -> None:
    told = script()
    report = told.tune(run, config(Limits(max_drop=1.0), locations=((2,), (3,), (2, 3))))
    assert report.choice is not None
    assert (report.choice.locations, report.choice.k) == ((2, 3), 8)
    assert [(folder.relative_to(run).as_posix(), made.prune.locations) for folder, made in told.trained] == [
        ("tune/at-3/run", (3,)),
        ("tune/at-2-3/run", (2, 3)),
    ]
    found = read_result(run)
    assert found is not None
    assert found.run == "tune/at-2-3/run"
    assert Checkpoint.load(run / found.run).prune.locations == (2, 3)
    assert sum("sibling run" in note for note in report.notes) == 2


def test_a_sibling_whose_tokens_did_not_help_is_evaluated_without(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has tokens, the site's own run has none."""
    told, asked = script(), []

    def evaluate(where: Path, data: Path | None, config: EvalConfig, *_: object) -> EvalReport:
        asked.append(config.methods)
        return told.evaluate(where, data, config)

    checkpoint = Checkpoint.load(run)
    monkeypatch.setattr("prtool.studies.tune.steps.evaluate_run", evaluate)
    item = LocationSet(run, replace(checkpoint, tokens=TokensRecord(visual=2)), checkpoint.prune.locations, SilentProgress())
    item.evaluate(config(Limits(max_drop=1.0), keeps=(Keep.count(12),)), None, "")
    assert asked == [("patch-ranking",)]


@pytest.mark.parametrize("unpruned", range(30, 100, 7))
def test_a_drop_of_exactly_the_limit_is_within_it(run: Path, unpruned: int) -> None:
    """One image of 1,000 is 0.1 points, though 61.1 - 61.0 is more than 0.1 in floating point."""
    told = script()

    def evaluate(where: Path, data: Path | None, config: EvalConfig, *_: object) -> EvalReport:
        report = told.evaluate(where, data, config)
        rows = [replace(row, images=1000, accuracy=100 * unpruned / 1000, lost=0, won=0) for row in report.rows]
        rows[1:] = [replace(row, accuracy=100 * (unpruned - 1) / 1000, lost=1) for row in rows[1:]]
        return replace(report, rows=tuple(rows))

    told.verbs["evaluate_run"] = evaluate
    report = told.tune(run, config(Limits(max_drop=0.1)))
    assert report.choice is not None
    assert report.choice.k == 8


def test_finished_work_is_reused_while_all_it_depends_on_is_the_same(run: Path, home: Path) -> None:
    told = script()
    told.tune(run, config(Limits(max_drop=1.0)))
    assert told.work == (0, 1, 1, 1)
    report = told.tune(run, config(Limits(max_latency_ms=50.0)))
    assert told.work == (0, 1, 1, 1)
    assert report.choice is not None
    assert report.choice.k == 8
    # Another list of keeps: only what is new is evaluated, and all are timed in the same rounds.
    told.tune(run, config(Limits(max_drop=1.0), keeps=KEEPS[1:]))
    assert told.work == (0, 1, 1, 2)
    told.drops[2,][4], told.shares[2,][4] = 9.0, 0.4
    told.tune(run, config(Limits(max_drop=1.0), keeps=(*KEEPS, Keep.count(4))))
    assert told.evaluated[-1] == (run, (4,))
    told.tune(run, config(Limits(max_drop=1.0), batch=4))
    assert told.work == (0, 2, 1, 4)
    # A damaged note of what stands, and a bundle that was changed, are made anew.
    damaged = run / "tune" / "at-2" / "evaluation-val.json"
    damaged.write_bytes(damaged.read_bytes().replace(b'"cosine": 0', b'"cosine": 1'))
    (run / "tune" / "at-2" / "bundle" / "fused.onnx").write_bytes(b"")
    told.tune(run, config(Limits(max_drop=1.0)))
    assert (len(told.evaluated), len(told.exported)) == (3, 2)
    write_images(home / "other", {"val": 3})
    before = len(told.evaluated)
    told.tune(run, config(Limits(max_drop=1.0)), home / "other")
    assert len(told.evaluated) == before + 1


def test_the_unpruned_model_may_be_the_best(run: Path) -> None:
    told = script()
    told.drops[2,] = {16: 0.0, 12: 2.0, 8: 4.0}
    report = told.tune(run, config(Limits(max_drop=1.0)))
    assert report.choice is report.unpruned
    assert "the unpruned model is best" in report.verdict()
    found = read_result(run)
    assert found is not None
    assert found.is_unpruned
    assert found.kept == Keep.ratio(1.0)
    report = told.tune(run, config(Limits(max_latency_ms=90.0)))
    assert report.choice is report.unpruned


def test_out_of_reach_names_the_nearest_and_leaves_the_earlier_choice(run: Path) -> None:
    told = script()
    with pytest.raises(ConfigError, match=r"location 2, keep 0\.75.*64 ms.*location 2, keep 0\.5"):
        told.tune(run, config(Limits(max_drop=1.0, max_latency_ms=40.0)))
    assert read_result(run) is None
    assert json.loads((run / "tune" / "tune.json").read_text())["choice"] is None
    told.tune(run, config(Limits(max_drop=1.0)))
    earlier = (run / RESULT_NAME).read_bytes()
    with pytest.raises(ConfigError, match="min_images_per_s = 9999"):
        told.tune(run, config(Limits(min_images_per_s=9999.0)))
    assert (run / RESULT_NAME).read_bytes() == earlier


def test_a_drop_that_the_images_cannot_tell_is_said(run: Path) -> None:
    told = script()
    told.flips = 20
    report = told.tune(run, config(Limits(max_drop=0.5)))
    error = drop_error(22, 20, IMAGES)
    assert error > 0.5
    assert any(f"0.50 +- {error:.2f}" in note and "location 2, keep 0.75" in note for note in report.notes)
    assert not any("+-" in note for note in told.tune(run, config(Limits(max_drop=50.0))).notes)


def unavailable(engine: str) -> EngineInfo:
    raise EngineUnavailable(f"engine {engine} finds no device")


@pytest.mark.parametrize(
    ("limits", "given", "error", "word"),
    [
        (Limits(max_drop=1.0), {"locations": ((2,), (4,))}, ConfigError, "4"),
        (Limits(max_drop=1.0), {"keeps": (Keep.ratio(0.5), Keep.count(8))}, ConfigError, "8"),
        (Limits(max_drop=1.0), {"keeps": (Keep.count(17),)}, KeepError, "17"),
        (Limits(max_drop=1.0), {"split": "test"}, DataError, r"'test'.*train, val"),
    ],
)
def test_bad_input_is_refused_before_any_work(run: Path, limits: Limits, given: dict[str, Any], error: type[Exception], word: str) -> None:
    told = script()
    with pytest.raises(error, match=word):
        told.tune(run, config(limits, **given))
    with pytest.raises(EngineUnavailable, match="no device"):
        told.verbs["probe"] = unavailable
        told.tune(run, config(limits))
    assert told.work == (0, 0, 0, 0)
    assert not (run / "tune").exists()


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
        (lambda run: (run / RESULT_NAME).write_bytes((run / RESULT_NAME).read_bytes().replace(b"0.5", b"0.6")), "checksum mismatch"),
        (lambda run: train(replace(TrainConfig.from_json(Checkpoint.load(run).config), seed=5), run), "another checkpoint"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(run: Path, damage: Callable[[Path], object], word: str) -> None:
    script().tune(run, config(Limits(max_drop=1.0)))
    damage(run)
    with pytest.raises(CheckpointError, match=word):
        read_result(run)


def photos(folder: Path) -> Path:
    """Images without labels."""
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_quality_without_labels_is_the_cosine(run: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    report = evaluate_run(run, folder, EvalConfig(keeps=KEEPS, methods=("patch-ranking",)))
    assert all(row.accuracy is None and row.lost is None for row in report.rows)
    assert [row.cosine for row in report.rows[:2]] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert report.rows[3].cosine < 1.0
    with pytest.raises(DataError):
        script().tune(run, config(Limits(max_drop=1.0), split="test"), folder)
    told = script()
    told.verbs["evaluate_run"] = evaluate_run
    found = told.tune(run, config(Limits(min_cosine=0.0), split="test"), folder)
    assert found.choice is not None
    assert (found.choice.k, found.choice.accuracy, found.choice.drop) == (8, None, None)
    assert any("no labels" in note for note in found.notes)
    assert json.loads((run / "tune" / "tune.json").read_text())["results"][0]["accuracy"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_for_real_on_a_tiny_run(run: Path) -> None:
    """Train, export, evaluate and time a progressive sibling run, as a person types it."""
    arguments = [str(run), "--location", "2,3", "--keep", "1.0,0.5", "--batch", "2", "--set", "budget_s=0", "--max-drop", "100", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert [(row["locations"], row["k"]) for row in value["results"]] == [([], 16), ([2, 3], 16), ([2, 3], 8)]
    assert all(row["images_per_s"] > 0 for row in value["results"])
    full, every, half = value["results"]
    # With every patch kept the embedding is the unpruned one, at some more multiply-accumulates.
    assert every["cosine"] == pytest.approx(1.0, abs=1e-6)
    assert every["accuracy"] == full["accuracy"]
    assert half["gmacs"] < every["gmacs"] > full["gmacs"]
    found = read_result(run)
    assert found is not None
    assert list(found.locations) == value["results"][value["choice"]]["locations"]
    assert Bundle.open(run / "tune" / "at-2-3" / "bundle").manifest.prune.locations == (2, 3)
