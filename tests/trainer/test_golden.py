"""The greedy search against a plain loop that runs the encoder once for each candidate."""

from dataclasses import replace

import pytest
import torch
from tiny_encoder import class_embeddings, entered, tiny_encoder
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError, DataError, ModelError, ShapeError
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.tower import resolve_precision
from prtool.trainer.objectives.golden import GoldenConfig, GoldenSearch, Tail

KINDS = ["cls", "average", "siglip", "dinov2 registers", "pe core"]


pytestmark = pytest.mark.usefixtures("one_thread")


def loop_score(model: DualEncoder, tokens: Tensor, kept: list[int], location: int, config: GoldenConfig, label: int) -> float:
    """One forward of one image with only the patches `kept`, from the definitions."""
    tower, prefix = model.tower, model.tower.prefix_tokens
    classes = class_embeddings(model)
    with torch.no_grad():
        shorter = torch.stack([*tokens[:prefix], *(tokens[prefix + patch] for patch in kept)])[None]
        embedding = tower.run_post(shorter, location)[0]
        if config.score == "feature":
            return functional.cosine_similarity(embedding, tower.run_post(tokens[None], location)[0], dim=0).item()
        logits = torch.stack([model.logit_scale * functional.cosine_similarity(embedding, c, dim=0) + model.logit_bias for c in classes])
        probabilities = logits.exp() / logits.exp().sum()
        return (probabilities[label] if config.score == "label" else probabilities.max()).item()


def loop_rank(model: DualEncoder, tokens: Tensor, location: int, config: GoldenConfig, label: int) -> tuple[list[int], dict[int, float]]:
    """Greedy search over one image, written out with lists."""
    rows, columns = model.tower.grid
    b = config.group
    squares = [
        [r * columns + c for r in range(top, min(top + b, rows)) for c in range(left, min(left + b, columns))]
        for top in range(0, rows, b)
        for left in range(0, columns, b)
    ]
    present, worst_first, last = list(range(len(squares))), [], {}
    while len(present) > 1 and sum(len(squares[g]) for g in present) > config.floor:
        for candidate in present:
            kept = sorted(patch for g in present if g != candidate for patch in squares[g])
            score = loop_score(model, tokens, kept, location, config, label)
            last |= dict.fromkeys(squares[candidate], score)
        if not config.step:
            break
        dropped = sorted(present, key=lambda g: (last[squares[g][0]], g))[-config.step :]
        worst_first.append(sorted((p for g in dropped for p in squares[g]), key=lambda p: (last[p], p)))
        present = [g for g in present if g not in dropped]
    rest = sorted((p for g in present for p in squares[g]), key=lambda p: (last[p], p))
    return rest + [patch for part in reversed(worst_first) for patch in part], last


def check(model: DualEncoder, config: GoldenConfig, location: int = 2, images: int = 3) -> None:
    tokens, labels = entered(model, images, location), torch.arange(images) % 5
    ranking, scores = GoldenSearch(model, location, config, class_embeddings(model)).rank(tokens, labels)
    assert ranking.shape == scores.shape == (images, model.tower.patches)
    assert scores.dtype == torch.float32
    for image in range(images):
        expected, last = loop_rank(model, tokens[image], location, config, int(labels[image]))
        assert sorted(ranking[image].tolist()) == sorted(expected)
        torch.testing.assert_close(scores[image], torch.tensor([last[p] for p in range(model.tower.patches)]), atol=3e-6, rtol=0)
        # Place by place the same score: patches that differ by rounding alone may stand in either order.
        torch.testing.assert_close([last[p] for p in ranking[image].tolist()], [last[p] for p in expected], atol=3e-6, rtol=0)
        if not config.step:
            assert ranking[image].tolist() == sorted(range(model.tower.patches), key=lambda p: (scores[image][p].item(), p))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score", ["feature", "label", "confidence"])
@pytest.mark.parametrize("group", [1, 2])
def test_one_step_equals_the_plain_loop(kind: str, score: str, group: int) -> None:
    check(tiny_encoder(kind), GoldenConfig(score=score, group=group, precision="fp32"))


@pytest.mark.parametrize("location", [1, 4])
def test_first_and_last_block(location: int) -> None:
    check(tiny_encoder(), GoldenConfig(precision="fp32"), location, images=2)


@pytest.mark.parametrize(("kind", "group"), [("cls", 3), ("not square", 4), ("not square", 5)])
def test_groups_that_do_not_divide_the_grid(kind: str, group: int) -> None:
    check(tiny_encoder(kind), GoldenConfig(group=group, precision="fp32"), images=2)


@pytest.mark.parametrize(
    ("kind", "score", "group", "step", "floor"),
    [
        ("cls", "feature", 1, 3, 0),
        ("cls", "label", 1, 5, 6),
        ("siglip", "feature", 1, 5, 0),
        ("siglip", "confidence", 2, 1, 4),
        ("dinov2 registers", "feature", 2, 1, 0),
        ("not square", "feature", 3, 1, 5),
        ("cls", "feature", 1, 40, 0),
    ],
)
def test_greedy_search_equals_the_plain_loop(kind: str, score: str, group: int, step: int, floor: int) -> None:
    """Image by image the search takes other paths; where b does not divide the grid, sequences differ in length within a step."""
    check(tiny_encoder(kind), GoldenConfig(score, group, step, floor, precision="fp32"))


def test_small_batches_change_nothing_but_the_last_bits() -> None:
    model = tiny_encoder()
    tokens = entered(model, 3, 2)
    config = GoldenConfig(group=1, precision="fp32")
    search = GoldenSearch(model, 2, config)
    scores = search.rank(tokens)[1]
    tight = GoldenSearch(model, 2, replace(config, memory_mb=1))
    assert 1 <= (1 << 20) // tight.tail.sequence_bytes(16) < 48
    torch.testing.assert_close(tight.rank(tokens)[1], scores, atol=1e-6, rtol=0)


def test_tokens_behind_the_patches_always_stay() -> None:
    model = tiny_encoder()
    config = GoldenConfig(precision="fp32")
    learned = torch.randn(2, 3, model.tower.width, generator=torch.Generator().manual_seed(6))
    tokens = torch.cat((entered(model, 2, 2), learned), dim=1)
    ranking, scores = GoldenSearch(model, 2, config).rank(tokens)
    kept = [0, *(1 + p for p in range(16) if p not in (2, 3, 6, 7)), 17, 18, 19]
    with torch.no_grad():
        expected = functional.cosine_similarity(model.tower.run_post(tokens[:, kept], 2), model.tower.run_post(tokens, 2))
    torch.testing.assert_close(scores[:, 2], expected, atol=1e-6, rtol=0)
    assert ranking.sort(dim=1).values.tolist() == [list(range(16))] * 2


def test_the_patch_that_matters_ranks_first() -> None:
    """With blocks that do nothing and average pooling, an outlier among equal patches is what the embedding hangs on."""
    model = tiny_encoder("average")
    for block in model.tower.blocks:
        for parameter in block.parameters():
            parameter.zero_()
    generator = torch.Generator().manual_seed(7)
    common, outlier = torch.randn(2, model.tower.width, generator=generator)
    tokens = common.repeat(1, 17, 1)
    tokens[0, 1 + 11] = outlier
    ranking, scores = GoldenSearch(model, 2, GoldenConfig(group=1, precision="fp32")).rank(tokens)
    assert ranking[0, 0] == 11
    assert scores[0, 11] < scores[0].sort().values[1]


def test_ties_go_to_the_lower_index() -> None:
    """Equal patches leave equal sequences behind; in greedy steps the higher index is dropped first."""
    model = tiny_encoder("average")
    tokens = torch.randn(model.tower.width, generator=torch.Generator().manual_seed(8)).repeat(2, 17, 1)
    for step in (0, 3):
        ranking, _ = GoldenSearch(model, 2, GoldenConfig(group=1, step=step, precision="fp32")).rank(tokens)
        assert ranking.tolist() == [list(range(16))] * 2


@pytest.mark.parametrize("kind", ["cls", "siglip", "eva"])
def test_bf16_runs_the_same_blocks_less_exactly(kind: str) -> None:
    model = tiny_encoder(kind)
    before = {name: tensor.clone() for name, tensor in model.tower.state_dict().items()}
    tokens = entered(model, 2, 2)
    exact, rough = Tail(model.tower, 2, "fp32").embed(tokens), Tail(model.tower, 2, "bf16").embed(tokens)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.02
    ranking, _ = GoldenSearch(model, 2, GoldenConfig(precision="bf16")).rank(tokens)
    assert ranking.sort(dim=1).values.tolist() == [list(range(16))] * 2
    for name, tensor in model.tower.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_bf16_is_the_arithmetic_of_autocast() -> None:
    model = tiny_encoder()
    tokens = entered(model, 2, 2)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            through = model.tower.run_blocks(tokens, 2, model.tower.depth)
        expected = functional.normalize(model.tower.head(through.float()), dim=-1)
    torch.testing.assert_close(Tail(model.tower, 2, "bf16").embed(tokens), expected, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("tiles", "found"), [(True, "bf16"), (False, "fp32")])
def test_auto_is_bf16_where_a_cpu_has_amx(tiles: bool, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: tiles)
    assert resolve_precision("auto", torch.device("cpu")) == found
    assert [resolve_precision(name, torch.device("cpu")) for name in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"score": "attention"}, "feature, label, confidence"),
        ({"precision": "fp16"}, "fp32, bf16, auto"),
        ({"group": 0}, "group = 0"),
        ({"step": -1}, "step = -1"),
        ({"floor": -1}, "floor = -1"),
        ({"memory_mb": 0}, "memory_mb = 0"),
        ({"floor": 9}, "step"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GoldenConfig(**settings)


@pytest.mark.parametrize(
    ("location", "config", "says"),
    [
        (5, GoldenConfig(), "location = 5"),
        (0, GoldenConfig(), "location = 0"),
        (2, GoldenConfig(group=4), "1 to 3"),
        (2, GoldenConfig(step=1, floor=16), "16"),
        (2, GoldenConfig(score="label"), "label"),
    ],
)
def test_settings_that_do_not_fit_the_encoder_are_refused(location: int, config: GoldenConfig, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GoldenSearch(tiny_encoder(), location, config)


def test_labels_and_tokens_are_checked() -> None:
    model = tiny_encoder()
    tokens, classes = entered(model, 2, 2), class_embeddings(model)
    search = GoldenSearch(model, 2, GoldenConfig(score="label", precision="fp32"), classes)
    with pytest.raises(ConfigError, match="labels"):
        search.rank(tokens)
    with pytest.raises(DataError, match="5"):
        search.rank(tokens, torch.tensor([0, 5]))
    with pytest.raises(ShapeError, match=r"\(batch, 17, 64\)"):
        search.rank(tokens[:, :9], torch.tensor([0, 1]))
    with pytest.raises(ModelError):
        search.rank(tokens * torch.inf, torch.tensor([0, 1]))


def test_memory_too_small_for_one_sequence_is_refused() -> None:
    model = tiny_encoder()
    tokens = torch.zeros(1, 4000, model.tower.width)
    with pytest.raises(ConfigError, match="4000"):
        GoldenSearch(model, 2, GoldenConfig(memory_mb=1, precision="fp32")).rank(tokens)
