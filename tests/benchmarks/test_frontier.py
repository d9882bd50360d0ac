"""The frontier: one real run on a tiny model, its rows against the encoder itself, and its arithmetic against plain loops."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from click.testing import CliRunner, Result
from local_model import write_images, write_model
from PIL import Image

from benchmarks.frontier.__main__ import main
from benchmarks.frontier.accuracy import mean_over
from benchmarks.frontier.table import at_share, deviations, joined, markdown
from benchmarks.reducers import Reducer, Workshop, chosen, keeps_of
from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.progress import SilentProgress
from prtool.trainer.runs.checkpoint import load_seeded

SHARES = (0.75, 0.54)


def run(*arguments: str) -> Result:
    threads = torch.get_num_threads()
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The JSON of a run over every kind of row, and where it lies."""
    root = tmp_path_factory.mktemp("frontier")
    data = write_images(root / "data", {"train": 12, "val": 1, "test": 3})
    model = write_model(root / "model", layers=8, image_size=64, width=64)
    options = (
        "--model",
        model,
        "--data",
        str(data),
        "--work",
        str(root / "work"),
        "-o",
        str(root / "out.json"),
        "--reducer",
        "rank,rank+,merge/1,merge@56,none@48",
        "--method",
        "evit,avit,cls-attention,random,evit+,random+",
    )
    timing = ("--share", ",".join(map(str, SHARES)), "--engine", "ort,torch", "--threads", "1", "--seconds", "0", "--batch", "2")
    timing += ("--set", "distill.steps=2", "--set", "recover.steps=2", "--set", "recover.lr=1e-5")
    result = run(*options, *timing)
    assert result.exit_code == 0, result.output
    return {"root": root, "arguments": (*options, *timing), "stdout": result.stdout, **json.loads((root / "out.json").read_text())}


@pytest.mark.slow
def test_every_kind_of_row_is_there(measured: dict[str, Any]) -> None:
    methods = {row["method"] for row in measured["rows"]}
    assert methods == {
        "unpruned",
        "patch-ranking",
        "patch-ranking, recovered",
        "evit, recovered",
        "random, recovered",
        "merge",
        "smaller-image",
        "tome",
        "evit",
        "avit",
        "cls-attention",
        "random",
    }
    assert {row["reducer"] for row in measured["rows"]} > {"", "rank", "merge/1", "merge@56"}
    for row in measured["rows"]:
        assert row["images"] == 9 and set(row["sets"]) == {"data"} and row["accuracy"] == row["sets"]["data"]["accuracy"]
        assert row["theoretical_speedup"] == pytest.approx(1.0 / row["share"])
        exported = row["method"].split(",")[0] in ("unpruned", "patch-ranking", "merge", "tome", "smaller-image")
        assert set(row["speed"]) == ({"ort", "torch"} if exported else {"torch"})
        for engine in row["speed"].values():
            assert engine["encoder"]["images_per_s"] > engine["end-to-end"]["images_per_s"] > 0.0
            assert set(engine["end-to-end"]["stages_ms"]) == {"decode", "preprocess", "encode"}
    sizes = {row["image_size"] for row in measured["rows"] if row["method"] == "smaller-image"}
    assert sizes and max(sizes) < 64 and all(size % 8 == 0 for size in sizes)


@pytest.mark.slow
def test_a_row_is_what_its_encoder_computes(measured: dict[str, Any]) -> None:
    """The smaller image against open_clip's own encoder, interpolation and transform: the mean cosine of the nine test images."""
    row = next(row for row in measured["rows"] if row["method"] == "smaller-image")
    name, found = f"local-dir:{measured['root'] / 'model'}", []
    for side in (64, row["image_size"]):
        model, _, transform = open_clip.create_model_and_transforms(name, force_image_size=side)
        images = [Image.open(path) for path in sorted((measured["root"] / "data" / "test").glob("*/*.png"))]
        with torch.inference_mode():
            found.append(model.eval().encode_image(torch.stack([transform(image) for image in images]), normalize=True))
    assert len(found[0]) == 9 and row["cosine"] == pytest.approx(float((found[0] * found[1]).sum(dim=1).mean()), abs=1e-4)


@pytest.mark.slow
def test_a_second_call_measures_nothing_again(measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    for name in ("benchmarks.frontier.accuracy.evaluate_run", "benchmarks.frontier.speed.race", "benchmarks.reducers.export_run"):
        monkeypatch.setattr(name, never)
    assert run(*measured["arguments"]).exit_code == 0
    again = json.loads((measured["root"] / "out.json").read_text())
    assert again["rows"] == measured["rows"] and again["speed"] == measured["speed"]


@pytest.mark.slow
def test_the_table_has_every_row_by_falling_cost(measured: dict[str, Any], tmp_path: Path) -> None:
    printed = run("--table", str(measured["root"] / "out.json"))
    assert printed.exit_code == 0
    lines = [line for line in printed.stdout.split("\n\n")[0].splitlines()[2:]]
    shares = [float(line.split("|")[1]) for line in lines]
    assert len(lines) == len(measured["rows"]) and shares == sorted(shares, reverse=True) and shares[0] == 1.0
    result = run("--table", str(measured["root"] / "out.json"), "--earlier", str(measured["root"] / "out.json"))
    assert "(+0.000)" in result.stdout and "(+0.001)" not in result.stdout
    (tmp_path / "other.json").write_text("{}")
    assert run("--table", str(tmp_path / "other.json")).exit_code == 1


@pytest.mark.slow
def test_keeps_cost_what_was_asked(measured: dict[str, Any]) -> None:
    manifests = {bundle.manifest.prune.method: bundle.manifest for bundle in map(Bundle.open, (measured["root"] / "work" / "bundles").iterdir())}
    for manifest in (manifests["rank"], manifests["merge"]):
        spec, cost = manifest.prune, replace(manifest.cost, last_block_queries=0)
        shares = {
            k: cost.pruned_gmacs(spec, spec.counts(k)) / cost.full_gmacs(spec)
            for k in range(manifest.keep_range[0], spec.patches)
            if k <= 0.95 * spec.patches
        }
        for share, k in keeps_of(manifest, SHARES).items():
            assert abs(shares[k] - share) == min(abs(other - share) for other in shares.values()) <= 0.03
    assert keeps_of(manifests["rank"], (0.01,)) == {}
    for row in measured["rows"]:
        # Methods without a predictor keep as many patches as Patch Ranking, whose predictor costs much next to so small an encoder.
        assert row["method"] in ("unpruned", "evit", "avit", "cls-attention", "random", "evit, recovered", "random, recovered") or (
            abs(row["share"] - row["target"]) <= 0.03
        )


def test_smaller_images_are_found_by_cost() -> None:
    tower = load_seeded("ViT-B-16", "", 0).tower
    found = chosen((Reducer("none"), Reducer("merge", 192)), tower, (0.735, 0.51, 0.41))
    assert list(map(str, found)) == ["none@192", "none@160", "none@144", "merge@192"]


def test_a_reducer_is_read_as_it_is_written() -> None:
    assert Reducer.parse("merge/2@168") == Reducer("merge", image_size=168, location=2)
    assert Reducer.parse("merge/2@168+") == Reducer("merge", image_size=168, location=2, recovered=True)
    for text in ("rank", "merge/1", "none@140", "rank@168", "merge/12@96", "rank+", "none@140+"):
        assert str(Reducer.parse(text)) == text
    for text in ("prune@3", "none/2", "merge/0", "merge/", "merge@", "merge@168/1", "rank@0", "merge/1@", "rank+@168"):
        with pytest.raises(ValueError, match=re.escape(text)):
            Reducer.parse(text)


def test_nothing_is_recovered_without_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none@48\+ is to be recovered, but there are no images"):
        Workshop(tmp_path, "ViT-B-32", "", "", 0, {}, SilentProgress()).run(Reducer.parse("none@48+"))


def test_figures_between_rows_lie_on_a_line() -> None:
    rows = [{"share": share, "cosine": cosine} for share, cosine in ((0.4, 0.9), (0.6, 0.96), (0.8, 0.99))]
    for share in (0.4, 0.45, 0.6, 0.71):
        assert at_share(rows, share, "cosine") == pytest.approx(np.interp(share, [0.4, 0.6, 0.8], [0.9, 0.96, 0.99]))
    assert at_share(rows, 0.82, "cosine") == 0.99 and at_share(rows, 0.9, "cosine") is None
    ours = [{"method": "tome", "image_size": 196, "lost": 3, "won": 1, "images": 100, "accuracy": 90.0, **row} for row in rows]
    earlier = [{"method": "tome", "image_size": 196, "share": 0.5, "cosine": 0.94, "changed": 3.0}]
    assert deviations([{**row, "overlap_own": None, "overlap_cross": None} for row in ours], earlier)[1] == [
        ["0.50", "tome", "196", "", "4.0 (+1.0)", "0.930 (-0.010)", "", ""]
    ]


def test_seeds_are_averaged() -> None:
    """Rows of the same encoder and keep: means and half the range; a row that one seed has alone stays as it is."""
    row = {"reducer": "rank+", "method": "patch-ranking, recovered", "image_size": 32, "k": 8}
    rest = {"overlap_own": None, "overlap_cross": None, "image_to_text": None}
    first = {**row, **rest, "accuracy": 80.0, "lost": 4, "won": 1, "cosine": 0.9, "text_to_image": [10.0, 50.0]}
    second = {**row, **rest, "accuracy": 83.0, "lost": 2, "won": 1, "cosine": 0.92, "text_to_image": [30.0, 60.0]}
    first, second = ({**figures, "sets": {"a": figures}, "unseen": {}} for figures in (first, second))
    alone = {**first, "reducer": "none@24"}
    rows = joined([{"model": "m", "rows": [first, alone]}, {"model": "m", "rows": [second]}])["rows"]
    for found in (rows[0], rows[0]["sets"]["a"]):
        assert (found["accuracy"], found["lost"], found["text_to_image"]) == (81.5, 3, [20.0, 55.0])
        assert found["cosine"] == pytest.approx(0.91) and found["overlap_own"] is None
    assert rows[0]["spread"] == {"accuracy": 1.5, "lost": 1.0, "won": 0.0, "cosine": pytest.approx(0.01)}
    assert rows[1] == {**alone, "spread": {}}


def test_sets_count_alike() -> None:
    empty = dict.fromkeys(("overlap_own", "overlap_cross", "image_to_text", "gmacs"))
    sets = {
        "a": {**empty, "accuracy": 90.0, "images": 10, "lost": 2, "won": 1, "cosine": 0.9, "text_to_image": (10.0, 50.0)},
        "b": {**empty, "accuracy": 80.0, "images": 30, "lost": 0, "won": 3, "cosine": 0.8, "text_to_image": (30.0, 60.0)},
    }
    found = mean_over(sets)
    assert (found["accuracy"], found["images"], found["lost"], found["won"], found["text_to_image"]) == (85.0, 40, 2, 4, [20.0, 55.0])
    assert found["cosine"] == pytest.approx(0.85) and found["overlap_own"] is None


def test_unseen_sets_are_named() -> None:
    rows = [
        {"share": 0.5, "method": "patch-ranking", "reducer": "rank", "image_size": 32, "k": 8, "learns": True, "lost": 1, "won": 0, "images": 9},
        {"share": 0.4, "method": "tome", "reducer": "rank", "image_size": 32, "k": 8, "learns": False, "lost": 1, "won": 0, "images": 9},
    ]
    figures = {"accuracy": 80.0, "cosine": 0.9, "overlap_own": 0.8, "overlap_cross": 0.9, "text_to_image": None, "image_to_text": None}
    for row in rows:
        row |= {**figures, "theoretical_speedup": 1.0 / row["share"], "sets": {"a": figures, "b": figures}}
        row["unseen"] = {"a": {**figures, "accuracy": 70.0, "cosine": 0.7}} if row["learns"] else {}
    value = {"rows": rows, "speed": None, "model": "m", "data": {"a": 9, "b": 9}, "cpu": "c", "date": "2026-01-01"}
    assert "| 0.50 | patch-ranking | 70.0 (0.700) |" in markdown(value) and "| 0.40 | tome | 80.0 (0.900) |" in markdown(value)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [((), "--model"), (("--model", "m", "--data", ".", "--share", "1.5"), "1.5"), (("--model", "m", "--data", ".", "--reducer", "drop"), "drop")],
)
def test_bad_input_is_rejected_at_once(arguments: tuple[str, ...], word: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and word in result.stderr
