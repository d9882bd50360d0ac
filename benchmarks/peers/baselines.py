"""What shortened encoders are compared with in PyTorch: open_clip as it is, compiled, and with merged tokens."""

import copy
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.progress import Progress, stage
from prtool.spec import MERGE
from prtool.trainer.evaluation.baselines.merge import schedule
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.models.merging import MergedEncoder
from prtool.trainer.models.tower import VisionTower

Forward = Callable[[Tensor], Tensor]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]

OPEN_CLIP, COMPILED, FROZEN, TOME = "open_clip eager", "torch.compile", "torch.compile, frozen", "ToMe"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# One recompilation a batch size and precision; beyond torch's default of 8 it would fall back to eager.
_MAX_RECOMPILATIONS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """One encoder in PyTorch.

    Attributes:
        name: what it is, for the table.
        precision: of the arithmetic.
        target: the share of the whole encoder's MACs that was wanted; 1.0 for whole encoders.
        gmacs: 10^9 multiply-accumulates of one image.
        run: (batch, 3, height, width) float32 -> (batch, E) float32, L2-normalised, numpy in and out as the engines have it.
        detail: how it was configured.
    """

    name: str
    precision: str
    target: float
    gmacs: float
    run: Run
    detail: str = ""


class Baselines:
    """The baselines of one model on one device."""

    def __init__(self, model: DualEncoder, device: str) -> None:
        """Keeps the model, on `device`, in float32 at its native size; copies in other precisions are made as they are needed."""
        self.model, self.device, self.tower = model, device, model.native
        self.cost, self.spec = self.tower.cost(), self.tower.prune_spec((1,), method=MERGE)
        self.gmacs = self.cost.full_gmacs(self.spec)
        self.left_out: list[str] = []

    def all(
        self, precisions: Sequence[str], shares: Sequence[float], pixels: npt.NDArray[np.float32], progress: Progress, *, compiled: bool
    ) -> list[Baseline]:
        """Every baseline; the compiled ones have run on `pixels`, and what cannot be compiled is named in `left_out`.

        Args:
            precisions: of `DTYPES`.
            shares: of the whole encoder's MACs; a merged encoder of that cost, matching included, runs for each.
            pixels: a batch of the size that will be timed, because what is compiled is compiled for one batch.
            progress: advanced once per encoder that is compiled.
            compiled: whole encoders also run through torch.compile.
        """
        found = list(self._eager(precisions, shares, pixels[:1]))
        if compiled:
            candidates = list(self._compiled(precisions))
            with stage(progress, "compiling (encoders)", len(candidates)):
                found += [baseline for baseline in candidates if self._works(baseline, pixels, progress)]
        return found

    def _eager(self, precisions: Sequence[str], shares: Sequence[float], probe: npt.NDArray[np.float32]) -> Iterator[Baseline]:
        for precision in precisions:
            visual, detail = self._fastest(precision, probe)
            yield Baseline(OPEN_CLIP, precision, 1.0, self.gmacs, self._running(visual), detail)
            dtype = DTYPES[precision]
            tower = cast(VisionTower, _in_dtype(self.tower, dtype))
            for share in shares:
                counts = schedule(self.cost, self.spec, share * self.gmacs)
                merged = _Half(_Merging(MergedEncoder(tower, self.spec), counts), dtype)
                detail = f"{_merging((self.spec.patches, *counts))}; {_storage(precision)}"
                yield Baseline(TOME, precision, share, self.cost.pruned_gmacs(self.spec, counts), self._running(merged), detail)

    def _compiled(self, precisions: Sequence[str]) -> Iterator[Baseline]:
        torch._dynamo.config.recompile_limit = _MAX_RECOMPILATIONS
        for precision in precisions:
            visual = _embedding(cast(Any, self.tower).host, DTYPES[precision])
            for name, options in ((COMPILED, None), (FROZEN, {"freezing": True})):
                yield Baseline(name, precision, 1.0, self.gmacs, self._running(_compile(visual, options)), _storage(precision))

    def _fastest(self, precision: str, probe: npt.NDArray[np.float32]) -> tuple[Forward, str]:
        """open_clip's encode_image; in half precision whichever of half weights and autocast is faster on one image."""
        host = cast(Any, self.model.text.host)
        if precision == "fp32":
            return lambda pixels: cast(Tensor, host.encode_image(pixels, normalize=True)), _storage(precision)
        half = _embedding(cast(Any, self.tower).host, DTYPES[precision])

        def autocast(pixels: Tensor) -> Tensor:
            with torch.autocast(self.device, DTYPES[precision]):
                return cast(Tensor, host.encode_image(pixels, normalize=True))

        forwards: dict[str, Forward] = {f"weights in {precision}": half, "autocast": autocast}
        seconds = {name: _seconds(self._running(forward), probe) for name, forward in forwards.items()}
        best = min(seconds, key=lambda name: seconds[name])
        tried = ", ".join(f"{name} {1e3 * value:.0f} ms" for name, value in seconds.items())
        return forwards[best], f"{best} (tried once with one image: {tried})"

    def _running(self, forward: Forward) -> Run:
        def run(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            with torch.inference_mode():
                found = forward(torch.from_numpy(pixels).to(self.device))
            # The copy to the host waits for the device.
            return cast(npt.NDArray[np.float32], found.float().cpu().numpy())

        return run

    def _works(self, baseline: Baseline, pixels: npt.NDArray[np.float32], progress: Progress) -> bool:
        """Compiles a baseline by a first call; false, with the reason kept, where this machine cannot."""
        try:
            baseline.run(pixels)
        # Inductor maps what goes wrong below it (no C++ compiler, an unsupported operator) to subclasses of RuntimeError.
        except RuntimeError as cause:
            reason = str(cause).strip().splitlines()[0]
            self.left_out.append(f"{baseline.name} in {baseline.precision} at batch {len(pixels)} is left out: {reason}")
            return False
        finally:
            progress.advance()
        return True


class _Half(nn.Module):
    """An encoder whose pixels come in float32, whatever its own dtype."""

    def __init__(self, encoder: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.dtype = encoder, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.encoder(pixels.to(self.dtype)))


class _Merging(nn.Module):
    """A merging encoder at fixed counts."""

    def __init__(self, encoder: MergedEncoder, counts: Sequence[int]) -> None:
        super().__init__()
        self.encoder, self.counts = encoder, tuple(counts)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encoder.encode(pixels, self.counts)


class _Normalised(nn.Module):
    """open_clip's image tower and the normalisation behind it: what `encode_image(normalize=True)` does."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self.visual(pixels), dim=-1)


def agreement(found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32]) -> float:
    """The worst cosine between two sets of L2-normalised embeddings."""
    return float((found * wanted).sum(axis=1).min())


def _embedding(visual: nn.Module, dtype: torch.dtype) -> nn.Module:
    return _Half(_Normalised(_in_dtype(visual, dtype)), dtype)


def _in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module itself in float32, else a copy."""
    return module if dtype == torch.float32 else copy.deepcopy(module).to(dtype)


def _compile(module: Forward, options: dict[str, bool] | None) -> Forward:
    # fullgraph: a part that cannot be compiled is an error, where it would silently run as eager code.
    return cast(Forward, torch.compile(cast(Any, module), fullgraph=True, dynamic=False, options=cast(Any, options)))


def _seconds(run: Run, pixels: npt.NDArray[np.float32]) -> float:
    """Of the second call."""
    run(pixels)
    started = time.perf_counter()
    run(pixels)
    return time.perf_counter() - started


def _storage(precision: str) -> str:
    return f"weights in {precision}"


def _merging(patches: Sequence[int]) -> str:
    """(196, 187, 178, 170) -> "merges per block: 2 x 9, 1 x 8"."""
    merges = (before - after for before, after in itertools.pairwise(patches))
    return "merges per block: " + ", ".join(f"{len(list(run))} x {value}" for value, run in itertools.groupby(merges))
