"""Measures a bundle and writes the result, with device and versions, into benchmarks/results/ as JSON, CSV and PNG.

python benchmarks/encoder.py runs/b16/bundle --engine ort,openvino --precision fp32,bf16 --batch 8 --keep 0.6 --mode fused,split --threads 2
"""

from pathlib import Path

import click
from results_file import in_one_line, keeps, named, numbers, short, show, words

from prtool.cli.console import BarProgress
from prtool.runtime.bench import BenchConfig, bench
from prtool.runtime.bench.files import output_files, write_report
from prtool.runtime.bench.plot import plot_report
from prtool.runtime.images.decode import expand_images


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--engine", default="ort", show_default=True, help="Engine names, comma-separated.")
@click.option("--precision", default="fp32", show_default=True, help="Precisions, comma-separated.")
@click.option("--batch", default="1,8", show_default=True, help="Images a call, comma-separated.")
@click.option("--keep", default="1.0,0.6", show_default=True, help="Ratios or counts of patches, comma-separated.")
@click.option("--mode", default="fused", show_default=True, help="fused, split or both.")
@click.option("--reference", default="", help="ENGINE/PRECISION, or slowest: also relate every row to its unpruned model.")
@click.option("--threads", default=0, show_default=True, help="CPU threads of one call; 0 takes all that are granted.")
@click.option("--streams", default=1, show_default=True, help="Parts of a batch that run side by side, where an engine has streams.")
@click.option("--seconds", default=60.0, show_default=True, help="Time for the timed rounds (s); at least five rounds run.")
@click.option("--images", type=click.Path(path_type=Path), default=None, help="Folder of photographs for the end-to-end rows.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=None,
    help="A file, or a name for all three.  [default: model and engines]",
)
def main(**options: object) -> None:
    """Measures BUNDLE: pruned beside unpruned, encoder alone and end to end."""
    in_one_line(_run, options)


def _run(options: dict[str, object]) -> None:
    images = options["images"]
    config = BenchConfig(
        engines=words(options["engine"]),
        precisions=words(options["precision"]),
        batches=numbers(options["batch"]),
        keeps=keeps(options["keep"]),
        modes=words(options["mode"]),
        reference=str(options["reference"]),
        images=tuple(expand_images([images])[0]) if isinstance(images, Path) else None,
        threads=int(str(options["threads"])),
        streams=int(str(options["streams"])),
        budget_s=float(str(options["seconds"])),
    )
    output_files(named(options["output"], "encoder"))
    report = bench(str(options["bundle"]), config, BarProgress())
    model = short(str(report.model["name"]))
    files = output_files(named(options["output"], "encoder", model, *report.engines, config.threads or "all", "threads"))
    write_report(report, files, plot_report)
    show(report.table(), f"{model} on {', '.join(report.engines)}, {report.device}, {report.rounds} rounds", report.notes, files)


if __name__ == "__main__":
    main()
