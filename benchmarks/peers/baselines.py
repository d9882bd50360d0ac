"""What a pruned encoder is compared with in PyTorch: open_clip as it is, compiled, and with merged tokens."""

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
from prtool.spec import Cost, Keep, PruneSpec
from prtool.trainer.evaluation.baselines.tome import MergedEncoder, merged_gmacs, schedule
from prtool.trainer.models.dual_encoder import DualEncoder

Forward = Callable[[Tensor], Tensor]
Run = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Schedule = tuple[float, tuple[int, ...], float]
"""Keep rate, merges per block and 10^9 multiply-accumulates of a merged encoder."""

OPEN_CLIP, COMPILED, FROZEN, TOME, TOME_COMPILED = "open_clip eager", "torch.compile", "torch.compile, frozen", "ToMe", "ToMe, torch.compile"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# One recompilation a batch size, precision and number of merges; beyond torch's default of 8 it would fall back to eager.
_MAX_RECOMPILATIONS = 256


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """One encoder in PyTorch.

    Attributes:
        method: what it is, for the table.
        precision: of the arithmetic.
        keep: share of patches of the pruned encoder that costs as much; 1.0 for whole encoders.
        gmacs: 10^9 multiply-accumulates of one image.
        run: (batch, 3, height, width) float32 -> (batch, E) float32, L2-normalised, numpy in and out as the engines have it.
        detail: how it was configured.
    """

    method: str
    precision: str
    keep: float
    gmacs: float
    run: Run
    detail: str = ""


class Baselines:
    """The baselines of one model on one device."""

    def __init__(self, model: DualEncoder, spec: PruneSpec, cost: Cost, device: str) -> None:
        """Keeps the model; copies in other precisions are made as they are needed.

        Args:
            model: on `device`, in float32.
            spec, cost: of the pruned encoder, whose cost, scorer included, the merged ones match.
            device: "cpu" or "cuda".
        """
        self.model, self.spec, self.cost, self.device = model, spec, cost, device
        # What eager code computes: it does not leave out what the head never reads.
        self.gmacs = model.tower.cost().full_gmacs(spec)
        self.left_out: list[str] = []

    def all(
        self, precisions: Sequence[str], keeps: Sequence[Keep], compiled: str, inputs: Sequence[npt.NDArray[np.float32]], progress: Progress
    ) -> list[Baseline]:
        """Every baseline; the compiled ones have run on each input, and what cannot be compiled is named in `left_out`.

        Args:
            precisions: of `DTYPES`.
            keeps: of the pruned encoder; a merged encoder of the same cost runs for each below 1.
            compiled: what also runs through torch.compile: "none", "whole" encoders, or "all", the merged ones too.
            inputs: pixels of each batch that will be timed, because what is compiled is compiled for one batch.
            progress: advanced once per encoder and batch that is compiled.
        """
        schedules = list(self._schedules(keeps))
        found = list(self._eager(precisions, schedules, inputs[0][:1]))
        if compiled != "none":
            candidates = list(self._compiled(precisions, schedules if compiled == "all" else []))
            with stage(progress, "compiling (encoders and batches)", len(candidates) * len(inputs)):
                found += [baseline for baseline in candidates if all([self._works(baseline, pixels, progress) for pixels in inputs])]
        return found

    def _eager(self, precisions: Sequence[str], schedules: Sequence[Schedule], probe: npt.NDArray[np.float32]) -> Iterator[Baseline]:
        for precision in precisions:
            visual, detail = self._fastest(precision, probe)
            yield Baseline(OPEN_CLIP, precision, 1.0, self.gmacs, self._running(visual), detail)
            for keep, merges, gmacs in schedules:
                merged = self._merged(precision, merges)
                yield Baseline(TOME, precision, keep, gmacs, self._running(merged), _merging(merges, precision))

    def _compiled(self, precisions: Sequence[str], schedules: Sequence[Schedule]) -> Iterator[Baseline]:
        torch._dynamo.config.recompile_limit = _MAX_RECOMPILATIONS
        for precision in precisions:
            visual = _embedding(cast(Any, self.model.tower).host, DTYPES[precision])
            for method, options in ((COMPILED, None), (FROZEN, {"freezing": True})):
                yield Baseline(method, precision, 1.0, self.gmacs, self._running(_compile(visual, options)), _storage(precision))
            for keep, merges, gmacs in schedules:
                merged = _compile(self._merged(precision, merges), None)
                yield Baseline(TOME_COMPILED, precision, keep, gmacs, self._running(merged), _merging(merges, precision))

    def _schedules(self, keeps: Sequence[Keep]) -> Iterator[Schedule]:
        tower = self.model.tower
        for keep in keeps:
            k = keep.resolve(self.spec.patches)
            if k < self.spec.patches:
                merges = schedule(tower, self.cost.pruned_gmacs(self.spec, self.spec.counts(k)))
                yield k / self.spec.patches if keep.is_count else keep.value, merges, merged_gmacs(tower, merges)

    def _merged(self, precision: str, merges: Sequence[int]) -> Forward:
        tower = self.model.tower if precision == "fp32" else _in_dtype(self.model.tower, DTYPES[precision])
        return _Half(MergedEncoder(cast(Any, tower), merges), DTYPES[precision])

    def _fastest(self, precision: str, probe: npt.NDArray[np.float32]) -> tuple[Forward, str]:
        """open_clip's encode_image; in half precision whichever of half weights and autocast is faster on one image."""
        host = cast(Any, self.model.text.host)
        if precision == "fp32":
            return lambda pixels: cast(Tensor, host.encode_image(pixels, normalize=True)), _storage(precision)
        half = _embedding(cast(Any, self.model.tower).host, DTYPES[precision])

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
            self.left_out.append(f"{baseline.method} in {baseline.precision} at batch {len(pixels)} (keep {baseline.keep:g}) is left out: {reason}")
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


def _merging(merges: Sequence[int], precision: str) -> str:
    """(9, 9, 8) -> "merges per block: 2 x 9, 1 x 8; weights in fp32"."""
    counts = ", ".join(f"{len(list(run))} x {value}" for value, run in itertools.groupby(merges))
    return f"merges per block: {counts}; {_storage(precision)}"
