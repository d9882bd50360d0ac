"""Patch scorers: published sizes, the parts against plain PyTorch modules, and a clean export."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prtool.errors import ConfigError, ShapeError
from prtool.trainer.models.auxiliary import AuxiliaryFeatures
from prtool.trainer.models.predictor import ChannelPool, MixMlpScorer, ScorerConfig, TransformerScorer, later_config, make_scorer
from prtool.trainer.settings import ARCHITECTURES, AUXILIARY

SMALL = {"channels": 8, "token_hidden": 4, "channel_hidden": 16, "heads": 2}


def small(arch, width=24, patches=9, prefix=1, **options):
    torch.manual_seed(0)
    return make_scorer(ScorerConfig(arch=arch, **{**SMALL, **options}), width, patches, prefix)


def parameters(scorer):
    return sum(parameter.numel() for parameter in scorer.parameters())


def test_mix_mlp_has_the_published_size():
    scorer = make_scorer(ScorerConfig(reduce="average"), 768, 196, 1)
    assert isinstance(scorer, MixMlpScorer)
    assert scorer.macs() == pytest.approx(7.3e6, rel=0.01)
    assert parameters(scorer) == pytest.approx(46e3, rel=0.01)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_scores_every_patch_and_no_prefix_token(arch, prefix):
    scores = small(arch, prefix=prefix)(torch.randn(3, prefix + 9, 24))
    assert scores.shape == (3, 9)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_an_image_is_scored_alone(arch):
    scorer, tokens = small(arch), torch.randn(4, 10, 24)
    alone = torch.cat([scorer(tokens[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(scorer(tokens), alone)


@pytest.mark.parametrize(("width", "channels"), [(768, 64), (384, 64), (32, 64), (100, 64), (24, 7)])
def test_channel_pool_is_adaptive_average_pooling(width, channels):
    tokens = torch.randn(2, 5, width)
    expected = functional.adaptive_avg_pool1d(tokens, channels)
    torch.testing.assert_close(ChannelPool(width, channels)(tokens), expected)


def test_norm_standardises_each_token():
    tokens = 50 * torch.randn(2, 10, 24) + 7
    centred = tokens - tokens.mean(-1, keepdim=True)
    expected = functional.adaptive_avg_pool1d(centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt(), 8)
    scorer = small("mix-mlp", reduce="average")
    torch.testing.assert_close(scorer(tokens), scorer.score(expected))
    scorer = small("mix-mlp", reduce="linear")
    projected = (tokens - tokens.mean(-1, keepdim=True)) / tokens.std(-1, keepdim=True, correction=0) @ scorer.reduce.weight.T + scorer.reduce.bias
    torch.testing.assert_close(scorer(tokens), scorer.score(projected), rtol=1e-4, atol=1e-5)


def test_mix_mlp_is_timms_mixer_block():
    mixer = pytest.importorskip("timm.models.mlp_mixer")
    block = mixer.MixerBlock(64, 197)
    scorer = make_scorer(ScorerConfig(reduce="average", norm=False), 128, 196, 1)
    ours = {name: tensor for name, tensor in scorer.state_dict().items() if not name.startswith("out")}
    block.load_state_dict(dict(zip(block.state_dict(), ours.values(), strict=True)))
    tokens = torch.randn(2, 197, 128)
    expected = scorer.out(block(functional.adaptive_avg_pool1d(tokens, 64))[:, 1:]).squeeze(-1)
    torch.testing.assert_close(scorer(tokens), expected)


def test_transformer_is_torchs_encoder_layer():
    scorer = small("transformer", reduce="average", norm=False)
    assert isinstance(scorer, TransformerScorer)
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=True).eval()
    pairs = {"self_attn.in_proj_": scorer.query_key_value, "self_attn.out_proj.": scorer.attention_out, "norm1.": scorer.attention_norm}
    pairs |= {"norm2.": scorer.channel_norm, "linear1.": scorer.channel_mlp[0], "linear2.": scorer.channel_mlp[2]}
    layer.load_state_dict({prefix + name: tensor for prefix, module in pairs.items() for name, tensor in module.state_dict().items()})
    tokens = torch.randn(2, 10, 24)
    expected = scorer.out(layer(functional.adaptive_avg_pool1d(tokens, 8))[:, 1:]).squeeze(-1)
    torch.testing.assert_close(scorer(tokens), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("reduce", "extras"), [("linear", ()), ("average", ()), ("linear", AUXILIARY), ("linear", ("position",))])
def test_macs_are_what_matrix_products_cost(arch, reduce, extras):
    scorer = small(arch, reduce=reduce, auxiliary=extras)
    counter = FlopCounterMode(display=False)
    # Attention as plain products: not every PyTorch's counter knows the fused kernel of a CPU.
    with counter, sdpa_kernel(SDPBackend.MATH):
        scorer(torch.randn(1, 10, 24))
    # The MLP's output layer multiplies element by element, which the counter does not see.
    unseen = 9 * 16 if arch == "mlp" else 0
    assert counter.get_total_flops() == 2 * (scorer.macs() - unseen)


def test_mlp_is_one_linear_unit_a_patch():
    scorer, tokens = small("mlp"), torch.randn(2, 10, 24)
    scorer.requires_grad_(False)
    hidden = functional.gelu(scorer.hidden_norm(scorer.hidden(scorer.reduce(scorer.norm(tokens)))))
    expected = [[float(hidden[i, 1 + n] @ scorer.out_weight[n] + scorer.out_bias[n]) for n in range(9)] for i in range(2)]
    torch.testing.assert_close(scorer(tokens), torch.tensor(expected))


@pytest.mark.parametrize("name", ["norm", "cls"])
def test_an_extra_is_what_a_loop_finds(name):
    torch.manual_seed(1)
    extras, tokens = AuxiliaryFeatures((name,), 3, 9, 1), 5 * torch.randn(2, 10, 24) + 1
    for image, found in zip(tokens, extras(tokens), strict=True):
        mean = image.mean(0)
        if name == "norm":
            values = [math.log(sum(float(value) ** 2 for value in token)) for token in image]
        else:
            values = [float(functional.cosine_similarity(token - mean, image[0] - mean, dim=0)) for token in image]
        plain = torch.tensor(values)
        plain = (plain - plain.mean()) / plain.std(correction=0)
        torch.testing.assert_close(found, plain[:, None] * extras.project.weight.T + extras.project.bias, rtol=1e-3, atol=1e-4)


def test_a_position_is_told_apart_once_it_is_learned():
    scorer = small("transformer", auxiliary=("position",))
    tokens = torch.randn(1, 1, 24).expand(1, 10, 24)
    with torch.no_grad():
        assert float(scorer(tokens).std()) < 1e-6
        scorer.auxiliary.position.normal_()
        assert float(scorer(tokens).std()) > 1e-2


@pytest.mark.parametrize("tokens", [torch.zeros(1, 10, 24), torch.ones(1, 10, 24), 1e4 * torch.randn(1, 10, 24)])
def test_extras_of_any_tokens_are_finite(tokens):
    assert small("mix-mlp", auxiliary=AUXILIARY)(tokens).isfinite().all()


def test_a_later_scorer_has_no_position():
    assert later_config(ScorerConfig(auxiliary=("position", "norm"))).auxiliary == ("norm",)


def test_a_model_without_a_class_token_has_no_similarity_to_it():
    with pytest.raises(ConfigError, match="cls"):
        make_scorer(ScorerConfig(auxiliary=("cls",)), 24, 9, 0)


@pytest.mark.parametrize("extras", [("colour",), ("norm", "norm")])
def test_extras_refuse_unknown_and_repeated_names(extras):
    with pytest.raises(ConfigError, match=r"auxiliary .*position, norm, cls"):
        ScorerConfig(auxiliary=extras)


@pytest.mark.parametrize(("name", "value"), [("arch", "cnn"), ("reduce", "max"), ("channels", 0), ("token_hidden", -1), ("heads", 3)])
def test_config_refuses(name, value):
    with pytest.raises(ConfigError, match=name):
        ScorerConfig(**{name: value})


def test_no_patches_are_refused():
    with pytest.raises(ShapeError):
        make_scorer(ScorerConfig(), 64, 0, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.onnx's own use of old Python and onnx interfaces
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("arch", "reduce", "extras"),
    [("mix-mlp", "linear", ()), ("mix-mlp", "average", ()), ("mlp", "linear", ()), ("transformer", "linear", ()), ("mix-mlp", "linear", AUXILIARY)],
)
def test_exports_with_a_dynamic_batch(arch, reduce, extras, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    width = 20
    scorer, path = small(arch, width=width, reduce=reduce, auxiliary=extras), tmp_path / "scorer.onnx"
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        scorer, (torch.randn(2, 10, width),), path, dynamo=True, dynamic_shapes=shapes, input_names=["tokens"], output_names=["scores"], verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 3):
        tokens = torch.randn(batch, 10, width)
        (scores,) = session.run(None, {"tokens": tokens.numpy()})
        np.testing.assert_allclose(scores, scorer(tokens).detach().numpy(), atol=1e-5)
