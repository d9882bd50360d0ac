"""The trimmed last block: the same embedding for every kind of tower, and really less work where the head reads one token."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from export_sources import make_source
from onnx import shape_inference
from torch.utils.flop_counter import FlopCounterMode
from towers import OPEN_CLIP, TIMM

from prtool.export.graphs.last_block import num_query_tokens
from prtool.export.graphs.modules import image_graphs
from prtool.export.graphs.onnx import to_onnx
from prtool.spec import Keep

TRIMMED = {"cls", "patch32", "patch14", "not square", "layer scale, no first norm", "sin cos positions", "dinov2 registers", "mobileclip"}


@pytest.mark.parametrize("kind", [*OPEN_CLIP, *TIMM])
def test_the_embedding_is_the_same(kind: str) -> None:
    source = make_source(kind)
    tower = source.pruned.tower
    random = torch.randn(3, tower.prefix_tokens + 5, tower.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = torch.cat((random, tower.places[:, : tower.prefix_tokens + 5].expand(3, -1, -1)), dim=-1) if tower.rotary else random
        np.testing.assert_allclose(image_graphs(source.pruned)["post"](tokens), source.pruned.run_post(tokens), atol=2e-6)
    assert bool(num_query_tokens(tower)) == (kind in TRIMMED)


@pytest.mark.parametrize("kind", ["cls", "dinov2 registers", "siglip"])
def test_the_cost_is_that_of_what_runs(kind: str) -> None:
    """PyTorch counts the operations of the exportable halves."""
    source = make_source(kind)
    tower = source.pruned.tower
    k = 7
    tokens = torch.randn(1, source.spec.always_kept + k, tower.width)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        image_graphs(source.pruned)["post"](tokens)
    location = source.spec.locations[0]
    cost = source.cost()
    lengths = [source.spec.always_kept + k] * (tower.depth - location + 1)
    expected = 1e9 * cost.gmacs(lengths) - cost.embed_macs
    assert counter.get_total_flops() / 2 == pytest.approx(expected, rel=0.002)


def test_the_bound_counts_the_trimmed_block() -> None:
    source = make_source("cls")
    plain, trimmed = source.pruned.tower.cost(), source.cost()
    assert trimmed.full_gmacs(source.spec) < plain.full_gmacs(source.spec)
    assert trimmed.theoretical_speedup(source.spec, source.spec.counts(Keep.ratio(0.5))) > 1.0


def test_one_token_leaves_the_last_attention(tmp_path: Path) -> None:
    source = make_source("cls")
    ir.save(to_onnx(image_graphs(source.pruned)["post"], source.signatures()["post"]), tmp_path / "post.onnx")
    graph = shape_inference.infer_shapes(onnx.load(tmp_path / "post.onnx")).graph
    shapes = {value.name: [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim] for value in graph.value_info}
    last = [node for node in graph.node if node.op_type == "Softmax"][-1]
    assert shapes[last.output[0]][2] == 1
