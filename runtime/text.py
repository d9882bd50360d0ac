"""The text side of a bundle: strings to token ids, with a tokenizer.json that is checked before its library reads it, to embeddings."""

import base64
import contextlib
import functools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from prtool.engines.base import Array
from prtool.errors import BundleError, ConfigError, EngineUnavailable, PrtoolError
from prtool.extras import install_hint
from prtool.manifest import TOKENIZER_BYTES, TextInfo
from prtool.runtime.pipeline import Graphs
from prtool.strict import parse_json
from prtool.text_safety import printable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Parts of the file -> the kinds that it may have; open_clip's tokenizers, which the exporter takes over, use no others.
_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "normalizer": "BertNormalizer, Lowercase, NFC, NFD, NFKC, NFKD, Precompiled, Prepend, Replace, Sequence, Strip, StripAccents",
        "pre_tokenizer": "BertPreTokenizer, ByteLevel, Digits, Metaspace, Punctuation, Sequence, Split, UnicodeScripts, Whitespace, WhitespaceSplit",
        "post_processor": "BertProcessing, ByteLevel, RobertaProcessing, Sequence, TemplateProcessing",
        "model": "BPE, Unigram, WordLevel, WordPiece",
    }
)
_FIELDS = frozenset((*_KINDS, "version", "truncation", "padding", "added_tokens", "decoder"))
_STEPS = ("normalizers", "pretokenizers", "processors")
MAX_GROWTH = 256
"""Characters that normalisation may make of one."""


@dataclass(frozen=True, slots=True)
class PromptTokenizer:
    """Turns whole prompts into token ids, without cutting them or padding them with `pad_id`; safe from many threads."""

    path: Path
    pad_id: int
    library: "Tokenizer"

    @classmethod
    def read(cls, path: Path, content: bytes, text: TextInfo) -> "PromptTokenizer":
        """Checks and reads a tokenizer file; messages name `path`.

        Raises:
            BundleError: it is damaged, holds what the exporter does not write, or cannot be read.
            EngineUnavailable: the tokenizers library is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as cause:
            raise EngineUnavailable(f"tokenizers cannot be imported ({cause}); {install_hint('text')}") from cause
        with _library_errors(path):
            pad_id = check_settings(parse_json(content), text)
            library = Tokenizer.from_str(content.decode())
            library.no_truncation()
            library.no_padding()
        return cls(path, pad_id, library)

    def ids(self, prompt: str) -> list[int]:
        """The token ids of one prompt.

        Raises:
            ConfigError: the prompt is not valid Unicode.
            BundleError: the tokenizer fails on it.
        """
        try:
            prompt.encode()
        except UnicodeError as cause:
            raise ConfigError(f"prompt {printable(prompt)} is not valid Unicode; give text") from cause
        with _library_errors(self.path):
            # One by one: encode_batch starts threads, after which the library writes warnings into a forked process's stderr.
            return list(self.library.encode(prompt).ids)


class TextEncoder:
    """Encodes texts with the bundle's text graph; graph and tokenizer are loaded on first use. Safe from many threads."""

    def __init__(self, graphs: Graphs) -> None:
        """Takes the bundle's graphs at fp32: the text side runs once for a set of classes, so it has no other precision."""
        self._graphs = graphs

    def encode(self, texts: object) -> Array:
        """(batch, E), L2-normalised, of strings or of (batch, context) int64 token ids; see `Encoder.encode_text`."""
        ids = texts if isinstance(texts, np.ndarray) and texts.dtype.kind not in "USO" else self._token_ids(_strings(texts))
        text = self._text()
        # Engines differ in this: some fail, others read memory next to the table.
        outside = ids[(ids < 0) | (ids >= text.vocab_size)] if ids.dtype == np.int64 else ids[:0]
        if outside.size:
            raise ConfigError(
                f"token id {outside.flat[0]}, but the text tower's are 0 to {text.vocab_size - 1}; tokenise with the model's own tokenizer, "
                "or give strings"
            )
        embedding: Array = self._graphs.run("text", {"tokens": ids})["embedding"]
        return embedding

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


def check_settings(settings: object, text: TextInfo) -> int:
    """Checks a tokenizer file's JSON against what the exporter writes; returns the id that pads.

    Raises:
        ValueError: a field is unknown, or has another value or kind than the exporter writes.
    """
    if not isinstance(settings, dict) or not settings.keys() <= _FIELDS:
        raise ValueError("it is not an object of a tokenizer's fields")
    _expect(settings, "truncation", {"direction": "Right", "max_length": text.context_length, "strategy": "LongestFirst", "stride": 0})
    padding = settings.get("padding")
    pad_id = padding.get("pad_id") if isinstance(padding, dict) else None
    if type(pad_id) is not int or not 0 <= pad_id < text.vocab_size:
        raise ValueError(f"padding.pad_id is {printable(pad_id)}, but it must be a token id from 0 to {text.vocab_size - 1}")
    fixed = {"strategy": {"Fixed": text.context_length}, "direction": "Right", "pad_to_multiple_of": None}
    for name, value in fixed.items():
        _expect(padding, name, value)
    for part, kinds in _KINDS.items():
        for step in _steps(settings.get(part)):
            if step.get("type") not in kinds.split(", "):
                raise ValueError(f"{part} has the kind {printable(step.get('type'))}, but it may be {kinds}")
    if settings["model"].get("dropout"):
        raise ValueError("model.dropout is set, which makes token ids random")
    _check_normalizers(list(_steps(settings.get("normalizer"))))
    return pad_id


def _expect(settings: Any, name: str, wanted: object) -> None:  # noqa: ANN401 - plain JSON
    if settings.get(name) != wanted:
        raise ValueError(f"{name} is {printable(settings.get(name))}, but the exporter writes {wanted}")


def _steps(part: object) -> Iterator[dict[str, Any]]:
    """A part and, where it is a sequence, what it is made of; null has none."""
    if part is None:
        return
    if not isinstance(part, dict):
        raise ValueError(f"{printable(part)} stands where an object or null is due")
    yield part
    for name in _STEPS:
        for inner in part.get(name, ()):
            yield from _steps(inner)


def _check_normalizers(steps: Sequence[Mapping[str, Any]]) -> None:
    """Rejects replacements that make gigabytes of a prompt, and character maps that the library would run out of memory on."""
    usual, of_character = 1, dict[str, int]()
    for step in reversed(steps):
        if step["type"] == "Precompiled":
            _check_character_map(step.get("precompiled_charsmap"))
        if step["type"] not in ("Replace", "Prepend"):
            continue
        made = sum(of_character.get(character, usual) for character in str(step.get("content", step.get("prepend"))))
        pattern = step.get("pattern")
        if isinstance(pattern, dict) and isinstance(literal := pattern.get("String"), str) and literal:
            of_character[literal[0]] = max(made, of_character.get(literal[0], usual))
        else:  # an expression may match at every character, and between them
            of_character = {character: length + made for character, length in of_character.items()}
            usual += made
        if max(usual, *of_character.values(), 0) > MAX_GROWTH:
            raise ValueError(f"its normalizer makes more than {MAX_GROWTH} characters of one")


def _check_character_map(encoded: object) -> None:
    """SentencePiece's map: the size of a table of 32-bit numbers, the table, and UTF-8 text."""
    content = base64.b64decode(encoded, validate=True) if isinstance(encoded, str) else b""
    size = struct.unpack("<I", content[:4])[0] if len(content) >= 4 else 0
    if not 4 <= size <= len(content) - 4 or size % 4:
        raise ValueError(f"its character map of {len(content)} bytes says that its table has {size}")
    content[4 + size :].decode()


@contextlib.contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Maps what the checks and the library raise; a panic of its Rust code is not an Exception."""
    try:
        yield
    except (PrtoolError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:
        reason = printable(cause) or type(cause).__name__
        raise BundleError(f"{path} is not a readable tokenizer ({reason}); export the bundle again") from cause
