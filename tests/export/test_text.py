"""The bundle's tokenizer against open_clip's, on prompts that trip tokenizers."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from export_sources import CONTEXT, make_source
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.export.source import ExportSource
from prtool.export.text import tokenizer_of, vocabulary
from prtool.trainer.models.dual_encoder import TextTower

PROMPTS = [
    "a photo of a cat.",
    "It's 3 o'clock, isn't it?  Two\tspaces, a tab\nand a line",
    "Übergrößenträger, naïve Café, Cafe\u0301",
    "word " * 100,
    "x" * 300,
    "日本語のテキスト 写真 한국어 हिन्दी ไทย",
    "emoji 😀👍🏽 🏳️‍🌈 flag",
    "“curly” ‘quotes’ — dash… ﬁne ﬂow",
    "a&amp;b &lt;x&gt; &quot;q&quot; &#39;",
    "",
    "   ",
    "!!!???... C++ C# F-16 http://a.b/c?d=e&f=g",
    "1234567890 ½ ² A_B snake_case 'S 'T N'T",
    "<start_of_text> hi <end_of_text>",
    "zero\u200bwidth soft\u00adhyphen \x07bell no\u00a0break",
]


def with_tokenizer(tokenizer: Any) -> ExportSource:
    source = make_source("cls")
    return dataclasses.replace(source, model=dataclasses.replace(source.model, tokenizer=tokenizer))


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_token_ids_equal_open_clips(prompt: str, clip: Tokenizer) -> None:
    assert clip.encode(prompt).ids == SimpleTokenizer(context_length=CONTEXT)([prompt])[0].tolist()


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    """CLIP's tokenizer as a file gives it back."""
    made = tokenizer_of(make_source("cls"))
    assert made is not None
    return Tokenizer.from_str(made.to_str())


@pytest.mark.parametrize("options", [{"clean": "canonicalize"}, {"clean": "whitespace"}, {"reduction_mask": "simple"}], ids=str)
def test_a_tokenizer_of_another_cleaning_is_not_written(options: dict[str, str]) -> None:
    assert tokenizer_of(with_tokenizer(SimpleTokenizer(context_length=CONTEXT, **options))) is None


def test_any_callable_is_not_written() -> None:
    assert tokenizer_of(with_tokenizer(lambda texts: torch.zeros(len(texts), CONTEXT, dtype=torch.int64))) is None


def hugging_face(clean: str, **options: Any) -> HFTokenizer:
    """open_clip's wrapper around a whole-word tokenizer, without the download."""
    from open_clip.tokenizer import get_clean_fn

    words = ["<pad>", "<unk>", "a", "photo", "of", "cat", "two", "spaces", "word", "It", "it", "its"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()

    def call(texts: list[str], **_: Any) -> Any:
        plain = Tokenizer.from_str(backend.to_str())
        plain.enable_truncation(CONTEXT)
        plain.enable_padding(length=CONTEXT, pad_id=0, pad_token="<pad>")
        return SimpleNamespace(input_ids=torch.tensor([plain.encode(text).ids for text in texts]))

    class Inner:
        backend_tokenizer, pad_token_id, pad_token, sep_token_id = backend, 0, "<pad>", 1
        __call__ = staticmethod(call)

    made = HFTokenizer.__new__(HFTokenizer)
    made.tokenizer, made.context_length, made.clean_fn = Inner(), CONTEXT, get_clean_fn(clean)
    made.tokenizer_mode, made.strip_sep_token = options.get("mode", ""), options.get("strip", False)
    return made


@pytest.mark.parametrize("clean", ["whitespace", "lower", "canonicalize"])
def test_hugging_face_tokenizers_carry_their_cleaning(clean: str) -> None:
    tokenizer = hugging_face(clean)
    made = tokenizer_of(with_tokenizer(tokenizer))
    assert made is not None
    for prompt in ("It's a photo of a CAT!", "  two \n spaces_word "):
        assert made.encode(prompt).ids == tokenizer([prompt])[0].tolist()


@pytest.mark.parametrize("options", [{"mode": "clips"}, {"strip": True}], ids=str)
def test_hugging_face_tokenizers_with_steps_of_their_own_are_not_written(options: dict[str, Any]) -> None:
    assert tokenizer_of(with_tokenizer(hugging_face("whitespace", **options))) is None


def test_the_vocabulary_is_the_size_of_the_table_that_token_ids_enter() -> None:
    source = make_source("cls")
    assert vocabulary(source) == 49408 == source.model.text.host.token_embedding.num_embeddings
    nothing = dataclasses.replace(source.model, text=TextTower(_Nothing()))
    with pytest.raises(ModelError, match="embedding"):
        vocabulary(dataclasses.replace(source, model=nothing))


class _Nothing(nn.Module):
    def encode_text(self, tokens: Tensor) -> Tensor:
        return tokens.float()
