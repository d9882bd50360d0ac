"""Attention as one operator of ONNX Runtime: the same embeddings as PyTorch's, in every graph and for every kind of tower."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_sources import make_source

from prtool.errors import ModelError
from prtool.export import compose
from prtool.export.fused_attention import fuse_attention
from prtool.export.graphs import PostGraph, PreGraph, TextGraph
from prtool.export.onnx import check_axes, save, to_onnx
from prtool.export.signature import signatures
from prtool.export.source import ExportSource
from prtool.spec import Keep


@pytest.fixture(scope="module", params=["cls", "siglip", "dinov2 registers"])
def graphs(request: pytest.FixtureRequest) -> tuple[ExportSource, dict[str, ir.Model]]:
    source = make_source(request.param)
    specs = signatures(source)
    stages = [to_onnx(PreGraph(source.pruned), specs["pre"]), to_onnx(PostGraph(source.pruned), specs["post"])]
    joined = {"fused": compose.fused(stages, source.spec, specs["fused"]), "full": compose.full(stages, specs["full"])}
    return source, {"pre": stages[0], "post": stages[1], **joined}


def count(model: ir.Model, operator: str) -> int:
    return sum(node.op_type == operator for node in model.graph)


def run(model: ir.Model, path: Path, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    save(model, path)
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("role", ["pre", "post", "fused", "full"])
def test_the_attention_of_every_block_is_one_operator(graphs: tuple[ExportSource, dict[str, ir.Model]], role: str) -> None:
    source, models = graphs
    before = count(models[role], "Softmax")
    made = fuse_attention(models[role])
    # SigLIP pools by one more attention, of one learned query, which stays as it is.
    pooling = int(source.model.name.endswith("siglip") and role != "pre")
    assert before > pooling
    assert (count(made, "MultiHeadAttention"), count(made, "Softmax")) == (before - pooling, pooling)
    assert (count(models[role], "MultiHeadAttention"), count(models[role], "Softmax")) == (0, before)
    check_axes(made, signatures(source)[role])


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (3, 5), (2, 16)])
def test_embeddings_equal_torch(graphs: tuple[ExportSource, dict[str, ir.Model]], tmp_path: Path, batch: int, k: int) -> None:
    source, models = graphs
    pixels = torch.randn(batch, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(k))
    (embedding,) = run(fuse_attention(models["fused"]), tmp_path / "fused.onnx", {"pixels": pixels.numpy(), "k": np.array([k])})
    np.testing.assert_allclose(embedding, source.pruned(pixels, Keep.count(k)).numpy(), atol=2e-6)
    tokens, scores = run(fuse_attention(models["pre"]), tmp_path / "pre.onnx", {"pixels": pixels.numpy()})
    plain = run(models["pre"], tmp_path / "plain.onnx", {"pixels": pixels.numpy()})
    np.testing.assert_allclose(tokens, plain[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, plain[1], rtol=1e-4, atol=1e-5)


def test_a_graph_without_such_an_attention_is_refused() -> None:
    source = make_source("cls")
    # The text tower masks its attention.
    masked = to_onnx(TextGraph(source.model.text), signatures(source)["text"])
    assert count(masked, "Softmax") > 0
    with pytest.raises(ModelError, match="has no attention of the form that is fused"):
        fuse_attention(masked)
