"""Zero-shot classes: from image embeddings to named predictions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array
from prtool.errors import BundleError, ConfigError, ShapeError
from prtool.runtime.select import select
from prtool.runtime.tensors import checked, read_tensors
from prtool.spec import plain_number
from prtool.text_safety import printable

TENSOR_NAME = "embeddings"
DEFAULT_TOP = 5
"""Default number of classes per image; the C++ library and the command line have the same."""
_LENGTH_TOLERANCE = 1e-3
_HEADER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class for one image: its label (place among the bundle's classes, from 0), name, and probability (0 to 1)."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class ClassTable:
    """The classes of a bundle.

    Attributes:
        names: in label order.
        embeddings: (classes, E) float32, L2-normalised text embeddings.
        logit_scale, logit_bias: class logits are scale x cosine + bias.
    """

    names: tuple[str, ...]
    embeddings: npt.NDArray[np.float32]
    logit_scale: float
    logit_bias: float

    @classmethod
    def of(cls, bundle: Bundle) -> "ClassTable":
        """The classes of a bundle; raises BundleError where it has none, or their file does not fit the manifest."""
        classes, model = bundle.manifest.classes, bundle.manifest.model
        if classes is None:
            raise BundleError(f"{bundle.path} has no classes, so it cannot classify; export it again with class names, or use its embeddings")
        shape, path = (len(classes.names), model.embed_dim), bundle.path / classes.file
        tensors = read_tensors(bundle, classes.file, 4 * shape[0] * shape[1] + _HEADER_BYTES)
        embeddings = checked(tensors, TENSOR_NAME, shape, "float32", path)
        lengths = np.linalg.norm(embeddings.astype(np.float64), axis=1)
        if not np.allclose(lengths, 1.0, atol=_LENGTH_TOLERANCE):
            worst = float(lengths[np.abs(lengths - 1.0).argmax()])
            raise BundleError(f"{path} has an embedding of length {worst:.4g}, but all must be 1; export the bundle again")
        return cls(classes.names, embeddings, model.logit_scale, model.logit_bias)

    def probabilities(self, embeddings: Array) -> npt.NDArray[np.float64]:
        """Softmax of the class logits of (batch, E) L2-normalised embeddings: (batch, classes) float64; each row sums to 1.

        Raises:
            ShapeError: the width is not E, or an embedding is not finite.
            BundleError: the bundle's scale and bias give logits that are not finite.
        """
        if embeddings.ndim != 2 or embeddings.shape[1] != self.embeddings.shape[1]:
            raise ShapeError(f"embeddings have shape {embeddings.shape}, but the classes take (batch, {self.embeddings.shape[1]})")
        unhealthy = ~np.isfinite(embeddings).all(axis=1)
        if unhealthy.any():
            raise ShapeError(f"embedding {int(unhealthy.argmax())} is not finite, so it has no class")
        cosines = embeddings.astype(np.float64) @ self.embeddings.T.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            logits = self.logit_scale * cosines + self.logit_bias
        if not np.isfinite(logits).all():
            raise BundleError(f"class logits of scale {self.logit_scale} and bias {self.logit_bias} are not finite; export the bundle again")
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: npt.NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
        return shares

    def predict(self, embeddings: Array, top: int = DEFAULT_TOP) -> list[list[Prediction]]:
        """The most probable classes of each image, best first; equal ones by lower label.

        Raises:
            ConfigError: top is below 1; where there are fewer classes, all are given.
            ShapeError, BundleError: as `probabilities`.
        """
        wanted = plain_number(top)
        if not isinstance(wanted, int) or wanted < 1:
            raise ConfigError(f"top = {printable(repr(top))}, but it must be a whole number, at least 1")
        probabilities = self.probabilities(embeddings)
        best = select(probabilities, min(wanted, len(self.names)))
        return [
            [Prediction(int(label), self.names[label], float(row[label])) for label in labels]
            for row, labels in zip(probabilities, best, strict=True)
        ]
