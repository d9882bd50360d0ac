"""The comparison that ends every export: the bundle's graphs against PyTorch, on the engine that users run."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prtool.bundle import Bundle
from prtool.errors import ParityError
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.agreement import KeepAgreement, VerifyRequest, check_agreement, verify_with_model
from prtool.export.validation.cases import ENGINES, ParityCase, Sessions, image_cases, num_image_cases, text_case
from prtool.export.validation.decisions import NEIGHBOURS, TOP1, Decisions, Unpruned
from prtool.export.validation.probe import GIVEN, Probe
from prtool.progress import Progress, SilentProgress, stage
from prtool.runtime.verify import gate_of


@dataclass(frozen=True, slots=True)
class PrecisionParity:
    """The comparisons of one precision.

    Attributes:
        precision: of the graphs.
        engine: what ran them, with its version.
        gate: the worst cosine had to be above this.
        cases: every comparison on the probe.
        agreement: one row a keep count over the held-out images; () for fp32, and where there were no images.
        judged: what `agreement` had to reach in addition to the mean cosine, and why; None where there is none.
    """

    precision: str
    engine: str
    gate: float
    cases: tuple[ParityCase, ...]
    agreement: tuple[KeepAgreement, ...] = ()
    judged: Decisions | None = None

    def summary(self) -> dict[str, float]:
        """The worst figures; those of a reduced precision carry its name."""
        picks = _WORST | _WORST_RANKED if any(case.graph == "split" for case in self.cases) else _WORST
        worst = {name: pick(getattr(case, name) for case in self.cases) for name, pick in picks.items()}
        if self.agreement and self.judged is not None:
            worst["mean_cosine"] = min(row.cosine_mean for row in self.agreement)
            for name in (TOP1, NEIGHBOURS):
                shares = [share for row in self.agreement if (share := getattr(row, name)) is not None]
                worst |= {name: min(shares)} if shares else {}
            worst[f"gate.{self.judged.decided_by}"] = getattr(gate_of(self.precision), self.judged.decided_by)
        return worst if self.precision == "fp32" else {f"{self.precision}.{name}": value for name, value in worst.items()}


_WORST = {"cosine": min, "max_error": max}
_WORST_RANKED = {"score_error": max, "index_agreement": min}


@dataclass(frozen=True, slots=True)
class ParityReport:
    """Every comparison, by precision, what the images were ("given" or "noise"), and how many given ones the probe has (0 for noise)."""

    images: str
    precisions: tuple[PrecisionParity, ...]
    probe_images: int = 0

    def summary(self) -> dict[str, float]:
        """The worst figures, for the manifest; `images` is how many real ones the probe has."""
        return {"images": float(self.probe_images), **{name: value for part in self.precisions for name, value in part.summary().items()}}

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return dataclasses.asdict(self)


def compare(
    source: ExportSource, bundle: Bundle, probe: Probe, held_out: Pixels | None = None, labels: Sequence[int] = (), progress: Progress | None = None
) -> ParityReport:
    """Runs every graph of every precision, alone and together, and compares each with PyTorch in float32.

    Args:
        source: the reference.
        bundle: an opened bundle.
        probe: images and keep counts.
        held_out: real images on which reduced precisions are compared too; None for none.
        labels: the class of each of these, or -1; () for none known.
        progress: advanced once for each comparison.

    Raises:
        ParityError: a comparison failed; the message names it.
    """
    shown = progress or SilentProgress()
    parts = [_compare(source, bundle, probe, precision, shown) for precision in bundle.manifest.graphs]
    if held_out is not None and len(parts) > 1:
        unpruned_model = Unpruned.of(source, held_out, labels)
        for place, part in enumerate(parts):
            if part.precision != "fp32":
                ask = VerifyRequest(ENGINES[part.precision], part.precision)
                with stage(shown, f"comparing {part.precision} with PyTorch on {len(held_out)} held-out images", 1):
                    rows = verify_with_model(bundle, source, held_out, probe.counts, ask, labels)
                    shown.advance()
                judged = unpruned_model.judged(gate_of(part.precision))
                check_agreement(rows, ask, judged)
                parts[place] = dataclasses.replace(part, agreement=rows, judged=judged)
    return ParityReport(probe.images, tuple(parts), len(probe.pixels) if probe.images == GIVEN else 0)


def _compare(source: ExportSource, bundle: Bundle, probe: Probe, precision: str, progress: Progress) -> PrecisionParity:
    gate = gate_of(precision).worst_cosine
    cases: list[ParityCase] = []
    batches = sorted({1, len(probe.pixels)})
    texts = int(precision == "fp32" and source.model.has_text)
    steps = len(batches) * num_image_cases(source, probe.counts) + texts
    with stage(progress, f"comparing {precision} with PyTorch, cases", steps), Sessions(bundle, precision) as sessions:
        for batch in batches:
            for case in image_cases(source, sessions, probe.pixels[:batch], probe.counts):
                cases.append(_gated(case, gate))
                progress.advance()
        if texts:
            cases.append(_gated(text_case(source, sessions), gate))
            progress.advance()
        return PrecisionParity(precision, f"{sessions.fused.info.name} {sessions.fused.info.version}", gate, tuple(cases))


def _gated(case: ParityCase, gate: float) -> ParityCase:
    if case.cosine > gate:
        return case
    place = f"{case.graph} at batch {case.batch}" + (f" and k = {case.k}" if case.k else "")
    raise ParityError(
        f"{place} has cosine {case.cosine:.7f} with PyTorch, but it must be above {gate} (largest error {case.max_error:.3g}, "
        f"{case.index_agreement:.1%} of patches agree); nothing was written; use another model, or report this one's name"
    )
