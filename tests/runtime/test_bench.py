"""The benchmark against plain arithmetic: a fake clock that scripted encoders move, and one real run."""

import io
import itertools
import json
import re
import statistics
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import pytest
from bench_lab import FakeLab
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.bundle import Bundle
from prtool.errors import ConfigError, DataError, ImageError, KeepError
from prtool.runtime.bench import BenchConfig, BenchRow, bench
from prtool.runtime.bench.inputs import sample_photos
from prtool.runtime.bench.notes import notes_on
from prtool.runtime.bench.sensors import EnergyMeter
from prtool.runtime.bench.timing import Case, Plan, Samples, Sensors, measure, speedup
from prtool.runtime.machine import Machine, library_versions, peak_memory_mib, this_machine
from prtool.spec import Keep

ROW_NAMES = [
    "scope",
    "batch",
    "engine",
    "device",
    "precision",
    "mode",
    "keep",
    "k",
    "image_size",
    "gmacs",
    "p50_ms",
    "p90_ms",
    "p99_ms",
    "images_per_s",
    "speedup",
    "speedup_low",
    "speedup_high",
    "theoretical_speedup",
    "share_of_theoretical",
    "reference_ratio",
    "stages_ms",
    "device_ms",
    "joules_per_image",
    "gpu_joules_per_image",
]
REPORT_NAMES = [
    "schema",
    "engines",
    "device",
    "versions",
    "rows",
    "model",
    "rounds",
    "warmup_rounds",
    "seed",
    "threads",
    "streams",
    "reference",
    "images",
    "machine",
    "peak_memory_mib",
    "gpu_memory_mib",
    "energy_reason",
    "gpu_reason",
    "date",
    "notes",
    "speedup_method",
]
QUIET = Machine("a processor", cores=4, threads_granted=4, system="Linux", load_average=0.0)


class CountingProgress:
    def __init__(self) -> None:
        self.stages: list[list[object]] = []

    def start(self, what: str, total: int) -> None:
        self.stages.append([what, total, 0, False])

    def advance(self, count: int = 1) -> None:
        self.stages[-1][2] += count  # type: ignore[operator]

    def finish(self) -> None:
        self.stages[-1][3] = True


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bench") / "bundle", TinyModel())


def encoder_only(**changes: object) -> BenchConfig:
    return replace(BenchConfig(batches=(2,), keeps=(0.5,), scopes=("encoder",), min_rounds=7, max_rounds=7), **changes)


def test_each_round_holds_each_configuration_once(bundle: Bundle) -> None:
    lab = FakeLab()
    config = BenchConfig(batches=(1, 3), keeps=(1.0, 0.5), modes=("fused", "split"), min_rounds=6, max_rounds=6, scopes=("encoder",))
    report = lab.bench(bundle, config)
    expected = {("full", batch, (16,)) for batch in (1, 3)}
    expected |= set(itertools.product(("fused", "split"), (1, 3), ((16,), (8,))))
    size = len(expected)
    assert len(lab.calls) == size * (6 + config.warmup_rounds) and report.rounds == 6
    rounds = [[(mode, batch, keep) for mode, _, batch, keep in lab.calls[at : at + size]] for at in range(0, len(lab.calls), size)]
    assert all(set(calls) == expected for calls in rounds)
    assert len({tuple(map(str, calls)) for calls in rounds}) > 1, "the order never changes"
    for calls in rounds:  # a baseline and what is compared with it are neighbours
        assert [batch for batch, _ in itertools.groupby(batch for _, batch, _ in calls)] in ([1, 3], [3, 1])


def test_rows_equal_plain_arithmetic(bundle: Bundle) -> None:
    lab = FakeLab()
    report = lab.bench(bundle, encoder_only())
    timed = list(zip(lab.calls, lab.spent_ns, strict=True))[2 * 2 :]
    full = [spent / 1e6 for (mode, *_), spent in timed if mode == "full"]
    fused = [spent / 1e6 for (mode, *_), spent in timed if mode == "fused"]
    ratios = sorted(slow / fast for slow, fast in zip(full, fused, strict=True))
    baseline, pruned = report.rows
    assert (baseline.mode, baseline.keep, baseline.k) == ("full", 1.0, 16)
    assert baseline.speedup == baseline.theoretical_speedup == baseline.share_of_theoretical == 1.0
    assert baseline.p50_ms == pytest.approx(statistics.median(full)) and pruned.p50_ms == pytest.approx(statistics.median(fused))
    tenths = statistics.quantiles(fused, n=10, method="inclusive")
    assert pruned.p90_ms == pytest.approx(tenths[8]) and pruned.p90_ms < pruned.p99_ms < max(fused)
    assert pruned.images_per_s == pytest.approx(2 / (statistics.median(fused) / 1e3))
    assert (pruned.speedup, pruned.speedup_low, pruned.speedup_high) == pytest.approx((statistics.median(ratios), ratios[0], ratios[-1]))
    manifest = bundle.manifest
    assert pruned.k == 8 and pruned.theoretical_speedup == pytest.approx(
        manifest.cost.full_gmacs(manifest.prune) / manifest.cost.gmacs(manifest.prune.tokens_by_block((8,)))
    )
    assert pruned.share_of_theoretical == pytest.approx(pruned.speedup / pruned.theoretical_speedup)


def test_speedup_pairs_rounds_and_its_interval_covers_95_percent() -> None:
    drift = [100, 200, 400, 800, 1600]  # every call of a round is slowed alike
    paired = speedup(Samples([3 * slow for slow in drift]), Samples([2 * slow for slow in drift]))
    assert (paired.median, paired.low, paired.high) == (1.5, 1.5, 1.5)
    for rounds in range(6, 80):
        interval = speedup(Samples(list(range(1, rounds + 1))), Samples([1] * rounds))
        outside = round(interval.low) - 1  # the ratios are 1, 2, ..., rounds
        assert interval.high == rounds - outside
        assert 2 * sum(comb(rounds, j) for j in range(outside + 1)) / 2**rounds <= 0.05, "holds too little"
        assert 2 * sum(comb(rounds, j) for j in range(outside + 2)) / 2**rounds > 0.05, "is wider than needed"


def test_the_same_input_for_every_configuration(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.bench(bundle, encoder_only(batches=(2, 3)))
    assert all(len(set(inputs)) == 1 for inputs in lab.inputs.values())
    pixels = np.frombuffer(lab.inputs[3][0], np.float32).reshape(3, 3, 8, 8)
    spec = bundle.manifest.preprocess
    for channel in range(3):
        low, high = (0.0 - spec.mean[channel]) / spec.std[channel], (1.0 - spec.mean[channel]) / spec.std[channel]
        assert low <= pixels[:, channel].min() < pixels[:, channel].max() <= high
    again = FakeLab()
    again.bench(bundle, encoder_only(batches=(2, 3)))
    assert again.inputs == lab.inputs and again.calls == lab.calls


def test_end_to_end_has_its_own_baseline_and_the_same_files_within_a_round(bundle: Bundle) -> None:
    lab = FakeLab()
    config = encoder_only(scopes=("end-to-end",), images=tuple(sample_photos(5)), batches=(2,))
    report = lab.bench(bundle, config)
    assert [(row.scope, row.mode) for row in report.rows] == [("end-to-end", "full"), ("end-to-end", "fused")]
    assert report.rows[0].speedup == 1.0 < report.rows[1].speedup
    assert all(set(row.stages_ms) == {"decode", "preprocess", "encode"} for row in report.rows)
    assert report.images == "5 given images, in memory"
    inputs = lab.inputs[2]
    assert all(first == second for first, second in zip(inputs[::2], inputs[1::2], strict=True)), "a round compares different images"
    assert len(set(inputs)) == 5  # 9 rounds of 2 of 5 images: every start occurs


def test_stages_of_the_split_mode_are_added_up_by_kind(bundle: Bundle) -> None:
    report = FakeLab().bench(bundle, encoder_only(modes=("split",)))
    split = report.rows[1]
    assert split.stages_ms == {"pre": 5.0, "select": 4.0, "mid": 2.0, "post": 4.0} and split.p50_ms == 15.0


def test_budget_bounds_the_rounds(bundle: Bundle) -> None:
    def rounds(budget_s: float) -> int:
        config = encoder_only(budget_s=budget_s, min_rounds=5, max_rounds=400)
        return FakeLab().bench(bundle, config).rounds

    assert rounds(0.0) == 5 and rounds(1e6) == 400
    assert 15 <= rounds(1.0) <= 28, "a round takes 36 to 54 ms"


def test_progress_hears_about_every_call(bundle: Bundle) -> None:
    progress = CountingProgress()
    FakeLab().bench(bundle, encoder_only(), progress)
    assert progress.stages == [["warming up (calls)", 4, 4, True], ["timing (calls)", 14, 14, True]]


def test_encoders_are_closed_also_after_a_failure(bundle: Bundle) -> None:
    lab = FakeLab()
    with pytest.raises(ImageError):
        lab.bench(bundle, BenchConfig(images=(b"not an image",)))
    assert len(lab.loaded) == 2 and all(encoder.closed for encoder in lab.loaded)


def test_json_names_are_stable(bundle: Bundle) -> None:
    report = FakeLab().bench(bundle, BenchConfig(keeps=(1.0, 0.6), min_rounds=5, max_rounds=5))
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert list(value) == REPORT_NAMES and all(list(row) == ROW_NAMES for row in value["rows"])
    assert value["schema"] == 1 and value["engines"] == {"ort": "thin air"} and value["device"] == this_machine().cpu
    assert {"prtool", "python", "numpy", "pillow", "ort"} <= set(value["versions"]) and value["versions"]["ort"] == "9.9"
    assert list(value["machine"]) == ["cpu", "cores", "threads_granted", "system", "load_average"]
    assert value["rows"][0]["joules_per_image"] is None and "RAPL" in value["energy_reason"]
    columns, cells = report.table()
    assert all(len(row) == len(columns) for row in cells) and len(cells) == len(report.rows) == 2 * 2 * 3
    assert cells[0][:7] == ["encoder", "1", "ort", "fp32", "full", "8x8", "1"]
    assert cells[0][10:] == [f"{report.rows[0].images_per_s:.1f}", "1.00x", "1.00x", "100%"]


def test_notes_say_where_pruning_does_not_pay(bundle: Bundle) -> None:
    def notes(pruned_share: float) -> str:
        report = FakeLab(pruned_share).bench(bundle, encoder_only(keeps=(1.0, 0.5), min_rounds=200, max_rounds=200))
        return "\n".join(notes_on(report.rows, QUIET))

    assert notes(0.8) == ""
    assert re.search(r"batch 2, fused, ort fp32, encoder.*[01]\.\d\dx.*keep 0\.5 .* 1\.\d\dx", notes(1.0))
    assert notes(1.0).count("\n") == 0, "keep 1.0 prunes nothing, so it needs no such sentence"


def test_notes_say_what_is_uncertain_and_what_pruning_cannot_shorten() -> None:
    row = BenchRow(
        scope="end-to-end",
        batch=1,
        engine="ort",
        device="thin air",
        precision="fp32",
        mode="fused",
        keep=0.6,
        k=10,
        image_size=(8, 8),
        gmacs=1.0,
        p50_ms=10.0,
        p90_ms=11.0,
        p99_ms=12.0,
        images_per_s=100.0,
        speedup=1.3,
        speedup_low=1.1,
        speedup_high=1.4,
        theoretical_speedup=1.4,
        share_of_theoretical=0.9,
        reference_ratio=None,
        stages_ms={"decode": 2.0, "preprocess": 1.0, "encode": 7.0},
        device_ms=None,
        joules_per_image=None,
        gpu_joules_per_image=None,
    )
    notes = notes_on((row,), replace(QUIET, load_average=3.0))
    expected = (
        " 30 % .*keep 0.6, batch 1, fused, ort fp32, end-to-end",
        "1 of 1 .*keep 0.6, batch 1, fused, ort fp32, end-to-end.*1.10 to 1.40",
        " 3.0 .* 4 ",
    )
    assert all(re.search(pattern, note) for pattern, note in zip(expected, notes, strict=True)), notes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": (0,)}, r"batches.*0"),
        ({"batches": (1.5,)}, r"batches.*1\.5"),
        ({"batches": (True,)}, "batches.*True"),
        ({"batches": (2000,)}, "2000"),
        ({"batches": ()}, "batches"),
        ({"keeps": (float("nan"),)}, "nan"),
        ({"keeps": (1,)}, "Keep.count"),
        ({"modes": ("fusd",)}, r"fusd.*fused"),
        ({"modes": ("full",)}, "full"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("decoder",)}, "encoder"),
        ({"precisions": ()}, "precisions"),
        ({"images": ()}, "images"),
        ({"min_rounds": 4}, "4"),
        ({"max_rounds": 4}, "4"),
        ({"warmup_rounds": 0}, "warmup_rounds"),
        ({"budget_s": float("inf")}, "budget_s = inf"),
        ({"budget_s": -1.0}, "budget_s"),
        ({"threads": -1}, "threads"),
        ({"seed": -1}, "seed"),
        ({"engines": ()}, "engines"),
        ({"engines": ("ort", "ort")}, r"engines.*ort"),
        ({"keeps": (0.5, Keep.ratio(0.5))}, r"keeps.*0.5"),
        ({"streams": 0}, "streams"),
        ({"reference": "openvino/fp32"}, r"reference = 'openvino/fp32'.*slowest.*ort/fp32"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BenchConfig(**changes)


@pytest.mark.parametrize("keep", [17, 0.01])
def test_a_keep_that_the_bundle_lacks_is_refused_before_anything_is_loaded(bundle: Bundle, keep: float | int) -> None:
    lab = FakeLab()
    with pytest.raises(KeepError):
        lab.bench(bundle, BenchConfig(keeps=(keep,)))
    assert not lab.loaded


def test_a_missing_image_is_named(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jpg"):
        FakeLab().bench(bundle, BenchConfig(images=(tmp_path / "absent.jpg",)))


def test_a_missing_precision_and_an_unknown_engine_are_refused(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match="fp16"):
        bench(bundle, BenchConfig(precisions=("fp16",)))
    with pytest.raises(ConfigError, match="engine = 'orrt'"):
        bench(bundle, BenchConfig(engines=("orrt",)))


def test_a_real_run(bundle: Bundle) -> None:
    config = BenchConfig(batches=(2,), keeps=(16, 5), modes=("fused", "split"), budget_s=0.0, warmup_rounds=1, threads=1)
    report = bench(bundle.path, config)
    assert list(report.engines) == ["ort"] and "1 thread" in report.engines["ort"] and report.rounds == 5
    assert [(row.scope, row.mode, row.k) for row in report.rows] == [
        (scope, mode, k)
        for scope in ("encoder", "end-to-end")
        for mode, k in (("full", 16), ("fused", 16), ("fused", 5), ("split", 16), ("split", 5))
    ]
    assert [row.keep for row in report.rows[:3]] == [1.0, 1.0, 5 / 16]
    for row in report.rows:
        assert 0.0 < row.p50_ms <= row.p90_ms <= row.p99_ms and row.speedup_low <= row.speedup <= row.speedup_high
        assert sum(row.stages_ms.values()) < 1.5 * row.p99_ms
    assert report.peak_memory_mib is not None and 10.0 < report.peak_memory_mib < 1e5
    json.dumps(report.to_json(), allow_nan=False)


def test_measure_calls_a_case_with_the_number_of_its_round() -> None:
    seen: list[int] = []
    case = Case(lambda number, _mark: seen.append(number))
    ticks = itertools.count()
    samples = measure([[case]], Plan(5, 5, 2, 0.0, 0), Sensors(lambda: next(ticks)), CountingProgress())
    assert seen == [0, 1, 0, 1, 2, 3, 4] and samples[0][0].total_ns == [1] * 5


def test_energy_counters_are_summed_and_may_wrap(tmp_path: Path) -> None:
    for number, start in ((0, 900_000), (1, 100)):
        zone = tmp_path / f"intel-rapl:{number}"
        zone.mkdir()
        for name, text in (("name", f"package-{number}\n"), ("max_energy_range_uj", "1000000"), ("energy_uj", str(start))):
            (zone / name).write_text(text)
    (tmp_path / "intel-rapl:0:0").mkdir()
    (tmp_path / "intel-rapl:0:0" / "name").write_text("core")
    meter = EnergyMeter(tmp_path)
    assert meter.reason is None
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("400000")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("250100")
    assert meter.joules() == pytest.approx(0.5 + 0.25) and meter.joules() == 0.0


def test_energy_is_stated_for_an_image(bundle: Bundle) -> None:
    class TwoJoules(EnergyMeter):
        def joules(self) -> float:
            return 2.0

    report = FakeLab().bench(bundle, encoder_only(batches=(4,)), meter=lambda: TwoJoules(Path("/nowhere")))
    assert [row.joules_per_image for row in report.rows] == [0.5, 0.5]


def test_machine_facts_are_plausible() -> None:
    machine = this_machine()
    assert 1 <= machine.threads_granted <= machine.cores and machine.cpu and machine.system
    assert (peak_memory_mib() or 11.0) > 10.0 and library_versions()["numpy"] == np.__version__


def test_sample_photos_are_different_seeded_jpegs() -> None:
    first, again, other = sample_photos(2), sample_photos(2), sample_photos(2, seed=1)
    assert first == again and len({*first, *other}) == 4
    with Image.open(io.BytesIO(first[0])) as image:
        assert (image.format, image.size) == ("JPEG", (500, 375))
    assert all(40_000 < len(content) < 150_000 for content in first)
