"""The train verb end to end on a tiny model: phases, resuming, the same bytes, and what it refuses."""

import contextlib
import hashlib
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_model import COLOURS, write_images, write_model
from PIL import Image

from prtool.errors import ConfigError, DataError, ModelError
from prtool.progress import SilentProgress
from prtool.spec import Keep
from prtool.trainer import train as module
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.objectives.golden_store import rank_images
from prtool.trainer.objectives.matching import constant_ranking, matching_rate
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import RECORD_NAME
from prtool.trainer.settings import PruneConfig
from prtool.trainer.train import point_latest, run_images, train

SETTINGS = {"prune.locations": [2], "golden.group": 1, "golden.precision": "fp32", "device": "cpu"}
SETTINGS |= {"fit.epochs": 3, "fit.batch": 4, "fit.save_every": 1}
SETTINGS |= {"objective": "ranking", "phases": ["rank", "predictor"]}
SETTINGS |= {"scorer.channels": 8, "scorer.token_hidden": 4, "scorer.channel_hidden": 16, "scorer.heads": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("train")


@pytest.fixture(scope="module")
def config(root):
    data = write_images(root / "data", {"train": 4, "val": 2})
    return TrainConfig.load(None, {"model": write_model(root / "model"), "data": str(data), **SETTINGS})


@pytest.fixture(scope="module")
def whole(config, root):
    """A run that was never stopped."""
    train(config, root / "whole")
    return root / "whole"


class Stop(SilentProgress):
    """Counts what is done, and raises after so many steps, as Ctrl-C would."""

    def __init__(self, after=10**9):
        self.steps = 0
        self.after = after
        self.stages = []

    def start(self, what, total):  # noqa: ARG002 - as declared
        self.stages.append(what)

    def advance(self, count=1):  # noqa: ARG002
        if self.steps >= self.after:
            raise KeyboardInterrupt
        self.steps += 1


def outcome(run):
    return {path.name: path.read_bytes() for path in (run / RECORD_NAME, *run.glob("tensors-*"), *run.glob("seen-*"))}


def test_what_a_run_records(config, whole):
    found = Checkpoint.load(whole)
    assert found.scorer_trained
    assert found.classnames == tuple(sorted(COLOURS))
    assert found.prune.locations == (2,)
    assert TrainConfig.from_json(found.config) == config
    assert (found.data.train_images, found.data.val_images, found.data.held_out) == (12, 6, False)
    assert [row.m for row in found.metrics.matching] == [2, 4, 6, 8, 10, 12]
    assert len(found.metrics.losses) == len(found.metrics.rates) == 3
    assert found.metrics.rates[found.metrics.best_epoch - 1] == max(found.metrics.rates)


def test_the_matching_rates_are_those_of_the_golden_ranking(config, whole):
    found = Checkpoint.load(whole)
    model, images = found.load_model(), run_images(config)
    learned, judged = (rank_images(GoldenSearch(model, 2, config.golden), part, None) for part in (images.train, images.val))
    from prtool.trainer.data.load import pixel_batches

    ((_, pixels),) = pixel_batches(images.val, model.preprocess, range(6), 6)
    with torch.no_grad():
        order = found.scorer()(model.tower.run_pre(pixels, 2)).argsort(dim=1, descending=True, stable=True)
    for row in found.metrics.matching:
        assert row.predictor == pytest.approx(matching_rate(order, judged.ranking, row.m), abs=1 / (6 * row.m))
        assert row.random == row.m / 16
        assert row.constant == pytest.approx(matching_rate(constant_ranking(learned.ranking), judged.ranking, row.m))


def test_same_settings_same_bytes(config, whole, tmp_path):
    train(config, tmp_path / "again")
    assert outcome(tmp_path / "again") == outcome(whole)


def test_stopped_in_any_phase_it_ends_with_the_same_bytes(config, whole, tmp_path):
    counted = Stop()
    train(config, tmp_path / "counted", counted)
    assert any("ranking" in stage for stage in counted.stages)
    assert any("tokens" in stage for stage in counted.stages)
    assert any("training" in stage for stage in counted.stages)
    for after in range(counted.steps):
        run = tmp_path / f"stopped-{after}"
        with pytest.raises(KeyboardInterrupt):
            train(config, run, Stop(after))
        assert not (run / RECORD_NAME).exists()
        train(config, run)
        assert outcome(run) == outcome(whole)


KILLED = """
import sys, torch
from pathlib import Path
from prtool.progress import SilentProgress
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.settings import PruneConfig
from prtool.trainer.train import train
class Wait(SilentProgress):
    def start(self, what, total):
        if "training" in what:
            print("training", flush=True)
            sys.stdin.read()
torch.set_num_threads(1)
train(TrainConfig.load(Path(sys.argv[1])), Path(sys.argv[2]), Wait())
"""


def test_killed_it_ends_with_the_same_bytes(config, whole, tmp_path):
    from prtool.trainer.config import show_config

    (tmp_path / "prtool.toml").write_text(show_config(config))
    command = [sys.executable, "-c", KILLED, str(tmp_path / "prtool.toml"), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "run" / RECORD_NAME).exists()
    train(config, tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(whole)


def test_a_finished_run_is_not_repeated(config, whole, monkeypatch):
    before = (whole / RECORD_NAME).stat().st_mtime_ns
    monkeypatch.setattr(module, "_train_scorer", None)
    assert train(config, whole) == Checkpoint.load(whole)
    assert (whole / RECORD_NAME).stat().st_mtime_ns == before


def test_changed_settings_run_again_on_the_cached_ranking(config, root, tmp_path, monkeypatch):
    train(config, tmp_path)
    monkeypatch.setattr("prtool.trainer.objectives.golden_store._rank", None)
    before = outcome(tmp_path)
    other = replace(config, fit=replace(config.fit, epochs=4))
    for changed, word in [(other, r"fit\.epochs = 3.* 4"), (replace(config, phases=("none",)), "phase none")]:
        with pytest.raises(ConfigError, match=f"{word}.*--overwrite"):
            train(changed, tmp_path)
    assert outcome(tmp_path) == before
    found = train(other, tmp_path, overwrite=True)
    assert len(found.metrics.losses) == 4
    assert Checkpoint.load(tmp_path) == found


def test_phases_one_after_the_other(config, whole, tmp_path):
    with pytest.raises(ConfigError, match="--phase rank,predictor"):
        train(replace(config, phases=("predictor",)), tmp_path)
    assert not train(replace(config, phases=("rank",)), tmp_path).scorer_trained
    assert train(replace(config, phases=("predictor",)), tmp_path).scorer_trained
    assert Checkpoint.load(tmp_path).files == Checkpoint.load(whole).files
    assert train(replace(config, phases=("rank",)), tmp_path).scorer_trained, "ranking again must not lose the predictor"


def test_a_run_that_merges_learns_nothing_and_gives_the_merged_encoder(config, tmp_path):
    merging = replace(config, phases=(), data="", prune=PruneConfig(method="merge", locations=(1,)))
    found = train(merging, tmp_path)
    assert found.scorers() == [] and not found.scorer_trained and found.prune.method == "merge"
    model = found.load_model()
    encoder = Checkpoint.load(tmp_path).pruned_encoder(model.tower)
    assert encoder.spec == found.prune and encoder.spec.locations == tuple(range(1, model.tower.depth))
    pixels, counts = torch.randn(2, 3, *model.tower.image_size), found.prune.counts(found.prune.patches - 2)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode(pixels, counts), MergedEncoder(model.tower, found.prune).encode(pixels, counts))


def test_phase_none_needs_no_data(config, tmp_path):
    found = train(replace(config, phases=("none",), data=""), tmp_path)
    assert not found.scorer_trained
    assert found.classnames == ()
    assert found.data.root == ""
    assert Checkpoint.load(tmp_path).pruned_encoder(found.load_model().tower).spec == found.prune


def test_phase_none_takes_class_names_from_data(config, tmp_path):
    assert train(replace(config, phases=("none",)), tmp_path).classnames == tuple(sorted(COLOURS))


def test_without_a_val_split_a_tenth_is_held_out(config, tmp_path):
    data = write_images(tmp_path / "data", {"train": 7})
    images = run_images(replace(config, data=str(data)))
    assert images.held_out
    below = [path for path in load_split(data, "train").paths if int(hashlib.sha256(f"0 {path}".encode()).hexdigest()[:16], 16) < 16**16 / 10]
    assert list(images.val.paths) == below and 0 < len(below) < 21
    assert sorted(images.train.paths + images.val.paths) == sorted(load_split(data, "train").paths)
    assert run_images(replace(config, data=str(data))) == images
    assert run_images(replace(config, data=str(data), seed=1)).val != images.val
    (data / "train" / sorted(COLOURS)[0] / "new.png").write_bytes(images.train.file(0).read_bytes())
    assert set(images.val.paths) <= set(run_images(replace(config, data=str(data))).val.paths), "an image more moves no other"
    assert train(replace(config, data=str(data)), tmp_path / "run").data.held_out


def test_an_evaluation_names_what_the_run_has_seen(config, whole, tmp_path):
    images = run_images(config)
    asked = EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",), store=tmp_path / "store")
    for split, part in (("train", images.train), ("val", images.val)):
        report = evaluate_run(whole, None, replace(asked, split=split))
        assert report.seen_images == len(part) and report.to_json()["seen_paths"] == list(part.paths)
        assert any(note.startswith(f"{len(part)} of {len(part)} ") for note in report.notes)
    data = write_images(tmp_path / "data", {"test": 7})
    for number, path in enumerate(sorted((data / "test").rglob("*.png"))):  # the images of COLOURS are drawn the same for each split
        image = Image.open(path)
        image.putpixel((0, 0), (number, 1, 2))
        image.save(path)
    kept = evaluate_run(whole, data, asked)
    assert kept.seen_images == 0 and kept.to_json()["seen_paths"] == [] and not any("seen by the run" in note for note in kept.notes)
    (data / "test" / sorted(COLOURS)[0] / "moved and renamed.png").write_bytes(images.train.file(3).read_bytes())
    (data / "test" / sorted(COLOURS)[1] / "moved and renamed.png").write_bytes(images.val.file(0).read_bytes())
    found = evaluate_run(whole, data, asked)
    assert found.seen_images == 2 and all("moved and renamed" in path for path in found.seen_paths)
    assert any(note.startswith("2 of 23 ") for note in found.notes)


def test_what_a_folder_holds_and_is_not_used_is_said(config, tmp_path, caplog):
    data = write_images(tmp_path / "data", {"train": 2, "val": 2})
    (data / "extra").mkdir()
    (data / "extra" / "a.png").write_bytes(b"")
    run_images(replace(config, data=str(data)))
    assert "extra/a.png" in caplog.text


def test_a_run_folder_that_is_not_utf_8(config, tmp_path):
    with pytest.raises(ConfigError, match=r"run\\xe9"):
        train(config, tmp_path / os.fsdecode(b"run\xe9"))
    assert list(tmp_path.iterdir()) == []


def test_image_limits(config):
    images = run_images(replace(config, train_images=5, val_images=2))
    assert (len(images.train), len(images.val)) == (5, 2)


@pytest.mark.parametrize("score", ["label", "confidence"])
def test_scores_that_need_classes(config, tmp_path, score):
    assert train(replace(config, golden=replace(config.golden, score=score), train_images=4), tmp_path).scorer_trained


def test_relative_paths_become_absolute(config, root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    found = train(replace(config, model="local-dir:model", data="data", phases=("none",)), tmp_path / "run")
    monkeypatch.chdir("/")
    assert found.load_model().weights_sha256 == found.weights_sha256
    assert Path(found.data.root) == root / "data"


def test_what_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match="--data DIR"):
        train(replace(config, data=""), tmp_path)
    with pytest.raises(DataError, match="none"):
        train(replace(config, data=str(tmp_path / "none")), tmp_path)
    with pytest.raises(ModelError, match="ViT-B-61"):
        train(replace(config, model="ViT-B-61"), tmp_path)
    with pytest.raises(ConfigError, match="location"):
        train(replace(config, prune=PruneConfig(locations=(9,))), tmp_path)
    with pytest.raises(DataError, match="train"):
        train(replace(config, data=str(write_images(tmp_path / "data", {"train": 1})), train_images=1), tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_missing_cuda_device_is_no_fallback(config, tmp_path):
    with pytest.raises(ConfigError, match="cuda"):
        train(replace(config, device="cuda"), tmp_path)


def test_latest_points_at_the_run(config, tmp_path):
    for name in ("a", "b"):
        train(replace(config, phases=("none",), data=""), tmp_path / name)
        assert point_latest(tmp_path / name) == tmp_path / "latest"
        assert (tmp_path / "latest").resolve() == tmp_path / name
    Checkpoint.load(tmp_path / "latest")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "latest"]


def test_every_damaged_store_is_made_again(config, whole, tmp_path, caplog):
    train(config, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    for path, content in before.items():
        path.write_bytes(content[:-90] + bytes([content[-90] ^ 1]) + content[-89:])
    train(config, tmp_path)
    assert outcome(tmp_path) == outcome(whole)
    assert {path: path.read_bytes() for path in before} == before
    noted = {path for path in before if str(path) in caplog.text}
    assert noted == {path for path in before if path.suffix == ".safetensors" and not path.name.startswith(("tensors-", "seen-"))}


CHOICE = {"objective": "distill", "phases": ["predictor"], "distill.steps": 9, "distill.batch": 4}
TOKENS = {"tokens.shots": 2, "tokens.epochs": 2, "tokens.batch": 3, "tokens.visual": 2, "tokens.text": 2, "tokens.text_words": "a b"}


def choosing(config, extra=None):
    plain = config.to_json()
    for name, value in {**CHOICE, **(extra or {})}.items():
        section, _, last = name.rpartition(".")
        (plain[section] if section else plain)[last] = value
    return TrainConfig.from_json(plain)


def test_a_scorer_that_learns_from_its_choice_needs_no_ranking(config, tmp_path):
    found = train(choosing(config), tmp_path)
    assert found.scorer_trained
    assert found.metrics.matching == ()
    assert len(found.metrics.losses) == 3
    assert not (tmp_path / "golden").exists()
    again = train(choosing(config), tmp_path)
    assert again == found
    ranked = train(choosing(config, {"phases": ["rank", "predictor"]}), tmp_path / "ranked")
    assert [row.m for row in ranked.metrics.matching] == [row.m for row in ranked.metrics.matching if row.m <= 16]
    assert ranked.metrics.matching
    assert all(torch.equal(found.tensors[name], ranked.tensors[name]) for name in found.tensors)
    later = train(choosing(config, {"phases": ["rank", "predictor"]}), tmp_path)
    assert later == Checkpoint.load(tmp_path)
    assert later.metrics == ranked.metrics, "a ranking that comes after the predictor adds the same matching rates"
    assert all(torch.equal(found.tensors[name], later.tensors[name]) for name in found.tensors)


@pytest.mark.parametrize("target", ["ranking", "distill"])
def test_later_locations_learn_scorers_of_their_own(config, tmp_path, target):
    settings = {
        "objective": target,
        "phases": ["rank", "predictor"],
        "prune.locations": [2, 3],
        "prune.rescore": True,
        "fit.epochs": 2,
        "distill.steps": 6,
    }
    found = train(choosing(config, settings), tmp_path)
    assert found.prune.locations == (2, 3)
    blank = train(choosing(config, {**settings, "phases": ["none"]}), tmp_path / "blank")
    assert {name.split(".")[0] for name in found.tensors} == {"0", "1"}
    moved = {name.split(".")[0] for name in found.tensors if not torch.equal(found.tensors[name], blank.tensors[name])}
    assert moved == {"0", "1"}
    kept = train(choosing(config, {**settings, "prune.rescore": False}), tmp_path / "order")
    assert {name.split(".")[0] for name in kept.tensors} == {"0"}


@pytest.mark.parametrize("after", [3, 7, 12, 16, 20, 23])
def test_tokens_that_were_stopped_end_with_the_same_bytes(config, tmp_path, after):
    settings = choosing(config, {"phases": ["predictor", "tokens"], **TOKENS})
    train(settings, tmp_path / "whole")
    with contextlib.suppress(KeyboardInterrupt):
        train(settings, tmp_path / "part", Stop(after))
    train(settings, tmp_path / "part")
    assert outcome(tmp_path / "part") == outcome(tmp_path / "whole")


def test_tokens_come_behind_a_trained_scorer_and_leave_it_as_it_was(config, tmp_path):
    with pytest.raises(ConfigError, match="tokens"):
        train(choosing(config, {"phases": ["tokens"], **TOKENS}), tmp_path)
    scored = train(choosing(config, TOKENS), tmp_path)
    found = train(choosing(config, {"phases": ["tokens"], **TOKENS}), tmp_path)
    assert all(torch.equal(scored.tensors[name], found.tensors[name]) for name in scored.tensors)
    assert found.tokens.visual == (2 if found.tokens.best_epoch else 0)
    assert len(found.tokens.cosines) == 3
    again = train(choosing(config, {"phases": ["predictor"], **TOKENS}), tmp_path)
    assert again == found
    other = train(choosing(config, {"phases": ["tokens"], **TOKENS, "tokens.epochs": 1}), tmp_path, overwrite=True)
    assert len(other.tokens.cosines) == 2
