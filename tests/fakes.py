"""A stand-in for the encoder, for tests of what happens around it."""

import numpy as np
import numpy.typing as npt

from prtool.manifest import SCHEMA, Manifest, ModelInfo
from prtool.spec import Cost, Keep, Preprocess, PruneSpec


def fake_manifest(size: tuple[int, int] = (32, 32), grid: tuple[int, int] = (4, 4), default_keep: int = 10) -> Manifest:
    """A manifest without graphs."""
    patches = grid[0] * grid[1]
    return Manifest(
        schema=SCHEMA,
        model=ModelInfo("fake", "", "", 4, 100.0, 0.0, "mix-mlp", False),
        prune=PruneSpec(grid, depth=2, locations=(2,)),
        cost=Cost(1, 1, 1, 1),
        preprocess=Preprocess(size, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        native_size=size,
        default_keep=default_keep,
        keep_range=(2, patches),
        graphs={},
        parity={},
        versions={},
    )


class FakeEncoder:
    """Embeds an image as its channel means and the number of patches kept; keeps the brightest patches."""

    def __init__(self, manifest: Manifest | None = None) -> None:
        self.manifest = manifest or fake_manifest()
        self.mode, self.preprocess, self.jpeg_scaling = "fused", self.manifest.preprocess, False
        self.batches: list[int] = []

    def counts(self, keep: Keep | None = None) -> tuple[int, ...]:
        """Patches kept at each location."""
        return self.manifest.counts(keep)

    def encode_pixels(self, pixels: npt.NDArray[np.float32], keep: Keep | tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
        """(batch, 3, height, width) -> (batch, 4)."""
        assert pixels.dtype == np.float32 and pixels.flags["C_CONTIGUOUS"]
        self.batches.append(len(pixels))
        return np.stack([np.array([*(channel.mean() for channel in image), self.manifest.counts(keep)[-1]], np.float32) for image in pixels])

    def kept(self, pixels: npt.NDArray[np.float32], keep: Keep | tuple[int, ...]) -> tuple[npt.NDArray[np.int64], ...]:
        """(batch, k) indices for each location, by falling brightness."""
        rows, columns = self.manifest.prune.grid
        height, width = pixels.shape[2] // rows, pixels.shape[3] // columns
        patches = pixels[:, :, : rows * height, : columns * width].reshape(len(pixels), 3, rows, height, columns, width)
        brightness = patches.mean(axis=(1, 3, 5)).reshape(len(pixels), -1)
        order = np.argsort(-brightness, axis=1, kind="stable")
        return tuple(order[:, :k] for k in self.manifest.counts(keep))
