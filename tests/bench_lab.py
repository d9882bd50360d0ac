"""A clock that scripted encoders move, so that a benchmark's figures can be checked by plain arithmetic."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from models import EMBED

from prtool.bundle import Bundle
from prtool.engines.base import EngineInfo
from prtool.errors import EngineUnavailable
from prtool.progress import Progress
from prtool.runtime.bench import BenchConfig, BenchReport, bench, lineup, run
from prtool.runtime.bench.sensors import EnergyMeter
from prtool.runtime.bench.timing import Sensors
from prtool.runtime.pipeline import Stage


class FakeLab:
    """A clock in nanoseconds, and encoders whose calls move it; writes down who was called with what.

    Attributes:
        shares: share of the unpruned time by the number of patches kept; `pruned_share` for every other number.
    """

    def __init__(self, pruned_share: float = 0.8) -> None:
        self.now = 0
        self.pruned_share = pruned_share
        self.calls: list[tuple[str, str, int, object]] = []
        self.spent_ns: list[int] = []
        self.inputs: dict[int, list[bytes]] = {}
        self.loaded: list[FakeEncoder] = []
        self.rests: list[float] = []
        self.missing: set[str] = set()
        self.slowness: dict[str, float] = {}
        self.device = "thin air"
        self.shares: dict[int, float] = {}
        self.noise = 0.5
        self._rng = np.random.default_rng(5)

    def bench(
        self, bundle: str | Path | Bundle, config: BenchConfig, progress: Progress | None = None, meter: Callable[[], EnergyMeter] | None = None
    ) -> BenchReport:
        """`bench` with this lab's encoders and clock, and no counters of energy unless some are given."""
        with (
            mock.patch.object(lineup, "Encoder", self),
            mock.patch.object(run, "Sensors", partial(Sensors, clock=self.clock, sleep=self.sleep)),
            mock.patch.object(run, "EnergyMeter", meter or (lambda: EnergyMeter(Path("/nowhere")))),
        ):
            return bench(bundle, config, progress)

    def clock(self) -> int:
        return self.now

    def load(self, bundle: Bundle, *, engine: str, mode: str, precision: str, options: object) -> "FakeEncoder":  # noqa: ARG002 - as Encoder.load
        if engine in self.missing:
            raise EngineUnavailable(f"engine {engine} cannot be imported")
        self.loaded.append(FakeEncoder(self, mode, engine, precision))
        return self.loaded[-1]

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += int(1e9 * seconds)

    def work(self, encoder: "FakeEncoder", batch: int, counts: tuple[int, ...]) -> int:
        """Moves the clock: 10 ms an image, less when pruned, with noise."""
        share = 1.0 if encoder.mode == "full" else self.shares.get(counts[-1] if counts else 0, self.pruned_share)
        spent = int(1e7 * batch * share * self.slowness.get(encoder.engine, 1.0) * self._rng.uniform(1.0, 1.0 + self.noise))
        self.now += spent
        return spent


class FakeEncoder:
    def __init__(self, lab: FakeLab, mode: str, engine: str, precision: str) -> None:
        self.lab, self.mode, self.engine, self.pair, self.closed = lab, mode, engine, f"{engine}/{precision}", False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(self.engine, "9.9", self.lab.device)

    @property
    def arrays(self) -> Any:
        return object() if "cuda" in self.lab.device else None

    def encode_pixels(self, pixels: np.ndarray, keep: tuple[int, ...]) -> np.ndarray:
        assert pixels.dtype == np.float32 and pixels.flags.c_contiguous and not self.closed
        self.lab.inputs.setdefault(len(pixels), []).append(pixels.tobytes())
        self.lab.calls.append((self.mode, self.pair, len(pixels), keep))
        self.lab.spent_ns.append(self.lab.work(self, len(pixels), keep))
        return np.zeros((len(pixels), EMBED), np.float32)

    def stages(self, pixels: np.ndarray, keep: tuple[int, ...]) -> Iterator[Stage]:
        self.lab.calls.append((self.mode, self.pair, len(pixels), keep))
        for name, spent in (("pre", 5), ("select_1", 1), ("mid_1", 2), ("select_2", 3), ("post", 4)):
            self.lab.now += spent * 1_000_000
            yield Stage(name, {})
        self.lab.spent_ns.append(15_000_000)

    def close(self) -> None:
        self.closed = True
