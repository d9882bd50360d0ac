"""The published numbers, read from published.json: what the paper and its supplement report for ViT-B/16."""

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AVERAGE = "average"
"""The column that is the mean over data sets."""


@dataclass(frozen=True, slots=True)
class PublishedSet:
    """A data set of the paper (or EuroSAT), as CoOp has it.

    Attributes:
        column: its name in the paper's tables.
        template: the prompt, with {} for the class name.
        classes: number of classes.
        train, val, test: number of images; 0 where CoOp has no such split.
    """

    column: str
    template: str
    classes: int
    train: int
    val: int
    test: int


@functools.cache
def published() -> Mapping[str, Any]:
    """The whole file as plain values; nobody may change them."""
    value: dict[str, Any] = json.loads((Path(__file__).parent / "published.json").read_bytes())
    return value


def recognise(folder_name: str) -> PublishedSet | None:
    """The data set that a folder is called after; None for an unknown name.

    Case and punctuation do not count ("caltech-101", "Oxford_Pets"), nor do digits after the name ("dtd10" is a part of DTD).
    """
    plain = re.sub(r"[^a-z0-9]", "", folder_name.lower())
    for column, facts in published()["data_sets"].items():
        if any(re.fullmatch(re.escape(alias) + r"\d*", plain) for alias in facts["aliases"]):
            return PublishedSet(column, *(facts[name] for name in ("template", "classes", "train", "val", "test")))
    return None


def columns_of(table: str) -> tuple[str, ...]:
    """The data sets that the paper reports in a table, in its order; none where it reports no number."""
    found: Mapping[str, Any] = published().get(table, {})
    if "columns" in found:
        return tuple(name for name in found["columns"] if name != "Avg.")
    return tuple(found.get("rows", {}))


def in_columns(table: str, row: str, column: str) -> float | None:
    """The number of a table with one row a method or setting and one column a data set; None where the paper has none."""
    found = published()[table]
    if row not in found["rows"] or column not in found["columns"]:
        return None
    value: float = found["rows"][row][found["columns"].index(column)]
    return value


def in_ablation(column: str, arch: str, what: str) -> float | None:
    """The number of the predictor ablation; `what` is "match" or a keep such as "0.6". None where the paper has none."""
    value: float | None = published()["predictor-ablation"]["rows"].get(column, {}).get(arch, {}).get(what)
    return value


def claims_of(table: str, *, tuned: bool) -> tuple[str, ...]:
    """The paper's claims that belong to a table, as sentences that say whether tokens were tuned for them.

    Args:
        table: its name.
        tuned: the table has figures with learnable tokens; without, claims that need them are left out.
    """
    found = [claim for claim in published()["claims"] if table in claim["tables"] and (tuned or not claim["tuned_tokens"])]
    lines = [f"{claim['claim']} ({claim['source']}, {'with' if claim['tuned_tokens'] else 'without'} learnable tokens)" for claim in found]
    figure = published().get(table, {}).get("claim")
    return tuple(lines) if figure is None else (*lines, f"{figure} ({published()[table]['source']})")
