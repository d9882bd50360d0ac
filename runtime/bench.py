"""Benchmark of a bundle: pruned and unpruned side by side, from pixels and from encoded images, beside the bound.

::

    report = bench("bundle", BenchConfig(batches=(1, 8), keeps=(1.0, 0.6), threads=2))
    report.to_json(), report.table(), report.notes
"""

import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, EngineInfo, EngineOptions
from prtool.errors import DataError
from prtool.manifest import Manifest
from prtool.progress import Progress, SilentProgress
from prtool.runtime.bench_config import BASELINE_MODE, END_TO_END, MOST_IMAGES, BenchConfig
from prtool.runtime.bench_report import BenchReport, BenchRow, notes_on
from prtool.runtime.encoder import Encoder, KeepLike
from prtool.runtime.images import open_image
from prtool.runtime.machine import EnergyMeter, library_versions, peak_memory_mib, this_machine
from prtool.runtime.pipeline import Stage
from prtool.runtime.preprocess import prepare_batch
from prtool.runtime.sample_photos import sample_photos
from prtool.runtime.timing import Case, Clock, Group, Mark, Samples, measure, speedup
from prtool.spec import Keep

__all__ = ["BenchConfig", "BenchReport", "BenchRow", "bench"]

_SAMPLE_PHOTOS = 16


class TimedEncoder(Protocol):
    """What the benchmark needs of an `Encoder`."""

    @property
    def info(self) -> EngineInfo:
        """The engine that really runs."""
        ...

    def encode_pixels(self, pixels: Array, keep: KeepLike = None) -> npt.NDArray[np.float32]:
        """(batch, 3, height, width) float32 -> (batch, E)."""
        ...

    def stages(self, pixels: Array, keep: KeepLike = None) -> Iterable[Stage]:
        """The split mode, one stage at a time."""
        ...

    def close(self) -> None:
        """Frees the graphs."""
        ...


class Loader(Protocol):
    """Loads one way to run a bundle."""

    def __call__(self, bundle: Bundle, config: BenchConfig, mode: str, precision: str) -> TimedEncoder:
        """Raises what `Encoder.load` raises."""
        ...


def _load(bundle: Bundle, config: BenchConfig, mode: str, precision: str) -> TimedEncoder:
    options = EngineOptions(threads=config.threads)
    return Encoder.load(bundle, engine=config.engine, mode=mode, precision=precision, options=options)


@dataclass(frozen=True, slots=True)
class Instruments:
    """How encoders are made, and time and energy are read; tests put their own in."""

    load: Loader = _load
    clock: Clock = time.perf_counter_ns
    meter: EnergyMeter = field(default_factory=EnergyMeter)


@dataclass(frozen=True, slots=True)
class _Way:
    """One configuration; `keep` is None for the unpruned model."""

    scope: str
    batch: int
    precision: str
    mode: str
    keep: Keep | None


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The same input for every configuration: pixels for the largest batch, and encoded images from `origin`."""

    pixels: Array
    images: Sequence[bytes]
    origin: str

    def files(self, number: int, batch: int) -> list[bytes]:
        """The images of one round; later rounds take the next ones, and begin again after the last."""
        return [self.images[place % len(self.images)] for place in range(number * batch, (number + 1) * batch)]


def bench(bundle: str | Path | Bundle, config: BenchConfig, progress: Progress | None = None, instruments: Instruments | None = None) -> BenchReport:
    """Measures a bundle.

    Every round calls each configuration, and the unpruned model for each scope, batch and precision, once; see
    `prtool.runtime.timing.measure`. All graphs are loaded at the same time, the weights once for each mode.

    Args:
        bundle: a bundle directory, or an opened bundle.
        config: what is measured and for how long.
        progress: hears about warming up and timing, between calls.
        instruments: encoders, clock and energy counters; None takes the real ones.

    Raises:
        KeepError: a keep is outside the bundle's range; nothing was run.
        ConfigError: the engine is unknown, or the bundle lacks a precision or graph.
        DataError: an image cannot be read (ImageError: or decoded).
        BundleError, EngineUnavailable, EngineError: as `Encoder.load` and `Encoder.encode_pixels`.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    manifest = opened.manifest
    for keep in config.chosen_keeps():
        manifest.resolve(keep)
    tools = instruments or Instruments()
    started, machine = datetime.now(UTC), this_machine()
    ways = _ways(config)
    with contextlib.ExitStack() as stack:
        encoders = _encoders(opened, config, tools, stack)
        inputs = _inputs(config, manifest)
        groups = [Group(tuple(_case(way, encoders, inputs, manifest) for way in group)) for group in ways]
        samples = measure(groups, config.plan(), tools.clock, tools.meter.joules, progress or SilentProgress())
        info = next(iter(encoders.values())).info
    rows = tuple(row for group, measured in zip(ways, samples, strict=True) for row in _rows(group, measured, manifest))
    return BenchReport(
        engine=info.name,
        device=f"{info.device} ({machine.cpu})",
        versions=library_versions() | {info.name: info.version},
        rows=rows,
        model=_model(manifest),
        rounds=len(samples[0][0].total_ns),
        warmup_rounds=config.warmup_rounds,
        seed=config.seed,
        images=inputs.origin,
        machine=machine,
        peak_memory_mib=peak_memory_mib(),
        energy_reason=tools.meter.reason,
        date=started.isoformat(timespec="seconds"),
        notes=notes_on(rows, manifest.prune.patches, machine),
    )


def _model(manifest: Manifest) -> dict[str, str | int]:
    model = manifest.model
    return {"name": model.name, "pretrained": model.pretrained, "weights_sha256": model.weights_sha256, "patches": manifest.prune.patches}


def _ways(config: BenchConfig) -> list[list[_Way]]:
    """Groups that share a baseline, which comes first in each."""
    keeps = config.chosen_keeps()
    return [
        [_Way(scope, batch, precision, BASELINE_MODE, None)] + [_Way(scope, batch, precision, mode, keep) for mode in config.modes for keep in keeps]
        for scope, batch, precision in itertools.product(config.scopes, config.batches, config.precisions)
    ]


def _encoders(bundle: Bundle, config: BenchConfig, tools: Instruments, stack: contextlib.ExitStack) -> dict[tuple[str, str], TimedEncoder]:
    """(mode, precision) -> encoder; `stack` closes them."""
    encoders: dict[tuple[str, str], TimedEncoder] = {}
    for mode, precision in itertools.product((BASELINE_MODE, *config.modes), config.precisions):
        if (mode, precision) not in encoders:
            encoders[mode, precision] = tools.load(bundle, config, mode, precision)
            stack.callback(encoders[mode, precision].close)
    return encoders


def _inputs(config: BenchConfig, manifest: Manifest) -> _Inputs:
    spec = manifest.preprocess
    shape = (max(config.batches), 3, *spec.size)
    pixels = np.random.default_rng(config.seed).random(shape, np.float32)
    # In place: a batch of 1024 at 336 px is 1.4 GB.
    pixels -= np.array(spec.mean, np.float32)[:, None, None]
    pixels /= np.array(spec.std, np.float32)[:, None, None]
    return _Inputs(pixels, *_images(config))


def _images(config: BenchConfig) -> tuple[list[bytes], str]:
    """Encoded images and where they come from; none when nothing is measured end to end."""
    if END_TO_END not in config.scopes:
        return [], "none"
    if config.images is None:
        return sample_photos(_SAMPLE_PHOTOS, config.seed), f"{_SAMPLE_PHOTOS} generated JPEGs of 500 x 375, in memory"
    images = [_read(image) for image in config.images[:MOST_IMAGES]]
    return images, f"{len(images)} given images, in memory"


def _read(image: str | Path | bytes) -> bytes:
    if isinstance(image, bytes):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as cause:
        raise DataError(f"{image} cannot be read: {cause.strerror}; give image files that exist") from cause


def _case(way: _Way, encoders: dict[tuple[str, str], TimedEncoder], inputs: _Inputs, manifest: Manifest) -> Case:
    encoder = encoders[way.mode, way.precision]
    pixels = inputs.pixels[: way.batch]

    def from_pixels(number: int, mark: Mark) -> None:  # noqa: ARG001 - noise is as good in each round
        encoder.encode_pixels(pixels, way.keep)

    def split_from_pixels(number: int, mark: Mark) -> None:  # noqa: ARG001
        for stage in encoder.stages(pixels, way.keep):
            mark(stage.name.partition("_")[0])

    def from_files(number: int, mark: Mark) -> None:
        decoded = [open_image(content) for content in inputs.files(number, way.batch)]
        mark("decode")
        prepared = prepare_batch(decoded, manifest.preprocess)
        mark("preprocess")
        encoder.encode_pixels(prepared, way.keep)
        mark("encode")

    if way.scope == END_TO_END:
        return Case(from_files)
    return Case(split_from_pixels if way.mode == "split" else from_pixels)


def _rows(group: Sequence[_Way], samples: Sequence[Samples], manifest: Manifest) -> list[BenchRow]:
    return [_row(way, measured, samples[0], manifest) for way, measured in zip(group, samples, strict=True)]


def _row(way: _Way, samples: Samples, baseline: Samples, manifest: Manifest) -> BenchRow:
    patches = manifest.prune.patches
    k = patches if way.keep is None else manifest.resolve(way.keep)
    bound = 1.0 if way.keep is None else manifest.bound(k)
    gained = speedup(baseline, samples)
    p50_ms = samples.percentile_ms(50)
    calls = len(samples.total_ns)
    return BenchRow(
        scope=way.scope,
        batch=way.batch,
        keep=k / patches if way.keep is None or way.keep.is_count else way.keep.value,
        k=k,
        mode=way.mode,
        precision=way.precision,
        p50_ms=p50_ms,
        p90_ms=samples.percentile_ms(90),
        p99_ms=samples.percentile_ms(99),
        images_per_s=1e3 * way.batch / p50_ms,
        speedup=gained.median,
        speedup_low=gained.low,
        speedup_high=gained.high,
        bound=bound,
        share_of_bound=gained.median / bound,
        stages_ms=samples.stages_ms(),
        joules_per_image=None if samples.joules is None else samples.joules / (calls * way.batch),
    )
