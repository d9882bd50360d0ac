"""The encoder that an application embeds: a bundle and one engine, from images to embeddings.

::

    with Encoder.load("bundle") as encoder:
        embeddings = encoder.encode_images(["cat.jpg", "dog.jpg"], keep=0.6)
"""

import difflib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, ArrayLibrary, BuildOptions, DeviceArray, DeviceEngine, EngineInfo, EngineOptions, ShapeRange
from prtool.errors import ConfigError, EngineError, KeepError, ShapeError
from prtool.manifest import Manifest
from prtool.runtime.classes import ClassTable, Prediction
from prtool.runtime.device import DevicePipeline, DeviceSplitPipeline
from prtool.runtime.images import ImageSource
from prtool.runtime.pipeline import MODES, Graphs, PipelineKind, SplitPipeline, Stage
from prtool.runtime.preprocess import prepare_batch
from prtool.runtime.text import TextEncoder
from prtool.spec import Keep

KeepLike = Keep | float | int | tuple[int, ...] | None
Embeddings = npt.NDArray[np.float32]
_TEXT_BUILD = BuildOptions(batch=ShapeRange(1, 64, 1024))


class Encoder:
    """Encodes images, and prompts where the bundle has a text side.

    Every method may be called from many threads at once; results belong to the caller. `keep`, per call,
    is a ratio (0.6), a count (118), a `Keep`, a tuple with a count for each location, or None for the bundle's default.
    """

    def __init__(self, bundle: Bundle, mode: str, graphs: Graphs, text_graphs: Graphs) -> None:
        """Loads the graphs of `mode`; `Encoder.load` is the usual way in."""
        self._bundle = bundle
        self._mode = mode
        self._graphs = graphs
        self._text_graphs = text_graphs
        self._text = TextEncoder(text_graphs)
        self._classes: ClassTable | None = None
        self._lock = threading.Lock()
        pipeline = _pipeline_kind(mode)(graphs)
        engine = pipeline.open()
        self._info = engine.info
        self._arrays = engine.arrays if isinstance(engine, DeviceEngine) else None
        self._device = None if self._arrays is None else DevicePipeline(graphs, mode)
        self._embed = pipeline.embed if self._device is None else self._device.embed
        self._split = SplitPipeline(graphs) if self._arrays is None else DeviceSplitPipeline(graphs)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        *,
        engine: str = "ort",
        mode: str = "fused",
        precision: str = "fp32",
        options: EngineOptions | None = None,
        verify: bool = True,
    ) -> Self:
        """Opens a bundle and loads its graphs.

        Args:
            bundle: a bundle directory, or an opened bundle.
            engine: a name of the engine registry; `prtool doctor` lists them.
            mode: "fused" (one graph), "split" (selection between two graphs, on the engine's device where it keeps arrays
                there) or "full" (unpruned, the baseline).
            precision: "fp32", or another that the bundle holds.
            options: threads and spinning; None takes `EngineOptions()`.
            verify: check the SHA-256 of every file of the directory.

        Raises:
            BundleError: the bundle is missing, damaged, unsafe or of another schema.
            ConfigError: unknown engine, mode or precision, or the bundle lacks a graph of the mode.
            EngineUnavailable: the engine's library is not installed, or finds no device.
            EngineError: the engine cannot load a graph.
        """
        _pipeline_kind(mode)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)
        chosen = options or EngineOptions()
        # Prompts come in other numbers than images, so nothing that was narrowed for images holds for them.
        text = replace(chosen, streams=1, build=_TEXT_BUILD)
        return cls(opened, mode, Graphs(opened, engine, precision, chosen), Graphs(opened, engine, "fp32", text))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    @property
    def info(self) -> EngineInfo:
        """The engine that really runs, its version and device."""
        return self._info

    @property
    def arrays(self) -> ArrayLibrary | None:
        """How arrays on the engine's device are made and read, for `encode_device`; None where the engine keeps none there."""
        return self._arrays

    @property
    def classes(self) -> ClassTable:
        """The bundle's classes, read on first use.

        Raises:
            BundleError: the bundle has no classes, or their file does not fit the manifest.
        """
        with self._lock:
            if self._classes is None:
                self._classes = ClassTable.of(self._bundle)
            return self._classes

    def encode_pixels(self, pixels: Array, keep: KeepLike = None) -> Embeddings:
        """Encodes one batch of prepared pixels.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, normalised as the manifest says.
            keep: patches to keep; in mode "full" only None or all of them.

        Returns:
            (batch, E) float32, L2-normalised.

        Raises:
            ShapeError: shape or dtype differ from the manifest's.
            KeepError: keep is out of the bundle's range.
            EngineError: the encoder is closed, the engine failed, or an embedding is not finite.
        """
        return _finite(self._embed(_array(pixels), self._mode_counts(keep)))

    def encode_device(self, pixels: DeviceArray, keep: KeepLike = None) -> DeviceArray:
        """Encodes one batch that lies on the engine's device, with no copy to the host, and returns without waiting for it.

        On a CUDA device the second call with a batch size and keep records the whole chain as a CUDA graph; later calls replay it.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, normalised as the manifest says: a torch tensor, a CuPy array, or
                anything with DLPack or the CUDA array interface; one that lies elsewhere is copied to the device.
            keep: patches to keep; in mode "full" only None or all of them.

        Returns:
            (batch, E) float32, L2-normalised, an array of the engine's library (torch or CuPy) that belongs to the caller,
            ready for more work on the calling thread's current stream. Whether it is finite is not checked.

        Raises:
            ShapeError: shape or dtype differ from the manifest's.
            KeepError: keep is out of the bundle's range.
            EngineError: the engine has no arrays on a device, the encoder is closed, or the engine failed.
        """
        counts = self._mode_counts(keep)
        if self._device is None:
            raise EngineError(f"engine {self._info.name} keeps no arrays on a device; use encode_pixels, or load engine torch or another on a GPU")
        return self._device.embed_device(pixels, counts)

    def encode_images(self, images: Sequence[ImageSource], keep: KeepLike = None) -> Embeddings:
        """Prepares and encodes images as one batch; see `encode_pixels`.

        Args:
            images: paths, encoded bytes, PIL images or (height, width, 3) uint8 arrays; all are held in memory at once.
            keep: patches to keep.

        Raises:
            ImageError: an image cannot be decoded.
        """
        counts = self._mode_counts(keep)
        if isinstance(images, (str, bytes, Path)) or len(images) == 0:
            raise ConfigError(f"images = {images!r:.60}, but it must be a list of at least one image")
        return _finite(self._embed(prepare_batch(images, self.manifest.preprocess), counts))

    def classify(self, images: Sequence[ImageSource], keep: KeepLike = None, top: int = 5) -> list[list[Prediction]]:
        """The most probable classes of each image, best first; see `ClassTable.predict`.

        Raises:
            BundleError: the bundle has no classes.
        """
        table = self.classes
        return table.predict(self.encode_images(images, keep), top)

    def encode_text(self, token_ids: Array) -> Embeddings:
        """(batch, context) int64 token ids -> (batch, E) float32, L2-normalised, in fp32 whatever the images' precision.

        Raises:
            BundleError: the bundle has no text side.
            ShapeError: shape or dtype differ from the manifest's.
        """
        return _finite(self._text.encode(token_ids))

    def encode_prompts(self, prompts: Sequence[str]) -> Embeddings:
        """Encodes prompts with the bundle's tokenizer; (prompts, E) float32, L2-normalised.

        Raises:
            BundleError: the bundle has no text side or no tokenizer.
            EngineUnavailable: the tokenizers library is not installed.
        """
        return self.encode_text(self._text.token_ids(prompts))

    def scores(self, pixels: Array) -> npt.NDArray[np.float32]:
        """The patch scores at the first location, (batch, patches) float32, high = keep; PRE is opened on first use."""
        return self._split.scores(_array(pixels)).astype(np.float32, copy=False)

    def kept(self, pixels: Array, keep: KeepLike = None) -> npt.NDArray[np.int64]:
        """The patches that survive every location, (batch, k) int64, by falling score; the split graphs are opened on first use."""
        return self.survivors(pixels, keep)[-1]

    def survivors(self, pixels: Array, keep: KeepLike = None) -> tuple[npt.NDArray[np.int64], ...]:
        """The patches that survive each location, one (batch, k) int64 a location, by falling score there; POST does not run."""
        return self._split.survivors(_array(pixels), self._counts(keep))

    def stages(self, pixels: Array, keep: KeepLike = None) -> Iterator[Stage]:
        """Runs the split mode one stage for each `next`, so that a caller may time each; see `SplitPipeline.stages`."""
        return self._split.stages(_array(pixels), self._counts(keep))

    def close(self) -> None:
        """Frees every graph; methods that run one fail afterwards. A second call does nothing."""
        if self._device is not None:
            self._device.forget()
        self._graphs.close()
        self._text_graphs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _counts(self, keep: KeepLike) -> tuple[int, ...]:
        return self.manifest.counts(keep if keep is None or isinstance(keep, tuple) else Keep.of(keep))

    def _mode_counts(self, keep: KeepLike) -> tuple[int, ...]:
        return mode_counts(self.manifest, self._mode, keep)


def mode_counts(manifest: Manifest, mode: str, keep: KeepLike) -> tuple[int, ...]:
    """Patches kept at each location for one call in a mode.

    Raises:
        KeepError: the bundle does not allow them, or the mode is "full" and they are not all.
    """
    chosen = keep if keep is None or isinstance(keep, tuple) else Keep.of(keep)
    if mode != "full":
        return manifest.counts(chosen)
    everything = manifest.prune.counts(Keep.count(manifest.prune.patches))
    if chosen is not None and manifest.counts(chosen) != everything:
        raise KeepError(f"keep = {keep}, but mode 'full' drops nothing; keep 1.0, or take mode 'fused' or 'split'")
    return everything


def _pipeline_kind(mode: str) -> PipelineKind:
    kind = MODES.get(mode)
    if kind is None:
        near = difflib.get_close_matches(mode, MODES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"mode = {mode!r}, but it must be one of {', '.join(MODES)}{hint}")
    return kind


def _array(pixels: Array) -> Array:
    if not isinstance(pixels, np.ndarray):
        raise ShapeError(f"pixels are a {type(pixels).__name__}, but they must be a numpy array (batch, 3, height, width) of float32")
    return pixels


def _finite(embeddings: Array) -> Embeddings:
    healthy: npt.NDArray[np.bool_] = np.asarray(np.isfinite(embeddings).all(axis=1))
    if not healthy.all():
        raise EngineError(
            f"{int((~healthy).sum())} of {len(healthy)} embeddings are not finite (first: item {int(healthy.argmin())}); "
            "look for NaN or infinity in the input, or for overflow in a graph of reduced precision"
        )
    return embeddings.astype(np.float32, copy=False)
