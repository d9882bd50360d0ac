"""Learnable tokens: visual ones behind the patches, and context words in front of class names."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.loading.tokenizer import token_table
from prtool.trainer.models.tower import VisionTower

_PLACEHOLDER = "X"
_NOISE = 0.02


class VisualTokens(nn.Module):
    """Learnable tokens behind the patches, never dropped (method, section 3; the deep form of Visual Prompt Tuning, ECCV 2022).

    Args:
        values: (layers, n, D) float32. Row 0 is appended on entry to block `first`; row i replaces the appended
            tokens on entry to block `first + i`. One row is the shallow form.
        first: 1-based block on entry to which they are appended. At block 1 they pass the tower's first norm, as
            in the paper; at the pruning location all that runs before it is unchanged, scores included.
    """

    def __init__(self, values: Tensor, first: int = 1) -> None:
        super().__init__()
        if values.dim() != 3 or min(values.shape) < 1:
            raise ConfigError(f"learnable tokens of shape {tuple(values.shape)}, but they must be (layers, tokens, width), each at least 1")
        self.values = nn.Parameter(values)
        self.first = first

    @property
    def count(self) -> int:
        """n, the tokens that are appended."""
        return self.values.shape[1]

    def forward(self, tower: VisionTower, tokens: Tensor, block: int) -> Tensor:
        """The tokens that enter a 1-based block, with the learnable ones appended or replaced where this block does so.

        `tokens` (batch, length, D) left the block before; the result is (batch, length + n, D) at block `first`, else as long as they were.
        At block 1 what is appended passes the first norm of `tower`.
        """
        row = block - self.first
        if not 0 <= row < self.values.shape[0]:
            return tokens
        new = tower.without_place(tower.pre_norm(self.values[row]) if block == 1 else self.values[row])
        if row:
            tokens = tokens[:, : tokens.shape[1] - self.count]
        return torch.cat((tokens, new.expand(tokens.shape[0], -1, -1)), dim=1)


class TextContext(nn.Module):
    """Learned context in place of the first words of every prompt, shared by all classes (CoOp, IJCV 2022).

    Args:
        values: (n, text width) float32.
        words: the text of a prompt that the context replaces: exactly n tokens of the model's tokenizer.
    """

    def __init__(self, values: Tensor, words: str) -> None:
        super().__init__()
        if values.dim() != 2 or min(values.shape) < 1:
            raise ConfigError(f"text context of shape {tuple(values.shape)}, but it must be (tokens, width), each at least 1")
        self.values = nn.Parameter(values)
        self.words = words

    def class_embeddings(self, model: DualEncoder, classnames: Sequence[str], template: str) -> Tensor:
        """Class embeddings (classes, E) float32, L2-normalised, with gradients to the context, which replaces the words before the template's `{}`.

        Raises:
            ConfigError: a prompt with the context is longer than the model reads.
        """
        return self.embed(model, self.prompt_ids(model, classnames, template))

    def prompt_ids(self, model: DualEncoder, classnames: Sequence[str], template: str) -> Tensor:
        """Token ids (classes, context length) int64 of the prompts, which training computes once; as for `class_embeddings`."""
        return model.token_ids([prompt_text(self.words, template, name) for name in classnames])

    def embed(self, model: DualEncoder, ids: Tensor) -> Tensor:
        """Class embeddings (classes, E) float32, L2-normalised, of `prompt_ids`, with gradients to the context."""
        embedding, start = _token_embedding(model), _start(model)

        def replace_words(_layer: nn.Module, _inputs: object, found: Tensor) -> Tensor:
            values = self.values.to(found.dtype).expand(found.shape[0], -1, -1)
            return torch.cat((found[:, :start], values, found[:, start + len(self.values) :]), dim=1)

        # The host's own forward runs; only the embeddings of the context's words are replaced.
        hook = embedding.register_forward_hook(replace_words)
        try:
            return functional.normalize(model.text(ids.to(self.values.device)).float(), dim=-1)
        finally:
            hook.remove()


@torch.no_grad()
def new_visual(tower: VisionTower, tokens: Tensor, count: int, layers: int, first: int, seed: int) -> VisualTokens:
    """Untrained visual tokens: the mean patch that enters each block, with a little seeded noise so that they differ.

    To the attention they are one more average patch, so the first step starts close to the encoder without them: in a
    ViT-S/14 pruned to 60 %, eight of them in nine blocks leave the mean cosine to the unpruned embedding at 0.981, while
    the small Gaussian values of Visual Prompt Tuning (a full-scale key behind a layer norm) reduce it to 0.55.

    Args:
        tokens: (images, prefix + patches, D) float32 that enter the 1-based block `first`, any number of patches.
        count: n, in each of `layers` blocks from `first` on.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for block in range(first, first + layers):
        patches = tower.features(tokens)[:, tower.prefix_tokens :].flatten(0, 1)
        noise = torch.randn(count, tower.width, generator=generator).to(tokens.device)
        rows.append(patches.mean(dim=0) + _NOISE * patches.std() * noise)
        tokens = tower.run_blocks(tokens, block, block)
    return VisualTokens(torch.stack(rows), first)


def new_context(model: DualEncoder, count: int, words: str, template: str) -> TextContext:
    """Untrained context of `count` tokens: the embeddings of words, then of placeholders where the words are fewer.

    The words "" are those of the template before its `{}`.

    Raises:
        ConfigError: the words make more than `count` tokens, or there are none and the template begins with the class name.
        ModelError: the text side has no table of token embeddings that is known.
    """
    words = (words or template.partition("{}")[0]).strip()
    if not words:
        raise ConfigError(
            f"template {template!r} has no words before {{}} to start the text context from; give tokens.text_words, such as 'a photo of a'"
        )
    if (used := _token_count(model, words)) > count:
        raise ConfigError(f"tokens.text = {count}, but {words!r} takes {used} tokens; give {used}, or fewer words in tokens.text_words")
    text = " ".join([words, *[_PLACEHOLDER] * (count - used)])
    if _token_count(model, text) != count:
        raise ConfigError(f"{text!r} does not take {count} tokens in this model's tokenizer; give other words with tokens.text_words")
    ids, table = model.tokenizer([text])[0, _start(model) :][:count], _token_embedding(model).weight
    return TextContext(table[ids.to(table.device)].detach().float().clone(), text)


def prompt_text(words: str, template: str, classname: str) -> str:
    """One prompt: the context's words, then the class name and what the template says behind it."""
    _, _, rest = template.partition("{}")
    return f"{words} {classname.replace('_', ' ')}{rest}"


def _token_embedding(model: DualEncoder) -> nn.Embedding:
    """The table of token embeddings of the text side."""
    table = token_table(model.text.host)
    if table is None:
        raise ModelError(f"the text side of {model.name} has no known table of token embeddings; train visual tokens only (tokens.text = 0)")
    return table


def _start(model: DualEncoder) -> int:
    """Token ids before the first word: 1 where every prompt begins with a start token, else 0."""
    first, second = model.tokenizer(["a", "dog"])[:, 0]
    return int(first == second)


def _token_count(model: DualEncoder, text: str) -> int:
    """Tokens of a text, without start and end: what it has more than the empty text, before the padding that rows end with."""
    ids = model.tokenizer([text, ""], 2 * model.context_length)
    text_padding, empty_padding = (ids == ids[:, -1:]).flip(1).int().cumprod(dim=1).sum(dim=1)
    return int(empty_padding - text_padding)
