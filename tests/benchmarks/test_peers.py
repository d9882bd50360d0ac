"""The comparison with peers: one real run on a tiny model, and its table, accuracy and verdict against plain arithmetic."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from local_model import write_model
from models import TinyModel, tiny_bundle
from PIL import Image
from support import REPO

from benchmarks.peers.__main__ import main
from benchmarks.peers.accuracy import Accuracies
from benchmarks.peers.baselines import OPEN_CLIP, TOME, Baseline, Baselines, agreement
from benchmarks.peers.report import PeersRow, verdict, with_accuracy
from benchmarks.peers.table import cells, markdown
from prtool.bundle import seal
from prtool.errors import DataError
from prtool.progress import SilentProgress
from prtool.spec import Keep
from prtool.trainer.runs.checkpoint import load_seeded


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The smoke run's JSON; `folder` and `stdout` beside it."""
    root = tmp_path_factory.mktemp("peers")
    accuracy = root / "accuracy.json"
    entries = [
        {"method": "unpruned", "engine": "any", "precision": "fp32", "keep": 1.0, "accuracy": {"a": 90.0, "b": 80.0}, "mean": 85.0},
        {"method": "patch-ranking", "engine": "ort", "precision": "fp32", "keep": 0.6, "accuracy": {"a": 90.0, "b": 79.0}, "mean": 84.5},
    ]
    accuracy.write_text(json.dumps({"model": "imaginary", "data": "a and b", "rows": entries}))
    arguments = ["--smoke", "--compile", "none", "--engine", "ort", "--precision", "fp32,bf16", "--threads", "1", "--accuracy", str(accuracy)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        threads = torch.get_num_threads()
        result = run(*arguments, "-o", str(root / "out"))
        torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return {"folder": root, "stdout": result.stdout, **json.loads((root / "out.json").read_text())}


def test_everyone_takes_part_in_one_run(compared: dict[str, Any]) -> None:
    found = {(row["method"], row["engine"], row["precision"], row["mode"], row["keep"]) for row in compared["rows"]}
    assert found == {
        ("open_clip eager", "torch", "fp32", "", 1.0),
        ("open_clip eager", "torch", "bf16", "", 1.0),
        ("ToMe", "torch", "fp32", "", 0.6),
        ("ToMe", "torch", "bf16", "", 0.6),
        ("unpruned", "ort", "fp32", "full", 1.0),
        ("patch-ranking", "ort", "fp32", "fused", 0.6),
        ("patch-ranking", "ort", "fp32", "split", 0.6),
    }
    assert {row["batch"] for row in compared["rows"]} == {1, 2} and len(compared["rows"]) == 2 * len(found)
    assert any("ort/bf16" in note for note in compared["left_out"])
    assert {"ort", "torch", "open_clip", "prtool"} <= set(compared["versions"]) and compared["rounds"] == 5 and compared["settle_ms"] == 30.0


def test_rows_hold_together(compared: dict[str, Any]) -> None:
    rows = {(row["method"], row["precision"], row["mode"], row["batch"]): row for row in compared["rows"]}
    for row in compared["rows"]:
        assert row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"], rel=1e-3)
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["share_of_theoretical"] == pytest.approx(row["speedup"] / row["theoretical_speedup"], rel=1e-3)
    for batch in (1, 2):
        eager, merged = rows["open_clip eager", "fp32", "", batch], rows["ToMe", "fp32", "", batch]
        whole, pruned = rows["unpruned", "fp32", "full", batch], rows["patch-ranking", "fp32", "fused", batch]
        assert eager["ratio"] == whole["speedup"] == 1.0 and merged["speedup"] == merged["ratio"]
        assert merged["gmacs"] == pytest.approx(pruned["gmacs"], rel=0.02) and merged["gmacs"] < whole["gmacs"] < eager["gmacs"]
        assert eager["cosine"] == pytest.approx(1.0, abs=1e-5) and whole["cosine"] == pytest.approx(1.0, abs=1e-4)
        assert pruned["cosine"] is None and pruned["points"] == -0.5 and eager["accuracy"] == whole["accuracy"] == 85.0
        assert rows["open_clip eager", "bf16", "", batch]["accuracy"] is None
    assert "autocast" in rows["open_clip eager", "bf16", "", 1]["detail"]


def test_files_and_table(compared: dict[str, Any]) -> None:
    with (compared["folder"] / "out.csv").open() as stream:
        records = list(csv.DictReader(stream))
    assert [float(record["ratio"]) for record in records] == [row["ratio"] for row in compared["rows"]]
    with Image.open(compared["folder"] / "out.png") as picture:
        assert picture.format == "PNG" and len(np.unique(np.asarray(picture))) > 10
    assert "patch-ranking" in compared["stdout"] and any(note.startswith("Batch 1: ") for note in compared["notes"])
    printed = run("--table", str(compared["folder"] / "out.json"))
    assert printed.exit_code == 0 and printed.stdout.rstrip("\n") == markdown(
        {name: compared[name] for name in compared if name not in ("folder", "stdout")}
    )
    lines = printed.stdout.splitlines()
    assert lines[0] == "| encoder | engine | precision | keep | GMAC | batch 1 | batch 2 | accuracy % |"
    best = max(row["images_per_s"] for row in compared["rows"] if (row["method"], row["batch"]) == ("patch-ranking", 2))
    line = next(line for line in lines if line.startswith("| patch-ranking | ort | fp32 | 0.6 |"))
    assert f"| {best:.1f} (" in line and line.endswith("| 84.5 (-0.5) |")
    kept = run("--table", str(compared["folder"] / "out.json"), "--within", "0.2").stdout
    assert "| unpruned" in kept and "patch-ranking |" not in kept and "ToMe |" not in kept
    assert cells(compared, 1.0)[1][-1][0] == "patch-ranking"


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for arguments, word in (
        (("--table", str(tmp_path / "absent.json")), "cannot be read"),
        (("--table", str(tmp_path / "other.json")), "is no result of this script"),
        (("--accuracy", str(tmp_path / "other.json")), "holds no list"),
        (("-o", str(tmp_path / "a.txt")), "must end in"),
        ((str(tmp_path / "nothing"),), "is not a bundle"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and word in result.stderr and result.stderr.count("\n") == 1


def test_another_models_bundle_is_refused(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "bundle", TinyModel())
    name = write_model(tmp_path / "model")
    seal(made.path, replace(made.manifest, model=replace(made.manifest.model, name=name, pretrained="")))
    result = run(
        str(made.path), "--compile", "none", "--engine", "ort", "--precision", "fp32", "--batch", "1", "--keep", "0.5", "-o", str(tmp_path / "out")
    )
    assert result.exit_code == 1 and "000000000000" in result.stderr.replace("\n", " ")


def baselines(folder: Path) -> tuple[Baselines, list[Baseline], np.ndarray]:
    model = load_seeded(write_model(folder / "model"), "", 0)
    pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    made = Baselines(model, model.tower.prune_spec((2,)), model.tower.cost(), "cpu")
    keeps = (Keep.ratio(1.0), Keep.count(9), Keep.ratio(0.5))
    return made, made.all(("fp32", "bf16"), keeps, "none", [pixels], SilentProgress()), pixels


def test_baselines_compute_what_open_clip_does(tmp_path: Path) -> None:
    made, found, pixels = baselines(tmp_path)
    assert [(baseline.method, baseline.precision, baseline.keep) for baseline in found] == [
        (method, precision, keep) for precision in ("fp32", "bf16") for method, keep in ((OPEN_CLIP, 1.0), (TOME, 0.5625), (TOME, 0.5))
    ]
    host: Any = made.model.text.host
    with torch.inference_mode():
        wanted = host.encode_image(torch.from_numpy(pixels), normalize=True).numpy()
    for baseline in found:
        embeddings = baseline.run(pixels)
        assert embeddings.dtype == np.float32 and np.allclose(np.linalg.norm(embeddings, axis=1), 1.0, atol=0.01)
        if baseline.method == OPEN_CLIP:
            assert agreement(embeddings, wanted) > (0.9999 if baseline.precision == "fp32" else 0.99)
    assert all(parameter.dtype == torch.float32 for parameter in made.model.tower.parameters()), "a copy in bf16 changed the model"
    kept = {baseline.keep: baseline.gmacs for baseline in found if baseline.method == TOME}
    for keep, gmacs in kept.items():
        assert gmacs == pytest.approx(made.cost.pruned_gmacs(made.spec, made.spec.counts(Keep.ratio(keep))), rel=0.1), (
            "16 patches merge in coarse steps"
        )


def test_what_cannot_be_compiled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_forward: Callable[..., object], _options: object) -> Callable[..., object]:
        def fail(_pixels: object) -> object:
            raise RuntimeError("no C++ compiler\nmore")

        return fail

    made, _, pixels = baselines(tmp_path)
    monkeypatch.setattr("benchmarks.peers.baselines._compile", broken)
    found = made.all(("fp32",), (Keep.ratio(0.5),), "all", [pixels], SilentProgress())
    assert [baseline.method for baseline in found] == [OPEN_CLIP, TOME]
    assert made.left_out[0] == "torch.compile in fp32 at batch 2 (keep 1) is left out: no C++ compiler" and len(made.left_out) == 3


COMPILED = """
import sys
from pathlib import Path

sys.path[:0] = sys.argv[2:]
import numpy as np
from local_model import write_model
from prtool.progress import SilentProgress
from prtool.spec import Keep
from prtool.trainer.runs.checkpoint import load_seeded
from benchmarks.peers.baselines import Baselines, agreement

model = load_seeded(write_model(Path(sys.argv[1]) / "model"), "", 0)
pixels = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
made = Baselines(model, model.tower.prune_spec((2,)), model.tower.cost(), "cpu")
found = made.all(("fp32",), (Keep.ratio(0.5),), "all", [pixels], SilentProgress())
eager = {baseline.method: baseline.run(pixels) for baseline in found[:2]}
for baseline in found:
    print(baseline.method, agreement(baseline.run(pixels), eager["ToMe" if "ToMe" in baseline.method else "open_clip eager"]) > 0.9999)
print(made.left_out)
"""


@pytest.mark.slow
def test_compiled_baselines_compute_the_same(tmp_path: Path) -> None:
    """In a process of its own: compiling warns of what lies in its libraries."""
    folders = [str(REPO / "tests"), str(REPO)]
    done = subprocess.run([sys.executable, "-c", COMPILED, str(tmp_path), *folders], capture_output=True, text=True, timeout=280, check=True)
    if "is left out" in done.stdout:
        pytest.skip(f"torch.compile does not work here: {done.stdout.splitlines()[-1]}")
    names = ("open_clip eager", "ToMe", "torch.compile", "torch.compile, frozen", "ToMe, torch.compile")
    assert done.stdout.splitlines() == [*(f"{name} True" for name in names), "[]"]


def entry(**changes: object) -> dict[str, object]:
    return {"method": "unpruned", "engine": "any", "precision": "fp32", "keep": 1.0, "mean": 80.0, **changes}


def test_accuracies_are_found_by_engine_or_any(tmp_path: Path) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(json.dumps([entry(), entry(engine="ort", mean=82.0), entry(method="tome", engine="torch", keep=0.6, mean=70.0)]))
    found = Accuracies.load(path)
    assert found.reference == 81.0 and found.about == ""
    assert (found.of("unpruned", "ort", "fp32", 1.0), found.of("unpruned", "torch", "fp32", 1.0)) == (82.0, 80.0)
    path.write_text(json.dumps([entry(engine="ort", mean=82.0)]))
    alone = Accuracies.load(path)
    assert (
        alone.of("unpruned", "torch", "fp32", 1.0),
        alone.of("unpruned", "torch", "bf16", 1.0),
        alone.of("unpruned", "openvino", "fp32", 1.0),
    ) == (82.0, None, 82.0)
    assert found.of("tome", "torch", "fp32", 118 / 196) == 70.0 and found.of("tome", "ort", "fp32", 0.6) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[", "JSON"),
        ("[]", "unpruned"),
        (json.dumps([entry(method="unprunde")]), "unpruned, patch-ranking, tome"),
        (json.dumps([entry(mean=101)]), "0 to 100"),
        (json.dumps([{"method": "unpruned"}]), "method, engine, precision, keep and mean"),
        (json.dumps([entry(precision="bf16")]), "unpruned.*fp32"),
    ],
)
def test_a_bad_accuracy_file_is_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "accuracy.json"
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        Accuracies.load(path)


def row(kind: str, ratio: float, points: float | None, **changes: Any) -> PeersRow:
    values: dict[str, Any] = dict.fromkeys(PeersRow.__dataclass_fields__, 1.0)
    values |= {
        "kind": kind,
        "method": kind,
        "engine": "ort",
        "precision": "fp32",
        "mode": "fused" if kind == "patch-ranking" else "full",
        "keep": 0.6,
    }
    values |= {"batch": 8, "ratio": ratio, "points": points, "accuracy": None if points is None else 80.0 + points}
    return PeersRow(**values | changes)


def test_the_verdict_names_the_best_row_and_whoever_beats_it() -> None:
    pruned = [row("patch-ranking", 6.0, -0.4), row("patch-ranking", 7.0, -1.0, keep=0.5), row("patch-ranking", 9.0, -1.1, keep=0.4)]
    slower = [row("unpruned", 5.0, 0.0), row("tome", 8.0, -3.0, keep=0.5)]
    best = "Batch 8: the fastest pruned row within 1 point is patch-ranking on ort fp32, keep 0.5, fused (7.00x, -1.0 points); "
    assert verdict([*pruned, *slower]) == [best + "no other row at equal or better accuracy is faster."]
    faster = [row("unpruned", 7.5, 0.0, precision="int8"), row("tome", 8.5, None, keep=0.5)]
    found = verdict([*pruned, *slower, *faster])
    assert found[0].removeprefix(best).split("; ") == [
        "faster at equal or better accuracy: unpruned on ort int8 (7.50x, +0.0 points)",
        "faster at unknown accuracy: tome on ort fp32, keep 0.5 (8.50x).",
    ]
    assert verdict(slower) == []
    assert with_accuracy(slower[0], None) is slower[0]
