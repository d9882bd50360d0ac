"""WebDataset: tar shards whose samples are an image and its class (.cls, .json or .txt), grouped by name up to the first dot."""

import json
from collections.abc import Sequence
from pathlib import Path

from prtool.errors import DataError
from prtool.trainer.datasets.forms import read_names
from prtool.trainer.datasets.images import SPLITS
from prtool.trainer.datasets.labels import RawLabel, resolve_labels
from prtool.trainer.datasets.listing import SEEDED_NOTE, Entry, Listing, is_image, seeded_split
from prtool.trainer.datasets.shards import SHARD_SUFFIX, members, read_member

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_UNSPLIT = ""


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards of a folder by split: train/*.tar, or train*.tar beside each other; under "" those that name no split.

    Returns:
        Split -> shards sorted by name; empty where the folder has none.

    Raises:
        DataError: the folder has compressed shards only, or shards with and without a split.
    """
    found: dict[str, list[Path]] = {}
    for split in SPLITS:
        inside, beside = _shards(folder / split, ""), _shards(folder, split)
        if inside or beside:
            found[split] = inside + beside
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


def read_shards(folder: Path, shards: dict[str, list[Path]]) -> Listing:
    """Lists the samples of tar shards; only labels are read, images stay where they are.

    Numbers (.cls, or "label" in .json) take their class names from classnames.txt in `folder`, else from "classname"
    in .json or from .txt; text labels are class names. A sample without an image is left out.

    Args:
        folder: the listing's root.
        shards: as `find_shards` gives them.

    Raises:
        DataError: a shard cannot be read, a sample has two images, or labels are missing for some or have no names.
    """
    raw: list[RawLabel] = []
    counts: dict[str, int] = {}
    for split, files in shards.items():
        before = len(raw)
        for file in files:
            raw += _samples(file, file.relative_to(folder).as_posix())
        counts[split] = len(raw) - before
    labels, classnames = resolve_labels(raw, read_names(folder), folder)
    entries = [(item.place, label) for item, label in zip(raw, labels, strict=True)]
    if _UNSPLIT in counts:
        return Listing(folder, classnames, seeded_split(sorted(entries), classnames), SEEDED_NOTE)
    splits: dict[str, Sequence[Entry]] = {}
    for split, count in counts.items():
        splits[split], entries = entries[:count], entries[count:]
    return Listing(folder, classnames, splits)


def _shards(folder: Path, prefix: str) -> list[Path]:
    return [path for path in sorted(folder.glob(f"{prefix}*{SHARD_SUFFIX}")) if path.is_file()]


def _samples(shard: Path, name: str) -> list[RawLabel]:
    grouped: dict[str, dict[str, str]] = {}
    for member in members(shard):
        folder, slash, file = member.rpartition("/")
        key, _, suffix = file.partition(".")
        if key:
            sample = grouped.setdefault(folder + slash + key, {})
            kind = "image" if is_image(file) else suffix.lower()
            if kind == "image" and kind in sample:
                raise DataError(f"{shard}: the sample {folder + slash + key!r} has two images, {sample[kind]!r} and {member!r}; one is possible")
            sample[kind] = member
    return [_label(shard, f"{name}/{sample['image']}", sample) for sample in grouped.values() if "image" in sample]


def _label(shard: Path, place: str, sample: dict[str, str]) -> RawLabel:
    record = _record(shard, sample["json"]) if "json" in sample else {}
    text = _text(shard, sample["txt"]) if "txt" in sample else ""
    name = record.get("classname", "") or text
    if "cls" in sample:
        return RawLabel(place, _text(shard, sample["cls"]), name)
    return RawLabel(place, record.get("label", "") or name, name)


def _text(shard: Path, member: str) -> str:
    try:
        return read_member(shard, member).decode("utf-8").strip()
    except UnicodeDecodeError as cause:
        raise DataError(f"{shard}: {member} is no UTF-8 text: {cause}") from cause


def _record(shard: Path, member: str) -> dict[str, str]:
    """The fields label and classname of a JSON member, as text."""
    try:
        found = json.loads(read_member(shard, member))
    except ValueError as cause:
        raise DataError(f"{shard}: {member} is no JSON: {cause}") from cause
    if not isinstance(found, dict):
        raise DataError(f'{shard}: {member} must be an object such as {{"label": 3, "classname": "cat"}}, but is {type(found).__name__}')
    return {key: str(found[key]).strip() for key in ("label", "classname") if found.get(key) is not None}
