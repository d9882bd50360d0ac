"""The frontier's JSON as Markdown: all rows by falling cost, each set by itself, and the deviations from an earlier measurement."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.race import SCOPES

Row = Mapping[str, Any]
_COMPARED = {"accuracy": 1, "changed": 1, "cosine": 3, "overlap_own": 3, "overlap_cross": 3}
"""Figure -> digits."""
_AVERAGED = ("accuracy", "lost", "won", "cosine", "overlap_own", "overlap_cross")
"""Figures of several seeds of which the mean is shown, with half the distance between the least and the greatest."""
_RECALLS = ("text_to_image", "image_to_text")
_REACH = 0.03
"""How far the cost of a row may lie from an earlier one's where no two rows enclose it."""


def joined(values: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Several results of one model as one: rows with the mean of each figure over those that have the row, and its `spread`."""
    groups: dict[tuple[object, ...], list[Row]] = {}
    for value in values:
        for row in value["rows"]:
            groups.setdefault((row["reducer"], row["method"], row["image_size"], row["k"]), []).append(row)
    return {**values[0], "rows": [_mean_row(rows) for rows in groups.values()]}


def _mean_row(rows: Sequence[Row]) -> Row:
    several = {name: [row[name] for row in rows] for name in _AVERAGED if len(rows) > 1 and rows[0][name] is not None}
    sets = {which: {name: _means([row[which][name] for row in rows]) for name in rows[0][which]} for which in ("sets", "unseen")}
    return {**_means(rows), **sets, "spread": {name: (max(found) - min(found)) / 2.0 for name, found in several.items()}}


def _means(rows: Sequence[Row]) -> dict[str, Any]:
    """The first row with the mean of each figure."""
    found = dict(rows[0])
    for name in (*_AVERAGED, *_RECALLS):
        values = [row[name] for row in rows]
        if isinstance(values[0], Sequence):
            found[name] = [statistics.fmean(column) for column in zip(*values, strict=True)]
        elif values[0] is not None:
            found[name] = statistics.fmean(values)
    return found


def markdown(value: Mapping[str, Any], earlier: Mapping[str, Any] | None = None) -> str:
    """Every table of a result; with `earlier`, a file of the same form, also what differs from it."""
    rows = sorted(value["rows"], key=lambda row: -row["share"])
    parts = [_table(*main_table(rows)), _legend(value), "Accuracy (%) of each set:", _table(*set_table(rows, "sets"))]
    if any(row["unseen"] for row in rows):
        parts += ["Accuracy (%), and cosine, on sets that nothing was learned from:", _table(*set_table(rows, "unseen"))]
    if earlier is not None:
        parts += [f"Next to an earlier measurement ({earlier['what']}), ours minus theirs in brackets:", _table(*deviations(rows, earlier["rows"]))]
    return "\n\n".join(parts)


def main_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells; columns of speed for each engine that was timed."""
    engines = list(dict.fromkeys(engine for row in rows for engine in row.get("speed", {})))
    columns: dict[str, Callable[[Row], str]] = {
        "MACs": lambda row: f"{row['share']:.2f}",
        "method": name_of,
        "px": lambda row: str(row["image_size"]),
        "patches": lambda row: str(row["k"]),
        "accuracy %": lambda row: _figure(row, "accuracy", 1),
        "lost / won": lambda row: "-" if row["method"] == "unpruned" else f"{_figure(row, 'lost', 0)} / {_figure(row, 'won', 0)}",
        "cosine": lambda row: _figure(row, "cosine", 3),
        "overlap own / cross": lambda row: f"{_figure(row, 'overlap_own', 3)} / {_figure(row, 'overlap_cross', 3)}",
        "text to image @1 / 5 / 10": lambda row: _recall(row["text_to_image"]),
        "image to text @1 / 5 / 10": lambda row: _recall(row["image_to_text"]),
        "theoretical": lambda row: f"{row['theoretical_speedup']:.2f}x",
    }
    for engine in engines:
        columns[f"{engine}: end to end, encoder (images/s)"] = lambda row, engine=engine: _speed(row, engine)  # type: ignore[misc]
    return list(columns), [[cell(row) for cell in columns.values()] for row in rows]


def set_table(rows: Sequence[Row], which: str) -> tuple[list[str], list[list[str]]]:
    """One column a set; `which` is "sets", or "unseen", where rows that learned nothing have the figures of "sets"."""
    names = list(dict.fromkeys(name for row in rows for name in row[which]))
    cells = []
    for row in rows:
        found = row["sets"] | row[which]
        if which == "unseen" and not row["learns"]:
            found = row["sets"]
        elif set(names) - set(row[which]):
            continue
        figures = [found[name] for name in names]
        extra = [f" ({figure['cosine']:.3f})" if which == "unseen" else "" for figure in figures]
        cells.append([f"{row['share']:.2f}", name_of(row), *(f"{_number(f['accuracy'], 1)}{more}" for f, more in zip(figures, extra, strict=True))])
    return ["MACs", "method", *names], cells


def name_of(row: Row) -> str:
    """The method, and its image where that is not the native one and not the method itself."""
    return (
        f"{row['method']} at {row['image_size']} px"
        if "@" in row["reducer"] and not row["method"].startswith("smaller-image")
        else str(row["method"])
    )


def deviations(rows: Sequence[Row], earlier: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Each earlier row next to ours of the same method and image size, read at its cost on the line between our two nearest rows."""
    cells = []
    for row in earlier:
        own = [item for item in map(_with_changed, rows) if (item["method"], item["image_size"]) == (row["method"], row["image_size"])]
        found = {name: (at_share(own, row["share"], name), digits) for name, digits in _COMPARED.items() if row.get(name) is not None}
        figures = {name: "-" if value is None else f"{value:.{digits}f} ({value - row[name]:+.{digits}f})" for name, (value, digits) in found.items()}
        cells.append([f"{row['share']:.2f}", row["method"], str(row["image_size"]), *(figures.get(name, "") for name in _COMPARED)])
    return ["MACs", "method", "px", "accuracy %", "changed %", "cosine", "overlap own", "overlap cross"], cells


def at_share(rows: Sequence[Row], share: float, name: str) -> float | None:
    """A figure at a cost, linear between the nearest rows around it; of the nearest row alone within a small distance; else None."""
    known = [row for row in rows if row[name] is not None]
    below = max((row for row in known if row["share"] <= share), key=lambda row: row["share"], default=None)
    above = min((row for row in known if row["share"] >= share), key=lambda row: row["share"], default=None)
    if below is not None and above is not None and above["share"] > below["share"]:
        part = (share - below["share"]) / (above["share"] - below["share"])
        return float(below[name] + part * (above[name] - below[name]))
    nearest = below or above
    return float(nearest[name]) if nearest is not None and abs(nearest["share"] - share) <= _REACH else None


def _with_changed(row: Row) -> dict[str, Any]:
    changed = None if row["lost"] is None else 100.0 * (row["lost"] + row["won"]) / row["images"]
    return {**row, "changed": changed}


def _speed(row: Row, engine: str) -> str:
    found = row.get("speed", {}).get(engine)
    return "-" if found is None else ", ".join(f"{found[scope]['images_per_s']:.1f} ({found[scope]['speedup']:.2f}x)" for scope in SCOPES)


def _figure(row: Row, name: str, digits: int) -> str:
    """A figure, and how far seeds lie from it where there are several."""
    spread = row.get("spread", {}).get(name)
    return _number(row[name], digits) + (f" ± {spread:.{digits}f}" if spread is not None else "")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _recall(values: Sequence[float] | None) -> str:
    return "-" if values is None else " / ".join(f"{value:.1f}" for value in values)


def _legend(value: Mapping[str, Any]) -> str:
    sets = ", ".join(f"{name} ({count})" for name, count in value["data"].items())
    text = (
        f"{value['model']} in PyTorch fp32, test images of {sets}; mean of the sets, lost and won are images of all. Overlap: share of the ten "
        "nearest neighbours within a set that stay, own index and index of the unpruned embeddings."
    )
    speed = value["speed"]
    if speed is None:
        return text
    return (
        f"{text} Speed: fp32, batch {speed['batch']}, {speed['threads']} threads of {value['cpu']}, {speed['rounds']} interleaved rounds from "
        f"{speed['images']}, {value['date'][:10]}; in brackets relative to the unpruned encoder of the same engine."
    )


def _table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + " -- |" * len(columns)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)])
