"""The text side of a bundle: prompts to token ids to embeddings."""

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import BundleError, ConfigError, EngineUnavailable, ShapeError
from prtool.extras import install_hint
from prtool.manifest import TOKENIZER_BYTES, TextInfo
from prtool.runtime.pipeline import Graphs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextEncoder:
    """Encodes prompts with the bundle's text graph; graph and tokenizer are loaded on first use. Safe from many threads."""

    def __init__(self, graphs: Graphs) -> None:
        """Loads nothing yet.

        Args:
            graphs: the bundle's graphs at fp32: the text side runs once for a set of classes, so it has no other precision.
        """
        self._graphs = graphs
        self._tokenizer: Tokenizer | None = None
        self._lock = threading.Lock()

    def encode(self, token_ids: Array) -> Array:
        """(batch, context) int64 token ids -> (batch, E) float32, L2-normalised.

        Raises:
            BundleError: the bundle has no text side.
            ShapeError: shape or dtype differ.
        """
        text = self._text()
        if not isinstance(token_ids, np.ndarray):
            raise ShapeError(f"token ids are a {type(token_ids).__name__}, but they must be a numpy array (batch, {text.context_length}) of int64")
        return self._graphs.run("text", {"tokens": token_ids})["embedding"].astype(np.float32, copy=False)

    def token_ids(self, prompts: Sequence[str]) -> npt.NDArray[np.int64]:
        """The token ids of prompts: (batch, context) int64, cut or padded with 0 to the context length.

        Raises:
            ConfigError: there is no prompt, or `prompts` is one string.
            BundleError: the bundle has no text side or no tokenizer, or the tokenizer is damaged.
            EngineUnavailable: the tokenizers library is not installed.
        """
        if isinstance(prompts, str) or not prompts:
            raise ConfigError(f"prompts = {prompts!r}, but it must be a list of at least one string")
        text = self._text()
        encoded = self._load_tokenizer(text).encode_batch(list(prompts))
        lengths = {len(item.ids) for item in encoded}
        if lengths != {text.context_length}:
            raise BundleError(
                f"{text.tokenizer} of {self._graphs.bundle.path} gives {sorted(lengths)} tokens a prompt, but the text graph takes "
                f"{text.context_length}; export the bundle again"
            )
        return np.array([item.ids for item in encoded], np.int64)

    def _text(self) -> TextInfo:
        bundle = self._graphs.bundle
        if bundle.manifest.text is None:
            raise BundleError(f"{bundle.path} has no text side, so it cannot encode prompts; export it again with the text tower")
        return bundle.manifest.text

    def _load_tokenizer(self, text: TextInfo) -> "Tokenizer":
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = _read_tokenizer(self._graphs.bundle, text)
            return self._tokenizer


def _read_tokenizer(bundle: Bundle, text: TextInfo) -> "Tokenizer":
    if not text.tokenizer:
        raise BundleError(f"{bundle.path} has no tokenizer: its model's could not be written as a file; give token ids to encode_text")
    try:
        from tokenizers import Tokenizer
    except ImportError as cause:
        raise EngineUnavailable(f"tokenizers cannot be imported ({cause}); {install_hint('text')}") from cause
    path, content = bundle.file(text.tokenizer), bundle.read(text.tokenizer, TOKENIZER_BYTES)
    try:
        json.loads(content)
        return Tokenizer.from_buffer(content)
    except Exception as cause:  # tokenizers raises bare Exception for whatever it cannot read
        raise BundleError(f"{path} is not a readable tokenizer ({cause}); export the bundle again") from cause
