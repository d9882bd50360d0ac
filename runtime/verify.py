"""Verification without PyTorch: an engine's embeddings against those that PyTorch computed when the bundle was made."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, EngineInfo, EngineOptions
from prtool.errors import BundleError, ParityError
from prtool.records import check_value
from prtool.runtime.encoder import Encoder
from prtool.runtime.patch_tokens import PatchTokens, common_tokens
from prtool.runtime.pipeline import MODES, modes_of
from prtool.runtime.tensors import checked, read_tensors
from prtool.spec import Keep

PROBE_NAME = "probe.safetensors"
PROBE_BYTES = 1 << 30
"""Most bytes of a probe."""
PATCH_TOKENS, PATCH_INDICES = "patch_tokens", "patch_indices"
"""Of the probe, at the default keep."""
_COUNT_PREFIX = "embedding_k"
_COUNT_NAME = re.compile(_COUNT_PREFIX + "([1-9][0-9]{0,6})")


@dataclass(frozen=True, slots=True)
class Gate:
    """What a precision must reach; embeddings are compared with PyTorch's in float32.

    Attributes:
        worst_cosine: of any of the few probe images.
        mean_cosine: over many real images, at each keep count.
        top1: share of those images that keep their first class, where the unpruned model's classes mean something on them.
        neighbours: else, share of each image's ten nearest images among them that stay its nearest.
        score_error: largest difference of a patch score, as a share of the largest score.
    """

    worst_cosine: float
    mean_cosine: float
    top1: float
    neighbours: float
    score_error: float


# Measured with a ViT-S/14, lowest mean cosine and top-1. DTD, 240 images, keep 1.0 to .5: fp16 1.00000 and 100 %, bf16 0.9998 and
# 99.6 %, int8 0.9986 and 98.3 %. EuroSAT, 64 images, keep 1.0 to .25: bf16 0.9993 and 98.4 %, int8 0.9958 and 96.9 %. A bf16 or int8
# engine may choose other patches where scores are close; one image of 64 is 1.6 %.
# Neighbours, with noise of equal size in all directions at the gate's mean cosine, lowest of 37 to 64 validation images of Pets,
# EuroSAT and DTD: fp16 0.984, bf16 0.978, int8 0.957; a bfloat16 tower 0.989; unrelated embeddings 0.08 to 0.14.
GATES: Mapping[str, Gate] = MappingProxyType(
    {
        "fp32": Gate(0.99999, 0.99999, 0.99, 0.98, 1e-4),
        "fp16": Gate(0.999, 0.999, 0.99, 0.97, 1e-2),
        "bf16": Gate(0.98, 0.998, 0.97, 0.95, 1e-1),
        "int8": Gate(0.90, 0.99, 0.95, 0.9, 5e-1),
    }
)
# Three engines one after another, and no time is taken: waiting threads give their core away.
QUIET = EngineOptions(spinning=False)
Tensors = Mapping[str, Array]


class Agreement(NamedTuple):
    """How near two sets of embeddings are: the worst cosine of any row, and the largest difference of any value."""

    cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class VerifyCase:
    """One comparison.

    Attributes:
        mode: a mode of the encoder ("fused", ...), "text", or "tokens", whose tokens of an image are one vector.
        batch: images, or prompts, in the call.
        k: patches kept; 0 for text.
        cosine, max_error: see `Agreement`.
    """

    mode: str
    batch: int
    k: int
    cosine: float
    max_error: float


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What ran, what was asked of it, and every comparison."""

    engine: EngineInfo
    precision: str
    gate: float
    cases: tuple[VerifyCase, ...]

    @property
    def cosine(self) -> float:
        """The worst cosine of all cases."""
        return min(case.cosine for case in self.cases)

    @property
    def max_error(self) -> float:
        """The largest difference of any value in all cases."""
        return max(case.max_error for case in self.cases)

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return {**dataclasses.asdict(self), "cosine": self.cosine, "max_error": self.max_error}

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column titles, and one list of cells a comparison."""
        cells = [[case.mode, str(case.batch), str(case.k or "-"), f"{case.cosine:.9f}", f"{case.max_error:.2e}"] for case in self.cases]
        return ["mode", "batch", "patches kept", "worst cosine", "largest error"], cells


def agreement(found: Array, wanted: Array) -> Agreement:
    """Compares (batch, E) embeddings row by row, in float64; a row that is not finite has cosine -1."""
    first, second = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (first * second).sum(axis=1) / lengths
        errors = np.abs(first - second)
    if not np.isfinite(errors).all() or not np.isfinite(cosines).all():
        return Agreement(-1.0, float(np.finfo(np.float64).max))
    return Agreement(float(cosines.min()), float(errors.max()))


def gate_of(precision: str) -> Gate:
    """What must be reached at a precision; raises ConfigError where no gate is set for it."""
    check_value("precision", precision, choices=tuple(GATES))
    return GATES[precision]


def verify(bundle: str | Path | Bundle, engine: str = "ort", options: EngineOptions | None = None, precision: str = "fp32") -> VerifyReport:
    """Runs the bundle's probe through every mode that it has, on one engine, and compares with PyTorch's embeddings.

    Every digest of a bundle directory is checked. Options of None are `QUIET`.

    Raises:
        BundleError: the bundle or its probe is missing or damaged.
        ConfigError, EngineUnavailable, EngineError: as `Encoder.load`.
        ParityError: a case is not above the gate; the message names it.
    """
    gates = {mode: gate_of(precision).worst_cosine for mode in (*MODES, "tokens")} | {"text": gate_of("fp32").worst_cosine}
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    probe = read_probe(opened)
    cases: list[VerifyCase] = []
    infos: list[EngineInfo] = []
    for mode in modes_of(opened.manifest.prune):
        with Encoder.load(opened, engine=engine, mode=mode, precision=precision, options=options or QUIET) as encoder:
            infos.append(encoder.info)
            for case in _cases(encoder, mode, probe):
                cases.append(case)
                if not case.cosine > gates[case.mode]:
                    place = f"{case.mode}, batch {case.batch}" + (f", k = {case.k}" if case.k else "")
                    raise ParityError(
                        f"{encoder.info.name} {encoder.info.version} disagrees with PyTorch in {place}: cosine {case.cosine:.7f}, but it must be "
                        f"above {gates[case.mode]}; do not use this engine with this bundle, or export the bundle again"
                    )
    return VerifyReport(infos[0], precision, gates["full"], tuple(cases))


def read_probe(bundle: Bundle) -> Tensors:
    """The bundle's probe: `pixels` (n, 3, height, width), `embedding_full` and `embedding_k<count>` (n, E), float32, and text if any.

    Where the unpruned encoder reads larger images, `pixels_full` are the same images for it.

    Raises:
        BundleError: the file or a tensor is missing or damaged.
    """
    tensors: Tensors = read_tensors(bundle, PROBE_NAME, PROBE_BYTES)
    manifest, path = bundle.manifest, bundle.path / PROBE_NAME
    images, prompts = (len(tensors[name]) if name in tensors and tensors[name].ndim else 0 for name in ("pixels", "text_tokens"))
    checked(tensors, "pixels", (images, 3, *manifest.preprocess.size), "float32", path)
    if manifest.native_size != manifest.preprocess.size:
        checked(tensors, "pixels_full", (images, 3, *manifest.native_size), "float32", path)
    if not _counts(tensors):
        raise BundleError(f"{path} has no tensor {_COUNT_PREFIX}<count>; export the bundle again")
    width = manifest.model.embed_dim
    for name in ("embedding_full", *(_COUNT_PREFIX + str(k) for k in _counts(tensors))):
        checked(tensors, name, (images, width), "float32", path)
    if manifest.patch_tokens:
        checked(tensors, PATCH_TOKENS, (images, manifest.default_keep, manifest.patch_tokens.width), "float32", path)
        numbers = checked(tensors, PATCH_INDICES, (images, manifest.default_keep), "int64", path)
        if numbers.min(initial=0) < 0 or numbers.max(initial=0) >= manifest.prune.patches:
            raise BundleError(f"{path} has {PATCH_INDICES} outside of {manifest.prune.patches} patches; export the bundle again")
    if manifest.text:
        checked(tensors, "text_tokens", (prompts, manifest.text.context_length), "int64", path)
        checked(tensors, "text_embedding", (prompts, width), "float32", path)
    return tensors


def _cases(encoder: Encoder, mode: str, probe: Tensors) -> Iterator[VerifyCase]:
    manifest, prunes = encoder.manifest, MODES[mode].prunes
    pixels = probe["pixels" if manifest.preprocess_for(mode) == manifest.preprocess else "pixels_full"]
    wanted = _counts(probe) if prunes else {manifest.patches_kept(mode, ()): probe["embedding_full"]}
    for batch in sorted({1, len(pixels)}):
        for k, embedding in wanted.items():
            found = encoder.encode_pixels(pixels[:batch], Keep.count(k) if prunes else None)
            yield VerifyCase(mode, batch, k, *agreement(found, embedding[:batch]))
    if mode == "full" and encoder.manifest.text is not None:
        tokens = probe["text_tokens"]
        yield VerifyCase("text", len(tokens), 0, *agreement(encoder.encode_text(tokens), probe["text_embedding"]))
    if mode == "fused" and manifest.patch_tokens is not None:
        wanted_tokens = PatchTokens(probe[_COUNT_PREFIX + str(manifest.default_keep)], probe[PATCH_TOKENS], probe[PATCH_INDICES])
        near = agreement(*common_tokens(encoder.encode_tokens(pixels), wanted_tokens, manifest.prune.patches))
        yield VerifyCase("tokens", len(pixels), manifest.default_keep, *near)


def _counts(probe: Tensors) -> dict[int, npt.NDArray[np.float32]]:
    return {int(found[1]): tensor for name, tensor in probe.items() if (found := _COUNT_NAME.fullmatch(name))}
