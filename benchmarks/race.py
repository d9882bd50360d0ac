"""From JPEG files to embeddings, every encoder in one interleaved run: images a second end to end, and of the encoder alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prtool.errors import ConfigError
from prtool.manifest import Manifest
from prtool.progress import Progress
from prtool.runtime.bench.config import ENCODER, END_TO_END
from prtool.runtime.bench.timing import Case, Mark, Plan, Samples, Sensors, measure, speedup
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.decode import open_image
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.machine import available_memory_mib
from prtool.spec import Preprocess

Pixels = npt.NDArray[np.float32]
Encode = Callable[[Pixels], object]
SCOPES = (END_TO_END, ENCODER)
_ENCODE = "encode"


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """One encoder in the race.

    Attributes:
        preprocess: what its pixels are made with.
        encode: (batch, 3, height, width) float32 -> embeddings, on the host.
        library: what runs it, so that a rest lies between calls of different libraries.
    """

    preprocess: Preprocess
    encode: Encode
    library: str

    @classmethod
    def of(cls, encoder: Encoder, manifest: Manifest, mode: str, k: int | None = None) -> "Entrant":
        """A bundle's graphs on an engine, with k patches left; None for mode "full"."""
        counts = None if k is None else manifest.prune.counts(k) or None
        return cls(manifest.preprocess_for(mode), lambda pixels: encoder.encode_pixels(pixels, counts), encoder.info.name)


def race(groups: Sequence[Sequence[Entrant]], images: Sequence[bytes], batch: int, plan: Plan, progress: Progress) -> list[list[Samples]]:
    """Times every entrant from the encoded `images`, `batch` a call; the first of each group is what the others are compared with.

    Decoding, preprocessing and encoding are marked, so that one call gives both scopes.
    """
    cases = [[Case(_from_files(entrant, images, batch), entrant.library) for entrant in group] for group in groups]
    return measure(cases, plan, Sensors(), progress)


def of_scope(samples: Samples, scope: str) -> Samples:
    """The samples of whole calls, or of their encoders alone."""
    return samples if scope == END_TO_END else Samples(total_ns=samples.stages_ns[_ENCODE])


def figures(case: Samples, whole: Samples, batch: int) -> dict[str, Any]:
    """Images a second, and the speed-up over `whole` by pairs of one round, with its 95 % interval."""
    gained, p50_ms = speedup(whole, case), case.percentile_ms(50)
    return {"p50_ms": p50_ms, "images_per_s": 1e3 * batch / p50_ms, "speedup": gained.median, "speedup_low": gained.low, "speedup_high": gained.high}


def check_memory(weights_mib: Mapping[str, float]) -> None:
    """Raises ConfigError where graphs that are loaded at the same time need more memory than is available; by what is loaded, in MiB."""
    needed, available = sum(weights_mib.values()) + max(weights_mib.values()), available_memory_mib()
    if available is not None and needed > available:
        raise ConfigError(
            f"{len(weights_mib)} encoders hold {needed:.0f} MiB of weights at the same time, but {available:.0f} MiB of memory are available; "
            "race fewer reducers, shares, engines or precisions in one run"
        )


def _from_files(entrant: Entrant, images: Sequence[bytes], batch: int) -> Callable[[int, Mark], None]:
    def run(number: int, mark: Mark) -> None:
        # Later rounds take the next images, and begin again after the last.
        places = range(number * batch, (number + 1) * batch)
        decoded = [open_image(images[place % len(images)]) for place in places]
        mark("decode")
        pixels = prepare_batch(decoded, entrant.preprocess)
        mark("preprocess")
        entrant.encode(pixels)
        mark(_ENCODE)

    return run
