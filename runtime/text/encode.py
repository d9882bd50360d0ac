"""The text side of a bundle: strings to token ids to embeddings."""

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from prtool.engines.base import Array
from prtool.errors import BundleError, ConfigError
from prtool.manifest import TOKENIZER_BYTES, TextInfo
from prtool.runtime.pipeline import Graphs
from prtool.runtime.text.tokenizer import PromptTokenizer
from prtool.text_safety import printable


class TextEncoder:
    """Encodes texts with the bundle's text graph; graph and tokenizer are loaded on first use. Safe from many threads."""

    def __init__(self, graphs: Graphs) -> None:
        """Takes the bundle's graphs at fp32: the text side runs once for a set of classes, so it has no other precision."""
        self._graphs = graphs

    def encode(self, texts: object) -> Array:
        """(batch, E) float32, L2-normalised, of strings or of (batch, context) int64 token ids; see `Encoder.encode_text`."""
        ids = texts if isinstance(texts, np.ndarray) and texts.dtype.kind not in "USO" else self._token_ids(_strings(texts))
        text = self._text()
        # Engines differ in this: some fail, others read memory next to the table.
        outside = ids[(ids < 0) | (ids >= text.vocab_size)] if ids.dtype == np.int64 else ids[:0]
        if outside.size:
            raise ConfigError(
                f"token id {outside.flat[0]}, but the text tower's are 0 to {text.vocab_size - 1}; tokenise with the model's own tokenizer, "
                "or give strings"
            )
        return self._graphs.run("text", {"tokens": ids})["embedding"].astype(np.float32, copy=False)

    def _token_ids(self, texts: list[str]) -> npt.NDArray[np.int64]:
        """(batch, context) int64, padded to the context length."""
        text = self._text()
        tokenizer = self._tokenizer
        rows = np.full((len(texts), text.context_length), tokenizer.pad_id, np.int64)
        for row, string in zip(rows, texts, strict=True):
            ids = tokenizer.ids(string)
            if len(ids) > len(row):
                raise ConfigError(f"text {printable(repr(string))} has {len(ids)} tokens, but the text tower reads {len(row)}; shorten it")
            if max(ids, default=0) >= text.vocab_size:
                known = f"0 to {text.vocab_size - 1}"
                raise BundleError(f"{tokenizer.path} gives token id {max(ids)}, but the text tower's are {known}; export the bundle again")
            row[: len(ids)] = ids
        return rows

    def _text(self) -> TextInfo:
        bundle = self._graphs.bundle
        if bundle.manifest.text is None:
            raise BundleError(f"{bundle.path} has no text side, so it cannot encode texts; export it again with the text tower")
        return bundle.manifest.text

    @functools.cached_property
    def _tokenizer(self) -> PromptTokenizer:
        bundle, text = self._graphs.bundle, self._text()
        if not text.tokenizer:
            raise BundleError(f"{bundle.path} has no tokenizer: its model's could not be written as a file; give token ids to encode_text")
        return PromptTokenizer.read(bundle.file(text.tokenizer), bundle.read(text.tokenizer, TOKENIZER_BYTES), text)


def _strings(texts: object) -> list[str]:
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise ConfigError(f"texts are a {type(texts).__name__}, but they must be strings, such as ['a photo of a cat'], or int64 token ids")
    chosen: list[Any] = list(np.ravel(texts) if isinstance(texts, np.ndarray) else texts)
    for place, text in enumerate(chosen):
        if not isinstance(text, str):
            what = f"text {place} is {printable(repr(text))}, a {type(text).__name__}"
            raise ConfigError(f"{what}, but it must be a string; token ids are given as a numpy array (batch, context) of int64")
    if not chosen:
        raise ConfigError("there are no texts; give at least one string")
    return chosen
