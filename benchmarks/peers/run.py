"""The race itself: a bundle's engines and PyTorch's ways in one interleaved run."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
from results_file import short

from prtool.bundle import Bundle
from prtool.errors import ConfigError
from prtool.progress import Progress
from prtool.runtime.bench.config import BASELINE_MODE, BenchConfig
from prtool.runtime.bench.lineup import Lineup, Variant
from prtool.runtime.bench.report import BenchRow
from prtool.runtime.bench.rows import rows_of
from prtool.runtime.bench.supported import left_out
from prtool.runtime.bench.timing import Case, Mark, Samples, Sensors, measure, speedup
from prtool.runtime.machine import library_versions, peak_memory_mib, this_machine
from prtool.trainer.models.dual_encoder import DualEncoder
from prtool.trainer.runs.checkpoint import load_seeded
from race.accuracy import PRUNED, UNPRUNED, Accuracies
from race.report import RaceReport, RaceRow, kind_of, with_accuracy
from race.rivals import COMPILED, DTYPES, OPEN_CLIP, TOME_COMPILED, Rival, RivalPlan, Rivals, agreement

_TORCH = "torch"
_MIN_COSINE = 0.99


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """What takes part.

    Attributes:
        config: the bundle's side: engines, precisions, batches, keeps, modes, rounds; its scope is "encoder".
        compiled: what also runs through torch.compile: "none", "whole" encoders, or "all".
        device: of PyTorch, "cpu" or "cuda".
        accuracies: percent beside the rows; None leaves them out.
    """

    config: BenchConfig
    compiled: str
    device: str
    accuracies: Accuracies | None

    def rivals(self) -> RivalPlan:
        """PyTorch's side: always fp32, which every ratio refers to, and the asked precisions that it has."""
        precisions = dict.fromkeys(("fp32", *(name for name in self.config.precisions if name in DTYPES)))
        return RivalPlan(tuple(precisions), self.config.chosen_keeps(), self.compiled)


def race(bundle: Bundle, settings: RaceSettings, progress: Progress) -> RaceReport:
    """Loads everything, checks that whole encoders agree, and times everything in one interleaved run.

    Raises:
        ConfigError: nothing can be measured, the graphs do not fit into memory, or the weights are not the bundle's.
        ModelError: the model cannot be loaded.
        EngineError: an engine failed.
    """
    config, machine, started = settings.config, this_machine(), datetime.now(UTC)
    threads = config.threads or machine.threads_granted
    torch.set_num_threads(threads)
    manifest = bundle.manifest
    with contextlib.ExitStack() as stack:
        lineup = Lineup.load(bundle, config, stack)
        rivals = Rivals(_model(bundle, settings), manifest.prune, manifest.cost, settings.device)
        contenders = rivals.all(settings.rivals(), [lineup.inputs.pixels[:batch] for batch in config.batches], progress)
        cosines = _cosines(lineup, contenders)
        field = [[_case(rival, lineup, batch) for rival in contenders] for batch in config.batches]
        samples = measure([*lineup.groups(), *field], config.plan(), Sensors(), progress)
    mine = lineup.by_variant(samples)
    field_samples = samples[len(lineup.variants) :]
    theirs = {
        (rival, batch): taken
        for batch, found in zip(config.batches, field_samples, strict=True)
        for rival, taken in zip(contenders, found, strict=True)
    }
    rows = [*_rival_rows(theirs, cosines), *_own_rows(lineup, mine, theirs, cosines)]
    infos = lineup.infos
    return RaceReport(
        model={"name": short(manifest.model.name), "pretrained": manifest.model.pretrained, "weights_sha256": manifest.model.weights_sha256},
        device=torch.cuda.get_device_name() if settings.device == "cuda" else machine.cpu,
        engines={name: info.device for name, info in infos.items()},
        versions=library_versions() | {name: info.version for name, info in infos.items()} | {"torch": torch.__version__, **_open_clip()},
        rows=tuple(with_accuracy(row, settings.accuracies) for row in rows),
        accuracy=None if settings.accuracies is None else {"about": settings.accuracies.about, "unpruned_fp32": settings.accuracies.reference},
        rounds=len(samples[0][0].total_ns),
        seed=config.seed,
        threads=threads,
        streams=config.streams,
        settle_ms=1e3 * config.plan().settle_s,
        machine=machine,
        peak_memory_mib=peak_memory_mib(),
        date=started.isoformat(timespec="seconds"),
        left_out=(*map(left_out, lineup.unsupported), *rivals.left_out, *_disagreements(cosines)),
    )


def _model(bundle: Bundle, settings: RaceSettings) -> DualEncoder:
    wanted = bundle.manifest.model
    model = load_seeded(wanted.name, wanted.pretrained, settings.config.seed, settings.device)
    if model.weights_sha256 != wanted.weights_sha256:
        raise ConfigError(
            f"{wanted.name} {wanted.pretrained} has weights {model.weights_sha256[:12]} with seed {settings.config.seed}, but the bundle was made "
            f"from {wanted.weights_sha256[:12]}, and PyTorch would run another model; give --seed the run's seed, or bring back the weights"
        )
    return model


def _case(rival: Rival, lineup: Lineup, batch: int) -> Case:
    pixels = lineup.inputs.pixels[:batch]

    def run(_number: int, _mark: Mark) -> None:
        rival.run(pixels)

    return Case(run, _TORCH)


Cosines = Mapping[tuple[str, str, str], float]


def _cosines(lineup: Lineup, contenders: Sequence[Rival]) -> dict[tuple[str, str, str], float]:
    """Whole encoders beside open_clip eager fp32: (method, engine, precision) -> worst cosine."""
    # A batch that is timed: another one would be compiled for this alone.
    pixels = lineup.inputs.pixels[: lineup.config.batches[0]]
    wanted = _rival(contenders, OPEN_CLIP, "fp32").run(pixels)
    found = {(rival.method, _TORCH, rival.precision): agreement(rival.run(pixels), wanted) for rival in contenders if rival.keep == 1.0}
    for (engine, precision, mode), encoder in lineup.encoders.items():
        if mode == BASELINE_MODE:
            found[UNPRUNED, engine, precision] = agreement(encoder.encode_pixels(pixels), wanted)
    return found


def _disagreements(cosines: Cosines) -> list[str]:
    return [
        f"{method} on {engine} in {precision} has a cosine of {cosine:.4f} to open_clip eager fp32 on noise."
        for (method, engine, precision), cosine in cosines.items()
        if cosine < _MIN_COSINE
    ]


def _rival(contenders: Sequence[Rival], method: str, precision: str) -> Rival:
    return next(rival for rival in contenders if (rival.method, rival.precision) == (method, precision))


def _rival_rows(theirs: Mapping[tuple[Rival, int], Samples], cosines: Cosines) -> list[RaceRow]:
    contenders = list(dict.fromkeys(rival for rival, _ in theirs))
    rows = []
    for (rival, batch), samples in theirs.items():
        whole = _rival(contenders, COMPILED if rival.method == TOME_COMPILED else OPEN_CLIP, rival.precision) if rival.keep < 1.0 else rival
        gained = speedup(theirs[whole, batch], samples).median
        bound = whole.gmacs / rival.gmacs
        rows.append(
            RaceRow(
                method=rival.method,
                kind=kind_of(rival.method),
                engine=_TORCH,
                precision=rival.precision,
                mode="",
                keep=rival.keep,
                batch=batch,
                gmacs=rival.gmacs,
                **_times(samples, batch, theirs),
                speedup=gained,
                bound=bound,
                share_of_bound=gained / bound,
                accuracy=None,
                points=None,
                cosine=cosines.get((rival.method, _TORCH, rival.precision)) if rival.keep == 1.0 else None,
                detail=rival.detail,
            )
        )
    return rows


def _own_rows(lineup: Lineup, mine: Mapping[Variant, Samples], theirs: Mapping[tuple[Rival, int], Samples], cosines: Cosines) -> list[RaceRow]:
    variants = [variant for group in lineup.variants for variant in group]
    return [_own_row(row, mine[variant], theirs, cosines) for variant, row in zip(variants, rows_of(lineup, mine), strict=True)]


def _own_row(row: BenchRow, samples: Samples, theirs: Mapping[tuple[Rival, int], Samples], cosines: Cosines) -> RaceRow:
    method = UNPRUNED if row.is_baseline else PRUNED
    return RaceRow(
        method=method,
        kind=kind_of(method),
        engine=row.engine,
        precision=row.precision,
        mode=row.mode,
        keep=row.keep,
        batch=row.batch,
        gmacs=row.gmacs,
        **_times(samples, row.batch, theirs),
        speedup=row.speedup,
        bound=row.theoretical_speedup,
        share_of_bound=row.share_of_theoretical,
        accuracy=None,
        points=None,
        cosine=cosines.get((UNPRUNED, row.engine, row.precision)) if row.is_baseline else None,
        detail=row.device,
    )


def _times(samples: Samples, batch: int, theirs: Mapping[tuple[Rival, int], Samples]) -> dict[str, float]:
    """The part of a row that comes from its own samples and those of open_clip eager fp32."""
    eager = _rival([rival for rival, _ in theirs], OPEN_CLIP, "fp32")
    ratio, p50_ms = speedup(theirs[eager, batch], samples), samples.percentile_ms(50)
    return {
        "p50_ms": p50_ms,
        "p90_ms": samples.percentile_ms(90),
        "images_per_s": 1e3 * batch / p50_ms,
        "ratio": ratio.median,
        "ratio_low": ratio.low,
        "ratio_high": ratio.high,
    }


def _open_clip() -> dict[str, str]:
    import open_clip

    return {"open_clip": str(open_clip.__version__)}
