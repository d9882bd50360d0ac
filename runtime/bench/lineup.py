"""What is measured: each configuration of a bundle, its loaded encoder, and the call that is timed."""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, ArrayLibrary, EngineInfo
from prtool.errors import ConfigError, EngineUnavailable
from prtool.manifest import Manifest
from prtool.runtime.bench.config import BASELINE_MODE, END_TO_END, SLOWEST, BenchConfig
from prtool.runtime.bench.gpu import cuda_events, on_gpu
from prtool.runtime.bench.inputs import Inputs, make_inputs
from prtool.runtime.bench.offers import Offer, Refusal, asked_offers, check_any, check_memory
from prtool.runtime.bench.timing import Case, Group, Mark
from prtool.runtime.encoder import Encoder, KeepLike
from prtool.runtime.images.decode import open_image
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.pipeline import Stage
from prtool.runtime.recorder import MAX_RECORDINGS
from prtool.spec import Keep


class TimedEncoder(Protocol):
    """What the benchmark needs of an `Encoder`."""

    @property
    def info(self) -> EngineInfo:
        """The engine that really runs."""
        ...

    @property
    def arrays(self) -> ArrayLibrary | None:
        """None where the engine keeps no arrays on a device between two graphs."""
        ...

    def encode_pixels(self, pixels: Array, keep: KeepLike = None) -> npt.NDArray[np.float32]:
        """(batch, 3, height, width) float32 -> (batch, E); returns when the device is done."""
        ...

    def stages(self, pixels: Array, keep: KeepLike = None) -> Iterable[Stage]:
        """The split mode, one finished stage at a time."""
        ...

    def close(self) -> None:
        """Frees the graphs."""
        ...


class Loader(Protocol):
    """Loads one way to run a bundle."""

    def __call__(self, bundle: Bundle, config: BenchConfig, offer: Offer, mode: str) -> TimedEncoder:
        """Raises what `Encoder.load` raises."""
        ...


def load_encoder(bundle: Bundle, config: BenchConfig, offer: Offer, mode: str) -> TimedEncoder:
    """The real thing."""
    return Encoder.load(bundle, engine=offer.engine, mode=mode, precision=offer.precision, options=config.engine_options())


@dataclass(frozen=True, slots=True)
class Way:
    """One configuration; `keep` is None for the unpruned model."""

    scope: str
    batch: int
    offer: Offer
    mode: str
    keep: Keep | None


@dataclass(frozen=True, slots=True, eq=False)
class Lineup:
    """Everything that takes part, loaded.

    Attributes:
        ways: groups that share a baseline, which comes first in each.
        encoders: of each offer and mode.
        refusals: offers that were asked for and cannot be had.
    """

    manifest: Manifest
    config: BenchConfig
    ways: tuple[tuple[Way, ...], ...]
    encoders: dict[tuple[Offer, str], TimedEncoder]
    refusals: tuple[Refusal, ...]
    inputs: Inputs

    @classmethod
    def load(cls, bundle: Bundle, config: BenchConfig, loader: Loader, stack: contextlib.ExitStack) -> "Lineup":
        """Loads every graph of every configuration; `stack` closes them.

        Raises:
            KeepError: a keep is outside the bundle's range; nothing was loaded.
            ConfigError: an engine's or precision's name is unknown, nothing is left to measure, the reference is not
                among what is left, or the graphs do not fit into memory together.
            DataError: an image cannot be read.
            BundleError, EngineUnavailable, EngineError: as `Encoder.load`.
        """
        for keep in config.chosen_keeps():
            bundle.manifest.resolve(keep)
        offers, refusals = asked_offers(bundle, config)
        check_memory(bundle, config, offers)
        encoders: dict[tuple[Offer, str], TimedEncoder] = {}
        for offer in tuple(offers):
            try:
                for mode in (BASELINE_MODE, *config.modes):
                    encoders[offer, mode] = loader(bundle, config, offer, mode)
                    stack.callback(encoders[offer, mode].close)
            except EngineUnavailable as cause:
                offers.remove(offer)
                refusals.append(Refusal(offer, cause))
        check_any(offers, refusals)
        _check_reference(config, offers, refusals)
        _check_recordings(bundle.manifest, config, encoders)
        return cls(bundle.manifest, config, _ways(config, offers), encoders, tuple(refusals), make_inputs(config, bundle.manifest))

    @property
    def infos(self) -> dict[str, EngineInfo]:
        """What really runs, by the engine's name."""
        return {offer.engine: encoder.info for (offer, _), encoder in self.encoders.items()}

    def info(self, way: Way) -> EngineInfo:
        """What runs a configuration."""
        return self.encoders[way.offer, way.mode].info

    def groups(self) -> list[Group]:
        """What `prtool.runtime.bench.timing.measure` takes, in the order of `ways`."""
        return [Group(tuple(self._timed(way) for way in group)) for group in self.ways]

    def breakdown(self, way: Way) -> Case | None:
        """The stages of a configuration whose timed call does not mark them; None for every other."""
        return self._case(way, in_stages=True) if way.mode == "split" and self._stays_on_device(way) else None

    def _timed(self, way: Way) -> Case:
        # To ask for stages is to wait for the device after each, which the whole call need not.
        return self._case(way, in_stages=way.mode == "split" and not self._stays_on_device(way))

    def _stays_on_device(self, way: Way) -> bool:
        return self.encoders[way.offer, way.mode].arrays is not None

    def _case(self, way: Way, in_stages: bool) -> Case:
        encoder, inputs, preprocess = self.encoders[way.offer, way.mode], self.inputs, self.manifest.preprocess
        pixels = inputs.pixels[: way.batch]

        def encode(prepared: Array, mark: Mark) -> None:
            if not in_stages:
                encoder.encode_pixels(prepared, way.keep)
                return
            for stage in encoder.stages(prepared, way.keep):
                mark(stage.name.partition("_")[0])

        def from_pixels(number: int, mark: Mark) -> None:  # noqa: ARG001 - noise is as good in each round
            encode(pixels, mark)

        def from_files(number: int, mark: Mark) -> None:
            decoded = [open_image(content) for content in inputs.files(number, way.batch)]
            mark("decode")
            prepared = prepare_batch(decoded, preprocess)
            mark("preprocess")
            encode(prepared, mark)
            if not in_stages:
                mark("encode")

        run = from_files if way.scope == END_TO_END else from_pixels
        return Case(run, way.offer.engine, cuda_events(encoder.info))


def _ways(config: BenchConfig, offers: Sequence[Offer]) -> tuple[tuple[Way, ...], ...]:
    keeps = config.chosen_keeps()
    return tuple(
        (Way(scope, batch, offer, BASELINE_MODE, None), *(Way(scope, batch, offer, mode, keep) for mode in config.modes for keep in keeps))
        for scope in config.scopes
        for batch in config.batches
        for offer in offers
    )


def _check_reference(config: BenchConfig, offers: Sequence[Offer], refusals: Sequence[Refusal]) -> None:
    if config.reference in ("", SLOWEST) or config.reference in map(str, offers):
        return
    reason = next(str(refusal.cause) for refusal in refusals if str(refusal.offer) == config.reference)
    raise ConfigError(f"reference = {config.reference!r}, but it cannot be measured: {reason}; choose one of {', '.join(map(str, offers))}")


def _check_recordings(manifest: Manifest, config: BenchConfig, encoders: Mapping[tuple[Offer, str], TimedEncoder]) -> None:
    """Refuses more shapes than a GPU's encoder keeps recordings of: each call would record anew, and that would be timed."""
    counts = {manifest.resolve(keep) for keep in config.chosen_keeps()}
    shapes = len(config.batches) * len(counts)
    recorded = [str(offer) for (offer, _), encoder in encoders.items() if on_gpu(encoder.info) and encoder.arrays is not None]
    if recorded and shapes > MAX_RECORDINGS:
        raise ConfigError(
            f"{len(config.batches)} batches x {len(counts)} keeps are {shapes} shapes, but {recorded[0]} keeps the recordings of {MAX_RECORDINGS} "
            "and would time the recording of the others; measure fewer in one run"
        )
