"""Token selection: the only step between the two graphs."""

import numpy as np
import numpy.typing as npt

from prtool.engines.base import Array
from prtool.errors import KeepError, ShapeError


def select(scores: Array, k: int) -> npt.NDArray[np.int64]:
    """The k patches with the highest scores of each image, as ONNX TopK orders them.

    Args:
        scores: (batch, patches) float, high = keep; infinities are ordered, NaN is rejected.
        k: patches to keep, 1 to patches.

    Returns:
        (batch, k) int64 indices into the patches, by falling score; of equal scores the lower index comes first.

    Raises:
        ShapeError: scores are not two-dimensional, not floating or hold NaN.
        KeepError: k is out of range.
    """
    if scores.ndim != 2 or not np.issubdtype(scores.dtype, np.floating):
        raise ShapeError(f"scores have shape {scores.shape} and dtype {scores.dtype}, but selection takes (batch, patches) of floats")
    patches = scores.shape[1]
    if not 1 <= k <= patches:
        raise KeepError(f"k = {k}, but there are {patches} patches to choose from; give 1 to {patches}")
    invalid = np.isnan(scores)
    if invalid.any():
        image, patch = (int(place) for place in np.argwhere(invalid)[0])
        raise ShapeError(
            f"{int(invalid.sum())} scores are NaN (first: image {image}, patch {patch}), and NaN has no rank; "
            "look for NaN or infinity in the pixels, or for overflow in a graph of reduced precision"
        )
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def gather(tokens: Array, indices: npt.NDArray[np.int64], prefix_tokens: int, learnable_tokens: int) -> Array:
    """The sequence with only the selected patches, in the order of `indices`.

    Args:
        tokens: (batch, prefix + patches + appended, width), any dtype.
        indices: (batch, k) int64 into the patches, as `select` gives them.
        prefix_tokens: tokens before the patches, all kept.
        learnable_tokens: tokens after the patches, all kept.

    Returns:
        (batch, prefix + k + appended, width), a new contiguous array of the dtype of `tokens`.

    Raises:
        ShapeError: the shapes do not fit together, or an index names no patch.
    """
    if tokens.ndim != 3 or indices.ndim != 2 or len(indices) != len(tokens):
        raise ShapeError(f"tokens {tokens.shape} and indices {indices.shape} do not fit; they must be (batch, tokens, width) and (batch, k)")
    batch, length, width = tokens.shape
    patches = length - prefix_tokens - learnable_tokens
    if indices.size and not (indices.min() >= 0 and indices.max() < patches):
        raise ShapeError(
            f"indices run from {indices.min()} to {indices.max()}, but {length} tokens with {prefix_tokens} prefix and "
            f"{learnable_tokens} appended hold the patches 0 to {patches - 1}"
        )
    kept = prefix_tokens + indices.shape[1]
    rows = np.empty((batch, kept + learnable_tokens), np.int64)
    rows[:, :prefix_tokens] = np.arange(prefix_tokens)
    rows[:, prefix_tokens:kept] = indices + prefix_tokens
    rows[:, kept:] = np.arange(length - learnable_tokens, length)
    rows += np.arange(batch)[:, None] * length
    # Whole rows of one flat array: 18 ms against 73 ms for take_along_axis at (64, 577, 768) and k = 346.
    taken: Array = np.take(tokens.reshape(batch * length, width), rows, axis=0)
    return taken
