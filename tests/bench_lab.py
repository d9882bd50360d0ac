"""A clock that scripted encoders move, so that a benchmark's figures can be checked by plain arithmetic."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from models import EMBED

from prtool.bundle import Bundle
from prtool.engines.base import EngineInfo
from prtool.errors import EngineUnavailable
from prtool.runtime.bench import BenchConfig, Instruments
from prtool.runtime.bench.gpu import GpuMeter
from prtool.runtime.bench.offers import Offer
from prtool.runtime.machine import EnergyMeter
from prtool.runtime.pipeline import Stage


class FakeLab:
    """A clock in nanoseconds, and encoders whose calls move it; writes down who was called with what."""

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
        self.shares: dict[float, float] = {}
        self.noise = 0.5
        self._rng = np.random.default_rng(5)

    def clock(self) -> int:
        return self.now

    def load(self, bundle: Bundle, config: BenchConfig, offer: Offer, mode: str) -> "FakeEncoder":  # noqa: ARG002 - a Loader
        if offer.engine in self.missing:
            raise EngineUnavailable(f"engine {offer.engine} cannot be imported")
        self.loaded.append(FakeEncoder(self, mode, offer))
        return self.loaded[-1]

    def sleep(self, seconds: float) -> None:
        self.rests.append(seconds)
        self.now += int(1e9 * seconds)

    def work(self, encoder: "FakeEncoder", batch: int, keep: object) -> int:
        """Moves the clock: 10 ms an image, less when pruned, with noise."""
        share = 1.0 if encoder.mode == "full" else self.shares.get(getattr(keep, "value", 0.0), self.pruned_share)
        spent = int(1e7 * batch * share * self.slowness.get(encoder.offer.engine, 1.0) * self._rng.uniform(1.0, 1.0 + self.noise))
        self.now += spent
        return spent

    def instruments(self, meter: EnergyMeter | None = None, gpu_meter: Callable[[], GpuMeter] = GpuMeter) -> Instruments:
        return Instruments(self.load, self.clock, self.sleep, meter or EnergyMeter(Path("/nowhere")), gpu_meter)


class FakeEncoder:
    def __init__(self, lab: FakeLab, mode: str, offer: Offer) -> None:
        self.lab, self.mode, self.offer, self.closed = lab, mode, offer, False

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(self.offer.engine, "9.9", self.lab.device)

    @property
    def arrays(self) -> Any:
        return object() if "cuda" in self.lab.device else None

    def encode_pixels(self, pixels: np.ndarray, keep: object = None) -> np.ndarray:
        assert pixels.dtype == np.float32 and pixels.flags.c_contiguous and not self.closed
        self.lab.inputs.setdefault(len(pixels), []).append(pixels.tobytes())
        self.lab.calls.append((self.mode, str(self.offer), len(pixels), keep))
        self.lab.spent_ns.append(self.lab.work(self, len(pixels), keep))
        return np.zeros((len(pixels), EMBED), np.float32)

    def stages(self, pixels: np.ndarray, keep: object = None) -> Iterator[Stage]:
        self.lab.calls.append((self.mode, str(self.offer), len(pixels), keep))
        for name, spent in (("pre", 5), ("select_1", 1), ("mid_1", 2), ("select_2", 3), ("post", 4)):
            self.lab.now += spent * 1_000_000
            yield Stage(name, {})
        self.lab.spent_ns.append(15_000_000)

    def close(self) -> None:
        self.closed = True
