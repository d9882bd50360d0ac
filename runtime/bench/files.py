"""Where a benchmark's result goes: JSON, CSV and PNG, each whole or not at all."""

import csv
import importlib.util
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prtool.errors import ConfigError
from prtool.files import PICTURE, OutputKind, check_output, file_kind, write_bytes, write_json

SUFFIXES = (".json", ".csv", ".png")
REPORT = file_kind("a benchmark's report", {".json": re.compile(rb'\{\n "schema": \d+,\n "engines"'), ".csv": re.compile(rb"scope,batch,engine,")})


def output_files(output: Path, kind: OutputKind = REPORT) -> tuple[Path, ...]:
    """The files that `output` stands for: one by its suffix, or NAME.json, NAME.csv and NAME.png where it has none.

    Args:
        output: a name with or without one of `SUFFIXES`.
        kind: what the JSON and CSV files may replace; a picture replaces a picture that prtool drew.

    Raises:
        ConfigError: another suffix, or a picture is asked for and matplotlib is not installed, or something of another
            kind stands at one of them. Ask before measuring.
        StorageError: one of them cannot be written.
    """
    suffix = output.suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise ConfigError(f"output = {output}, but its name must end in {', '.join(SUFFIXES)}, or in none of them to write all three")
    files = (output,) if suffix else tuple(output.with_name(output.name + item) for item in SUFFIXES)
    if files[-1].suffix.lower() == ".png" and importlib.util.find_spec("matplotlib") is None:
        other = output.with_suffix(".json")
        raise ConfigError(f"output = {output} needs matplotlib for its picture, which is not installed; pip install matplotlib, or write {other}")
    _check(files, kind)
    return files


def write_report(report: Any, files: Sequence[Path], plot: Callable[[Any, Path], None], kind: OutputKind = REPORT) -> None:  # noqa: ANN401
    """Writes each file in the form that its suffix names.

    Args:
        report: a result with `to_json()` (plain values) and `to_csv()` (records with the same keys).
        files: ending in .json, .csv or .png.
        plot: draws the report into a PNG file.
        kind: what they may replace, as `output_files` takes it.

    Raises:
        ConfigError: something of another kind stands at one of them; nothing was written.
        StorageError: a file cannot be written.
    """
    _check(files, kind)
    for file in files:
        match file.suffix.lower():
            case ".json":
                write_json(file, report.to_json())
            case ".csv":
                write_bytes(file, _csv(report.to_csv()))
            case _:
                plot(report, file)


def _csv(records: Sequence[Mapping[str, Any]]) -> bytes:
    """UTF-8, a heading first; None becomes an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue().encode()


def _check(files: Sequence[Path], kind: OutputKind) -> None:
    for file in files:
        check_output(file, PICTURE if file.suffix.lower() == ".png" else kind)
