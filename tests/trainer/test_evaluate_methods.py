"""Evaluation of every method at several locations, its paired differences, and going on after an interruption."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_encoder import class_embeddings, noise_images, tiny_encoder
from torch import Tensor, nn
from torch.nn import functional

from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep, PruneSpec
from prtool.trainer.data.images import ImageSet
from prtool.trainer.evaluation.baselines.avit import AVit
from prtool.trainer.evaluation.baselines.base import Counts, Entered
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.evaluate import EvalConfig, Pruner, evaluate
from prtool.trainer.evaluation.ledger import Ledger
from prtool.trainer.evaluation.plots import plot_evaluation
from prtool.trainer.evaluation.report import EvalReport, EvalRow
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder
from prtool.trainer.store import TensorStore

IMAGES, LOCATIONS = 10, (2, 3)
KEEPS = (Keep.ratio(1.0), Keep.count(8), Keep.count(5))
EVERY = ("patch-ranking", "patch-ranking-tokens", "cls-attention", "evit", "avit", "tome", "random")


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return tiny_encoder("cls")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return noise_images(tmp_path_factory.mktemp("images"), IMAGES)


class ByChannel(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return tokens[:, 1:, 0]


def pruner_of(model: DualEncoder) -> Pruner:
    tower = model.tower
    torch.manual_seed(2)
    with_tokens = PruneSpec(tower.grid, tower.depth, LOCATIONS, 1, 2, 1)
    scorers = (ByChannel(), FirstOrder(1))
    encoder = PrunedEncoder(tower, scorers, with_tokens, VisualTokens(torch.randn(2, 2, tower.width)))
    tuned_classes = functional.normalize(torch.randn(5, tower.embed_dim, generator=torch.Generator().manual_seed(9)), dim=-1)
    return Pruner(tower.prune_spec(LOCATIONS), scorers, tuned=encoder, tuned_classes=tuned_classes)


def pixels_of(model: DualEncoder, images: ImageSet, index: int) -> Tensor:
    return torch.from_numpy(prepare(images.source(index), model.preprocess))[None]


@torch.no_grad()
def test_every_method_at_two_locations(model: DualEncoder, images: ImageSet, tmp_path: Path) -> None:
    """Random image by image with a plain loop, the tuned encoder by its own forward with its own classes."""
    pruner, classes = pruner_of(model), class_embeddings(model)
    report = evaluate(model, pruner, images, classes, EvalConfig(keeps=KEEPS, methods=EVERY, batch=4))
    assert report.locations == LOCATIONS and report.methods == EVERY
    for row, keep in zip(report.of("patch-ranking-tokens"), KEEPS, strict=True):
        found = [pruner.tuned(pixels_of(model, images, index), keep) for index in range(IMAGES)]
        right = [int((embedding @ pruner.tuned_classes.T).argmax()) == label for embedding, label in zip(found, images.labels, strict=True)]
        assert row.accuracy == pytest.approx(100 * sum(right) / IMAGES)
    full = [functional.normalize(model.tower(pixels_of(model, images, index)), dim=-1) for index in range(IMAGES)]
    before = [int((embedding @ classes.T).argmax()) == label for embedding, label in zip(full, images.labels, strict=True)]
    for row, counts in zip(report.of("random"), [(16, 16), (12, 8), (11, 5)], strict=True):
        found = [random_one(model, images, index, counts) for index in range(IMAGES)]
        right = [int((embedding @ classes.T).argmax()) == label for embedding, label in zip(found, images.labels, strict=True)]
        assert row.accuracy == pytest.approx(100 * sum(right) / IMAGES)
        assert row.cosine == pytest.approx(sum(float(a[0] @ b[0]) for a, b in zip(found, full, strict=True)) / IMAGES, abs=1e-5)
        pairs = list(zip(before, right, strict=True))
        assert (row.lost, row.won) == (pairs.count((True, False)), pairs.count((False, True)))
        lengths = [17, 1 + counts[0], 1 + counts[1], 1 + counts[1]]
        assert row.gmacs == model.tower.cost().gmacs(lengths)
    for name in ("patch-ranking", "cls-attention", "evit", "avit", "tome", "random"):
        first = report.of(name)[0]
        assert (first.accuracy, first.lost, first.won) == (report.unpruned.accuracy, 0, 0) and first.cosine == pytest.approx(1.0)
    plot_evaluation(report, tmp_path / "accuracy.png")
    json.dumps(report.to_json(), allow_nan=False)


def random_one(model: DualEncoder, images: ImageSet, index: int, counts: tuple[int, int]) -> Tensor:
    """Two locations by hand: the best 12 of an order, then the best 8 of the same."""
    tower = model.tower
    tokens = tower.blocks[0](tower.embed(pixels_of(model, images, index)))
    order = Random(0).order(Entered(tokens, tokens, (index,), tower, tower.prune_spec((2,))))[0]
    tokens = torch.cat([tokens[:, :1], tokens[:, 1 + order[: counts[0]]]], dim=1)
    tokens = tower.blocks[1](tokens)[:, : 1 + counts[1]]
    return functional.normalize(tower.head(tower.blocks[3](tower.blocks[2](tokens))), dim=-1)


@torch.no_grad()
def test_avit_reports_what_the_images_cost(model: DualEncoder, images: ImageSet) -> None:
    report = evaluate(model, pruner_of(model), images, class_embeddings(model), EvalConfig(keeps=KEEPS, methods=("avit", "random"), batch=3))
    method, spec = AVit(model.tower), model.tower.prune_spec(LOCATIONS)
    pixels = torch.cat([pixels_of(model, images, index) for index in range(IMAGES)])
    entered = Entered.of(model.tower, pixels, range(IMAGES), spec)
    method.calibrate(entered, [(12, 8), (11, 5)])
    wanted = [float(method.spent(entered, counts).mean()) for counts in ((12, 8), (11, 5))]
    assert [row.gmacs for row in report.of("avit")[1:]] == pytest.approx(wanted)
    # 10 images of 16 patches: one patch in one block is 0.15 % of the mean.
    assert wanted == pytest.approx([row.gmacs for row in report.of("random")[1:]], rel=0.02)
    assert any("avit keeps another number" in note for note in report.notes)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (3, 1), (1, 4), (20, 0)])
def test_the_drop_is_a_paired_difference(lost: int, won: int) -> None:
    """Against the textbook form: mean of one difference an image, and the standard error with half an image more in each of the four cells."""
    row = EvalRow("random", 0.5, 50.0, 20, 1.0, None, 0.9, lost, won)
    values, weights = np.array([100.0, -100.0, 0.0]), np.array([lost + 0.5, won + 0.5, 20 - lost - won + 1.0])
    error = math.sqrt(np.average((values - np.average(values, weights=weights)) ** 2, weights=weights) / weights.sum())
    mean = 100.0 * (lost - won) / 20
    assert (row.drop, row.drop_low, row.drop_high) == pytest.approx((mean, mean - 1.959964 * error, mean + 1.959964 * error))


def test_a_drop_that_nobody_counted_or_that_one_image_has() -> None:
    row = EvalRow("random", 0.5, 50.0, 20, 1.0, None, 0.9)
    assert (row.drop, row.drop_low, row.drop_high) == (None, None, None)
    report = EvalReport((EvalRow("unpruned", 1.0, 0.0, 1, 1.0, None, 1.0, 1, 0),), "m", "", "", "", "test", 0, (2,), 16, None)
    plain = json.loads(json.dumps(report.to_json(), allow_nan=False))["results"][0]
    assert plain["drop"] == 100.0
    assert plain["drop_high"] - plain["drop_low"] > 100.0, "one image says next to nothing"


class Stopped(Exception):
    pass


class StopAfter:
    """A Progress that stops the evaluation after some images."""

    def __init__(self, images: int) -> None:
        self.left, self.what, self.advanced = images, "", []

    def start(self, what: str, _total: int) -> None:
        self.what = what

    def advance(self, count: int = 1) -> None:
        if self.what.startswith("evaluating"):
            self.advanced.append(count)
            self.left -= count
            if self.left <= 0:
                raise Stopped

    def finish(self) -> None:
        pass


def test_an_interrupted_evaluation_goes_on(model: DualEncoder, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ledger.__init__, "__defaults__", (0.0, "unfinished"))
    pruner, classes = pruner_of(model), class_embeddings(model)
    config = EvalConfig(keeps=KEEPS, methods=EVERY, batch=2, store=tmp_path)
    with pytest.raises(Stopped):
        evaluate(model, pruner, images, classes, config, StopAfter(6))
    encoded: list[tuple[int, ...]] = []
    monkeypatch.setattr(Random, "scores", spy(Random.scores, encoded))
    resumed = StopAfter(1000)
    report = evaluate(model, pruner, images, classes, config, resumed)
    assert resumed.advanced == [6, 2, 2] and encoded == [(6, 7), (8, 9)]
    assert list(tmp_path.iterdir()) == []
    whole = evaluate(model, pruner, images, classes, EvalConfig(keeps=KEEPS, methods=EVERY, batch=2))
    assert report.rows == whole.rows


def spy(scores: Callable[[Random, Entered], Tensor], seen: list[tuple[int, ...]]) -> Callable[[Random, Entered], Tensor]:
    def watched(self: Random, entered: Entered) -> Tensor:
        seen.append(entered.indices)
        return scores(self, entered)

    return watched


@pytest.mark.parametrize("change", ["seed", "keeps", "classes", "scorers"])
def test_another_evaluation_does_not_take_the_ledger(
    model: DualEncoder, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(Ledger.__init__, "__defaults__", (0.0, "unfinished"))
    pruner, classes = pruner_of(model), class_embeddings(model)
    config = EvalConfig(keeps=KEEPS[1:], methods=("patch-ranking", "random"), batch=5, store=tmp_path)
    with pytest.raises(Stopped):
        evaluate(model, pruner, images, classes, config, StopAfter(5))
    seed, keeps = (7, KEEPS[1:]) if change == "seed" else (0, KEEPS[2:] if change == "keeps" else KEEPS[1:])
    other = EvalConfig(keeps=keeps, methods=config.methods, batch=5, store=tmp_path, seed=seed)
    if change == "classes":
        classes = classes.flip(0)
    if change == "scorers":
        pruner = Pruner(pruner.spec, (FirstOrder(1), FirstOrder(1)))
    progress = StopAfter(1000)
    evaluate(model, pruner, images, classes, other, progress)
    assert progress.advanced == [0, 5, 5]


def test_unpruned_embeddings_are_shared_by_evaluations(model: DualEncoder, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second evaluation finds them all, gives the same rows, and would notice others: they decide cosine and loss."""
    pruner, classes = pruner_of(model), class_embeddings(model)
    config = EvalConfig(keeps=KEEPS[1:], methods=("random", "tome"), batch=4, unpruned=tmp_path)
    first = evaluate(model, pruner, images, classes, config)
    assert first.rows == evaluate(model, pruner, images, classes, replace(config, unpruned=None)).rows
    (path,) = tmp_path.iterdir()
    unpruned: list[Tensor] = []
    monkeypatch.setattr(Entered, "unpruned", property(lambda entered: unpruned.append(entered._known["unpruned"]) or unpruned[-1]))
    assert evaluate(model, pruner, images, classes, config).rows == first.rows
    stored, key = load_file(path), json.loads(safe_open(path, "pt").metadata()["prtool"])["key"]
    TensorStore(path.parent, key).write_tensors(path.name, {**stored, "unpruned": -stored["unpruned"]})
    turned = evaluate(model, pruner, images, classes, config)
    assert [row.cosine for row in turned.rows[1:]] == pytest.approx([-(row.cosine or 0) for row in first.rows[1:]])


def test_a_damaged_ledger_is_evaluated_again_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger(3, tmp_path, {"a": 1}, save_seconds=0.0)
    ledger.put("x", [1], torch.tensor([2.0]))
    ledger.close([1])
    assert Ledger(3, tmp_path, {"a": 1}).missing() == [0, 2]
    assert Ledger(3, tmp_path, {"a": 1}).column("x").tolist() == [0.0, 2.0, 0.0]
    assert Ledger(3, tmp_path, {"a": 2}).missing() == [0, 1, 2]
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (content[:-1] + bytes([content[-1] ^ 1]), content[:-4], b"torn"):
        path.write_bytes(damaged)
        caplog.clear()
        assert Ledger(3, tmp_path, {"a": 1}).missing() == [0, 1, 2]
        assert str(path) in caplog.text
    path.with_name(f".{path.name}.01234567.part").write_bytes(b"what a killed process left")
    ledger.remove()
    assert not list(tmp_path.iterdir())


def test_a_digest_sees_buffers_and_kind() -> None:
    left, right = nn.Linear(2, 2), nn.Linear(2, 2)
    right.load_state_dict(left.state_dict())
    assert content_digest(left) == content_digest(right) != content_digest(nn.Identity())
    right.register_buffer("board", torch.ones(1), persistent=False)
    assert content_digest(left) != content_digest(right)
    assert content_digest(None) is None and content_digest(torch.ones(2)) != content_digest(torch.ones(2, 1))


def test_counts_are_a_budget_for_each_location() -> None:
    counts: Counts = PruneSpec((4, 4), 4, LOCATIONS).counts(Keep.count(5))
    assert counts == (11, 5)
