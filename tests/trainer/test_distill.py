"""Learning from one's own choice: the loss against plain code, the way its gradient points, and what it finds."""

import pytest
import torch
from tiny_encoder import entered, tiny_encoder
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.trainer.features import Features
from prtool.trainer.loop import Examples, FitConfig, train_scorer
from prtool.trainer.models.predictor import PatchScorer, ScorerConfig, make_scorer
from prtool.trainer.objectives.distill import DistillConfig, DistillObjective, some_patches

LOCATION = 2
SMALL = ScorerConfig(channels=8, token_hidden=4, channel_hidden=16, heads=2)


def images_of(model, count):
    tokens = entered(model, count, LOCATION)
    with torch.no_grad():
        unpruned = functional.normalize(model.tower.run_post(tokens, LOCATION), dim=-1)
    return Examples(Features.of(tokens), unpruned)


class Fixed(PatchScorer):
    """Scores that are parameters: whatever gradient reaches the scores can be read."""

    def __init__(self, tower, scores):
        super().__init__(SMALL, tower.width, tower.patches, tower.prefix_tokens)
        self.values = torch.nn.Parameter(scores)

    def forward(self, tokens):
        return self.values.expand(len(tokens), -1)

    def score(self, reduced):  # noqa: ARG002
        raise AssertionError

    def score_macs(self):
        return 0


@pytest.mark.parametrize("kind", ["cls", "siglip", "dinov2 registers"])
def test_masked_blocks_weigh_keys(kind):
    """Plain attention of one block, with every key's exponent multiplied by its weight; weight 0 is a patch that is not there."""
    model = tiny_encoder(kind)
    tower, tokens = model.tower, entered(model, 2, LOCATION)
    none = torch.zeros(tokens.shape[:2])
    with torch.no_grad():
        assert torch.allclose(tower.block(1, tokens, none), tower.run_blocks(tokens, 2, 2), atol=1e-4)
        gone = none.clone()
        gone[:, -3:] = -torch.inf
        without = tower.run_blocks(tokens[:, :-3], 2, 2)
        assert torch.allclose(tower.block(1, tokens, gone)[:, :-3], without, atol=1e-4)


@pytest.mark.parametrize("kind", ["cls", "siglip"])
def test_without_visible_runner_ups_the_loss_is_that_of_the_shorter_sequence(kind):
    """With a floor next to nothing, forward is the pruned sequence: one minus the cosine to the whole one, in plain code."""
    model = tiny_encoder(kind)
    tower, prefix = model.tower, model.tower.prefix_tokens
    images = images_of(model, 3)
    scores = torch.linspace(3, -3, tower.patches)[None]
    config = DistillConfig(keep_low=0.5, keep_high=0.5, noise=0.0, floor=1e-9)
    objective = DistillObjective(tower, LOCATION, images, images, config, 0.0)
    found = objective.loss(Fixed(tower, scores), torch.arange(3), torch.Generator().manual_seed(0))
    kept = round(0.5 * tower.patches)
    tokens = images.features.batch([0, 1, 2])[:, : prefix + kept]
    with torch.no_grad():
        short = functional.normalize(tower.run_post(tokens, LOCATION), dim=-1)
    assert float(found.detach()) == pytest.approx(float(1 - (short * images.targets).sum(1).mean()), abs=1e-5)
    assert objective.judge(Fixed(tower, scores)) == pytest.approx(float((short * images.targets).sum(1).mean()), abs=1e-5)


def test_the_gradient_is_that_of_the_gates():
    """Finite differences of the loss in each gate, times the slope of the soft step: what must reach the score."""
    model = tiny_encoder("cls")
    tower = model.tower
    images = images_of(model, 1)
    scores = torch.randn(1, tower.patches, generator=torch.Generator().manual_seed(1))
    config = DistillConfig(keep_low=0.5, keep_high=0.5, noise=0.0, floor=0.5, runner_ups=1.0, temperature=0.7)
    scorer = Fixed(tower, scores)
    objective = DistillObjective(tower, LOCATION, images, images, config, 0.0)
    objective.loss(scorer, torch.tensor([0]), torch.Generator()).backward()
    standard = (scores - scores.mean()) / scores.std(correction=0)
    order = standard[0].argsort(descending=True)
    k, tokens = round(0.5 * tower.patches), images.features.batch([0])
    threshold = (standard[0, order[k - 1]] + standard[0, order[k]]) / 2

    def loss(gates):
        mask = torch.zeros(1, tokens.shape[1])
        mask[0, 1:] = gates.log()
        x = tokens
        for block in range(LOCATION - 1, tower.depth):
            x = tower.block(block, x, mask)
        return 1 - float((functional.normalize(tower.head(x), dim=-1) * images.targets).sum())

    gates = torch.full((tower.patches,), 0.5).index_fill(0, order[:k], 1.0)
    wanted = torch.zeros(tower.patches)
    with torch.no_grad():
        for patch in range(tower.patches):
            step = torch.zeros(tower.patches).index_fill(0, torch.tensor([patch]), 1e-2)
            slope = (loss(gates + step) - loss(gates - step)) / 2e-2
            soft = torch.sigmoid((standard[0, patch] - threshold) / 0.7)
            wanted[patch] = slope * 0.5 * soft * (1 - soft) / 0.7
    # The scores are standardised first, so only the part of a gradient that no shift or scale explains comes back.
    centred = standard[0]
    wanted = (wanted - wanted.mean() - centred * (wanted * centred).mean()) / scores.std(correction=0)
    assert torch.allclose(scorer.values.grad[0], wanted, atol=0.02 * float(wanted.abs().max()))


@pytest.mark.gpu
@pytest.mark.parametrize("keep", [0.25, 0.5, 0.7])
def test_gradients_on_a_gpu_are_those_of_the_cpu(keep):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    config = DistillConfig(keep_low=keep, keep_high=keep)
    gradients = []
    for device in ("cpu", "cuda"):
        model = tiny_encoder("cls")
        images = images_of(model, 3)
        model.tower.to(device)
        fixed = Fixed(model.tower, torch.linspace(3, -3, model.tower.patches)[None]).to(device)
        objective = DistillObjective(model.tower, LOCATION, images, images, config, 0.0)
        objective.loss(fixed, torch.arange(3), torch.Generator().manual_seed(0)).backward()
        gradients.append(fixed.values.grad.cpu())
    assert torch.allclose(*gradients, atol=1e-5)


def test_it_finds_patches_that_matter():
    """From random weights the cosine of what is chosen rises above that of any fixed half."""
    model = tiny_encoder("cls")
    images = images_of(model, 24)
    torch.manual_seed(0)
    scorer = make_scorer(SMALL, model.tower.width, model.tower.patches, 1)
    objective = DistillObjective(model.tower, LOCATION, images, images, DistillConfig(noise=0.1), 0.0)
    before = objective.judge(scorer)
    result = train_scorer(scorer, objective, FitConfig(epochs=12, batch=8, lr=1e-2, final_lr=1e-3))
    assert objective.judge(result.scorer) == pytest.approx(result.history[result.best_epoch - 1].score)
    assert 1 - result.history[result.best_epoch - 1].score < 0.9 * (1 - before)


def test_a_stopped_training_ends_with_the_same_weights(tmp_path):
    model = tiny_encoder("cls")
    images = images_of(model, 6)

    def run(state, epochs):
        torch.manual_seed(0)
        scorer = make_scorer(SMALL, model.tower.width, model.tower.patches, 1)
        objective = DistillObjective(model.tower, LOCATION, images, images, DistillConfig(), 1.0)
        return train_scorer(scorer, objective, DistillConfig(steps=2 * epochs, batch=4).schedule(FitConfig(), 6), state).scorer.state_dict()

    whole, again = run(tmp_path / "a", 3), run(tmp_path / "a", 3)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert any(not torch.equal(whole[name], other) for name, other in run(None, 1).items())


def test_a_random_part_of_the_patches():
    tokens = torch.arange(2 * 9 * 3.0).reshape(2, 9, 3)
    part = some_patches(tokens, 1, torch.Generator().manual_seed(0))
    assert torch.equal(part[:, 0], tokens[:, 0])
    assert 5 <= part.shape[1] <= 9
    for image in range(2):
        rows = [row.tolist() for row in part[image, 1:]]
        assert all(row in tokens[image, 1:].tolist() for row in rows)
        assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [({"steps": 0}, "steps"), ({"keep_low": 0.7}, "keep_low"), ({"floor": 0.0}, "floor"), ({"lr": -1.0}, "lr")],
)
def test_bad_settings_are_refused(change, says):
    with pytest.raises(ConfigError, match=says):
        DistillConfig(**change)
