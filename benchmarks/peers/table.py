"""The race as Markdown, from its JSON file: one line per encoder, one column per scope, by falling cost."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(value: Mapping[str, Any], within: float | None = None) -> str:
    """The table and a line below it.

    Args:
        value: what `PeersReport.to_json` gave.
        within: only encoders that lose at most this many points of accuracy; None takes all.
    """
    columns, rows = cells(value, within)
    lines = ["| " + " | ".join(columns) + " |", "|" + " -- |" * len(columns)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _legend(value)])


def cells(value: Mapping[str, Any], within: float | None = None) -> tuple[list[str], list[list[str]]]:
    """Column titles, and one list of cells per encoder: the cost falls, and equal costs stand by rising speed end to end."""
    rows = [row for row in value["rows"] if within is None or (row["drop"] is not None and row["drop"] <= within)]
    scopes = list(dict.fromkeys(row["scope"] for row in rows))
    encoders: dict[tuple[Any, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (-row["target"], row["images_per_s"])):
        encoders.setdefault(tuple(row[name] for name in ("name", "engine", "precision", "target")), []).append(row)
    accurate = bool(value["accuracy"])
    columns = ["MACs", "encoder", "engine", "precision", "px", "patches", *scopes, *(["accuracy %", "cosine"] if accurate else [])]
    return columns, [_line(found, scopes, accurate) for found in encoders.values()]


def _line(rows: Sequence[Row], scopes: Sequence[str], accurate: bool) -> list[str]:
    first = rows[0]
    cells = [f"{first['share']:.2f}", first["name"], first["engine"], first["precision"], str(first["image_size"]), str(first["k"] or "-")]
    cells += [_cell(next(row for row in rows if row["scope"] == scope)) for scope in scopes]
    if accurate:
        cells.append("-" if first["accuracy"] is None else f"{first['accuracy']:.1f} ({0.0 - first['drop']:+.1f})")
        cells.append("-" if first["fidelity"] is None else f"{first['fidelity']:.3f}")
    return cells


def _cell(row: Row) -> str:
    share = "" if row["method"] == "unpruned" else f", {row['speedup']:.2f}x = {100.0 * row['share_of_theoretical']:.0f} %"
    return f"{row['images_per_s']:.1f} ({row['ratio']:.2f}x{share})"


def _legend(value: Mapping[str, Any]) -> str:
    text = (
        f"{value['model']['name']} on {value['device']}, {value['threads']} threads, batch {value['batch']}, {value['rounds']} interleaved rounds, "
        f"{value['date'][:10]}. Images/s (relative to open_clip eager fp32, then speed-up over the unpruned encoder of the same engine and precision "
        f"and its share of the theoretical one). End to end from {value['images']}."
    )
    about = value["accuracy"]
    return text if not about else f"{text} Accuracy and cosine: {about}, the same method and cost; not of this model or precision."
