"""The training loop: it learns, repeats, and goes on after being stopped as if it had not been."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from prtool.errors import ConfigError, ShapeError
from prtool.progress import SilentProgress
from prtool.trainer.features import Features
from prtool.trainer.loop import Examples, FitConfig, predict, train_scorer
from prtool.trainer.models.predictor import ScorerConfig, make_scorer
from prtool.trainer.objectives.matching import matching_rate, order_of
from prtool.trainer.objectives.ranking import LOSSES, RankingObjective, some_ranked
from prtool.trainer.settings import ARCHITECTURES

WIDTH, PATCHES = 16, 12
FAST = FitConfig(epochs=7, batch=8, lr=1e-2, save_every=2)


def examples(images, seed):
    """Images whose golden scores are a linear function of each token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(images, 1 + PATCHES, WIDTH, generator=generator)
    golden = tokens[:, 1:] @ torch.linspace(-1, 1, WIDTH)
    return Examples(Features.of(tokens), torch.argsort(golden, dim=1).short())


TRAIN, VAL = examples(48, 0), examples(16, 1)


def fit(scorer, train, val, config, *state_and_progress):
    return train_scorer(scorer, RankingObjective(train, val, config), config, *state_and_progress)


def scorer(arch="mix-mlp", seed=0):
    torch.manual_seed(seed)
    return make_scorer(ScorerConfig(arch, channels=8, token_hidden=4, channel_hidden=16, heads=2), WIDTH, PATCHES, 1)


class Stop(SilentProgress):
    """Raises after so many epochs, as Ctrl-C would."""

    def __init__(self, after):
        self.left = after

    def advance(self, count=1):
        self.left -= count
        if self.left < 0:
            raise KeyboardInterrupt


def same(first, second):
    weights = first.scorer.state_dict(), second.scorer.state_dict()
    equal = all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    return equal and (first.history, first.best_epoch) == (second.history, second.best_epoch)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_teaches_every_architecture(arch, loss):
    m = 10 if loss == "kl" else 6  # the KL target tells the worst quarter from the rest, and nothing more
    result = fit(scorer(arch), TRAIN, VAL, replace(FAST, loss=loss, epochs=15, match_at=m))
    assert result.history[result.best_epoch - 1].score > m / PATCHES + (0.06 if loss == "kl" else 0.2)


def test_the_best_epoch_is_kept():
    result = fit(scorer(), TRAIN, VAL, replace(FAST, match_at=5))
    rates = [epoch.score for epoch in result.history]
    assert result.best_epoch == rates.index(max(rates)) + 1
    assert matching_rate(order_of(predict(result.scorer, VAL.features)), VAL.targets, 5) == max(rates)
    assert not result.scorer.training


def test_same_settings_same_result():
    assert same(fit(scorer(), TRAIN, VAL, FAST), fit(scorer(), TRAIN, VAL, FAST))
    assert not same(fit(scorer(), TRAIN, VAL, FAST), fit(scorer(), TRAIN, VAL, replace(FAST, seed=1)))


def test_saving_changes_nothing(tmp_path):
    assert same(fit(scorer(), TRAIN, VAL, FAST, tmp_path / "state"), fit(scorer(), TRAIN, VAL, FAST))


@pytest.mark.parametrize(("loss", "noise"), [("listmle", 0.0), ("margin", 0.3)])
@pytest.mark.parametrize("after", [0, 1, 3, 6])
def test_stopped_anywhere_it_ends_the_same(tmp_path, after, loss, noise):
    config, state = replace(FAST, loss=loss, noise=noise), tmp_path / "state"
    whole = fit(scorer(), TRAIN, VAL, config)
    with pytest.raises(KeyboardInterrupt):
        fit(scorer(), TRAIN, VAL, config, state, Stop(after))
    assert same(fit(scorer(), TRAIN, VAL, config, state), whole)


def test_a_finished_state_is_not_trained_again(tmp_path, monkeypatch):
    whole = fit(scorer(), TRAIN, VAL, FAST, tmp_path / "state")
    monkeypatch.setattr("prtool.trainer.loop.train_epoch", None)
    assert same(fit(scorer(), TRAIN, VAL, FAST, tmp_path / "state"), whole)


@pytest.mark.parametrize("other", ["config", "weights", "data"])
def test_a_state_of_other_training_is_replaced(tmp_path, other):
    state = tmp_path / "state"
    fit(scorer(), TRAIN, VAL, FAST, state)
    config = replace(FAST, weight_decay=1e-2) if other == "config" else FAST
    train = examples(48, 5) if other == "data" else TRAIN
    seed = 1 if other == "weights" else 0
    assert same(fit(scorer(seed=seed), train, VAL, config, state), fit(scorer(seed=seed), train, VAL, config))


@pytest.mark.parametrize("damage", ["truncated", "empty", "other", "flipped bit", "renamed"])
def test_a_damaged_state_starts_anew(tmp_path, damage):
    state = tmp_path / "state"
    whole = fit(scorer(), TRAIN, VAL, FAST, state)
    content = state.read_bytes()
    damaged = {"truncated": content[:-9], "empty": b"", "other": b"\x01" * 50, "flipped bit": content[:-1] + bytes([content[-1] ^ 1])}
    state.write_bytes({**damaged, "renamed": content.replace(b"best_epoch", b"best_epoce")}[damage])
    assert same(fit(scorer(), TRAIN, VAL, FAST, state), whole)


def test_the_state_is_safetensors_with_json(tmp_path):
    fit(scorer(), TRAIN, VAL, FAST, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as stored:
        record = json.loads(stored.metadata()["prtool"])
    assert len(record["facts"]["history"]) == FAST.epochs


def test_learning_rate_is_torchs_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50, eta_min=1e-4)
    for epoch in range(50):
        assert FitConfig().lr_at(epoch) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("name", "value"), [("loss", "hinge"), ("epochs", 0), ("batch", 0), ("lr", -1.0), ("noise", float("nan")), ("match_at", -1), ("save_every", 0)]
)
def test_config_refuses(name, value):
    with pytest.raises(ConfigError, match=name):
        FitConfig(**{name: value})


def test_m_above_the_patches_is_refused():
    with pytest.raises(ConfigError, match="match_at = 13"):
        fit(scorer(), TRAIN, VAL, replace(FAST, match_at=13))


def test_examples_must_belong_together():
    with pytest.raises(ShapeError):
        Examples(TRAIN.features, VAL.targets)


def test_a_random_part_of_the_patches_keeps_its_order() -> None:
    """Against plain lists: the patches that are shown, renumbered, in the order of the whole ranking."""
    random = torch.Generator().manual_seed(3)
    batch, prefix, patches = 3, 2, 9
    tokens = torch.randn(batch, prefix + patches, 4, generator=random)
    ranking = torch.stack([torch.randperm(patches, generator=random) for _ in range(batch)])
    for seed in range(5):
        part, order = some_ranked(tokens, ranking, torch.Generator().manual_seed(seed))
        count = order.shape[1]
        assert patches // 4 <= count <= patches
        for image in range(batch):
            assert torch.equal(part[image, :prefix], tokens[image, :prefix])
            shown = [next(p for p in range(patches) if torch.equal(tokens[image, prefix + p], row)) for row in part[image, prefix:]]
            assert shown == sorted(set(shown))
            assert [shown[place] for place in order[image].tolist()] == [p for p in ranking[image].tolist() if p in shown]
