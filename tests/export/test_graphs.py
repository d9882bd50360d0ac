"""Exported graphs against PyTorch, for each kind of pooling, run by ONNX Runtime."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_sources import LinearScorer, make_source
from torch import nn
from torch.nn import functional
from towers import OPEN_CLIP, TIMM, open_clip_visual, timm_visual

from prtool.errors import ConfigError, ModelError
from prtool.export.graphs import compose
from prtool.export.graphs.modules import image_graphs, plain_copy
from prtool.export.graphs.onnx import to_onnx
from prtool.export.source import ExportSource
from prtool.manifest import GraphSpec, TensorSpec
from prtool.spec import Keep, PruneSpec
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.predictor import ScorerConfig, make_scorer
from prtool.trainer.settings import ARCHITECTURES

KINDS = ["cls", "siglip", "dinov2 registers"]


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportSource, Path]:
    """A source, and the folder of its four image graphs."""
    return export(make_source(request.param), tmp_path_factory.mktemp("graphs"))


def export(source: ExportSource, folder: Path) -> tuple[ExportSource, Path]:
    specs = source.signatures()
    stages = [to_onnx(image_graphs(source.pruned)["pre"], specs["pre"]), to_onnx(image_graphs(source.pruned)["post"], specs["post"])]
    made = [*stages, compose.fused(stages, source.spec, specs["fused"]), compose.full(stages, specs["full"])]
    for role, model in zip(("pre", "post", "fused", "full"), made, strict=True):
        ir.save(model, folder / f"{role}.onnx")
    return source, folder


def run(path: Path, **inputs: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def pixels_for(source: ExportSource, batch: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(batch, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "k"), [(1, 1), (3, 5), (2, 16)])
def test_fused_and_split_equal_torch(exported: tuple[ExportSource, Path], batch: int, k: int) -> None:
    source, folder = exported
    pixels = pixels_for(source, batch)
    expected = source.pruned(pixels, Keep.count(k)).numpy()
    (fused,) = run(folder / "fused.onnx", pixels=pixels.numpy(), k=np.array([k]))
    tokens, scores = run(folder / "pre.onnx", pixels=pixels.numpy())
    prefix = source.spec.prefix_tokens
    best = [sorted(range(scores.shape[1]), key=lambda i, row=row: (-row[i], i))[:k] for row in scores]
    kept = np.stack([np.concatenate([row[:prefix], row[[prefix + i for i in order]]]) for row, order in zip(tokens, best, strict=True)])
    (split,) = run(folder / "post.onnx", tokens=kept)
    np.testing.assert_allclose(fused, expected, atol=2e-6)
    np.testing.assert_allclose(split, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1.0, atol=1e-6)


def test_full_is_the_unpruned_model(exported: tuple[ExportSource, Path]) -> None:
    source, folder = exported
    pixels = pixels_for(source, 3)
    expected = functional.normalize(source.pruned.tower.host(pixels), dim=-1).numpy()
    (full,) = run(folder / "full.onnx", pixels=pixels.numpy())
    np.testing.assert_allclose(full, expected, atol=2e-6)
    graph = onnx.load(folder / "full.onnx").graph
    assert not {"TopK", "GatherND"} & {node.op_type for node in graph.node}
    assert not [weight.name for weight in graph.initializer if "scorer" in weight.name]


def test_axes_and_operators(exported: tuple[ExportSource, Path]) -> None:
    source, folder = exported
    for role, spec in source.signatures().items():
        if role == "text":
            continue
        model = onnx.load(folder / spec.file)
        onnx.checker.check_model(model, full_check=True)
        for values, declared in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
            assert [value.name for value in values] == [tensor.name for tensor in declared]
            found = [tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim) for value in values]
            assert found == [tensor.shape for tensor in declared]
        assert {node.domain for node in model.graph.node} == {""}
        assert [item.domain for item in model.opset_import] == [""]


def test_a_block_has_no_shape_arithmetic(exported: tuple[ExportSource, Path]) -> None:
    """Shapes are asked for once a graph, biases are inside Gemm, and queries, keys and values need no cutting: where attention is ours."""
    source, folder = exported
    operators = [node.op_type for node in onnx.load(folder / "full.onnx").graph.node]
    depth = source.spec.depth
    assert operators.count("Gemm") >= 6 * depth
    assert operators.count("MatMul") <= 2 * depth + 4
    assert operators.count("Shape") <= 4
    assert operators.count("Split") + operators.count("Squeeze") + operators.count("Unsqueeze") <= 4


def test_files_say_nothing_about_the_machine(exported: tuple[ExportSource, Path]) -> None:
    _, folder = exported
    for path in folder.glob("*.onnx"):
        model = onnx.load(path)
        assert not model.metadata_props and not model.doc_string
        assert not [node.name for node in model.graph.node if node.metadata_props or node.doc_string]
        assert b".py" not in path.read_bytes()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_scorer(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = make_source("cls", scorer=make_scorer(ScorerConfig(arch=arch), 64, 16, 1), location=1)
    ir.save(to_onnx(image_graphs(source.pruned)["pre"], source.signatures()["pre"]), tmp_path / "pre.onnx")
    pixels = pixels_for(source, 3)
    tokens, scores = run(tmp_path / "pre.onnx", pixels=pixels.numpy())
    expected = source.pruned.run_pre(pixels)
    np.testing.assert_allclose(tokens, expected[0].numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(scores, expected[1].numpy(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [*OPEN_CLIP, *TIMM])
def test_plain_copy_is_the_same_model_and_leaves_the_host_alone(kind: str) -> None:
    visual = open_clip_visual(kind, quick_gelu=True) if kind in OPEN_CLIP else timm_visual(kind)
    tower = tower_of(visual)
    before = [type(module) for module in visual.modules()]
    copied = plain_copy(tower)
    pixels = torch.randn(2, 3, *tower.image_size)
    torch.testing.assert_close(copied(pixels), tower(pixels), atol=2e-6, rtol=1e-5)
    assert [type(module) for module in visual.modules()] == before
    assert not [module for module in copied.modules() if type(module) in (nn.MultiheadAttention, nn.Linear)] or kind in ("eva", "attentional")


def test_norms_of_queries_and_keys() -> None:
    """SigLIP-like trunks may normalise queries and keys by head; the scale then comes after the norm."""
    from timm.layers.attention import Attention

    torch.manual_seed(0)
    attention = Attention(32, num_heads=4, qkv_bias=True, qk_norm=True, norm_layer=nn.LayerNorm).eval()
    holder = nn.Sequential(attention)
    tokens = torch.randn(2, 5, 32)
    torch.testing.assert_close(plain_copy(holder)(tokens), attention(tokens))


@pytest.mark.parametrize("mask_kind", ["shared", "by image and head"])
def test_masks_are_added(mask_kind: str) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    copied = plain_copy(nn.Sequential(attention))[0]
    tokens = torch.randn(3, 4, 16)
    mask = torch.randn(4, 4) if mask_kind == "shared" else torch.randn(6, 4, 4)
    expected, _ = attention(tokens, tokens, tokens, need_weights=False, attn_mask=mask)
    found, _ = copied(tokens, tokens, tokens, need_weights=False, attn_mask=mask)
    torch.testing.assert_close(found, expected)


def test_attention_between_two_sequences() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    copied = plain_copy(nn.Sequential(attention))[0]
    queries, tokens = torch.randn(3, 2, 16), torch.randn(3, 7, 16)
    torch.testing.assert_close(copied(queries, tokens, tokens)[0], attention(queries, tokens, tokens, need_weights=False)[0])


def test_ties_keep_the_lower_index(tmp_path: Path) -> None:
    """Scores are whole numbers with many ties; each token carries a power of two, so the sum names the tokens."""

    class Enter(nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return pixels * 1.0, pixels[:, 1:, 0] * 1.0

    class Leave(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.sum(dim=1)

    entering, staying = TensorSpec("tokens", "float32", ("batch", 21, 2)), TensorSpec("tokens", "float32", ("batch", "tokens", 2))
    pixels_in, out = replace(entering, name="pixels"), TensorSpec("embedding", "float32", ("batch", 2))
    first = to_onnx(Enter(), GraphSpec("pre.onnx", (pixels_in,), (entering, TensorSpec("scores", "float32", ("batch", 20)))))
    last = to_onnx(Leave(), GraphSpec("post.onnx", (staying,), (out,)))
    spec = GraphSpec("fused.onnx", (pixels_in, TensorSpec("k", "int64", (1,))), (out,))
    ir.save(compose.fused([first, last], PruneSpec((4, 5), 4, (2,), 1, 0), spec), tmp_path / "fused.onnx")
    values = np.stack([np.random.default_rng(0).integers(0, 4, (2, 21)), np.tile(2.0 ** np.arange(21), (2, 1))], axis=2).astype(np.float32)
    for k in (1, 7, 19, 20):
        (found,) = run(tmp_path / "fused.onnx", pixels=values, k=np.array([k]))
        for row, result in zip(values, found, strict=True):
            best = sorted(range(20), key=lambda i, row=row: (-row[1 + i, 0], i))[:k]
            assert result[1] == 1.0 + sum(2.0 ** (1 + i) for i in best)


def test_several_locations_and_appended_tokens(tmp_path: Path) -> None:
    """The selection between stages is a loop, ready for more graphs than two: here identities, checked by hand."""

    class Passing(nn.Module):
        def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return tokens * 1.0, tokens[:, 1:-2, 0]

    class First(nn.Module):
        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = pixels * 1.0
            return tokens, tokens[:, 1:-2, 1]

    class Last(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.sum(dim=1)

    tokens_in, free = TensorSpec("pixels", "float32", ("batch", 9, 4)), TensorSpec("tokens", "float32", ("batch", "tokens", 4))
    out = TensorSpec("embedding", "float32", ("batch", 4))
    entering, six = TensorSpec("tokens", "float32", ("batch", 9, 4)), TensorSpec("scores", "float32", ("batch", 6))
    first = to_onnx(First(), GraphSpec("pre.onnx", (tokens_in,), (entering, six)))
    middle = to_onnx(
        Passing(), GraphSpec("mid_1.onnx", (free,), (replace(free, name="tokens_out"), TensorSpec("scores", "float32", ("batch", "patches"))))
    )
    last = to_onnx(Last(), GraphSpec("post.onnx", (free,), (out,)))
    spec = GraphSpec("fused.onnx", (tokens_in, TensorSpec("k", "int64", (2,))), (out,))
    ir.save(compose.fused([first, middle, last], PruneSpec((2, 3), 5, (2, 4), 1, 2), spec), tmp_path / "fused.onnx")
    values = np.random.default_rng(0).standard_normal((3, 9, 4)).astype(np.float32)
    (found,) = run(tmp_path / "fused.onnx", pixels=values, k=np.array([4, 2]))
    for row, result in zip(values, found, strict=True):
        once = sorted(row[1:-2], key=lambda token: -token[1])[:4]
        twice = sorted(once, key=lambda token: -token[0])[:2]
        np.testing.assert_allclose(result, row[0] + row[-2:].sum(axis=0) + np.sum(twice, axis=0), atol=1e-5)


def test_a_fixed_axis_is_refused() -> None:
    class Fixed(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens.reshape(2, -1)[:, :4]

    spec = GraphSpec("bad.onnx", (TensorSpec("tokens", "float32", ("batch", 6)),), (TensorSpec("embedding", "float32", ("batch", 4)),))
    with pytest.raises(ModelError, match=r"bad\.onnx"):
        to_onnx(Fixed(), spec)


def test_what_cannot_be_exported_says_so() -> None:
    class Odd(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens if tokens.sum().item() > 0 else -tokens

    spec = GraphSpec("odd.onnx", (TensorSpec("tokens", "float32", ("batch", 6)),), (TensorSpec("embedding", "float32", ("batch", 6)),))
    with pytest.raises(ModelError, match=r"odd\.onnx"):
        to_onnx(Odd(), spec)


def test_sources_check_themselves() -> None:
    source = make_source("cls")
    with pytest.raises(ConfigError, match=r"1 class.* 0"):
        ExportSource(source.model, source.pruned, "linear", False, 0, ("cat",), ())
    with pytest.raises(ConfigError, match="float16"):
        make_source("cls", scorer=LinearScorer(64, 1).half())
    assert source.cost().scorer_macs == 1000
