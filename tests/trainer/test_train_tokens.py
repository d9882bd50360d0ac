"""Tuning of tokens: what learns, what stays, what resumes, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_model import write_images, write_model
from safetensors import safe_open
from torch.nn import functional

from prtool.errors import ConfigError, DataError
from prtool.progress import SilentProgress
from prtool.spec import Keep
from prtool.trainer.data.images import NO_LABEL
from prtool.trainer.data.load import load_split, pixel_batches
from prtool.trainer.models.dual_encoder import DualEncoder, load_model
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder
from prtool.trainer.store import tensors_digest
from prtool.trainer.tokens.data import Entry, embed_prepared, prepare_images
from prtool.trainer.tokens.train import TokensConfig, TokensTask, spec_with_tokens, train_tokens

SMALL = TokensConfig(visual=2, shots=3, epochs=3, batch=4, lr=10.0, keep=0.5)
TEXT = replace(SMALL, visual=0, text=4)
BOTH = replace(SMALL, text=4, first=1, layers=2, lr=0.3)


class FirstChannel(torch.nn.Module):
    """A scorer that depends on the tokens: the first channel of each patch."""

    def forward(self, tokens):
        return tokens[:, 1:, 0]


class Stop(SilentProgress):
    """Raises in the given epoch, as Ctrl-C would."""

    def __init__(self, after):
        self.left = after
        self.counting = False

    def start(self, what, _total):
        self.counting = "epochs" in what

    def advance(self, count=1):
        self.left -= count * self.counting
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> DualEncoder:
    model = load_model(write_model(tmp_path_factory.mktemp("model"), layers=4))
    with torch.no_grad():
        for name, parameter in model.tower.named_parameters():
            # At the small values that towers are made with, a block does next to nothing, and so does a token.
            if parameter.dim() == 2 and "resblocks" in name:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"), {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def task(model, folder, tmp_path_factory) -> TokensTask:
    cache = tmp_path_factory.mktemp("cache")
    return TokensTask(model, pruned(model), load_split(folder, "train"), load_split(folder, "val"), ("a photo of a {}.",), cache)


def pruned(model, locations=(2, 3), visual=None, spec=None):
    scorers = [FirstChannel(), FirstOrder(1)][: len(locations)]
    return PrunedEncoder(model.tower, scorers, spec or model.tower.prune_spec(locations), visual).eval()


def pixels_of(model, images):
    return torch.cat([pixels for _, pixels in pixel_batches(images, model.preprocess, range(len(images)), 4)])


def same(first, second):
    for name in ("visual", "context"):
        parts = getattr(first, name), getattr(second, name)
        if (parts[0] is None) != (parts[1] is None) or (parts[0] is not None and not torch.equal(parts[0].values, parts[1].values)):
            return False
    return (first.history, first.best_epoch) == (second.history, second.best_epoch)


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_prepared_inputs_give_the_pruned_encoders_embeddings(task, model, first):
    """First block 0 has no visual token; 3 is the first location, 1 and 2 lie before it."""
    spec = model.tower.prune_spec((3, 4))
    visual = None
    if first:
        visual = VisualTokens(torch.randn(2, 2, model.tower.width, generator=torch.Generator().manual_seed(0)), first)
        spec = replace(spec, learnable_tokens=2, learnable_from_block=first)
    encoder, plain = pruned(model, (3, 4), visual, spec), pruned(model, (3, 4))
    entry = Entry(first, spec.counts(Keep.ratio(0.5)), task.cache)
    found = prepare_images(model, plain, task.val, entry)
    with torch.no_grad():
        pixels = pixels_of(model, task.val)
        expected = encoder(pixels, Keep.ratio(0.5))
        unpruned = functional.normalize(model.tower(pixels), dim=-1)
    # float16 in the cache
    torch.testing.assert_close(embed_prepared(encoder, found.inputs, entry).detach(), expected, atol=3e-3, rtol=0)
    torch.testing.assert_close(found.targets, unpruned, atol=3e-3, rtol=0)
    assert found.labels.tolist() == list(task.val.labels)


@pytest.mark.parametrize("config", [SMALL, TEXT, BOTH])
def test_frozen_weights_stay_and_have_no_gradient(task, model, config):
    before = tensors_digest(model.tower.state_dict()), tensors_digest(model.text.state_dict()), tensors_digest(task.plain.state_dict())
    train_tokens(task, config)
    assert before == (tensors_digest(model.tower.state_dict()), tensors_digest(model.text.state_dict()), tensors_digest(task.plain.state_dict()))
    assert all(parameter.grad is None for part in (model.tower, model.text, task.plain) for parameter in part.parameters())


@pytest.mark.parametrize(
    "config",
    [
        replace(SMALL, epochs=8, label=0.0),
        replace(SMALL, epochs=8, first=1, layers=1, label=0.0, lr=0.3),
        replace(TEXT, epochs=8),
        replace(BOTH, epochs=8),
    ],
)
def test_the_loss_falls(task, config):
    losses = [epoch.loss for epoch in train_tokens(task, config).history[1:]]
    assert losses[-1] < 0.97 * losses[0]


def test_the_loss_is_the_formula(task, model):
    """One epoch of one step: the loss of the first values, written out."""
    config = replace(SMALL, first=1, layers=1, epochs=1, batch=100, shots=0, lr=0.0, distill=2.0, label=3.0)
    loss = train_tokens(task, config).history[1].loss
    tokens = torch.cat([model.tower.embed(pixels_of(model, task.train))])
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, model.tower.width, generator=generator)
    values = tokens[:, 1:].mean(dim=(0, 1)) + 0.02 * tokens[:, 1:].std() * noise
    encoder = pruned(model, visual=VisualTokens(values[None], 1), spec=spec_with_tokens(task.plain.spec, config))
    with torch.no_grad():
        found = encoder(pixels_of(model, task.train), Keep.ratio(0.5))
        wanted = functional.normalize(model.tower(pixels_of(model, task.train)), dim=-1)
        logits = model.logit_scale * found @ model.class_embeddings(task.train.classnames, task.templates).T
    log_p = logits - logits.logsumexp(dim=1, keepdim=True)
    cross_entropy = -sum(float(log_p[i, label]) for i, label in enumerate(task.train.labels)) / len(task.train)
    expected = 2 * (1 - float((found * wanted).sum(dim=1).mean())) + 3 * cross_entropy
    assert loss == pytest.approx(expected, rel=2e-3)


def test_the_outcome_is_that_of_the_best_epoch(task, model):
    config = replace(SMALL, epochs=4, label=0.0)
    result = train_tokens(task, config)
    cosines = [epoch.cosine for epoch in result.history]
    assert len(cosines) == 5
    assert result.best_epoch == cosines.index(max(cosines)) > 0
    assert result.images == 9
    encoder = pruned(model, visual=result.visual, spec=spec_with_tokens(task.plain.spec, config))
    pixels = pixels_of(model, task.val)
    with torch.no_grad():
        cosine = functional.cosine_similarity(encoder(pixels, Keep.ratio(0.5)), model.tower(pixels)).mean()
    assert float(cosine) == pytest.approx(max(cosines), abs=1e-3)
    assert not any(parameter.requires_grad for parameter in result.visual.parameters())


def test_accuracy_decides_before_the_cosine(task):
    result = train_tokens(task, replace(SMALL, epochs=6, label=5.0, distill=0.0))
    ranks = [(epoch.accuracy, epoch.cosine) for epoch in result.history]
    assert result.best_epoch == ranks.index(max(ranks))


def test_tokens_that_only_harm_are_not_kept(task):
    """Nothing drops, so the plain encoder is the unpruned one, and every token takes it away from there."""
    result = train_tokens(task, replace(SMALL, keep=1.0, label=0.0))
    assert (result.visual, result.context, result.best_epoch) == (None, None, 0)
    assert result.history[0].cosine == pytest.approx(1.0, abs=1e-5)


def test_distillation_needs_no_labels(task):
    def bare(images):
        return replace(images, labels=(NO_LABEL,) * len(images), classnames=())

    config = replace(SMALL, shots=0, label=0.0)
    result = train_tokens(replace(task, train=bare(task.train), val=bare(task.val)), config)
    assert [epoch.accuracy for epoch in result.history] == [None] * 4
    labelled = train_tokens(task, config)
    assert torch.equal(result.visual.values, labelled.visual.values)
    assert labelled.history[0].accuracy is not None


@pytest.mark.parametrize("config", [SMALL, TEXT, BOTH])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_stopped_anywhere_it_ends_the_same(task, tmp_path, config, after):
    whole = train_tokens(task, config)
    with pytest.raises(KeyboardInterrupt):
        train_tokens(task, config, tmp_path / "state", Stop(after))
    assert same(train_tokens(task, config, tmp_path / "state"), whole)


def test_a_finished_state_is_not_tuned_again(task, tmp_path, monkeypatch):
    whole = train_tokens(task, SMALL, tmp_path / "state")
    monkeypatch.setattr("prtool.trainer.tokens.train.train_epoch", None)
    assert same(train_tokens(task, SMALL, tmp_path / "state"), whole)
    with safe_open(tmp_path / "state", framework="pt") as stored:
        assert len(json.loads(stored.metadata()["prtool"])["facts"]["history"]) == 4


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped bit", "renamed", "other settings", "other images"])
def test_a_state_that_does_not_belong_is_replaced(task, tmp_path, damage):
    state = tmp_path / "state"
    other, config = task, SMALL
    if damage == "other settings":
        config = replace(SMALL, weight_decay=0.1)
    if damage == "other images":
        other = replace(task, val=task.val.subset(range(4)))
    train_tokens(other, config, state)
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-9])
    if damage == "empty":
        state.write_bytes(b"")
    if damage == "flipped bit":
        state.write_bytes(state.read_bytes()[:-1] + bytes([state.read_bytes()[-1] ^ 1]))
    if damage == "renamed":
        state.write_bytes(state.read_bytes().replace(b"best_epoch", b"best_epoce"))
    assert same(train_tokens(task, SMALL, state), train_tokens(task, SMALL))


def test_another_seed_is_another_tuning(task):
    assert same(train_tokens(task, SMALL), train_tokens(task, SMALL))
    assert not same(train_tokens(task, SMALL), train_tokens(task, replace(SMALL, seed=1)))


def test_learning_rate_is_torchs_cosine():
    config = TokensConfig(lr=0.3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for step in range(20):
        assert config.lr_at(step / 20) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        (replace(SMALL, first=3), ConfigError, "1 to 2"),
        (replace(SMALL, layers=4), ConfigError, "4 layers"),
        (replace(SMALL, shots=5), DataError, "4"),
        (replace(TEXT, text=2), ConfigError, "4"),
        (replace(TEXT, text=5), ConfigError, "8"),
        (replace(SMALL, lr=1e30), ConfigError, r"nan.*tokens.lr"),
    ],
)
def test_what_does_not_suit_is_refused(task, config, error, message):
    with pytest.raises(error, match=message):
        train_tokens(task, replace(config, distill=1e9) if config.lr > 1e9 else config)


def test_a_class_without_images_and_missing_labels_are_refused(task):
    empty = task.train.subset([i for i, label in enumerate(task.train.labels) if label != 1])
    with pytest.raises(DataError):
        train_tokens(replace(task, train=empty), SMALL)
    bare = replace(task.val, labels=(NO_LABEL,) * len(task.val))
    with pytest.raises(DataError, match="labels"):
        train_tokens(replace(task, val=bare), SMALL)
    with pytest.raises(DataError, match=r"tokens\.shots.*labels"):
        train_tokens(replace(task, train=replace(task.train, labels=(NO_LABEL,) * len(task.train))), replace(SMALL, label=0.0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, -1) for name in ("visual", "text", "layers", "first", "shots", "seed", "distill", "weight_decay")),
        *[("visual", 0), ("epochs", 0), ("batch", 0), ("keep", 0.0), ("keep", 1.5), ("label", float("nan")), ("lr", float("inf")), ("momentum", 1.0)],
    ],
)
def test_config_refuses(name, value):
    with pytest.raises(ConfigError, match=name):
        TokensConfig(**{name: value})


def test_config_refuses_what_teaches_nothing():
    with pytest.raises(ConfigError):
        TokensConfig(distill=0.0, label=0.0)
    with pytest.raises(ConfigError, match=r"tokens\.label"):
        TokensConfig(text=4, label=0.0)


class Raised(FirstChannel):
    """The first channel, raised on one half of the patches by a buffer that no state keeps, as the spread over the grid is."""

    def __init__(self, by):
        super().__init__()
        self.register_buffer("board", torch.linspace(-1, 1, 16).sign() * by, persistent=False)

    def forward(self, tokens):
        return super().forward(tokens) + self.board


def test_a_state_belongs_to_one_spread(task, model, tmp_path):
    config, state = replace(SMALL, first=1), tmp_path / "state"
    plain, raised = (replace(task, plain=PrunedEncoder(model.tower, [Raised(by)], model.tower.prune_spec((2,))).eval()) for by in (0.0, 100.0))
    train_tokens(plain, config, state)
    assert same(train_tokens(raised, config, state), train_tokens(raised, config))
    assert not same(train_tokens(raised, config), train_tokens(plain, config))
