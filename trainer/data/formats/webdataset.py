"""WebDataset: tar shards whose samples are an image and its class (.cls, .json or .txt), grouped by name up to the first dot."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from prtool.errors import DataError
from prtool.runtime.images.files import LeftOut, is_image
from prtool.text_safety import printable
from prtool.trainer.data.formats.shards import SHARD_SUFFIX, member_span, members, read_member
from prtool.trainer.data.formats.tables import decode_text, read_names
from prtool.trainer.data.images import SPLITS, split_named
from prtool.trainer.data.labels import RawLabel, resolve_labels
from prtool.trainer.data.listing import Entry, Listing

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_UNSPLIT = ""
_LABEL_KINDS = ("cls", "json", "txt")
_MAX_LABEL_BYTES = 1 << 20
# Texts of which most are different describe one image each; class names are short and on one line.
_FEW_TEXTS, _NAME_CHARACTERS = 8, 100


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of a folder by split, sorted by name: train/*.tar, or train*.tar in the folder itself; under "" if they name no split.

    Shards with and without a split, and only compressed shards, are errors.
    """
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        # "val" begins the names of "valid-0.tar" and "validation-0.tar" too.
        inside = [path for name in sorted(folder.iterdir()) if name.is_dir() and split_named(name.name) == split for path in _shards(name, "")]
        shards = inside + _shards(folder, split)
        if shards:
            found[split] = shards
    taken = {path for part in found.values() for path in part}
    rest = [path for path in _shards(folder, "") if path not in taken]
    if rest and found:
        raise DataError(
            f"{folder} has shards of the splits {', '.join(found)}, but {rest[0].name} names none; begin its name with train, val or test"
        )
    if rest or found:
        return found or {_UNSPLIT: rest}
    packed = sorted(path.name for path in folder.glob("*.t*") if path.name.endswith(_COMPRESSED))
    if packed:
        raise DataError(f"{folder} has compressed shards such as {packed[0]}; unpack them to .tar, because images are read one at a time")
    return {}


def read_shards(folder: Path, shards: Mapping[str, Sequence[Path]], left_out: LeftOut) -> Listing:
    """Lists the samples of tar shards; only labels are read, images stay where they are.

    Numbers (.cls, or "label" in .json) take their class names from classnames.txt in `folder`, else from "classname"
    in .json or from .txt; text labels are class names. A sample without an image is left out and counted. A sample with two
    images or two labels of one kind, captions in .txt, and labels that some images lack or that have no names, are errors.

    Args:
        folder: the listing's root.
        shards: as `find_shards` gives them.
        left_out: images of the folder that are not used; those of the shards are added.
    """
    raw: list[RawLabel] = []
    texts: list[str] = []
    counts: dict[str, int] = {}
    for split, files in shards.items():
        before = len(raw)
        for file in files:
            name = file.relative_to(folder).as_posix()
            for sample in _samples(file, name, left_out):
                label, is_text = _label(file, f"{name}/{sample['image']}", sample)
                raw.append(label)
                texts += [label.label] if is_text else []
        counts[split] = len(raw) - before
    _check_captions(folder, texts)
    entries, classnames = resolve_labels(raw, read_names(folder), folder)
    if _UNSPLIT in counts:
        return Listing.hashed(folder, classnames, entries, left_out.note())
    splits: dict[str, Sequence[Entry]] = {}
    for split, count in counts.items():
        splits[split], entries = entries[:count], entries[count:]
    return Listing(folder, classnames, splits, left_out.note())


def _shards(folder: Path, prefix: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{prefix}*{SHARD_SUFFIX}")) if not path.is_dir()]


def _samples(shard: Path, name: str, left_out: LeftOut) -> list[dict[str, str]]:
    """For each sample with an image, its members by kind: "image", "cls", "json" or "txt"."""
    grouped: dict[str, dict[str, str]] = {}
    for member in members(shard):
        folder, slash, file = member.rpartition("/")
        key, _, suffix = file.partition(".")
        # webdataset's own keys may have several parts: "0001.input.jpg" and "0001.output.cls".
        kind = "image" if is_image(f"_{file}") else suffix.rpartition(".")[2].lower()
        if not key:
            if kind == "image":
                left_out.add("hidden", f"{name}/{member}")
        elif kind == "image" or kind in _LABEL_KINDS:
            sample = grouped.setdefault(folder + slash + key, {})
            if kind in sample:
                two = f"'{printable(sample[kind])}' and '{printable(member)}'"
                what = "images" if kind == "image" else f"files of the kind .{kind}"
                raise DataError(f"{shard}: the sample '{printable(folder + slash + key)}' has two {what}, {two}; one is possible")
            sample[kind] = member
    for sample in grouped.values():
        if "image" not in sample:
            left_out.add("samples without an image", f"{name}/{next(iter(sample.values()))}")
    return [sample for sample in grouped.values() if "image" in sample]


def _label(shard: Path, path: str, sample: Mapping[str, str]) -> tuple[RawLabel, bool]:
    """What a sample says about its image, and whether its label is the text of .txt."""
    record = _record(shard, sample["json"]) if "json" in sample else {}
    text = _text(shard, sample["txt"]) if "txt" in sample else ""
    name = record.get("classname", "") or text
    if "cls" in sample:
        return RawLabel(path, _text(shard, sample["cls"]), name), False
    label = record.get("label", "")
    return RawLabel(path, label or name, name), bool(text) and not label and "classname" not in record


def _check_captions(folder: Path, texts: Sequence[str]) -> None:
    """Rejects texts that describe single images: each would become a class."""
    long = next((text for text in texts if "\n" in text or len(text) > _NAME_CHARACTERS), None)
    if long is None and (len(texts) <= _FEW_TEXTS or 2 * len(set(texts)) <= len(texts)):
        return
    raise DataError(
        f"{folder}: the .txt files look like captions, not class names: {len(set(texts))} different texts for {len(texts)} images, such as "
        f"'{printable(texts[0] if long is None else long)}'; put classes into .cls, or unpack the images, which need no labels"
    )


def _text(shard: Path, member: str) -> str:
    try:
        return decode_text(_read_label(shard, member)).strip()
    except UnicodeDecodeError as cause:
        raise DataError(f"{shard}: {printable(member)} is not UTF-8 text: {cause}") from cause


def _record(shard: Path, member: str) -> dict[str, str]:
    """The fields label and classname of a JSON member, as text."""
    try:
        found = json.loads(_read_label(shard, member))
    except (ValueError, RecursionError) as cause:
        raise DataError(f"{shard}: {printable(member)} is not JSON: {printable(cause)}") from cause
    if not isinstance(found, dict):
        example = '{"label": 3, "classname": "cat"}'
        raise DataError(f"{shard}: {printable(member)} must be an object such as {example}, but is {type(found).__name__}")
    fields = {key: found[key] for key in ("label", "classname") if found.get(key) is not None}
    for key, value in fields.items():
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or (isinstance(value, float) and not math.isfinite(value)):
            raise DataError(f"{shard}: {printable(member)} gives {key} = {printable(value)}, but it must be a number or text")
    return {key: str(value).strip() for key, value in fields.items()}


def _read_label(shard: Path, member: str) -> bytes:
    size = member_span(shard, member)[1]
    if size > _MAX_LABEL_BYTES:
        raise DataError(f"{shard}: {printable(member)} has {size} bytes, but a label has at most {_MAX_LABEL_BYTES}")
    return read_member(shard, member)
