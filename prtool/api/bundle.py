"""The verbs that run a bundle: verify, benchmark, build."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prtool.api.common import BUNDLE, RUN, AnyKeep, AnyPath, VerifyResult, configure, keeps_of, several

if TYPE_CHECKING:
    from prtool.bundle import Bundle
    from prtool.engines.base import EngineOptions
    from prtool.progress import Progress
    from prtool.runtime.bench import BenchReport
    from prtool.runtime.build import BuildReport


def verify(
    bundle: AnyPath = BUNDLE,
    *,
    engine: str = "ort",
    precision: str = "fp32",
    data: AnyPath | None = None,
    run: AnyPath = RUN,
    threads: int = 0,
    device: int = 0,
    settings: Mapping[str, object] | None = None,
) -> VerifyResult:
    """Checks every file's digest, and every mode's embeddings against those that PyTorch gave.

    Args:
        bundle: bundle folder.
        engine: what runs the graphs, such as ort; `prtool doctor` lists the names.
        precision: arithmetic, of fp32, fp16, bf16 and int8; as engine and bundle have it.
        data: FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas (docs/data.md);
            compare on its test split too, with the PyTorch model of `run`.
        run: the run that the bundle was exported from.
        threads: CPU threads of one call; 0 takes all that are granted.
        device: number of the GPU, from 0.
        settings: other fields of `EngineOptions`.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: there is no such engine or precision, or the bundle comes from another run.
        EngineUnavailable: the engine's library is not installed, or finds no device.
        ParityError: the engine disagrees with PyTorch; the message names the case.
    """
    from prtool.runtime.verify import verify as verify_probe

    opened = checked_bundle(bundle, engine, precision)
    options = engine_options(threads, device, {"spinning": False, **(settings or {})})
    if data is not None:
        from prtool.trainer.data.address import parse_data
        from prtool.trainer.runs.record import read_record

        parse_data(data)
        read_record(Path(run))
    probe = verify_probe(opened, engine, options, precision)
    if data is None:
        return VerifyResult(probe)
    from prtool.export.run import verify_run
    from prtool.export.validation.agreement import VerifyRequest

    return VerifyResult(probe, verify_run(opened, VerifyRequest(engine, precision, options=options), Path(run), data))


def benchmark(
    bundle: AnyPath = BUNDLE,
    *,
    engine: str | Sequence[str] = ("ort",),
    precision: str | Sequence[str] = ("fp32",),
    batch: int | Sequence[int] = (1, 8),
    keep: AnyKeep | Sequence[AnyKeep] = (),
    mode: str | Sequence[str] = ("fused",),
    threads: int = 0,
    device: int = 0,
    settings: Mapping[str, object] | None = None,
    output: AnyPath | None = None,
    progress: "Progress | None" = None,
) -> "BenchReport":
    """Measures every combination next to the unpruned model, in one interleaved run.

    Args:
        bundle: bundle folder.
        engine: what runs the graphs, such as ort; `prtool doctor` lists the names.
        precision: arithmetic, of fp32, fp16, bf16 and int8; as engine and bundle have it.
        batch: images per call.
        keep: patches that stay: a ratio (0.6) or a count (118); default: those of 1.0, 0.8, 0.6 and 0.5 that the bundle allows.
        mode: of "fused" (one graph) and "split" (two, with the selection between them); "full", the unpruned model at its native image
            size, is always measured.
        threads: CPU threads of one call; 0 takes all that are granted.
        device: number of the GPU, from 0.
        settings: other fields of `BenchConfig`, such as {"budget_s": 120.0, "reference": "slowest"}; "images" may be a folder.
        output: also write this .json, .csv or .png file; without a suffix, all three.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: a value cannot be used, or nothing is left to measure.
        EngineUnavailable, EngineError: an engine cannot run.
    """
    from prtool.runtime.bench import BenchConfig, bench
    from prtool.runtime.bench.files import output_files, write_report
    from prtool.runtime.bench.plot import plot_report
    from prtool.runtime.images.files import expand_images

    files = () if output is None else output_files(Path(output))
    axes = {"engines": engine, "precisions": precision, "batches": batch, "modes": mode}
    given = {name: several(value) for name, value in axes.items()} | {"keeps": keeps_of(keep)}
    others = dict(settings or {})
    if isinstance(found := others.get("images"), (str, Path)):
        given["images"] = tuple(expand_images([found])[0])
        del others["images"]
    report = bench(bundle, configure(BenchConfig, {**given, "threads": threads, "device": device}, others), progress)
    write_report(report, files, plot_report)
    return report


def build(
    bundle: AnyPath = BUNDLE,
    *,
    engine: str,
    precision: str = "fp32",
    batch: int | tuple[int, int, int] = (1, 8, 32),
    keep: AnyKeep | Sequence[AnyKeep] = (),
    device: int = 0,
    rebuild: bool = False,
    settings: Mapping[str, object] | None = None,
    progress: "Progress | None" = None,
) -> "BuildReport":
    """Builds the engine files of a bundle for this machine's GPU, or takes them from the cache; others then load them from there.

    Args:
        bundle: bundle folder.
        engine: what runs the graphs, such as ort; `prtool doctor` lists the names; "trt" and "trt-rtx" build ahead.
        precision: arithmetic, of fp32, fp16, bf16 and int8; as engine and bundle have it.
        batch: images per call: one number, or the least, the optimal and the largest.
        keep: patches that stay: a ratio (0.6) or a count (118); each builds a narrow, faster profile; default: one profile for every count.
        device: number of the GPU, from 0.
        rebuild: build also what is in the cache.
        settings: other fields of `BuildOptions`, and "cache", the folder of built engines: {"level": 5, "strip_weights": True}.

    Raises:
        BundleError: the bundle is missing or damaged.
        ConfigError: the engine builds nothing ahead, or a value cannot be used (KeepError: a keep is outside the bundle's range).
        EngineUnavailable: the library is not installed, or builds only with a device and finds none.
        EngineError: the library rejects a graph.
        StorageError: an engine cannot be written.
    """
    from prtool.engines.base import BuildOptions, EngineOptions, ShapeRange
    from prtool.engines.registry import builder
    from prtool.runtime.build import build_bundle

    opened = checked_bundle(bundle, engine, precision)
    sizes = (batch,) * 3 if isinstance(batch, int) else batch
    others = dict(settings or {})
    paths = {"cache": others.pop("cache")} if "cache" in others else {}
    counts = tuple(dict.fromkeys(opened.manifest.resolve(each) for each in keeps_of(keep)))
    options = configure(BuildOptions, {"batch": ShapeRange(*sizes), "keeps": counts}, others)
    builder(engine)
    chosen = configure(EngineOptions, {"device": device, "build": options}, paths)
    return build_bundle(opened, engine, precision, chosen, progress, rebuild=rebuild)


def engine_options(threads: int, device: int, settings: Mapping[str, object] | None = None) -> "EngineOptions":
    """How an engine runs, from the arguments that verbs have in common."""
    from prtool.engines.base import EngineOptions

    return configure(EngineOptions, {"threads": threads, "device": device}, settings)


def checked_bundle(bundle: AnyPath, engine: str, precision: str) -> "Bundle":
    """An opened bundle that has the graphs of a precision; an engine's library is not imported. Raises ConfigError where it has not."""
    from prtool.bundle import Bundle
    from prtool.engines.registry import graph_precision

    held = graph_precision(engine, precision)
    opened = Bundle.open(bundle)
    opened.graph("full", held)
    return opened
