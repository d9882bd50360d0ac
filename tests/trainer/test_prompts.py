"""Learnable tokens: where they stand, what they start from, and that a context of the original words changes nothing."""

from dataclasses import replace

import pytest
import torch
from local_model import TEXT, VISION, write_model
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from tiny_encoder import entered, tiny_encoder
from torch import nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.trainer.models.dual_encoder import DualEncoder, TextTower, load_model
from prtool.trainer.models.prompts import TextContext, VisualTokens, new_context, new_visual, prompt_text

CLASSES = ("red", "dark_green", "blue")
TEMPLATE = "photo of a {}."
TOWERS = ["cls", "siglip", "dinov2 registers", "average"]


class HfText(nn.Module):
    """The shape of an open_clip model whose text side is a Hugging Face model: a mask by padding, and the mean over the rest."""

    class Transformer(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.block = nn.Embedding(49408, 8), nn.TransformerEncoderLayer(8, 1, 16, batch_first=True)

        def get_input_embeddings(self):
            return self.words

    def __init__(self):
        super().__init__()
        self.text = nn.Module()
        self.text.transformer, self.text.proj = self.Transformer(), nn.Linear(8, 16, bias=False)

    def encode_text(self, ids):
        mask = (ids != 0)[..., None].float()
        found = self.text.transformer.block(self.text.transformer.words(ids))
        return self.text.proj((found * mask).sum(dim=1) / mask.sum(dim=1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> DualEncoder:
    """open_clip's CLIP, with a context of 12 tokens."""
    model = load_model(write_model(tmp_path_factory.mktemp("model")))
    torch.manual_seed(0)
    return with_text(model, CustomTextCLIP(16, CLIPVisionCfg(**VISION), CLIPTextCfg(**{**TEXT, "context_length": 12})))


def with_text(model, host):
    host = host.eval().requires_grad_(False)
    return replace(model, text=TextTower(host), tokenizer=SimpleTokenizer(context_length=12), context_length=12)


@pytest.fixture(scope="module", params=["clip", "custom text", "hugging face"])
def model(request, plain, tmp_path_factory) -> DualEncoder:
    if request.param == "custom text":
        return plain
    if request.param == "hugging face":
        torch.manual_seed(0)
        return with_text(plain, HfText())
    return load_model(write_model(tmp_path_factory.mktemp("clip")))


@pytest.mark.parametrize("kind", TOWERS)
def test_first_values_are_the_mean_patch_of_each_block(kind):
    model = tiny_encoder(kind)
    tower, tokens = model.tower, entered(model, 3, 2)
    visual = new_visual(tower, tokens, count=400, layers=2, first=2, seed=0)
    for row, block in enumerate((2, 3)):
        patches = torch.cat([tokens[i, tower.prefix_tokens :] for i in range(3)])
        noise = visual.values[row] - patches.mean(dim=0)
        assert float(noise.detach().std() / patches.std()) == pytest.approx(0.02, rel=0.05)
        assert float(noise.detach().mean(dim=0).abs().max()) < 0.006 * float(patches.std())
        tokens = tower.blocks[block - 1](tokens)
    assert (visual.count, visual.first) == (400, 2)


def test_first_values_depend_on_the_seed():
    model = tiny_encoder()
    made = [new_visual(model.tower, entered(model, 2, 2), 3, 1, 2, seed).values for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("first", [1, 2])
def test_tokens_are_appended_then_renewed(first):
    tower = tiny_encoder().tower
    visual = VisualTokens(torch.randn(2, 3, tower.width, generator=torch.Generator().manual_seed(0)), first)
    tokens = torch.zeros(2, 5, tower.width)
    appended = visual(tower, tokens, first)
    start = tower.host.ln_pre(visual.values[0]) if first == 1 else visual.values[0]
    assert torch.equal(appended[1], torch.cat((tokens[1], start)))
    renewed = visual(tower, appended + 1, first + 1)
    assert torch.equal(renewed[0], torch.cat((tokens[0] + 1, visual.values[1])))
    assert visual(tower, renewed, first + 2) is renewed


@pytest.mark.parametrize("values", [torch.zeros(2, 3), torch.zeros(0, 2, 3), torch.zeros(1, 0, 3)])
def test_values_of_another_shape_are_refused(values):
    with pytest.raises(ConfigError, match="layers, tokens, width"):
        VisualTokens(values)
    with pytest.raises(ConfigError, match="tokens, width"):
        TextContext(values[None], "a")


def test_a_context_of_the_original_words_gives_the_zero_shot_embeddings(model):
    context = new_context(model, 3, "", TEMPLATE)
    assert context.words == "photo of a"
    assert torch.equal(context.class_embeddings(model, CLASSES, TEMPLATE), model.class_embeddings(CLASSES, (TEMPLATE,)))


def test_a_context_of_other_words_gives_their_embeddings(model):
    context = new_context(model, 3, "one big", TEMPLATE)
    expected = model.class_embeddings(CLASSES, ("one big X {}.",))
    assert torch.equal(context.class_embeddings(model, CLASSES, TEMPLATE), expected)
    moved = TextContext(new_context(model, 3, "two small", TEMPLATE).values.detach(), context.words)
    torch.testing.assert_close(moved.class_embeddings(model, CLASSES, TEMPLATE), model.class_embeddings(CLASSES, ("two small X {}.",)))


def test_gradient_reaches_the_context_and_nothing_else(model):
    context = new_context(model, 3, "", TEMPLATE)
    found = context.class_embeddings(model, CLASSES, TEMPLATE)
    (found @ torch.linspace(-1, 1, found.shape[1])).sum().backward()
    assert float(context.values.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in model.text.parameters())
    assert not any(module._forward_hooks for module in model.text.modules())


def test_a_context_longer_than_the_model_reads_is_refused(model):
    room = model.context_length - 4  # start, class name, full stop, end
    fits = new_context(model, room, "a", TEMPLATE)
    assert fits.class_embeddings(model, ("red",), TEMPLATE).shape[0] == 1
    with pytest.raises(ConfigError, match=f"{model.context_length}"):
        new_context(model, room + 1, "a", TEMPLATE).class_embeddings(model, ("red",), TEMPLATE)


def test_a_prompt_that_the_tokenizer_would_cut_is_refused(model):
    assert model.class_embeddings(CLASSES, (TEMPLATE,)).shape[0] == len(CLASSES)
    with pytest.raises(ConfigError, match=f"'big big .*red'.*{model.context_length}"):
        model.class_embeddings(CLASSES, ("big " * model.context_length + "{}",))


def test_words_that_do_not_fit_the_count_are_refused(plain):
    with pytest.raises(ConfigError, match=r"tokens\.text = 2"):
        new_context(plain, 2, "", TEMPLATE)
    with pytest.raises(ConfigError, match=r"tokens\.text_words"):
        new_context(plain, 3, "", "{} texture.")


def test_a_text_side_without_a_table_is_refused(plain):
    with pytest.raises(ModelError, match=r"tokens\.text = 0"):
        new_context(replace(plain, text=TextTower(nn.Identity())), 4, "", TEMPLATE)


def test_a_tokenizer_without_start_token_that_pads_with_its_end(plain):
    """As SigLIP's: the words from place 0 on, and 1 for the end as for the padding."""
    table = {"a": 5, "photo": 6, "of": 7, "dog": 8, "X": 9, "red": 10, "red.": 11, "": 1}

    def tokenizer(texts, length=8):
        words = [[table[word] for word in text.split()] for text in texts]
        rows = [[*ids[: length - 1], 1] for ids in words]
        return torch.tensor([row + [1] * (length - len(row)) for row in rows])

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.token_embedding = nn.Embedding(12, 4)

        def encode_text(self, ids):
            return (self.token_embedding(ids) * torch.arange(1, ids.shape[1] + 1)[:, None]).flatten(1)

    model = replace(plain, text=TextTower(Text().requires_grad_(False)), tokenizer=tokenizer, context_length=8)
    context = new_context(model, 5, "", TEMPLATE)
    assert torch.equal(context.values, model.text.host.token_embedding(torch.tensor([6, 7, 5, 9, 9])))
    ids = torch.tensor([[6, 7, 5, 9, 9, 11, 1, 1]])
    assert torch.equal(context.class_embeddings(model, ("red",), TEMPLATE), functional.normalize(model.text(ids), dim=-1))
    with pytest.raises(ConfigError, match="8"):
        new_context(model, 7, "", TEMPLATE).class_embeddings(model, ("red",), TEMPLATE)


def test_a_prompt_is_the_context_then_the_template_from_the_class_on():
    assert prompt_text("one X", "a photo of a {}, a type of pet.", "great_dane") == "one X great dane, a type of pet."
