"""The benchmark over engines and precisions, what it leaves out, what it writes, and what it reads of a GPU."""

import csv
import itertools
import json
import re
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bench_lab import FakeLab
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.bundle import Bundle
from prtool.engines import registry
from prtool.engines.base import BuildOptions, EngineInfo, ShapeRange
from prtool.engines.registry import EngineEntry
from prtool.errors import ConfigError, EngineUnavailable, StorageError
from prtool.manifest import FileDigest
from prtool.progress import SilentProgress
from prtool.runtime.bench import BenchConfig, bench
from prtool.runtime.bench.files import output_files, write_report
from prtool.runtime.bench.lineup import check_memory, supported
from prtool.runtime.bench.plot import plot_report
from prtool.runtime.bench.run import joules_per_call
from prtool.runtime.bench.sensors import CudaEvents, GpuMeter, on_gpu
from prtool.runtime.bench.timing import Case, Plan, Sensors, measure
from prtool.runtime.machine import available_memory_mib

THREE = {
    "ort": EngineEntry("prtool.engines.ort.cpu", "onnxruntime", "first", {"fp32": "fp32", "int8": "int8"}),
    "other": EngineEntry("prtool.engines.other", "other", "second", {"fp32": "fp32", "bf16": "fp32"}),
    "third": EngineEntry("prtool.engines.third", "third", "third", {"fp32": "fp32"}),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("bench") / "bundle", TinyModel())


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of three engines, whatever else is installed."""
    monkeypatch.setattr(registry, "ENGINES", THREE)
    monkeypatch.setattr("prtool.runtime.bench.lineup.ENGINES", THREE)


def small(**changes: object) -> BenchConfig:
    return replace(BenchConfig(batches=(2,), keeps=(0.5,), scopes=("encoder",), min_rounds=7, max_rounds=7), **changes)


@pytest.mark.usefixtures("three")
def test_every_combination_has_its_own_baseline_in_one_run(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.slowness = {"ort": 3.0}
    config = small(engines=("ort", "other"), precisions=("fp32", "bf16"), reference="ort/fp32")
    report = lab.bench(bundle, config)
    assert [(row.engine, row.precision, row.mode) for row in report.rows] == [
        (engine, precision, mode) for engine, precision in (("ort", "fp32"), ("other", "fp32"), ("other", "bf16")) for mode in ("full", "fused")
    ]
    assert all(row.speedup == 1.0 for row in report.rows if row.mode == "full")
    timed = list(zip(lab.calls, lab.spent_ns, strict=True))[2 * 6 :]
    rounds = [dict(((mode, offer), spent) for (mode, offer, *_), spent in timed[at : at + 6]) for at in range(0, len(timed), 6)]
    for row in report.rows:
        own = (row.mode, f"{row.engine}/{row.precision}")
        ratios = sorted(spent["full", own[1]] / spent[own] for spent in rounds)
        against = sorted(spent["full", "ort/fp32"] / spent[own] for spent in rounds)
        assert row.speedup == pytest.approx(ratios[3]) and row.reference_ratio == pytest.approx(against[3])
    assert set(report.engines) == {"ort", "other"} and {"ort", "other"} <= set(report.versions)
    assert re.search("ort/bf16.*precision = 'bf16'.*fp32, int8.*other", report.notes[0])
    columns, cells = report.table()
    assert columns[-1] == "vs ort/fp32" and all(len(row) == len(columns) for row in cells)


@pytest.mark.usefixtures("three")
def test_the_slowest_reference_is_found_for_each_batch(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.slowness, lab.noise = {"other": 2.0}, 0.0
    report = lab.bench(bundle, small(engines=("ort", "other"), batches=(1, 3), reference="slowest"))
    assert [row.reference_ratio for row in report.rows] == pytest.approx([2.0, 2.5, 1.0, 1.25] * 2)


@pytest.mark.usefixtures("three")
def test_rest_lies_between_libraries_and_is_not_timed(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.noise = 0.0
    report = lab.bench(bundle, small(engines=("ort", "other")))
    engines = [offer.partition("/")[0] for _, offer, *_ in lab.calls]
    changes = sum(first != second for first, second in itertools.pairwise(engines))
    assert len(lab.rests) == changes and len(set(lab.rests)) == 1 and lab.rests[0] > 0.0
    assert [row.p50_ms for row in report.rows] == pytest.approx([20.0, 16.0, 20.0, 16.0])
    alone = FakeLab()
    alone.bench(bundle, small())
    assert alone.rests == []


@pytest.mark.usefixtures("three")
def test_a_missing_library_is_noted_and_alone_an_error(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.missing = {"third"}
    report = lab.bench(bundle, small(engines=("third", "ort")))
    assert {row.engine for row in report.rows} == {"ort"}
    assert report.notes[0].startswith("third/fp32 ")
    with pytest.raises(EngineUnavailable, match="third"):
        lab.bench(bundle, small(engines=("third",)))
    with pytest.raises(ConfigError, match=r"reference = 'third/fp32'.*ort/fp32"):
        lab.bench(bundle, small(engines=("third", "ort"), reference="third/fp32"))


@pytest.mark.usefixtures("three")
def test_combinations_are_checked_before_anything_is_loaded(bundle: Bundle) -> None:
    def words(**changes: object) -> str:
        lab = FakeLab()
        with pytest.raises(ConfigError) as caught:
            lab.bench(bundle, small(**changes))
        assert not lab.loaded
        return str(caught.value)

    assert re.search("precision = 'bf16'.*ort.*fp32, int8.*other", words(precisions=("bf16",)))
    assert words(precisions=("int8",)).startswith("precision = 'int8'") and "--precision int8" in words(precisions=("int8",))
    assert "ort/bf16" in words(engines=("ort", "third"), precisions=("bf16",))
    assert re.search("precision = 'fp23'.*fp32, int8, bf16", words(precisions=("fp32", "fp23")))
    assert "engine = 'othre'" in words(engines=("ort", "othre"))
    pairs, unsupported = supported(bundle, small(engines=("ort", "other"), precisions=("fp32", "int8")))
    assert pairs == [("ort", "fp32"), ("other", "fp32")]
    assert [(engine, precision) for engine, precision, _ in unsupported] == [("ort", "int8"), ("other", "int8")]


def with_sizes(bundle: Bundle, mib: int) -> Bundle:
    files = {name: FileDigest(mib * 2**20, digest.sha256) for name, digest in bundle.manifest.files.items()}
    return replace(bundle, manifest=replace(bundle.manifest, files=files))


def test_graphs_that_do_not_fit_into_memory_are_refused(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prtool.runtime.bench.lineup.available_memory_mib", lambda: 1000.0)
    pairs = [("ort", "fp32"), ("openvino", "fp32")]
    # full, fused, pre and post for each of two offers, and one of them a second time
    check_memory(with_sizes(bundle, 111), small(modes=("fused", "split")), pairs)
    with pytest.raises(ConfigError, match=r"full, fused, split.*1008 MiB.*1000 MiB"):
        check_memory(with_sizes(bundle, 112), small(modes=("fused", "split")), pairs)
    check_memory(with_sizes(bundle, 199), small(modes=("fused",)), pairs)
    monkeypatch.setattr("prtool.runtime.bench.lineup.available_memory_mib", lambda: None)
    check_memory(with_sizes(bundle, 10**6), small(), pairs)


def test_available_memory_is_the_containers_where_that_is_less(tmp_path: Path) -> None:
    assert available_memory_mib(tmp_path / "proc", tmp_path / "group") is None
    for folder in ("proc", "group"):
        (tmp_path / folder).mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 8388608 kB\nMemAvailable: 4194304 kB\n")
    assert available_memory_mib(tmp_path / "proc", tmp_path / "group") == 4096.0
    for name, text in (("memory.max", "max"), ("memory.current", "1"), ("memory.stat", "anon 5\ninactive_file 104857600\n")):
        (tmp_path / "group" / name).write_text(text)
    assert available_memory_mib(tmp_path / "proc", tmp_path / "group") == 4096.0
    (tmp_path / "group" / "memory.max").write_text(str(2**30))
    (tmp_path / "group" / "memory.current").write_text(str(2**29))
    assert available_memory_mib(tmp_path / "proc", tmp_path / "group") == 612.0


def test_compiled_engines_are_built_for_the_measured_batches() -> None:
    options = small(batches=(64,), threads=3, streams=2, cache=Path("somewhere")).engine_options()
    assert (options.threads, options.streams, options.cache, options.build.batch) == (3, 2, Path("somewhere"), ShapeRange(1, 8, 64))
    narrow = small(batches=(2,), build=BuildOptions(batch=ShapeRange(4, 4, 4), level=5)).engine_options().build
    assert narrow == BuildOptions(batch=ShapeRange(2, 4, 4), level=5)


def test_notes_name_keeps_that_take_the_same_time(bundle: Bundle) -> None:
    lab = FakeLab()
    lab.shares, lab.noise = {16: 1.0, 12: 0.7, 8: 0.7, 6: 0.699, 4: 0.5}, 0.001
    report = lab.bench(bundle, small(keeps=(0.25, 0.375, 0.5, 0.75, 1.0)))
    flat = [note for note in report.notes if "is not faster" in note]
    assert flat == [
        "Keeping fewer than 12 patches, down to 6, is not faster for batch 2, fused, ort fp32, encoder: 12, 8 and 6 take the same time (14 to 14 ms)."
    ]
    lab.noise = 1.0  # too noisy to say that a step is flat
    assert not [note for note in lab.bench(bundle, small(keeps=(0.5, 0.75))).notes if "is not faster" in note]


def test_stages_of_the_split_mode_also_end_to_end(bundle: Bundle) -> None:
    report = FakeLab().bench(bundle, small(scopes=("end-to-end",), modes=("fused", "split")))
    assert [set(row.stages_ms) for row in report.rows] == [
        {"decode", "preprocess", "encode"},
        {"decode", "preprocess", "encode"},
        {"decode", "preprocess", "pre", "select", "mid", "post"},
    ]


def test_an_output_is_one_file_or_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_files(tmp_path / "a.CSV") == (tmp_path / "a.CSV",)
    assert output_files(tmp_path / "a") == (tmp_path / "a.json", tmp_path / "a.csv", tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"\.json, \.csv, \.png"):
        output_files(tmp_path / "a.txt")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert output_files(tmp_path / "a.json") == (tmp_path / "a.json",)
    for name in ("a", "a.png"):
        with pytest.raises(ConfigError, match=r"matplotlib.*a\.json"):
            output_files(tmp_path / name)


def test_files_say_what_the_report_says(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="draws the picture")
    config = small(batches=(1, 2), keeps=(1.0, 0.5), modes=("fused", "split"), scopes=("encoder", "end-to-end"))
    report = FakeLab().bench(bundle, config)
    write_report(report, output_files(tmp_path / "out" / "bench"), plot_report)
    assert json.loads((tmp_path / "out" / "bench.json").read_text()) == json.loads(json.dumps(report.to_json()))
    with (tmp_path / "out" / "bench.csv").open() as stream:
        records = list(csv.DictReader(stream))
    for record, row in zip(records, report.rows, strict=True):
        assert (record["engine"], record["mode"], int(record["batch"])) == (row.engine, row.mode, row.batch)
        assert float(record["p50_ms"]) == pytest.approx(row.p50_ms, abs=1e-4) and record["joules_per_image"] == ""
        assert {name for name in ("decode", "pre", "select", "encode") if record[f"{name}_ms"]} == set(row.stages_ms) - {"preprocess", "mid", "post"}
        assert record["model"] == "tiny" and record["engine_version"] == "9.9" and record["date"] == report.date
    with Image.open(tmp_path / "out" / "bench.png") as picture:
        assert picture.format == "PNG" and picture.width > 2 * 500 and len(np.unique(np.asarray(picture))) > 10
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(report, (tmp_path / "file" / "bench.csv",), plot_report)


class FakeNvml(types.ModuleType):
    """NVML's names over counters that a test moves."""

    class NVMLError(Exception):
        pass

    def __init__(self, lab: FakeLab, watts: float = 100.0) -> None:
        super().__init__("pynvml")
        self.lab, self.watts, self.used, self.handle, self.broken = lab, watts, 10 * 2**20, "", False

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError("driver not loaded")

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.handle = f"index {index}"
        return self.handle

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        self.handle = f"uuid {name}"
        return self.handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == self.handle
        return int(self.lab.now / 1e9 * self.watts * 1e3)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> types.SimpleNamespace:
        assert handle == self.handle
        self.used += 5 * 2**20
        return types.SimpleNamespace(used=self.used)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml(FakeLab())
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    yield fake


def test_energy_memory_and_stages_of_a_gpu(bundle: Bundle, nvml: FakeNvml) -> None:
    nvml.lab.device, nvml.lab.noise = "NVIDIA imaginary, cuda:0", 0.0
    report = nvml.lab.bench(bundle, small(modes=("fused", "split")))
    full, fused, split = report.rows
    # 100 W for 20 ms and for 16 ms, two images a call
    assert (full.gpu_joules_per_image, fused.gpu_joules_per_image) == pytest.approx((1.0, 0.8), rel=0.01)
    assert full.stages_ms == fused.stages_ms == {} and split.stages_ms == {"pre": 5.0, "select": 4.0, "mid": 2.0, "post": 4.0}
    assert split.p50_ms == pytest.approx(16.0), "the timed call does not wait after each stage"
    assert report.gpu_memory_mib == 5.0 and report.gpu_reason is None


def test_more_shapes_than_recordings_are_refused_on_a_gpu(bundle: Bundle) -> None:
    lab = FakeLab()
    config = small(batches=(1, 2, 3), keeps=(1.0, 0.75, 0.5))
    lab.bench(bundle, config)
    lab.device = "imaginary, cuda:0"
    with pytest.raises(ConfigError, match=r"9.*ort/fp32.* 8"):
        lab.bench(bundle, config)
    assert all(encoder.closed for encoder in lab.loaded)
    assert lab.bench(bundle, small(batches=(1, 2), keeps=(1.0, 0.75, 0.5, 0.25))).rounds == 7


def test_without_a_gpu_the_report_says_why(bundle: Bundle, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    report = nvml.lab.bench(bundle, small())
    assert report.gpu_memory_mib is None and report.gpu_reason and report.rows[0].gpu_joules_per_image is None
    nvml.broken = True
    assert re.search("GPU 0.*driver not loaded", str(GpuMeter().reason)) and GpuMeter().joules() is None
    nvml.broken = False
    for visible, handle in (("", "index 1"), ("3, 5", "index 5"), ("GPU-a,GPU-b", "uuid GPU-b")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert GpuMeter(1).reason is None and nvml.handle == handle
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in str(GpuMeter().reason)


def test_energy_of_a_case_comes_from_many_calls(nvml: FakeNvml) -> None:
    def call(number: int, mark: object) -> None:
        nvml.lab.now += 7_000_000

    assert joules_per_call(Case(call), GpuMeter(), nvml.lab.clock, least_s=0.5) == pytest.approx(0.7, rel=0.01)
    assert 0.5e9 <= nvml.lab.now < 0.51e9


def test_cuda_events_enclose_the_call() -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("record")

        def synchronize(self) -> None:
            order.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            assert end is not self
            return 1.25

    events = CudaEvents(types.SimpleNamespace(cuda=types.SimpleNamespace(Event=Event)))
    case = Case(lambda _number, _mark: order.append("call"), device_clock=events)
    ticks = iter(range(100))
    samples = measure([[case]], Plan(1, 1, 1, 0.0, 0), Sensors(lambda: next(ticks)), SilentProgress())[0][0]
    assert order == ["record", "call", "record", "wait"] * 2
    assert samples.device_ns == [1_250_000] and samples.device_ms() == 1.25 and samples.total_ns == [1]


@pytest.mark.parametrize(("device", "gpu"), [("CPU, 2 threads", False), ("NVIDIA H200 (cuda:0)", True), ("Intel Xeon", False), ("GPU.0", True)])
def test_gpus_are_told_from_processors(device: str, gpu: bool) -> None:
    assert on_gpu(EngineInfo("any", "1", device)) is gpu


def test_a_real_run_of_two_engines(bundle: Bundle) -> None:
    pytest.importorskip("openvino", reason="the second engine of this run")
    report = bench(
        bundle, BenchConfig(engines=("ort", "openvino"), precisions=("fp32", "bf16"), batches=(2,), keeps=(5,), modes=("split",), budget_s=0.0)
    )
    found = {(row.engine, row.precision) for row in report.rows}
    assert {("ort", "fp32"), ("openvino", "fp32")} <= found <= {("ort", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")}
    assert any(note.startswith("ort/bf16 ") for note in report.notes)
    assert all(row.speedup_low <= row.speedup <= row.speedup_high for row in report.rows)
    assert all({"pre", "select", "post"} <= set(row.stages_ms) for row in report.rows if row.mode == "split")
