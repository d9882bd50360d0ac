"""Labels and class names from what a CSV row or a shard's sample says about its class."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from prtool.errors import DataError
from prtool.text_safety import printable
from prtool.trainer.data.images import NO_LABEL
from prtool.trainer.data.listing import Entry, names_in_order, numbered

_Key = TypeVar("_Key", int, str)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
# Tables with missing values write whole numbers as 3.0.
_WHOLE = re.compile(r"(\d{1,9})(\.0*)?", re.ASCII)


class RawLabel(NamedTuple):
    """What the data says about one image: its path, its label (a number, an id, a class name or ""), and a class name for that label, or ""."""

    path: str
    label: str
    name: str


def whole_label(text: str) -> int:
    """A label that is written as a number.

    Raises:
        ValueError: it is not a whole number from 0 to 999,999,999.
    """
    found = _WHOLE.fullmatch(text)
    if found is None:
        raise ValueError(f"the label '{printable(text)}' is not a whole number from 0 to 999,999,999")
    return int(found.group(1))


def resolve_labels(raw: Sequence[RawLabel], names: tuple[str, ...], where: Path) -> tuple[list[Entry], tuple[str, ...]]:
    """The entries of a listing and the class names.

    Numbers are labels from 0; their class names stand next to them or in `names`, which a file next to the data gives. Text
    labels are class names, numbered in sorted order, unless class names stand next to them: then they are ids (n01440764), which
    those names replace. If no image has a label, all get NO_LABEL and there are no class names.

    Raises:
        DataError: only some images have labels, some labels are numbers and others text, numbers have no names, or a number or
            id has two names; the message begins with `where`.
    """
    unlabelled = [item.path for item in raw if not item.label]
    if len(unlabelled) == len(raw):
        return [(item.path, NO_LABEL) for item in raw], ()
    if unlabelled:
        raise DataError(
            f"{where}: {len(unlabelled)} of {len(raw)} images have no label, the first '{printable(unlabelled[0])}'; label all of them, or none"
        )
    numbers = [item.label for item in raw if _NUMBER.fullmatch(item.label)]
    texts = [item.label for item in raw if not _NUMBER.fullmatch(item.label)]
    if numbers and texts:
        raise DataError(
            f"{where} has numbers as labels, such as {numbers[0]!r}, and text, such as '{printable(texts[0])}'; "
            "write one kind, with the class names in a column classname if that is numbers"
        )
    labels, classnames = (_by_number if numbers else _by_text)(raw, names, where)
    return [(item.path, label) for item, label in zip(raw, labels, strict=True)], classnames


def _by_number(raw: Sequence[RawLabel], names: tuple[str, ...], where: Path) -> tuple[list[int], tuple[str, ...]]:
    try:
        labels = [whole_label(item.label) for item in raw]
    except ValueError as cause:
        raise DataError(f"{where}: {cause}; number the classes from 0, or write their names") from cause
    classnames = names or names_in_order(_named(zip(labels, raw, strict=True), where), where)
    if max(labels) >= len(classnames):
        raise DataError(f"{where} has label {max(labels)}, but there are {len(classnames)} class names, for 0 to {len(classnames) - 1}")
    return labels, classnames


def _by_text(raw: Sequence[RawLabel], names: tuple[str, ...], where: Path) -> tuple[list[int], tuple[str, ...]]:
    texts = [item.label for item in raw]
    if not names and any(item.name not in ("", item.label) for item in raw):
        named = _named(zip(texts, raw, strict=True), where)
        label_of = numbered(sorted(named))
        return [label_of[text] for text in texts], tuple(named[text] for text in label_of)
    classnames = names or tuple(sorted(set(texts)))
    label_of = numbered(classnames)
    unknown = sorted(set(texts) - set(label_of))
    if unknown:
        raise DataError(
            f"{where} has the class '{printable(unknown[0])}', which is not among the {len(classnames)} class names given in a file next to it"
        )
    return [label_of[text] for text in texts], classnames


def _named(keyed: Iterable[tuple[_Key, RawLabel]], where: Path) -> dict[_Key, str]:
    """The class name of each number or id."""
    found: dict[_Key, str] = {}
    for key, item in keyed:
        if not item.name:
            raise DataError(
                f"{where}: the label of '{printable(item.path)}' is {printable(item.label)}, but it has no class name; "
                "write class names as labels, add a column classname, or put classnames.txt (one name a line, in label order) in the same folder"
            )
        if found.setdefault(key, item.name) != item.name:
            two = f"'{printable(found[key])}' and '{printable(item.name)}'"
            raise DataError(f"{where} gives label {printable(key)} two class names, {two} (at '{printable(item.path)}'); one is possible")
    return found
