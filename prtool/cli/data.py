"""The commands about data sets that are known by name: list them, download one."""

from pathlib import Path

import click

from prtool.cli.console import message, result_json, result_table
from prtool.cli.parameters import FOLDER, json_option


@click.group()
def data() -> None:
    """Data sets that are known by name (docs/data.md)."""


@data.command(name="list")
@json_option
def list_sets(as_json: bool) -> None:
    """Names that --data takes as NAME:FOLDER, with their prompts."""
    from prtool.trainer.data.formats.known import KNOWN

    rows = [[item.name, str(item.classes), item.template, item.torchvision or "-"] for item in KNOWN.values()]
    if as_json:
        names = ("name", "classes", "templates", "torchvision")
        result_json({"results": [dict(zip(names, row, strict=True)) for row in rows]})
        return
    result_table(["name", "classes", "prompts", "torchvision downloads it as"], rows)


@data.command()
@click.argument("name")
@click.option("-o", "--output", type=FOLDER, default=Path("data"), show_default=True, help="Folder of data sets.")
@json_option
def download(name: str, output: Path, as_json: bool) -> None:
    """Download one set by torchvision; what is there already is not fetched again."""
    from prtool.trainer.data.download import download as fetch

    address = fetch(name, output)
    if as_json:
        result_json({"output": str(output), "data": str(address)})
    message(f"wrote {output}; next: prtool train --data {address}")
