"""The text side of a bundle: prompts to token ids to embeddings."""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from prtool.engines.base import Array
from prtool.errors import BundleError, ConfigError, ShapeError
from prtool.manifest import TOKENIZER_BYTES, TextInfo
from prtool.runtime.pipeline import Graphs
from prtool.runtime.text.tokenizer import PromptTokenizer
from prtool.text_safety import printable


class TextEncoder:
    """Encodes prompts with the bundle's text graph; graph and tokenizer are loaded on first use. Safe from many threads."""

    def __init__(self, graphs: Graphs) -> None:
        """Loads nothing yet.

        Args:
            graphs: the bundle's graphs at fp32: the text side runs once for a set of classes, so it has no other precision.
        """
        self._graphs = graphs
        self._tokenizer: PromptTokenizer | None = None
        self._lock = threading.Lock()

    def encode(self, token_ids: Array) -> Array:
        """(batch, context) int64 token ids -> (batch, E) float32, L2-normalised.

        Raises:
            BundleError: the bundle has no text side.
            ShapeError: shape or dtype differ.
            ConfigError: an id is negative, or not below the vocabulary's size.
        """
        text = self._text()
        if not isinstance(token_ids, np.ndarray):
            raise ShapeError(f"token ids are a {type(token_ids).__name__}, but they must be a numpy array (batch, {text.context_length}) of int64")
        # Engines differ in this: some fail, others read memory next to the table.
        outside = token_ids[(token_ids < 0) | (token_ids >= text.vocab_size)] if token_ids.dtype == np.int64 else token_ids[:0]
        if outside.size:
            raise ConfigError(
                f"token id {outside.flat[0]}, but the text tower's are 0 to {text.vocab_size - 1}; tokenise with the model's own tokenizer, "
                "or call encode_prompts"
            )
        return self._graphs.run("text", {"tokens": token_ids})["embedding"].astype(np.float32, copy=False)

    def token_ids(self, prompts: str | Iterable[str]) -> npt.NDArray[np.int64]:
        """The token ids of prompts: (batch, context) int64, padded to the context length.

        Args:
            prompts: strings, in any iterable; one string is one prompt.

        Raises:
            ConfigError: there is no prompt, or one is not a string, not valid Unicode, or longer than the context.
            BundleError: the bundle has no text side or no tokenizer, or the tokenizer is damaged.
            EngineUnavailable: the tokenizers library is not installed.
        """
        chosen = _strings(prompts)
        text = self._text()
        tokenizer = self._load_tokenizer(text)
        rows = np.full((len(chosen), text.context_length), tokenizer.pad_id, np.int64)
        for row, prompt in zip(rows, chosen, strict=True):
            ids = tokenizer.ids(prompt)
            most = text.context_length
            if len(ids) > most:
                raise ConfigError(f"prompt {printable(repr(prompt))} has {len(ids)} tokens, but the text tower reads {most}; shorten it")
            if max(ids, default=0) >= text.vocab_size:
                known = f"0 to {text.vocab_size - 1}"
                raise BundleError(f"{tokenizer.path} gives token id {max(ids)}, but the text tower's are {known}; export the bundle again")
            row[: len(ids)] = ids
        return rows

    def _text(self) -> TextInfo:
        bundle = self._graphs.bundle
        if bundle.manifest.text is None:
            raise BundleError(f"{bundle.path} has no text side, so it cannot encode prompts; export it again with the text tower")
        return bundle.manifest.text

    def _load_tokenizer(self, text: TextInfo) -> PromptTokenizer:
        bundle = self._graphs.bundle
        if not text.tokenizer:
            raise BundleError(f"{bundle.path} has no tokenizer: its model's could not be written as a file; give token ids to encode_text")
        with self._lock:
            if self._tokenizer is None:
                path = bundle.file(text.tokenizer)
                self._tokenizer = PromptTokenizer.read(path, bundle.read(text.tokenizer, TOKENIZER_BYTES), text)
            return self._tokenizer


def _strings(prompts: object) -> list[str]:
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, bytes) or not isinstance(prompts, Iterable):
        raise ConfigError(f"prompts are a {type(prompts).__name__}, but they must be strings, such as ['a photo of a cat']")
    chosen: list[Any] = list(np.ravel(prompts) if isinstance(prompts, np.ndarray) else prompts)
    for place, prompt in enumerate(chosen):
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt {place} is {printable(repr(prompt))}, a {type(prompt).__name__}, but it must be a string")
    if not chosen:
        raise ConfigError("prompts hold nothing; give at least one string")
    return chosen
