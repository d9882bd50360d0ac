"""A real dual encoder on photographs: deep tokens and several locations agree with PyTorch on every engine that is installed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import shared_dir

from prtool.bundle import Bundle
from prtool.engines.registry import ENGINES, list_engines
from prtool.export.source import ExportSource, Pixels
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.verify import verify
from prtool.spec import Keep
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.models.predictor import ScorerConfig, make_scorer
from prtool.trainer.models.prompts import VisualTokens
from prtool.trainer.models.pruned import FirstOrder, PrunedEncoder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SHAPES = {
    "deep tokens from block 1": ((4,), "", 1, ()),
    "four locations ranked once, tokens from the first": ((4, 6, 8, 10), "first", 4, ()),
    "four locations rescored, given drops": ((4, 6, 8, 10), "own", 0, (4, 2, 1, 1)),
}
"""Locations; who ranks at the later ones; the block on entry to which 8 deep tokens are appended, 0 for none; drops."""


def source_of(locations: tuple[int, ...], later: str, first: int, drops: tuple[int, ...]) -> ExportSource:
    """The encoder with seeded scorers and tokens: parity does not depend on what they learned."""
    model = load_model(f"local-dir:{shared_dir('models', 'dual-s14')}")
    tower = model.tower
    torch.manual_seed(5)
    mixer = make_scorer(ScorerConfig(), tower.width, tower.patches, tower.prefix_tokens)
    small = ScorerConfig(arch="transformer")
    scorers = [mixer]
    for _ in locations[1:]:
        scorers.append(FirstOrder(tower.prefix_tokens) if later == "first" else make_scorer(small, tower.width, tower.patches, tower.prefix_tokens))
    tokens = VisualTokens(0.5 * torch.randn(tower.depth + 1 - first, 8, tower.width), first) if first else None
    spec = replace(tower.prune_spec(locations, 8 if first else 0), learnable_from_block=max(first, 1), drop_ratios=drops)
    pruned = PrunedEncoder(tower, scorers, spec, tokens).eval().requires_grad_(False)
    return ExportSource(model, pruned, "mix-mlp", False, 1000, (), ())


@pytest.fixture(scope="module", params=SHAPES)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported with photographs as its probe; parity on ONNX Runtime passed, or there would be none."""
    source = source_of(*SHAPES[request.param])
    photographs = sorted(shared_dir("data", "dtd10").rglob("*.jpg"))[::40][:8]
    pixels = torch.from_numpy(prepare_batch(photographs, source.model.preprocess))
    out: Path = tmp_path_factory.mktemp("real") / "bundle"
    write_bundle(source, out, ExportOptions(Keep.ratio(0.6), pixels=Pixels(pixels)))
    return Bundle.open(out)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_agrees_with_torch(bundle: Bundle, engine: str) -> None:
    reason = {status.name: status.reason for status in list_engines()}[engine]
    if reason:
        pytest.skip(reason)
    report = verify(bundle, engine)
    assert report.cosine > 0.99999
    assert {case.mode for case in report.cases} == {"full", "fused", "split", "text"}
    assert len({case.k for case in report.cases if case.mode == "fused"}) == 3
