"""Readers know exactly the operators that the exporter writes, over every kind of tower, scorer, text side and precision."""

from collections.abc import Callable, Iterator

import pytest
import torch
from export_sources import CONTEXT, Progressive, make_source, merging_source, progressive_source
from torch.nn import functional
from towers import OPEN_CLIP, TIMM

from prtool.export.graphs.modules import TextGraph
from prtool.export.graphs.onnx import to_onnx
from prtool.export.precision.build import at_precision, calibration_samples, joined, stages
from prtool.export.source import ExportSource, Pixels
from prtool.graphs.graph_reader import OPERATORS
from prtool.trainer.models.dual_encoder import TextTower
from prtool.trainer.models.predictor import CheckerboardScorer, make_scorer
from prtool.trainer.settings import ARCHITECTURES, ScorerConfig

PROGRESSIVE = Progressive((2, 3, 4), ("first", "own"), tokens=2, layers=3)
# tests/models.py makes its graphs by hand, with these.
HAND_MADE = {"Identity", "LpNormalization", "Tanh"}
# Text towers of transformers, which tests/trainer/test_model_architectures.py exports.
TRANSFORMERS_TEXT = {"And", "GatherElements", "IsNaN", "Max", "Reciprocal", "Relu"}
TEXTS = [{"pool_type": "argmax"}, {"pool_type": "last", "proj_bias": True}, {"pool_type": "first", "no_causal_mask": True}, {"embed_cls": True}]


def image_operators(source: ExportSource, precisions: tuple[str, ...]) -> set[str]:
    """Those of every image graph at the precisions."""
    plain, found = stages(source), set()
    coarse = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    pixels = functional.interpolate(coarse, size=source.pruned.tower.image_size)
    samples = calibration_samples(source, Pixels(pixels), (10, 5)) if "int8" in precisions else None
    for precision in precisions:
        graphs = joined(source, at_precision(source, plain, precision, samples), precision).values()
        found |= {node.op_type for graph in graphs for node in graph.graph}
        assert {node.domain for graph in graphs for node in graph.graph} == {""}
    return found


def sources() -> Iterator[ExportSource]:
    yield from (make_source(kind) for kind in (*OPEN_CLIP, *TIMM))
    for arch in ARCHITECTURES:
        scorer = make_scorer(ScorerConfig(arch=arch), 64, 16, 1)
        yield make_source("cls", scorer=scorer, location=1)
    yield make_source("cls", scorer=CheckerboardScorer(scorer, (4, 4), 0.5), location=1)
    yield progressive_source("cls", PROGRESSIVE)
    yield from (merging_source(kind) for kind in ("cls", "dinov2 registers"))


def text_operators() -> Iterator[set[str]]:
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP

    spec = make_source("cls").signatures()["text"]
    vision = CLIPVisionCfg(image_size=32, layers=1, width=32, head_width=16, patch_size=16)
    for settings in TEXTS:
        text = CLIPTextCfg(context_length=CONTEXT, width=32, heads=2, layers=1, **settings)
        host = CustomTextCLIP(32, vision, text).eval().requires_grad_(False)
        yield {node.op_type for node in to_onnx(TextGraph(TextTower(host).eval()), spec).graph}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_list_is_what_the_exporter_writes() -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF: pip install '.[int8]' in the checkout")
    torch.manual_seed(0)
    written: set[str] = set().union(*text_operators())
    for source in sources():
        written |= image_operators(source, ("fp32", "fp16", "bf16"))
    written |= image_operators(make_source("cls"), ("int8",))
    written |= image_operators(progressive_source("cls", PROGRESSIVE), ("int8",))
    written |= image_operators(merging_source("cls"), ("int8",))
    assert sorted(written - OPERATORS) == []
    assert OPERATORS - written <= HAND_MADE | TRANSFORMERS_TEXT


@pytest.mark.parametrize("make", [make_source, merging_source])
def test_one_tower_at_every_precision_but_int8(make: Callable[[str], ExportSource]) -> None:
    assert image_operators(make("cls"), ("fp32", "fp16", "bf16")) <= OPERATORS
