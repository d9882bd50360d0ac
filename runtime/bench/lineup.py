"""What is measured: each variant of a bundle, its loaded encoder, and the call that is timed."""

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from prtool.bundle import Bundle
from prtool.engines.base import Array, EngineInfo
from prtool.engines.registry import ENGINES, graph_precision
from prtool.errors import ConfigError, EngineUnavailable, PrtoolError
from prtool.graphs.signature import WEIGHTS_NAME
from prtool.manifest import Manifest
from prtool.records import check_value
from prtool.runtime.bench.config import BASELINE_MODE, END_TO_END, SLOWEST, BenchConfig
from prtool.runtime.bench.inputs import make_images, make_pixels
from prtool.runtime.bench.sensors import cuda_events, on_gpu
from prtool.runtime.bench.timing import Case, Mark, Samples
from prtool.runtime.encoder import Encoder, mode_counts
from prtool.runtime.images.decode import open_image
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.machine import available_memory_mib
from prtool.runtime.pipeline import MODES, mode_of
from prtool.runtime.recorder import MAX_RECORDINGS

Pair = tuple[str, str]
"""(engine, precision)"""
Unsupported = tuple[str, str, PrtoolError]
"""(engine, precision, reason)"""
Measured = Mapping["Variant", Samples]
Encoders = dict[tuple[str, str, str], Encoder]
"""(engine, precision, mode) -> encoder."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One measured variant, with the fields of `BenchRow`; `counts` are the patches kept at each location, `k` those behind the last."""

    scope: str
    batch: int
    engine: str
    precision: str
    mode: str
    keep: float
    counts: tuple[int, ...]
    k: int


@dataclass(frozen=True, slots=True, eq=False)
class Lineup:
    """Everything that takes part, loaded.

    Attributes:
        variants: groups that share a baseline, which comes first in each.
        encoders: of each engine, precision and mode.
        unsupported: combinations that were asked for and cannot be measured.
        pixels: the same for every variant whose images are of that size, (height, width); see `make_pixels`.
        images, origin: the same for every variant; see `make_images`.
    """

    manifest: Manifest
    config: BenchConfig
    variants: tuple[tuple[Variant, ...], ...]
    encoders: Encoders
    unsupported: tuple[Unsupported, ...]
    pixels: Mapping[tuple[int, int], Array]
    images: list[bytes]
    origin: str

    @classmethod
    def load(cls, bundle: Bundle, config: BenchConfig, stack: contextlib.ExitStack) -> "Lineup":
        """Loads every graph of every variant; `stack` closes them.

        Raises:
            ConfigError: the reference is not among what is left to measure; and the errors of `bench`.
        """
        manifest = bundle.manifest
        for mode in config.modes:
            mode_of(mode, manifest.prune)
        kept = {manifest.counts(keep) for keep in config.chosen_keeps(manifest)}
        pairs, unsupported = supported(bundle, config)
        check_memory(bundle, config, pairs)
        encoders: Encoders = {}
        options = config.engine_options()
        for engine, precision in tuple(pairs):
            try:
                for mode in (BASELINE_MODE, *config.modes):
                    encoder = Encoder.load(bundle, engine=engine, mode=mode, precision=precision, options=options)
                    encoders[engine, precision, mode] = encoder
                    stack.callback(encoder.close)
            except EngineUnavailable as cause:
                pairs.remove((engine, precision))
                unsupported.append((engine, precision, cause))
        check_any(pairs, unsupported)
        _check_reference(config, pairs, unsupported)
        _check_recordings(config, len(kept), encoders)
        read = {manifest.preprocess_for(mode) for mode in (BASELINE_MODE, *config.modes)}
        pixels = {spec.size: make_pixels(config, spec) for spec in read}
        return cls(manifest, config, _variants(config, manifest, pairs), encoders, tuple(unsupported), pixels, *make_images(config))

    @property
    def infos(self) -> dict[str, EngineInfo]:
        """What runs, by the engine's name."""
        return {engine: encoder.info for (engine, *_), encoder in self.encoders.items()}

    def encoder(self, variant: Variant) -> Encoder:
        """The encoder that runs a variant."""
        return self.encoders[variant.engine, variant.precision, variant.mode]

    def groups(self) -> list[list[Case]]:
        """What `prtool.runtime.bench.timing.measure` takes, in the order of `variants`."""
        return [[self.case(variant) for variant in group] for group in self.variants]

    def by_variant(self, samples: Sequence[Sequence[Samples]]) -> dict[Variant, Samples]:
        """What `measure` gave for `groups`, the first of its samples."""
        return {variant: taken for group, found in zip(self.variants, samples, strict=False) for variant, taken in zip(group, found, strict=True)}

    def breakdown(self, variant: Variant) -> Case | None:
        """The stages of a variant whose timed call does not mark them; None for every other."""
        return self.case(variant, on_device=True) if variant.mode == "split" and self.encoder(variant).arrays is not None else None

    def case(self, variant: Variant, *, on_device: bool = False) -> Case:
        """The call that is timed. It marks the stages of split mode; on a device, where it has to wait after each, only if asked to."""
        in_stages = variant.mode == "split" and (on_device or self.encoder(variant).arrays is None)
        encoder, spec = self.encoder(variant), self.manifest.preprocess_for(variant.mode)
        pixels = self.pixels[spec.size][: variant.batch]

        def encode(prepared: Array, mark: Mark) -> None:
            if not in_stages:
                encoder.encode_pixels(prepared, variant.counts)
                return
            for stage in encoder.stages(prepared, variant.counts):
                mark(stage.name.partition("_")[0])

        def from_pixels(number: int, mark: Mark) -> None:  # noqa: ARG001 - noise is as good in each round
            encode(pixels, mark)

        def from_files(number: int, mark: Mark) -> None:
            # Later rounds take the next images, and begin again after the last.
            places = range(number * variant.batch, (number + 1) * variant.batch)
            decoded = [open_image(self.images[place % len(self.images)]) for place in places]
            mark("decode")
            prepared = prepare_batch(decoded, spec)
            mark("preprocess")
            encode(prepared, mark)
            if not in_stages:
                mark("encode")

        run = from_files if variant.scope == END_TO_END else from_pixels
        return Case(run, variant.engine, cuda_events(encoder.info))


def supported(bundle: Bundle, config: BenchConfig) -> tuple[list[Pair], list[Unsupported]]:
    """The combinations of engines and precisions that the registry and the bundle support, and the others; a ConfigError where none is left."""
    known = tuple(dict.fromkeys(precision for entry in ENGINES.values() for precision in entry.precisions))
    for precision in config.precisions:
        check_value("precision", precision, choices=known)
    pairs: list[Pair] = []
    unsupported: list[Unsupported] = []
    for engine, precision in itertools.product(config.engines, config.precisions):
        try:
            _files(bundle, config, engine, precision)
            pairs.append((engine, precision))
        except ConfigError as cause:
            if engine not in ENGINES:
                raise
            unsupported.append((engine, precision, cause))
    check_any(pairs, unsupported)
    return pairs, unsupported


def check_any(pairs: Sequence[Pair], unsupported: Sequence[Unsupported]) -> None:
    """Where no pair is left, raises the reason, or a ConfigError with all of them."""
    if pairs:
        return
    if len({str(cause) for *_, cause in unsupported}) == 1:
        raise unsupported[0][2]
    raise ConfigError("nothing is left to measure: " + "; ".join(map(left_out, unsupported)))


def left_out(unsupported: Unsupported) -> str:
    """One line on a combination that is not measured, and why."""
    engine, precision, cause = unsupported
    return f"{engine}/{precision} is left out: {cause}"


def check_memory(bundle: Bundle, config: BenchConfig, pairs: Sequence[Pair]) -> None:
    """Raises ConfigError where the graphs, all loaded at the same time, need more memory than the system says is available."""
    # The largest file counts twice: an engine holds the file and its own copy while it loads.
    sizes = [bundle.manifest.files[file].size / 2**20 for engine, precision in pairs for file in _files(bundle, config, engine, precision)]
    needed, available = sum(sizes) + max(sizes), available_memory_mib()
    if available is None or needed <= available:
        return
    raise ConfigError(
        f"{len(pairs)} combinations of engine and precision with the modes {', '.join((BASELINE_MODE, *config.modes))} hold "
        f"{needed:.0f} MiB of weights at the same time, but {available:.0f} MiB of memory are available; "
        "measure fewer engines, precisions or modes in one run"
    )


def _files(bundle: Bundle, config: BenchConfig, engine: str, precision: str) -> list[str]:
    """The graphs and weights of every mode; raises ConfigError where the engine lacks the precision, or the bundle a graph."""
    held, found = graph_precision(engine, precision), []
    for mode in (BASELINE_MODE, *config.modes):
        graphs = [bundle.graph(role, held).file for role in MODES[mode].roles(bundle.manifest.prune)]
        weights = {str(PurePosixPath(graph).with_name(WEIGHTS_NAME)) for graph in graphs}
        found += [*graphs, *(weights & bundle.manifest.files.keys())]
    return found


def _variants(config: BenchConfig, manifest: Manifest, pairs: Sequence[Pair]) -> tuple[tuple[Variant, ...], ...]:
    settings = [(BASELINE_MODE, 1.0, mode_counts(manifest, BASELINE_MODE, None))]
    for mode, keep in itertools.product(config.modes, config.chosen_keeps(manifest)):
        share = manifest.resolve(keep) / manifest.prune.patches if keep.is_count else keep.value
        settings.append((mode, share, manifest.counts(keep)))
    return tuple(
        tuple(Variant(scope, batch, engine, precision, *setting, manifest.patches_kept(setting[0], setting[2])) for setting in settings)
        for scope in config.scopes
        for batch in config.batches
        for engine, precision in pairs
    )


def _check_reference(config: BenchConfig, pairs: Sequence[Pair], unsupported: Sequence[Unsupported]) -> None:
    names = ["/".join(pair) for pair in pairs]
    if config.reference in ("", SLOWEST, *names):
        return
    cause = next(cause for engine, precision, cause in unsupported if f"{engine}/{precision}" == config.reference)
    raise ConfigError(f"reference = {config.reference!r}, but it cannot be measured: {cause}; choose one of {', '.join(names)}")


def _check_recordings(config: BenchConfig, keeps: int, encoders: Mapping[tuple[str, str, str], Encoder]) -> None:
    """Rejects more shapes than a GPU's encoder keeps recordings of: each call would record again, and that would be timed."""
    shapes = len(config.batches) * keeps
    recorded = [f"{engine}/{precision}" for (engine, precision, _), found in encoders.items() if on_gpu(found.info) and found.arrays is not None]
    if recorded and shapes > MAX_RECORDINGS:
        raise ConfigError(
            f"{len(config.batches)} batches x {keeps} keeps are {shapes} shapes, but {recorded[0]} keeps the recordings of {MAX_RECORDINGS} "
            "and would time the recording of the others; measure fewer in one run"
        )
