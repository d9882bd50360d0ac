"""EViT and A-ViT against plain loops over their published formulas, on tiny seeded towers."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from tiny_encoder import tiny_encoder
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.trainer.evaluation.baselines.avit import EPSILON, GAMMA, AVit, image_gmacs
from prtool.trainer.evaluation.baselines.base import Entered, Method
from prtool.trainer.evaluation.baselines.evit import EVit
from prtool.trainer.evaluation.baselines.merge import Merge
from prtool.trainer.models.tower import VisionTower

IMAGES = 6


def entered_by(kind: str, locations: tuple[int, ...] = (2,), images: int = IMAGES) -> Entered:
    tower = tiny_encoder(kind).tower
    pixels = torch.randn(images, 3, *tower.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return Entered.of(tower, pixels, range(images), tower.prune_spec(locations))


def attention_of_cls(tower: VisionTower, block: int, tokens: Tensor) -> list[float]:
    """One image (tokens, D): what CLS pays each token after the prefix, mean over heads, exponential by exponential."""
    queries, keys = (part[0] for part in tower.queries_keys(block, tokens[None]))
    shares = [0.0] * len(tokens)
    for head in range(len(queries)):
        powers = [math.exp(float(queries[head, 0] @ key)) for key in keys[head]]
        shares = [share + power / sum(powers) / len(queries) for share, power in zip(shares, powers, strict=True)]
    return shares[tower.prefix_tokens :]


def plain_evit(tower: VisionTower, image: Tensor, locations: tuple[int, ...], counts: tuple[int, ...]) -> Tensor:
    """One image: at each location the k - 1 most attended candidates stay, the others become one token, sum of a_i x_i."""
    tokens = image
    for block in range(tower.depth):
        if block + 1 in locations:
            k = counts[locations.index(block + 1)]
            shares = attention_of_cls(tower, block, tokens)
            candidates = list(tokens[tower.prefix_tokens :])
            if k < len(candidates):
                order = sorted(range(len(candidates)), key=lambda item, shares=shares: -shares[item])
                fused = sum(shares[item] * candidates[item] for item in order[k - 1 :])
                tokens = torch.stack([*tokens[: tower.prefix_tokens], *(candidates[item] for item in order[: k - 1]), fused])
        tokens = tower.blocks[block](tokens[None])[0]
    return functional.normalize(tower.head(tokens[None]), dim=-1)[0]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["cls", "average", "dinov2 registers"])
@pytest.mark.parametrize(("locations", "counts"), [((2,), (7,)), ((1, 3), (10, 4)), ((2, 3), (9, 9)), ((3,), (1,))])
def test_evit_equals_the_formula(kind: str, locations: tuple[int, ...], counts: tuple[int, ...]) -> None:
    entered = entered_by(kind, locations)
    found = EVit(entered.tower).encode(entered, counts)
    wanted = torch.stack([plain_evit(entered.tower, image, locations, counts) for image in entered.embedded])
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
    assert (found - entered.unpruned).abs().max() > 1e-4, "fusing changed nothing"


@torch.no_grad()
@pytest.mark.parametrize("make", [EVit, Merge.tome, AVit])
def test_with_every_patch_nothing_changes(make: Callable[[VisionTower], Method]) -> None:
    entered = entered_by("cls", (1, 3))
    method, patches = make(entered.tower), entered.spec.patches
    if isinstance(method, AVit):
        method.calibrate(entered, [(patches, patches)])
    expected = functional.normalize(entered.tower.run_post(entered.embedded, 1), dim=-1)
    torch.testing.assert_close(method.encode(entered, (patches, patches)), expected, atol=1e-5, rtol=1e-5)
    cost = entered.tower.cost()
    assert method.gmacs(cost, entered.spec, (patches, patches)) == pytest.approx(cost.full_gmacs(entered.spec), rel=0.06)


def plain_evidence(name: str, before: Tensor, after: Tensor) -> list[float]:
    """Patch by patch, then mean 0 and deviation 1."""
    mean = sum(after) / len(after)
    values = {
        "redundancy": [float(patch @ mean / patch.norm() / mean.norm()) for patch in after],
        "stillness": [-float((new - old).norm() / old.norm()) for old, new in zip(before, after, strict=True)],
        "faintness": [-math.sqrt(sum(float(channel) ** 2 for channel in patch)) for patch in after],
    }[name]
    middle = sum(values) / len(values)
    deviation = math.sqrt(sum((value - middle) ** 2 for value in values) / len(values))
    return [(value - middle) / deviation if deviation > 1e-9 else 0.0 for value in values]


def plain_halting(entered: Entered, image: Tensor, evidence: str, beta: float) -> tuple[Tensor, list[int]]:
    """One image: h = sigmoid(gamma e + beta) adds up patch by patch, and a patch goes when its sum reaches 1 - epsilon."""
    prefix, tower = entered.spec.prefix_tokens, entered.tower
    tokens, sums, lengths = image, [0.0] * (len(image) - prefix), []
    for number, block in enumerate(tower.blocks):
        lengths.append(len(tokens))
        before, tokens = tokens, block(tokens[None])[0]
        for place, e in enumerate(plain_evidence(evidence, before[prefix:], tokens[prefix:])):
            sums[place] += 1 / (1 + math.exp(-(GAMMA * e + beta)))
        if number + 1 < tower.depth:
            staying = [place for place, value in enumerate(sums) if value < 1 - EPSILON] or [sums.index(min(sums))]
            tokens = torch.stack([*tokens[:prefix], *(tokens[prefix + place] for place in staying)])
            sums = [sums[place] for place in staying]
    return functional.normalize(tower.head(tokens[None]), dim=-1)[0], lengths


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "evidence"),
    [("cls", "redundancy"), ("siglip", "redundancy"), ("dinov2 registers", "stillness"), ("cls", "stillness"), ("cls", "faintness")],
)
def test_avit_equals_the_formula(kind: str, evidence: str) -> None:
    entered = entered_by(kind)
    method = AVit(entered.tower, evidence)
    method.calibrate(entered, [(8,), (5,)])
    for counts in ((8,), (5,)):
        wanted = [plain_halting(entered, image, evidence, method.beta(counts)) for image in entered.embedded]
        torch.testing.assert_close(method.encode(entered, counts), torch.stack([embedding for embedding, _ in wanted]), atol=1e-5, rtol=1e-4)
        cost = entered.tower.cost()
        costs = [image_gmacs(cost, lengths, entered.spec, entered.tower.width) for _, lengths in wanted]
        assert method.spent(entered, counts).tolist() == pytest.approx(costs)
        assert method.gmacs(cost, entered.spec, counts) == pytest.approx(sum(costs) / len(costs))
        assert len({tuple(lengths) for _, lengths in wanted}) > 1, "every image kept as many patches"
        assert all(later <= before for _, lengths in wanted for before, later in itertools.pairwise(lengths))


@torch.no_grad()
@pytest.mark.parametrize("counts", [(12,), (8,), (6,)])
def test_avit_meets_the_budget_on_average(counts: tuple[int, ...]) -> None:
    """On 48 images of 16 patches, where one patch in one block of one image is 0.03 % of the budget."""
    entered = entered_by("cls", images=48)
    method = AVit(entered.tower)
    method.calibrate(entered, [counts])
    cost = entered.tower.cost()
    budget = cost.gmacs(entered.spec.tokens_by_block(counts))
    assert float(method.spent(entered, counts).mean()) == pytest.approx(budget, rel=0.01)


@torch.no_grad()
def test_avit_does_not_depend_on_the_batch() -> None:
    entered = entered_by("cls")
    method = AVit(entered.tower)
    method.calibrate(entered, [(6,)])
    parts = [Entered(entered.embedded[i : i + 2], entered.tokens[i : i + 2], (i, i + 1), entered.tower, entered.spec) for i in range(0, IMAGES, 2)]
    torch.testing.assert_close(torch.cat([method.encode(part, (6,)) for part in parts]), method.encode(entered, (6,)), atol=1e-6, rtol=1e-6)


def test_avit_says_what_it_lacks() -> None:
    entered = entered_by("cls")
    method = AVit(entered.tower)
    with pytest.raises(ConfigError):
        method.encode(entered, (6,))
    with pytest.raises(ConfigError, match="redundancy"):
        AVit(entered.tower, "boredom")
    with torch.no_grad(), pytest.raises(ConfigError, match="avit"):
        method.calibrate(entered_by("cls", (1,)), [(1,)])


@pytest.mark.parametrize(("make", "name"), [(EVit, "evit"), (Merge.tome, "tome")])
def test_towers_that_do_not_suit_are_refused(make: Callable[[VisionTower], Method], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}.*--method"):
        make(tiny_encoder("siglip").tower)
