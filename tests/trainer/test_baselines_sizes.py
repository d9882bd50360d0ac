"""Smaller images and merging next to the other methods, and runs whose encoder reads smaller images than the unpruned one."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_encoder import class_embeddings, noise_images, tiny_encoder
from torch import Tensor
from torch.nn import functional
from towers import CLIP

from prtool.errors import ConfigError, KeepError
from prtool.runtime.images.preprocess import prepare
from prtool.spec import MERGE, NONE, Keep, PruneSpec
from prtool.trainer.data.images import ImageSet
from prtool.trainer.evaluation.baselines.smaller_image import SmallerImage
from prtool.trainer.evaluation.evaluate import EvalConfig, Pruner, evaluate
from prtool.trainer.evaluation.report import EvalReport
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.pruned import FirstOrder
from prtool.trainer.models.tower import VisionTower

IMAGES = 7
KEEPS = (Keep.ratio(1.0), Keep.ratio(0.6), Keep.count(1))


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return tiny_encoder("cls")


@pytest.fixture(scope="module")
def small(model: DualEncoder) -> DualEncoder:
    """The same encoder at 48 of its 64 pixels."""
    return dataclasses.replace(model, tower=model.native.resized(48), preprocess=dataclasses.replace(model.preprocess, size=(48, 48)))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    return noise_images(tmp_path_factory.mktemp("images"), IMAGES)


def pixels(model: DualEncoder, images: ImageSet, side: int) -> Tensor:
    return torch.stack([torch.from_numpy(prepare(images.source(i), dataclasses.replace(model.preprocess, size=(side, side)))) for i in range(IMAGES)])


@torch.no_grad()
def host_at(model: DualEncoder, side: int) -> torch.nn.Module:
    """open_clip's own encoder, made for another image size, with the weights as open_clip loads them into it."""
    from open_clip.model import CLIPVisionCfg, _build_vision_tower, resize_pos_embed

    made = _build_vision_tower(32, CLIPVisionCfg(**{**CLIP, "image_size": side}), quick_gelu=False).eval()
    state = {f"visual.{name}": tensor for name, tensor in model.native.host.state_dict().items()}
    holder = torch.nn.Module()
    holder.visual = made
    resize_pos_embed(state, holder)
    holder.load_state_dict(state)
    return made


@torch.no_grad()
def full(model: DualEncoder, images: ImageSet) -> Tensor:
    return functional.normalize(model.native(pixels(model, images, 64)), dim=-1)


def asked(*methods: str, keeps: tuple[Keep, ...] | None = KEEPS) -> EvalConfig:
    return EvalConfig(keeps=keeps, methods=methods or None, batch=3)


def run(model: DualEncoder, spec: PruneSpec, images: ImageSet, config: EvalConfig) -> EvalReport:
    scorers = tuple(FirstOrder(1) for _ in spec.locations) if spec.method == "rank" else ()
    return evaluate(model, Pruner(spec, scorers), images, class_embeddings(model), config)


def nearest_side(tower: VisionTower, budget: float) -> int:
    costs = {side: tower.resized(side).own_cost().gmacs([1 + (side // 16) ** 2] * tower.depth) for side in (16, 32, 48, 64)}
    return min(costs, key=lambda side: abs(costs[side] - budget))


@torch.no_grad()
def test_a_smaller_image_is_the_librarys_own_encoder_at_the_nearest_cost(model: DualEncoder, images: ImageSet) -> None:
    tower, spec, classes = model.tower, model.tower.prune_spec((1,)), class_embeddings(model)
    report = run(model, spec, images, asked("smaller-image"))
    sides = []
    for row, keep in zip(report.of("smaller-image"), KEEPS, strict=True):
        side = nearest_side(tower, tower.cost().gmacs(spec.tokens_by_block(spec.counts(keep))))
        found = functional.normalize(host_at(model, side)(pixels(model, images, side)), dim=-1)
        right = [int((embedding @ classes.T).argmax()) == label for embedding, label in zip(found, images.labels, strict=True)]
        assert row.image_size == (side, side)
        assert row.gmacs == pytest.approx(tower.resized(side).own_cost().gmacs([1 + (side // 16) ** 2] * tower.depth))
        assert row.accuracy == pytest.approx(100 * sum(right) / IMAGES)
        assert row.cosine == pytest.approx(float((found * full(model, images)).sum(dim=1).mean()), abs=1e-5)
        sides.append(side)
    assert len(set(sides)) == 3 and sides[0] == 64
    assert report.rows[1].cosine == pytest.approx(1.0)


@torch.no_grad()
def test_a_run_on_smaller_images_is_compared_with_the_native_encoder(model: DualEncoder, small: DualEncoder, images: ImageSet) -> None:
    """Every figure of its rows is relative to the unpruned encoder at 64 px, every method's tokens are those of 48 px."""
    spec = small.tower.prune_spec((2,))
    report = run(small, spec, images, asked("random", "cls-attention", "evit", "avit", "smaller-image", keeps=KEEPS[:2]))
    native = run(model, model.tower.prune_spec((2,)), images, asked("random", keeps=KEEPS[:1]))
    assert report.unpruned == native.unpruned
    assert (report.unpruned.image_size, report.patches) == ((64, 64), 9)
    less = functional.normalize(host_at(model, 48)(pixels(model, images, 48)), dim=-1)
    wanted = float((less * full(model, images)).sum(dim=1).mean())
    for name in report.methods:
        whole = report.of(name)[0]
        assert whole.image_size == (48, 48)
        assert whole.cosine == pytest.approx(wanted, abs=1e-5)
        assert whole.cosine < 0.999
    cost = small.tower.own_cost()
    assert report.of("random")[0].gmacs == pytest.approx(cost.gmacs([10] * 4))
    assert report.macs_share(report.of("random")[0]) == pytest.approx(cost.gmacs([10] * 4) / model.tower.own_cost().gmacs([17] * 4))


def test_unpruned_embeddings_are_shared_by_runs_of_every_size(model: DualEncoder, small: DualEncoder, images: ImageSet, tmp_path: Path) -> None:
    config = dataclasses.replace(asked("random", keeps=KEEPS[:2]), unpruned=tmp_path)
    run(model, model.tower.prune_spec((2,)), images, config)
    (before,) = tmp_path.iterdir()
    found = run(small, small.tower.prune_spec((2,)), images, config)
    assert list(tmp_path.iterdir()) == [before]
    assert found.rows == run(small, small.tower.prune_spec((2,)), images, asked("random", keeps=KEEPS[:2])).rows


@torch.no_grad()
@pytest.mark.parametrize("name", ["model", "small"])
def test_a_run_that_merges_is_compared_with_its_own_counts(name: str, images: ImageSet, request: pytest.FixtureRequest) -> None:
    model: DualEncoder = request.getfixturevalue(name)
    spec, side = model.tower.prune_spec((1,), method=MERGE), model.tower.image_size[0]
    keeps = (Keep.ratio(1.0), Keep.ratio(0.6))
    report = run(model, spec, images, asked(keeps=keeps))
    assert report.methods == ("merge", "smaller-image", "tome")
    encoder = MergedEncoder(model.tower, spec)
    for row, keep in zip(report.of("merge"), keeps, strict=True):
        found = encoder.encode(pixels(model, images, side), spec.counts(keep))
        assert row.cosine == pytest.approx(float((found * full(model, images)).sum(dim=1).mean()), abs=1e-5)
        assert row.gmacs == model.tower.cost().pruned_gmacs(spec, spec.counts(keep))
    assert report.of("tome")[1].gmacs == pytest.approx(report.of("merge")[1].gmacs, rel=0.05)
    for unsuited in ("random", "patch-ranking", "golden", "evit"):
        with pytest.raises(ConfigError, match=f"'{unsuited}'.*merge, smaller-image, tome"):
            run(model, spec, images, asked(unsuited))


@torch.no_grad()
def test_merging_costs_what_a_ranking_run_drops(model: DualEncoder, images: ImageSet) -> None:
    """From the run's first location to the last block but one, the counts whose cost is nearest of all equal steps."""
    spec, merging, cost = model.tower.prune_spec((2,)), model.tower.prune_spec((2,), method=MERGE), model.tower.cost()
    report = run(model, spec, images, asked("merge", keeps=(Keep.ratio(0.6),)))
    budget = cost.gmacs(spec.tokens_by_block(spec.counts(Keep.ratio(0.6))))
    steps = [(16 - first, 16 - first - second) for first in range(9) for second in (first - 1, first) if 0 <= second <= (16 - first) // 2]
    best = min(steps, key=lambda counts: abs(cost.pruned_gmacs(merging, counts) - budget))
    row = report.of("merge")[0]
    assert merging.locations == (2, 3)
    assert row.gmacs == pytest.approx(cost.pruned_gmacs(merging, best))
    found = MergedEncoder(model.tower, merging).encode(pixels(model, images, 64), best)
    assert row.cosine == pytest.approx(float((found * full(model, images)).sum(dim=1).mean()), abs=1e-5)


def test_a_run_on_smaller_images_alone(model: DualEncoder, small: DualEncoder, images: ImageSet) -> None:
    spec = small.tower.prune_spec(method=NONE)
    report = run(small, spec, images, asked(keeps=None))
    assert [(row.method, row.keep, row.image_size) for row in report.rows] == [("unpruned", 1.0, (64, 64)), ("smaller-image", 1.0, (48, 48))]
    assert report.rows[1].gmacs == pytest.approx(small.tower.cost().pruned_gmacs(spec, ()))
    assert (report.prune_method, report.predictor_trained) == ("none", None)
    with pytest.raises(KeepError, match="9 patches"):
        run(small, spec, images, asked(keeps=KEEPS))
    with pytest.raises(ConfigError, match=r"'tome'.*smaller-image"):
        run(small, spec, images, asked("tome", keeps=None))


@pytest.mark.parametrize(("kind", "missing"), [("attentional", "merge"), ("not square", "smaller-image")])
def test_what_a_tower_cannot_do_is_left_out_or_said(kind: str, missing: str, images: ImageSet) -> None:
    """Left out with a note where nobody asked for it by name, else an error before any work."""
    model = tiny_encoder(kind)
    report = run(model, model.tower.prune_spec((2,)), images, asked(keeps=(Keep.ratio(0.6),)))
    assert set(report.methods) == {"patch-ranking", "merge", "smaller-image", "random"} - {missing}
    assert any(f"'{missing}'" in note for note in report.notes)
    with pytest.raises(ConfigError, match=f"'{missing}'"):
        run(model, model.tower.prune_spec((2,)), images, asked(missing))


def test_a_budget_out_of_reach_is_said_before_any_work(model: DualEncoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block of merging behind three full ones costs more than dropping all but one patch there."""
    spec = model.tower.prune_spec((3,))
    report = run(model, spec, images, asked(keeps=(Keep.count(2),)))
    assert "merge" not in report.methods
    monkeypatch.setattr("prtool.trainer.evaluation.evaluate.pixel_batches", lambda *_: pytest.fail("images were read"))
    with pytest.raises(ConfigError, match="keep more patches"):
        run(model, spec, images, asked("merge", keeps=(Keep.count(2),)))


def test_equal_budgets_are_encoded_once(model: DualEncoder, images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two keeps whose nearest image size is the same."""
    calls: list[int] = []
    resized = type(model.native).resized

    def counting(tower: VisionTower, side: int) -> VisionTower:
        calls.append(side)
        return resized(tower, side)

    monkeypatch.setattr(type(model.native), "resized", counting)
    spec = model.tower.prune_spec((2,))
    method = SmallerImage(model.native, model.tower.cost())
    sizes = {method.image_size(spec, spec.counts(k)) for k in (8, 9)}
    report = run(model, spec, images, asked("smaller-image", keeps=(Keep.count(8), Keep.count(9))))
    assert sizes == {(48, 48)}
    first, second = report.of("smaller-image")
    assert dataclasses.replace(first, keep=second.keep) == second
    assert set(calls) == {48}
