"""What a benchmark measures, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from prtool.engines.base import BuildOptions, EngineOptions, ShapeRange
from prtool.errors import ConfigError
from prtool.manifest import Manifest
from prtool.records import check_settings, check_value, setting
from prtool.runtime.bench.timing import Plan
from prtool.runtime.pipeline import MODES
from prtool.spec import Keep

ENCODER, END_TO_END = "encoder", "end-to-end"
SCOPES = (ENCODER, END_TO_END)
BASELINE_MODE = "full"
PRUNED_MODES = tuple(name for name, mode in MODES.items() if mode.prunes)
SLOWEST = "slowest"
MAX_BATCH, MAX_IMAGES = 1024, 256
DEFAULT_KEEPS = (1.0, 0.8, 0.6, 0.5)


@dataclass(frozen=True, slots=True)
class BenchConfig(Plan):
    """What is measured: every combination, each with the unpruned model next to it."""

    engines: tuple[str, ...] = setting(("ort",), "names of the engine registry")
    precisions: tuple[str, ...] = setting(("fp32",), "arithmetic; rows are compared with the unpruned model on the same engine in the same precision")
    batches: tuple[int, ...] = setting((1, 8), "images per call", minimum=1, maximum=MAX_BATCH)
    keeps: tuple[Keep | float | int, ...] = setting(
        (),
        "ratios (0.6), counts (118) or `Keep`; 1.0 shows what scoring and selection cost; () takes those of "
        f"{', '.join(map(str, DEFAULT_KEEPS))} that the bundle allows",
    )
    modes: tuple[str, ...] = setting(("fused",), "pruned modes; the unpruned one is always measured, as the baseline", choices=PRUNED_MODES)
    scopes: tuple[str, ...] = setting(
        SCOPES, '"encoder" (from prepared pixels), "end-to-end" (from encoded files in memory: decode, preprocess, encode)', choices=SCOPES
    )
    reference: str = setting("", 'also relate every row to the unpruned model of "ENGINE/PRECISION", or of the "slowest"; "" for neither')
    images: tuple[str | Path | bytes, ...] | None = setting(
        None, f"files or their bytes for the end-to-end rows, the first {MAX_IMAGES}; None takes generated JPEGs of 500 x 375"
    )
    threads: int = setting(0, "CPU threads of one call; 0 takes what the machine grants this process", minimum=0, maximum=4096)
    device: int = setting(0, "number of the GPU, from 0", minimum=0, maximum=4096)
    streams: int = setting(1, "parts that a batch is cut into and that run side by side, on engines that have streams", minimum=1, maximum=4096)
    cache: Path | None = setting(None, "folder of built engines; None takes the engines' own default")  # noqa: RUF009 - a field
    build: BuildOptions = setting(BuildOptions(), "how engines that compile ahead are built; widened to the measured batches")  # noqa: RUF009

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            numbers = value if item.name == "batches" else (value,) if isinstance(item.default, int) else ()
            if any(type(number) is not int for number in numbers):
                raise ConfigError(f"{item.name} = {value!r}, but it must be a whole number")
        check_settings(self)
        check_value("max_rounds", self.max_rounds, minimum=self.min_rounds)
        for name in ("engines", "precisions", "batches", "modes", "scopes"):
            _check_some(name, getattr(self, name))
        _check_once("keeps", tuple(map(Keep.of, self.keeps)))
        if self.images is not None:
            _check_some("images", self.images[:1])
        if self.reference:
            references = tuple(f"{engine}/{precision}" for engine in self.engines for precision in self.precisions)
            check_value("reference", self.reference, choices=(SLOWEST, *references))

    def chosen_keeps(self, manifest: Manifest) -> tuple[Keep, ...]:
        """The keeps that are measured of a bundle."""
        return tuple(map(Keep.of, self.keeps)) if self.keeps else manifest.usual_keeps(DEFAULT_KEEPS)

    def engine_options(self) -> EngineOptions:
        """The part that the engines need."""
        batch = self.build.batch
        build = replace(self.build, batch=ShapeRange(min(batch.min, *self.batches), batch.opt, max(batch.max, *self.batches)))
        return EngineOptions(threads=self.threads, device=self.device, streams=self.streams, cache=self.cache, build=build)


def _check_some(name: str, values: Sequence[object]) -> None:
    if not values:
        raise ConfigError(f"{name} = (), but a benchmark needs at least one")
    _check_once(name, values)


def _check_once(name: str, values: Sequence[object]) -> None:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ConfigError(f"{name} names {value} twice; name each once")
