"""Measures a bundle and writes the result, with device and versions, into benchmarks/results/.

python benchmarks/encoder.py runs/b16/bundle --batch 8 --keep 0.6 --mode fused,split --threads 2
"""

import re
from pathlib import Path

import click

from prtool.console import BarProgress, message, result_table
from prtool.errors import PrtoolError
from prtool.files import write_json
from prtool.runtime.bench import BenchConfig, bench
from prtool.runtime.images import expand_images
from prtool.spec import Keep

RESULTS = Path(__file__).resolve().parent / "results"


def _items(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _batches(text: str) -> tuple[int, ...]:
    items = _items(text)
    if not all(item.isdigit() for item in items):
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 1,8")
    return tuple(int(item) for item in items)


def _file_name(model: str, engine: str, threads: int) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{model} {engine} {threads or 'all'} threads".lower()).strip("-") + ".json"


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", default="ort", show_default=True, help="Engine name.")
@click.option("--batch", default="1,8", show_default=True, help="Images a call, comma-separated.")
@click.option("--keep", default="1.0,0.6", show_default=True, help="Ratios or counts of patches, comma-separated.")
@click.option("--mode", default="fused", show_default=True, help="fused, split or both.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--seconds", default=60.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--images", type=click.Path(path_type=Path), default=None, help="Folder of photographs for the end-to-end rows.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=None, help="JSON file; named after model and engine if absent.")
def main(**options: object) -> None:
    """Measures BUNDLE: pruned beside unpruned, encoder alone and end to end."""
    try:
        _run(options)
    except PrtoolError as error:
        raise click.ClickException(str(error)) from error


def _run(options: dict[str, object]) -> None:
    images = options["images"]
    config = BenchConfig(
        engine=str(options["engine"]),
        batches=_batches(str(options["batch"])),
        keeps=tuple(Keep.parse(item) for item in _items(str(options["keep"]))),
        modes=_items(str(options["mode"])),
        images=tuple(expand_images([images])) if isinstance(images, Path) else None,
        threads=int(str(options["threads"])),
        budget_s=float(str(options["seconds"])),
    )
    report = bench(str(options["bundle"]), config, BarProgress())
    output = options["output"]
    path = output if isinstance(output, Path) else RESULTS / _file_name(str(report.model["name"]), report.engine, config.threads)
    write_json(path, report.to_json())
    result_table(*report.table(), title=f"{report.model['name']} on {report.engine}, {report.device}, {report.rounds} rounds")
    for note in report.notes:
        message(note)
    message(f"written to {path}")


if __name__ == "__main__":
    main()
