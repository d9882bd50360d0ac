"""Where a benchmark's result goes: JSON, CSV and PNG, each whole or not at all."""

import csv
import importlib.util
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from prtool.errors import ConfigError
from prtool.files import PICTURE, OutputKind, check_output, file_kind, write_bytes, write_json

SUFFIXES = (".json", ".csv", ".png")
REPORT = file_kind("a benchmark's report", {".json": re.compile(rb'\{\n "schema": \d+,\n "engines"'), ".csv": re.compile(rb"scope,batch,engine,")})


def output_files(output: Path, kind: OutputKind = REPORT) -> tuple[Path, ...]:
    """The files that `output` stands for: one by its suffix, or NAME.json, NAME.csv and NAME.png where it has none. Ask before measuring.

    Raises:
        ConfigError: another suffix, or a picture is asked for and matplotlib is not installed, or something else than `kind`, or
            than a picture that prtool drew, stands at one of them.
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
    """Writes each file in the form that its suffix names; raises as `output_files`, before anything is written.

    Args:
        report: a result with `to_json()` (plain values) and `to_csv()` (records with the same keys).
        files: ending in .json, .csv or .png.
        plot: draws the report into a PNG file.
        kind: what they may replace.
    """
    _check(files, kind)
    for file in files:
        match file.suffix.lower():
            case ".json":
                write_json(file, report.to_json())
            case ".csv":
                text, records = io.StringIO(), report.to_csv()
                writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)
                write_bytes(file, text.getvalue().encode())
            case _:
                plot(report, file)


def _check(files: Sequence[Path], kind: OutputKind) -> None:
    for file in files:
        check_output(file, PICTURE if file.suffix.lower() == ".png" else kind)
