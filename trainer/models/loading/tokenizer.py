"""Make a model's tokenizer without running code of its folder, and check it against the text side's table."""

import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.extras import install_hint
from prtool.text_safety import printable
from prtool.trainer.models.loading.libraries import foreign
from prtool.trainer.models.loading.source import ModelSource

_CONTEXT_LENGTH = 77
_SAMPLES = ("a photo of a cat.", "It's 3 o'clock", "Übergrößenträger, naïve café", "写真 фото صورة", "~!@#$%^&*()_+ 0123456789")


class Tokenizer(Protocol):
    """Texts to token ids (texts, length) int64, cut and padded; the model's context length where no length is given, as open_clip's are."""

    def __call__(self, texts: Sequence[str], context_length: int | None = None, /) -> Tensor: ...  # noqa: D102 - as the class says


def make_tokenizer(source: ModelSource) -> Tokenizer:
    """The tokenizer that a model's configuration names.

    Raises:
        ModelError: transformers is not installed, or the tokenizer cannot be had; one that brings its own code is not run.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    text = source.config["text_cfg"]
    options: dict[str, Any] = {"context_length": text.get("context_length", _CONTEXT_LENGTH), **(text.get("tokenizer_kwargs") or {})}
    failed = f"the tokenizer of {source.name} cannot be loaded"
    if not source.tokenizer:
        return cast(Tokenizer, foreign(failed, lambda: SimpleTokenizer(**options)))
    require_transformers(f"the tokenizer of {source.name} needs transformers")
    # open_clip passes other keywords on to transformers; False also keeps it from asking on a terminal.
    options |= {"tokenizer_mode": text.get("tokenizer_mode"), "trust_remote_code": False}
    return cast(Tokenizer, foreign(failed, lambda: HFTokenizer(source.tokenizer, **options)))


def require_transformers(what: str) -> None:
    """Raises ModelError with the command that installs transformers, where it is absent."""
    if importlib.util.find_spec("transformers") is None:
        raise ModelError(f"{what}, which is not installed; {install_hint('hf')}")


def check_text_model(name: str) -> None:
    """Checks that a text tower of transformers is of a kind that open_clip knows, so that its code is transformers' own.

    Raises:
        ModelError: transformers is not installed, its configuration cannot be had, or it is of another kind.
    """
    require_transformers(f"the text tower {name} needs transformers")
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig

    config = foreign(f"the text tower {name} cannot be loaded", lambda: AutoConfig.from_pretrained(name, trust_remote_code=False))
    if config.model_type not in arch_dict:
        raise ModelError(f"the text tower {name} is of kind {printable(config.model_type)!r}, but it must be one of {', '.join(arch_dict)}")


def check_vocabulary(tokenizer: Tokenizer, text: nn.Module, name: str) -> str:
    """Checks a tokenizer against the table of token embeddings of the host model `text`.

    Returns a note where CLIP's byte pairs are used with a table made for another vocabulary; else "".

    Raises:
        ModelError: it gives ids beyond the table.
    """
    from open_clip.tokenizer import SimpleTokenizer

    table = token_table(text)
    if table is None:
        return ""
    rows = table.num_embeddings
    largest = max(int(tokenizer(list(_SAMPLES)).max()), _largest_id(tokenizer))
    if largest >= rows:
        raise ModelError(
            f"the tokenizer of {name} gives token ids up to {largest}, but its text side has {rows} embeddings; give the tokenizer it had"
        )
    if isinstance(tokenizer, SimpleTokenizer) and rows != tokenizer.vocab_size:
        return f"the text side of {name} has {rows} token embeddings, but CLIP's own tokenizer, which is used, has {tokenizer.vocab_size} tokens"
    return ""


def token_table(model: nn.Module) -> nn.Embedding | None:
    """The table of token embeddings of a model's text side; None where none is known."""
    text = getattr(model, "text", model)
    table = getattr(text, "token_embedding", None)
    transformer = cast(Any, getattr(text, "transformer", None))
    if table is None and hasattr(transformer, "get_input_embeddings"):
        table = transformer.get_input_embeddings()
    return table if isinstance(table, nn.Embedding) else None


def cut_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> Tensor:
    """Which prompts a tokenizer cuts to its context length: (prompts,) bool."""
    texts = [*prompts, ""]
    ids = tokenizer(texts)
    length = ids.shape[1]
    longer = tokenizer(texts, 2 * length)
    # Some tokenizers close every row with a class token, wherever the row ends.
    compared = length - int(ids[-1, -1] != ids[-1, -2])
    lost = (longer[:, :compared] != ids[:, :compared]).any(dim=1)
    left = (longer[:, length:] != longer[-1, length:]).any(dim=1)
    return (lost | left)[:-1]


def _largest_id(tokenizer: Tokenizer) -> int:
    """The largest id of the vocabulary, without tokens that were added to it and no text gives."""
    inner = cast(Any, getattr(tokenizer, "tokenizer", None))
    if inner is None:
        return int(cast(Any, tokenizer).vocab_size) - 1
    added = set(inner.get_added_vocab().values())
    return max((number for number in inner.get_vocab().values() if number not in added), default=0)
