"""Every architecture of open_clip: what loads can be exported, and what cannot fails while it loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_model import TEXT, VISION, write_model
from torch.utils.flop_counter import FlopCounterMode
from towers import timm_visual

from prtool.errors import ModelError
from prtool.graphs.graph_reader import OPERATORS
from prtool.manifest import GraphSpec, TensorSpec
from prtool.trainer.models.dual_encoder import TextTower, _construct, load_model
from prtool.trainer.models.hosts import tower_of

open_clip = pytest.importorskip("open_clip", reason="open_clip has the architectures")

UNSUPPORTED = ("RN", "convnext", "swin", "MobileCLIP-S", "MobileCLIP2-S", "ViTamin", "vit_relpos")
"""Beginnings of the names of architectures whose image tower cannot be pruned or exported."""
SMALL_VISION = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}


def outline(name: str) -> torch.nn.Module:
    """The image tower of an architecture, without values."""
    from open_clip.model import _build_vision_tower

    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        return _build_vision_tower(config["embed_dim"], config["vision_cfg"], config.get("quick_gelu", False)).eval()


def check_prerequisites(name: str) -> None:
    """What an export needs of an image tower: shapes as declared, countable cost, and the exportable form."""
    from prtool.export.graphs.modules import plain_copy

    visual = outline(name)
    tower = tower_of(visual)
    assert tower.cost().embed_macs > 0
    assert tuple(visual.image_size) == tower.image_size
    copied = plain_copy(tower)
    tokens = copied.embed(torch.empty(2, 3, *tower.image_size, device="meta"))
    assert tokens.shape == (2, tower.prefix_tokens + tower.patches, tower.token_width)
    assert copied.run_blocks(tokens, 1, 1).shape == tokens.shape
    assert copied.head(tokens[:, : tower.prefix_tokens + 3]).shape == (2, tower.embed_dim)


@pytest.mark.parametrize("name", ["MobileCLIP2-B", "ViT-B-16-SigLIP2", "ViT-B-32", "EVA02-B-16", "PE-Core-T-16-384", "PE-Core-bigG-14-448"])
def test_what_an_export_needs(name):
    pytest.importorskip("onnx", reason="export needs onnx")
    check_prerequisites(name)


@pytest.mark.parametrize("name", ["ViTamin-S", "vit_relpos_medium_patch16_cls_224", "RN50"])
def test_towers_that_cannot_be_exported_are_an_error(name):
    with pytest.raises(ModelError, match="image tower"):
        tower_of(outline(name))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_architecture_is_exportable_or_an_error():
    pytest.importorskip("onnx", reason="export needs onnx")
    for name in open_clip.list_models():
        if name.startswith(UNSUPPORTED):
            with pytest.raises(ModelError, match="image tower"):
                tower_of(outline(name))
        else:
            check_prerequisites(name)


@pytest.mark.parametrize("kind", ["mobileclip", "siglip", "eva"])
def test_the_cost_of_the_patch_embedding_is_what_torch_counts(kind):
    tower = tower_of(timm_visual(kind))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tower.embed(torch.zeros(1, 3, *tower.image_size))
    assert tower.cost().embed_macs == counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("vision", "words"),
    [
        ({"scaled_cosine_attn": True}, "image tower"),
        ({"pool_type": "none"}, "pool_type 'none'"),
        ({"attentional_pool": True, "attn_pooler_heads": 5}, "tiny-field"),
    ],
)
def test_a_tower_that_does_not_run_fails_while_it_loads(monkeypatch, vision, words):
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field", {"embed_dim": 16, "vision_cfg": {**VISION, **vision}, "text_cfg": TEXT})
    with pytest.raises(ModelError, match=words):
        load_model("tiny-field")


def test_an_image_size_that_the_trunk_does_not_have_is_an_error(monkeypatch):
    from open_clip import factory

    vision = {"timm_model_name": "vit_tiny_patch16_224", "timm_pool": "token", "timm_proj": "linear", "image_size": 256}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field", {"embed_dim": 16, "vision_cfg": vision, "text_cfg": TEXT, "custom_text": True})
    with pytest.raises(ModelError, match="256"):
        load_model("tiny-field")


def test_weights_that_are_not_finite_fail_while_they_load(tmp_path):
    from safetensors.torch import load_file, save_file

    name, path = write_model(tmp_path / "model"), tmp_path / "model" / "open_clip_model.safetensors"
    state = load_file(path)
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, path)
    with pytest.raises(ModelError):
        load_model(name)


def _text_configs() -> dict[str, tuple[Any, str]]:
    import transformers as hf

    sizes = {"vocab_size": 300, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
    encoder = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64}
    return {
        "roberta": (hf.RobertaConfig(**sizes, max_position_embeddings=40), "mean_pooler"),
        "xlm-roberta": (hf.XLMRobertaConfig(**sizes, max_position_embeddings=40), "mean_pooler"),
        "bert": (hf.BertConfig(**sizes, max_position_embeddings=40), "cls_pooler"),
        "mt5": (hf.MT5Config(vocab_size=300, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2), "mean_pooler"),
        "m2m_100": (hf.M2M100Config(vocab_size=300, d_model=32, decoder_ffn_dim=64, max_position_embeddings=40, **encoder), "cls_pooler"),
    }


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "bert", "mt5", "m2m_100"])
def test_text_towers_of_transformers_are_exported_with_listed_operators(kind, monkeypatch, tmp_path):
    hf, ir = pytest.importorskip("transformers", reason="it makes the text towers"), pytest.importorskip("onnx_ir", reason="export needs onnx-ir")
    onnx, ort = pytest.importorskip("onnx", reason="export needs onnx"), pytest.importorskip("onnxruntime", reason="it runs the graph")
    from prtool.export.graphs.modules import TextGraph
    from prtool.export.graphs.onnx import to_onnx

    config, pooler = _text_configs()[kind]
    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", lambda *_names, **_options: config)
    text = {"hf_model_name": kind, "hf_pooler_type": pooler}
    with torch.device("meta"):
        _construct({"embed_dim": 16, "vision_cfg": SMALL_VISION, "text_cfg": text})
    torch.manual_seed(0)
    tower = TextTower(_construct({"embed_dim": 16, "vision_cfg": SMALL_VISION, "text_cfg": text})).eval().requires_grad_(False)
    ids = torch.randint(5, 290, (3, 16))
    ids[:, 10:] = config.pad_token_id
    file: Path = tmp_path / "text.onnx"
    axes = {"tokens": TensorSpec("tokens", "int64", ("batch", 16)), "embedding": TensorSpec("embedding", "float32", ("batch", 16))}
    ir.save(to_onnx(TextGraph(tower), GraphSpec(file.name, (axes["tokens"],), (axes["embedding"],))), file)
    assert {node.op_type for node in onnx.load(file).graph.node} <= OPERATORS
    (found,) = ort.InferenceSession(file).run(None, {"tokens": ids.numpy()})
    np.testing.assert_allclose(found, tower(ids).numpy(), atol=1e-5)
