"""The text side of a bundle: a tokenizer file that needs neither PyTorch nor open_clip, and class embeddings."""

import json
from pathlib import Path
from typing import Any, cast

import torch
from ftfy.chardata import LIGATURES
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from safetensors.torch import save
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn

from prtool.errors import ModelError
from prtool.export.source import ExportSource
from prtool.files import write_bytes
from prtool.manifest import ClassInfo, TextInfo
from prtool.runtime.classes import TENSOR_NAME
from prtool.runtime.text import check_settings

TOKENIZER_NAME = "tokenizer.json"
CLASSES_NAME = "classes.safetensors"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# What ftfy and html.unescape change in ordinary prompts, with ftfy's ligatures. Left as they are: broken encodings
# ("Ã©"), full-width Latin letters, rare HTML entities, and the Greek final sigma in lower case.
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&nbsp;": " "}
_REGEX_REWRITES = (("[\u02bc\u2018-\u201b]", "'"), ("[\u201c-\u201f]", '"'), (r"[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff]", ""), (r"\s+", " "))
_SAMPLES = (
    "a photo of a cat.",
    "It's 3 o'clock, isn't it?  Two\tspaces and a tab",
    "Übergrößenträger, naïve café",
    "word " * 200,
)


def tokenizer_of(source: ExportSource) -> Tokenizer | None:
    """The model's tokenizer in the form of the `tokenizers` library, cut and padded to the context length.

    Returns:
        None where the model's tokenizer cannot be written so, is of a kind that readers reject, or would give other token ids.
    """
    tokenizer: Any = source.model.tokenizer
    length = source.model.context_length
    if isinstance(tokenizer, SimpleTokenizer):
        made = _byte_pairs(tokenizer, length) if _is_plain(tokenizer) else None
    elif isinstance(tokenizer, HFTokenizer):
        made = _hugging_face(tokenizer, length)
    else:
        made = None
    if made is None:
        return None
    try:
        check_settings(json.loads(made.to_str()), TextInfo(length, vocabulary(source), TOKENIZER_NAME))
    except ValueError:
        return None
    wanted = cast(list[list[int]], source.model.tokenizer(_SAMPLES).tolist())
    return made if [encoded.ids for encoded in made.encode_batch(list(_SAMPLES))] == wanted else None


def vocabulary(source: ExportSource) -> int:
    """How many token ids the text tower knows: the rows of the table that its token ids are looked up in.

    Raises:
        ModelError: no table is looked up by the token ids.
    """
    found: list[int] = []
    ids = torch.arange(source.model.context_length)[None] % 2

    def look(table: nn.Module, inputs: tuple[object, ...]) -> None:
        if isinstance(inputs[0], torch.Tensor) and inputs[0].shape == ids.shape and torch.equal(inputs[0].cpu(), ids):
            found.append(cast(nn.Embedding, table).num_embeddings)

    hooks = [module.register_forward_pre_hook(look) for module in source.model.text.modules() if isinstance(module, nn.Embedding)]
    try:
        with torch.no_grad():
            source.model.text(ids)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ModelError(f"{source.model.name}: its text tower looks its token ids up in no embedding table, so their range is unknown")
    return found[0]


def write_tokenizer(tokenizer: Tokenizer, path: Path) -> None:
    """Writes a tokenizer as indented JSON."""
    path.write_text(json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=0), encoding="utf-8")


def write_side(source: ExportSource, root: Path) -> TextInfo | None:
    """Writes the tokenizer into `root`, where it can be written; None where the model has no text side."""
    if not source.model.has_text:
        return None
    tokenizer = tokenizer_of(source)
    if tokenizer is not None:
        write_tokenizer(tokenizer, root / TOKENIZER_NAME)
    return TextInfo(source.model.context_length, vocabulary(source), "" if tokenizer is None else TOKENIZER_NAME)


def write_classes(source: ExportSource, root: Path) -> ClassInfo | None:
    """Writes the class embeddings, (classes, E) float32, into `root`; None where `source` has no classes."""
    embeddings = source.classes()
    if embeddings is None:
        return None
    write_bytes(root / CLASSES_NAME, save({TENSOR_NAME: embeddings.contiguous()}))
    return ClassInfo(source.classnames, source.templates, CLASSES_NAME)


def _is_plain(tokenizer: SimpleTokenizer) -> bool:
    return tokenizer.reduction_fn is None and tokenizer.clean_fn("A_B  c") == "a_b c"


def _byte_pairs(tokenizer: SimpleTokenizer, length: int) -> Tokenizer:
    """CLIP's byte pairs; open_clip's SimpleTokenizer is the reference."""
    merges = cast(list[tuple[str, str]], sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__))
    specials = [tokenizer.decoder[number] for number in tokenizer.all_special_ids]
    start, end = specials[:2]
    made = Tokenizer(models.BPE(tokenizer.encoder, merges, end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=end))
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in specials])
    rewrites = {**_ENTITIES, **{chr(code): letters for code, letters in LIGATURES.items()}}
    plain = [normalizers.Replace(old, new) for old, new in rewrites.items()]
    patterns = [normalizers.Replace(Regex(old), new) for old, new in _REGEX_REWRITES]
    made.normalizer = normalizers.Sequence([normalizers.NFC(), *plain, *patterns, normalizers.Strip(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, tokenizer.sot_token_id), (end, tokenizer.eot_token_id)]
    )
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=0, pad_token=tokenizer.decoder[0])
    return made


def _hugging_face(tokenizer: Any, length: int) -> Tokenizer | None:  # noqa: ANN401 - open_clip has no types
    """The fast tokenizer inside; the cleaning that open_clip does before it goes in front of its own."""
    backend = getattr(tokenizer.tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.tokenizer_mode or tokenizer.strip_sep_token:
        return None
    made = Tokenizer.from_str(backend.to_str())
    cleaned = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    if tokenizer.clean_fn("A_B.") == "a b":
        punctuation = [normalizers.Replace("_", " "), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""), normalizers.Lowercase()]
        cleaned = [*punctuation, *cleaned]
    elif tokenizer.clean_fn("A") == "a":
        cleaned = [*cleaned, normalizers.Lowercase()]
    own = [] if made.normalizer is None else [made.normalizer]
    made.normalizer = normalizers.Sequence([*cleaned, *own])
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=tokenizer.tokenizer.pad_token_id, pad_token=str(tokenizer.tokenizer.pad_token))
    return made
