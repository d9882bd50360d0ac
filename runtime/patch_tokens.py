"""Patch tokens: what the graph TOKENS gives for a language model or a dense task, in addition to the embeddings."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prtool.engines.base import Array


@dataclass(frozen=True, slots=True, eq=False)
class PatchTokens:
    """What a batch of images gives.

    Attributes:
        embeddings: (batch, E) float32, L2-normalised, as `Encoder.encode_images` gives them.
        tokens: (batch, k, D) float32 of the patches that were kept, in row-major order, as they left the block that the manifest's
            `patch_tokens` names; no norm behind it.
        indices: (batch, k) int64: which patches these are; 0 is top left, 1 right of it.
    """

    embeddings: npt.NDArray[np.float32]
    tokens: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]


def common_tokens(found: PatchTokens, wanted: PatchTokens, patches: int) -> tuple[Array, Array]:
    """Both tokens of each image as one vector (batch, N x D) of length 1; what only one of the two kept is 0 in both.

    `patches` is N, of which the indices are.
    """
    dense, present = zip(*(_dense(each, patches) for each in (found, wanted)), strict=True)
    both = (present[0] & present[1])[:, :, None]
    first, second = ((tokens * both).reshape(len(tokens), -1) for tokens in dense)
    lengths = np.linalg.norm(second, axis=1, keepdims=True).clip(np.finfo(np.float64).tiny)
    return first / lengths, second / lengths


def _dense(given: PatchTokens, patches: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    batch, rows = len(given.tokens), np.arange(len(given.tokens))[:, None]
    tokens = np.zeros((batch, patches, given.tokens.shape[2]))
    present = np.zeros((batch, patches), np.bool_)
    tokens[rows, given.indices], present[rows, given.indices] = given.tokens, True
    return tokens, present
