"""The commands that run a bundle: verify, bench, build, embed, classify, show."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from prtool import api
from prtool.cli.console import BarProgress, counted, message, print_report, result_json, result_table
from prtool.cli.parameters import (
    FOLDER,
    FileName,
    Values,
    batch_range,
    check_images,
    engine_options,
    images_argument,
    jpeg_option,
    json_option,
    keep_option,
    mode_option,
    verb_options,
)
from prtool.spec import Keep

Loading = Callable[[], dict[str, Any]]
_SHOWN = (1.0, 0.8, 0.6, 0.4)


@click.command()
@verb_options(api.verify, "streams", "spinning", "cache", data=str)
@json_option
def verify(as_json: bool, **options: Any) -> None:  # noqa: ANN401 - as click hands them over
    """Check every file's digest, and every mode's embeddings against PyTorch's recorded ones; with --data also on those images."""
    result = api.verify(**options)
    if as_json:
        result_json(result.to_json())
        return
    result_table(*result.probe.table(), "recorded images, compared with PyTorch's recorded embeddings")
    if result.images is not None:
        judged = result.images.judged
        result_table(*result.images.table(), f"images of {result.images.data}, compared with PyTorch; held to {judged.decided_by}: {judged.why}")


@click.command()
@verb_options(
    api.benchmark, "reference", "streams", "budget_s", "images", "scopes", "min_rounds", "max_rounds", "warmup_rounds", "seed", "cache", "build.*"
)
@json_option
def bench(as_json: bool, output: Path | None, **options: Any) -> None:  # noqa: ANN401
    """Speed against the unpruned model in the same run, next to the theoretical speed-up."""
    from prtool.runtime.bench.files import output_files

    report = api.benchmark(**options, output=output, progress=BarProgress())
    print_report(report, as_json, report.title)
    for file in () if output is None else output_files(output):
        message(f"wrote {file}")


@click.command()
@verb_options(
    *(api.build, "level", "workspace_mib", "timing_cache", "version_compatible", "hardware_compatible", "strip_weights", "cache"),
    batch=Values("MIN:OPT:MAX", batch_range, several=False),
)
@json_option
def build(as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Build engine files for this machine's GPU; other commands with the same engine then take them. A --keep makes a narrow, faster profile."""
    report = api.build(**options, progress=BarProgress())
    print_report(report, as_json)
    message(f"{report.library} {report.version}, {report.precision}, for {report.target}; {report.state}")


@click.command()
@images_argument
@engine_options
@mode_option
@jpeg_option
@keep_option
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, help="Images per call.")
@click.option("-o", "--output", type=FOLDER, default=Path("embeddings.npz"), show_default=True, help=".npz or .parquet file.")
@json_option
def embed(
    *, images: tuple[Path, ...], loading: Loading, mode: str, jpeg_scaling: bool, keep: Keep | None, batch: int, output: Path, as_json: bool
) -> None:
    """Embeddings of images and folders of images; unreadable ones are skipped, counted and listed."""
    from prtool.runtime.embed import check_output, embed_folder, save_embeddings
    from prtool.runtime.encoder import Encoder, mode_counts
    from prtool.runtime.images.files import expand_images

    check_images(images)
    check_output(output)
    loaded = loading()
    counts = mode_counts(loaded["bundle"].manifest, mode, keep)
    files, left_out = expand_images(images)
    check_output(output, files)
    with Encoder.load(**loaded, mode=mode, jpeg_scaling=jpeg_scaling) as encoder:
        result = embed_folder(encoder, files or images, BarProgress(), keep=counts, batch_size=batch)
    save_embeddings(result, output)
    for path, reason in result.skipped:
        message(f"skipped {path}: {reason}")
    if left_out.found:
        message(f"note: {left_out.note()}")
    if as_json:
        skipped = [{"path": path, "reason": reason} for path, reason in result.skipped]
        facts = {"output": str(output), "images": len(result.paths), "keep": result.keep, "images_per_s": result.images_per_s}
        result_json({**facts, "skipped": skipped})
    message(f"wrote {output}: {counted(len(result.paths), 'embedding')}, {len(result.skipped)} skipped, {result.images_per_s:.1f} images/s")


@click.command()
@images_argument
@engine_options
@mode_option
@jpeg_option
@keep_option
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes named for each image, at most.")
@json_option
def classify(*, images: tuple[Path, ...], loading: Loading, mode: str, jpeg_scaling: bool, keep: Keep | None, top: int, as_json: bool) -> None:
    """The most likely classes of each image, among the bundle's classes."""
    from prtool.runtime.classes import ClassTable
    from prtool.runtime.encoder import Encoder, mode_counts

    check_images(images, folders=False)
    loaded = loading()
    counts = mode_counts(loaded["bundle"].manifest, mode, keep)
    ClassTable.of(loaded["bundle"])
    with Encoder.load(**loaded, mode=mode, jpeg_scaling=jpeg_scaling) as encoder:
        predictions = [encoder.classify([image], keep=counts, top=top)[0] for image in images]
    if as_json:
        found = [list(map(dataclasses.asdict, row)) for row in predictions]
        result_json({"results": [{"path": str(path), "classes": row} for path, row in zip(images, found, strict=True)]})
        return
    rows = [[str(path), *(f"{c.name} {c.probability:.1%}" for c in row)] for path, row in zip(images, predictions, strict=True)]
    result_table(["image", *(str(i + 1) for i in range(len(rows[0]) - 1))], rows)


@click.command()
@images_argument
@engine_options
@click.option(
    *("--keep", "keeps"),
    type=Values("keep", Keep.parse),
    default=(),
    help="Patches that stay: a ratio (0.6) or a count (118); several with commas.  [default: those of 1.0, 0.8, 0.6 and 0.4 that it allows]",
)
@click.option("-o", "--output", type=FileName(".png"), default=Path("patches.png"), show_default=True, help="PNG file.")
@json_option
def show(images: tuple[Path, ...], loading: Loading, keeps: tuple[Keep, ...], output: Path, as_json: bool) -> None:
    """A picture of which patches stay: dropped ones are dimmed. Needs a bundle that ranks patches."""
    from prtool.runtime.encoder import Encoder
    from prtool.runtime.pipeline import mode_of
    from prtool.runtime.show import show as draw

    check_images(images, folders=False)
    loaded = loading()
    manifest = loaded["bundle"].manifest
    mode_of("split", manifest.prune)
    keeps = keeps or manifest.usual_keeps(_SHOWN)
    counts = [manifest.resolve(keep) for keep in keeps]
    with Encoder.load(**loaded) as encoder:
        draw(encoder, images, list(keeps), output)
    if as_json:
        result_json({"output": str(output), "keeps": counts})
    message(f"wrote {output}")
