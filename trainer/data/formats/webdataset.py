"""WebDataset: tar shards whose samples are an image and its class (.cls, .json or .txt), grouped by name up to the first dot."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prtool.errors import DataError
from prtool.runtime.images.files import LeftOut, is_image
from prtool.text_safety import printable
from prtool.trainer.data.formats.shards import SHARD_SUFFIX, member_span, members, read_member
from prtool.trainer.data.formats.tables import read_names
from prtool.trainer.data.formats.text_files import decode_text
from prtool.trainer.data.images import SPLITS
from prtool.trainer.data.labels import RawLabel, resolve_labels
from prtool.trainer.data.listing import HASHED_NOTE, Entry, Listing, hashed_split, joined
from prtool.trainer.data.split_names import split_named

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_UNSPLIT = ""
_LABEL_KINDS = ("cls", "json", "txt")
_LABEL_BYTES = 1 << 20
# Texts of which most are different describe one image each; class names are short and on one line.
_FEW_TEXTS, _NAME_CHARACTERS = 8, 100


@dataclass(frozen=True, slots=True)
class _Sample:
    """An image and what its shard says about it; `is_text` where .txt alone does."""

    raw: RawLabel
    is_text: bool


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of a folder by split: train/*.tar, or train*.tar beside each other; under "" those that name no split.

    Returns:
        Split -> shards sorted by name; empty where the folder has none.

    Raises:
        DataError: the folder has compressed shards only, or shards with and without a split.
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
    if not rest and not found:
        packed = sorted(path.name for path in folder.glob("*.t*") if path.name.endswith(_COMPRESSED))
        if packed:
            raise DataError(f"{folder} has compressed shards such as {packed[0]}; unpack them to .tar, since single images are read out of them")
    return found or ({_UNSPLIT: rest} if rest else {})


def read_shards(folder: Path, shards: Mapping[str, Sequence[Path]], left_out: LeftOut) -> Listing:
    """Lists the samples of tar shards; only labels are read, images stay where they are.

    Numbers (.cls, or "label" in .json) take their class names from classnames.txt in `folder`, else from "classname"
    in .json or from .txt; text labels are class names. A sample without an image is left out and counted.

    Args:
        folder: the listing's root.
        shards: as `find_shards` gives them.
        left_out: images of the folder that are not used; those of the shards are added.

    Raises:
        DataError: a shard cannot be read, a sample has two images or two labels of one kind, .txt holds captions, or labels are
            missing for some or have no names.
    """
    samples: list[_Sample] = []
    counts: dict[str, int] = {}
    for split, files in shards.items():
        before = len(samples)
        for file in files:
            samples += _samples(file, file.relative_to(folder).as_posix(), left_out)
        counts[split] = len(samples) - before
    _check_captions(folder, [item.raw for item in samples if item.is_text])
    raw = [item.raw for item in samples]
    labels, classnames = resolve_labels(raw, read_names(folder), folder)
    entries = [(item.place, label) for item, label in zip(raw, labels, strict=True)]
    if _UNSPLIT in counts:
        return Listing(folder, classnames, hashed_split(entries, classnames), joined(HASHED_NOTE, left_out.note()))
    splits: dict[str, Sequence[Entry]] = {}
    for split, count in counts.items():
        splits[split], entries = entries[:count], entries[count:]
    return Listing(folder, classnames, splits, left_out.note())


def _shards(folder: Path, prefix: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{prefix}*{SHARD_SUFFIX}")) if not path.is_dir()]


def _samples(shard: Path, name: str, left_out: LeftOut) -> list[_Sample]:
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
    return [_label(shard, f"{name}/{sample['image']}", sample) for sample in grouped.values() if "image" in sample]


def _label(shard: Path, place: str, sample: Mapping[str, str]) -> _Sample:
    record = _record(shard, sample["json"]) if "json" in sample else {}
    text = _text(shard, sample["txt"]) if "txt" in sample else ""
    name = record.get("classname", "") or text
    if "cls" in sample:
        return _Sample(RawLabel(place, _text(shard, sample["cls"]), name), is_text=False)
    label = record.get("label", "")
    return _Sample(RawLabel(place, label or name, name), is_text=bool(text) and not label and "classname" not in record)


def _check_captions(folder: Path, raw: Sequence[RawLabel]) -> None:
    """Rejects texts that describe single images: each would become a class."""
    texts = [item.label for item in raw]
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
        raise DataError(f"{shard}: {printable(member)} is no UTF-8 text: {cause}") from cause


def _record(shard: Path, member: str) -> dict[str, str]:
    """The fields label and classname of a JSON member, as text."""
    try:
        found = json.loads(_read_label(shard, member))
    except (ValueError, RecursionError) as cause:
        raise DataError(f"{shard}: {printable(member)} is no JSON: {printable(cause)}") from cause
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
    if size > _LABEL_BYTES:
        raise DataError(f"{shard}: {printable(member)} has {size} bytes, but a label has at most {_LABEL_BYTES}")
    return read_member(shard, member)
