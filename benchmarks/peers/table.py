"""The comparison as Markdown, from its JSON file: one line per encoder, one column per batch, the faster mode in each cell."""

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def markdown(value: Mapping[str, Any], within: float | None = None) -> str:
    """The table and a line below it.

    Args:
        value: what `PeersReport.to_json` gave.
        within: only encoders whose accuracy is at most this many points below that of the unpruned encoder in fp32; None takes all.
    """
    columns, rows = cells(value, within)
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---|" * (len(columns) - 1)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", _legend(value)])


def cells(value: Mapping[str, Any], within: float | None = None) -> tuple[list[str], list[list[str]]]:
    """Column titles, and one list of cells per encoder."""
    rows = [row for row in value["rows"] if within is None or (row["points"] is not None and row["points"] >= -within)]
    batches = sorted({row["batch"] for row in rows})
    encoders: dict[tuple[str, str, str, float], list[Row]] = {}
    for row in rows:
        encoders.setdefault((row["method"], row["engine"], row["precision"], row["keep"]), []).append(row)
    columns = ["encoder", "engine", "precision", "keep", "GMAC", *(f"batch {batch}" for batch in batches)]
    accurate = value["accuracy"] is not None
    return [*columns, "accuracy %"] if accurate else columns, [_line(key, found, batches, accurate) for key, found in encoders.items()]


def _line(key: tuple[str, str, str, float], rows: Sequence[Row], batches: Sequence[int], accurate: bool) -> list[str]:
    method, engine, precision, keep = key
    first = rows[0]
    cells = [method, engine, precision, f"{keep:g}", f"{first['gmacs']:.1f}" if first["gmacs"] >= 1.0 else f"{first['gmacs']:.3f}"]
    for batch in batches:
        found = [row for row in rows if row["batch"] == batch]
        cells.append(_cell(max(found, key=lambda row: float(row["images_per_s"]))) if found else "-")
    if accurate:
        cells.append("-" if first["accuracy"] is None else f"{first['accuracy']:.1f} ({first['points']:+.1f})")
    return cells


def _cell(row: Row) -> str:
    # Results of earlier versions call the theoretical speed-up "bound".
    part = row["share_of_theoretical"] if "share_of_theoretical" in row else row["share_of_bound"]
    share = "" if row["kind"] == "unpruned" else f", {100.0 * part:.0f} %"
    return f"{row['images_per_s']:.1f} ({row['ratio']:.2f}x{share})"


def _legend(value: Mapping[str, Any]) -> str:
    text = (
        f"{value['model']['name']} on {value['device']}, {value['threads']} threads, {value['rounds']} interleaved rounds, {value['date'][:10]}. "
        "Images/s (ratio to open_clip eager fp32 at the same batch, speed-up over the own unpruned encoder as share of the theoretical one); "
        "the faster of fused and split. ToMe rows have the cost of the pruned encoder at that keep."
    )
    accuracy = value["accuracy"]
    return text if accuracy is None else f"{text} Accuracy: {accuracy['about']}, mean (points to unpruned fp32)."
