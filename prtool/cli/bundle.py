"""The commands that run a bundle: verify, bench, embed, classify, show."""

from pathlib import Path
from typing import Any

import click

from prtool.cli.parameters import (
    Counts,
    EngineChoice,
    FileName,
    KeepList,
    Names,
    bundle_argument,
    bundle_option,
    cache_option,
    check_images,
    engine_options,
    images_argument,
    json_option,
    keep_option,
    mode_option,
)
from prtool.spec import Keep


@click.command()
@bundle_argument
@engine_options
@click.option("--data", type=click.Path(path_type=Path), help="Compare on these images too, with the PyTorch model of --run.")
@click.option("--run", type=click.Path(path_type=Path), default=Path("runs/latest"), show_default=True, help="Run that the bundle came from.")
@json_option
def verify(bundle: Path, choice: EngineChoice, data: Path | None, run: Path, as_json: bool) -> None:
    """Check every file's digest, and every mode's embeddings against PyTorch's recorded ones."""
    from prtool.cli.console import result_json, result_table
    from prtool.runtime.verify import verify as verify_probe
    from prtool.trainer.data.address import parse_data
    from prtool.trainer.runs.record import read_record

    opened = choice.open(bundle)
    if data is not None:
        parse_data(data)
        read_record(run)
    probe = verify_probe(opened, choice.engine, choice.options(spinning=False), choice.precision)
    images = None
    if data is not None:
        from prtool.export.run import verify_run
        from prtool.export.validation.agreement import VerifyRequest

        images = verify_run(opened, VerifyRequest(choice.engine, choice.precision, cache=choice.cache), run, data)
    if as_json:
        result_json({"probe": probe.to_json(), "images": None if images is None else images.to_json()})
        return
    result_table(*probe.table(), "recorded images, compared with PyTorch's recorded embeddings")
    if images is not None:
        result_table(*images.table(), f"images of {images.data}, compared with PyTorch; held to {images.judged.decided_by}: {images.judged.why}")


@click.command()
@bundle_argument
@click.option("--engine", "engines", type=Names(), default="ort", show_default=True, help="Engines, side by side; 'prtool doctor' lists them.")
@click.option("--precision", "precisions", type=Names(), default="fp32", show_default=True, help="Of fp32, fp16, bf16, int8, as the engines have it.")
@click.option("--batch", "batches", type=Counts(), default="1,8", show_default=True, help="Images a call.")
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.8,0.6,0.5", show_default=True, help="Keep ratios or counts.")
@click.option("--mode", "modes", type=Names("fused", "split"), default="fused", show_default=True, help="One graph, or two with selection between.")
@click.option("--reference", default="", help="Also relate every row to the unpruned model of ENGINE/PRECISION, or of the 'slowest'.")
@click.option("--threads", type=int, default=0, help="CPU threads; 0 takes all that are granted.  [default: 0]")
@click.option("--streams", type=int, default=1, show_default=True, help="Parts of a batch that run side by side, where an engine has streams.")
@click.option("--seconds", "budget_s", type=float, default=60.0, show_default=True, help="Time for measuring; more gives steadier medians.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Also write FILE.json, .csv or .png; without a suffix, all three.")
@cache_option
@json_option
def bench(bundle: Path, output: Path | None, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Speed against the unpruned model in the same run, beside the theoretical bound."""
    from prtool.cli.console import BarProgress, message, result_json, result_table
    from prtool.runtime.bench import BenchConfig
    from prtool.runtime.bench import bench as measure
    from prtool.runtime.bench.files import output_files, write_report
    from prtool.runtime.bench.plot import plot_report

    files = () if output is None else output_files(output)
    report = measure(bundle, BenchConfig(**options), BarProgress())
    write_report(report, files, plot_report)
    if as_json:
        result_json(report.to_json())
    else:
        result_table(*report.table())
    for note in report.notes:
        message(f"note: {note}")
    for file in files:
        message(f"wrote {file}")


@click.command()
@images_argument
@bundle_option
@engine_options
@mode_option
@keep_option
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images a call.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("embeddings.npz"), show_default=True, help=".npz or .parquet file.")
def embed(images: tuple[Path, ...], bundle: Path, choice: EngineChoice, keep: Keep | None, batch: int, output: Path) -> None:
    """Embeddings of images and folders of images; unreadable ones are skipped, counted and listed."""
    from prtool.cli.console import BarProgress, message
    from prtool.runtime.embed import EmbedOptions, check_names, check_output, embed_folder, save_embeddings
    from prtool.runtime.images.decode import expand_images

    check_images(images)
    check_output(output)
    opened = choice.open(bundle)
    options = EmbedOptions(keep=choice.counts(opened, keep), batch_size=batch)
    files, left_out = expand_images(images)
    check_names(output, files)
    with choice.load(opened) as encoder:
        result = embed_folder(encoder, files or images, options, BarProgress())
    save_embeddings(result, output)
    for path, reason in result.skipped:
        message(f"skipped {path}: {reason}")
    if left_out.found:
        message(f"note: {left_out.note()}")
    message(f"wrote {output}: {len(result.paths)} embeddings, {len(result.skipped)} skipped, {result.images_per_s:.1f} images/s")


@click.command()
@images_argument
@bundle_option
@engine_options
@mode_option
@keep_option
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes named for each image.")
@json_option
def classify(images: tuple[Path, ...], bundle: Path, choice: EngineChoice, keep: Keep | None, top: int, as_json: bool) -> None:
    """The most likely classes of each image, among the bundle's classes."""
    from prtool.cli.console import result_json, result_table
    from prtool.runtime.classes import ClassTable

    check_images(images, folders=False)
    opened = choice.open(bundle)
    counts = choice.counts(opened, keep)
    ClassTable.of(opened)
    with choice.load(opened) as encoder:
        predictions = [encoder.classify([image], keep=counts, top=top)[0] for image in images]
    if as_json:
        found = [[{"name": c.name, "probability": c.probability} for c in row] for row in predictions]
        result_json({"results": [{"path": str(path), "classes": row} for path, row in zip(images, found, strict=True)]})
        return
    rows = [[str(path), *(f"{c.name} {c.probability:.1%}" for c in row)] for path, row in zip(images, predictions, strict=True)]
    result_table(["image", *(str(i + 1) for i in range(len(rows[0]) - 1))], rows)


@click.command()
@images_argument
@bundle_option
@engine_options
@click.option("--keep", "keeps", type=KeepList(), default="1.0,0.8,0.6,0.4", show_default=True, help="Keep ratios or counts, side by side.")
@click.option("-o", "--output", type=FileName(".png"), default=Path("patches.png"), show_default=True, help="PNG file.")
def show(images: tuple[Path, ...], bundle: Path, choice: EngineChoice, keeps: tuple[Keep, ...], output: Path) -> None:
    """A picture of which patches stay: dropped ones are dimmed."""
    from prtool.cli.console import message
    from prtool.runtime.show import show as draw

    check_images(images, folders=False)
    opened = choice.open(bundle)
    for keep in keeps:
        choice.counts(opened, keep)
    with choice.load(opened) as encoder:
        draw(encoder, images, list(keeps), output)
    message(f"wrote {output}")
