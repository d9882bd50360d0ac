"""The encoder that an application embeds: a bundle and one engine, from images to embeddings.

::

    with Encoder.load("bundle") as encoder:
        embeddings = encoder.encode_images(["cat.jpg", "dog.jpg"], keep=0.6)
"""

import threading
import warnings
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, ArrayLibrary, DeviceArray, EngineInfo, EngineOptions
from prtool.errors import ConfigError, EngineError, InputWarning, KeepError, ShapeError
from prtool.manifest import Manifest
from prtool.runtime.classes import DEFAULT_TOP, ClassTable, Prediction
from prtool.runtime.images.decode import ImageSource
from prtool.runtime.images.preprocess import image_list, largest_value, prepare_batch
from prtool.runtime.parts import LoadArguments, Parts, pipeline_kind
from prtool.runtime.pipeline import Stage
from prtool.spec import Keep
from prtool.text_safety import printable

KeepLike = Keep | float | int | tuple[int, ...] | list[int] | npt.NDArray[np.integer[Any]] | None
Embeddings = npt.NDArray[np.float32]


class Encoder:
    """Encodes images, and prompts where the bundle has a text side.

    Every method may be called from many threads at once; results belong to the caller. `keep`, per call,
    is a ratio (0.6), a count (118), a `Keep`, a tuple with a count for each location, or None for the bundle's default.

    A process that is forked cannot use its parent's encoder: calls raise an EngineError. A pickled encoder (multiprocessing
    with "spawn", DataLoader, joblib) loads itself again from the same bundle when the other process first uses it.
    """

    def __init__(self, arguments: LoadArguments, parts: Parts | None = None) -> None:
        """`Encoder.load` is the way in.

        Args:
            arguments: how it is loaded.
            parts: what they gave; None loads it when it is first needed, as an encoder does that was pickled.
        """
        self._arguments = arguments
        self._loaded = parts
        self._classes: ClassTable | None = None
        self._closed = False
        self._warned = False
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Self], tuple[LoadArguments]]:
        """Pickled, an encoder is how it was loaded; the other process loads it again from the same place, when it first uses it."""
        return type(self), (self._arguments,)

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
        pipeline_kind(mode)
        chosen = EngineOptions() if options is None else options
        if not isinstance(chosen, EngineOptions):
            raise ConfigError(f"options = {printable(repr(options))}, but it must be an EngineOptions")
        if not isinstance(bundle, (Bundle, str, PathLike)):
            raise ConfigError(f"bundle = {printable(repr(bundle))}, but it must be a bundle's folder or an opened bundle")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)
        arguments = LoadArguments(opened.path.absolute(), opened.manifest, engine, mode, precision, chosen, verify)
        return cls(arguments, Parts.load(opened, arguments))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._arguments.manifest

    @property
    def info(self) -> EngineInfo:
        """The engine that really runs, its version and device."""
        return self._parts().info

    @property
    def arrays(self) -> ArrayLibrary | None:
        """How arrays on the engine's device are made and read, for `encode_device`; None where the engine keeps none there."""
        return self._parts().arrays

    @property
    def classes(self) -> ClassTable:
        """The bundle's classes, read on first use.

        Raises:
            BundleError: the bundle has no classes, or their file does not fit the manifest.
        """
        parts = self._parts()
        with self._lock:
            if self._classes is None:
                self._classes = ClassTable.of(parts.bundle)
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
        counts = self._mode_counts(keep)
        given = _array(pixels)
        self._warn_of_range(given)
        return _finite(self._parts().embed(given, counts))

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
        parts = self._parts()
        if parts.device is None:
            raise EngineError(f"engine {parts.info.name} keeps no arrays on a device; use encode_pixels, or load engine torch or another on a GPU")
        return parts.device.embed_device(pixels, counts)

    def encode_images(self, images: ImageSource | Iterable[ImageSource], keep: KeepLike = None) -> Embeddings:
        """Prepares and encodes images as one batch; see `encode_pixels`.

        Args:
            images: paths, files' bytes, files opened with 'rb', PIL images or (height, width, 3) uint8 arrays, in any iterable, or a
                single one; all are held in memory at once.
            keep: patches to keep.

        Raises:
            ImageError: an image cannot be decoded.
            ConfigError: there is no image, or something is none.
        """
        counts = self._mode_counts(keep)
        parts = self._parts()
        return _finite(parts.embed(prepare_batch(image_list(images), self.manifest.preprocess), counts))

    def classify(self, images: ImageSource | Iterable[ImageSource], keep: KeepLike = None, top: int = DEFAULT_TOP) -> list[list[Prediction]]:
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
        return _finite(self._parts().text.encode(token_ids))

    def encode_prompts(self, prompts: str | Iterable[str]) -> Embeddings:
        """Encodes prompts with the bundle's tokenizer; (prompts, E) float32, L2-normalised.

        Raises:
            ConfigError: there is no prompt, or one is not a string, or longer than the text tower reads.
            BundleError: the bundle has no text side or no tokenizer.
            EngineUnavailable: the tokenizers library is not installed.
        """
        return self.encode_text(self._parts().text.token_ids(prompts))

    def scores(self, pixels: Array) -> npt.NDArray[np.float32]:
        """The patch scores at the first location, (batch, patches) float32, high = keep; PRE is opened on first use."""
        return self._parts().split.scores(_array(pixels)).astype(np.float32, copy=False)

    def kept(self, pixels: Array, keep: KeepLike = None) -> npt.NDArray[np.int64]:
        """The patches that survive every location, (batch, k) int64, by falling score; the split graphs are opened on first use."""
        return self.survivors(pixels, keep)[-1]

    def survivors(self, pixels: Array, keep: KeepLike = None) -> tuple[npt.NDArray[np.int64], ...]:
        """The patches that survive each location, one (batch, k) int64 a location, by falling score there; POST does not run."""
        return self._parts().split.survivors(_array(pixels), self._counts(keep))

    def stages(self, pixels: Array, keep: KeepLike = None) -> Iterator[Stage]:
        """Runs the split mode one stage for each `next`, so that a caller may time each; see `SplitPipeline.stages`."""
        return self._parts().split.stages(_array(pixels), self._counts(keep))

    def close(self) -> None:
        """Frees every graph; methods that run one fail afterwards. A second call does nothing."""
        self._closed = True
        if self._loaded is not None:
            self._loaded.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _parts(self) -> Parts:
        parts = self._loaded
        if parts is None:
            with self._lock:
                if self._closed:
                    raise EngineError(f"the encoder of {self._arguments.path} is closed; load it again to use it")
                if self._loaded is None:
                    self._loaded = self._arguments.reload()
                return self._loaded
        return parts

    def _warn_of_range(self, pixels: Array) -> None:
        """Says once that pixels look like 0 to 255; what is no array of numbers is left to the engine's checks."""
        if self._warned or pixels.dtype != np.float32 or pixels.size == 0:
            return
        high, most = float(pixels.max()), largest_value(self.manifest.preprocess)
        if high > most:
            self._warned = True
            warnings.warn(
                f"pixels range from {pixels.min():g} to {high:g}, but normalised ones stay within about {most / 4:.3g}; give values / 255, less the "
                "manifest's mean, divided by its std, or call encode_images",
                InputWarning,
                stacklevel=3,
            )

    def _counts(self, keep: KeepLike) -> tuple[int, ...]:
        return self.manifest.counts(_chosen(keep))

    def _mode_counts(self, keep: KeepLike) -> tuple[int, ...]:
        return mode_counts(self.manifest, self._arguments.mode, keep)


def mode_counts(manifest: Manifest, mode: str, keep: KeepLike) -> tuple[int, ...]:
    """Patches kept at each location for one call in a mode.

    Raises:
        KeepError: the bundle does not allow them, or the mode is "full" and they are not all.
    """
    chosen = _chosen(keep)
    if mode != "full":
        return manifest.counts(chosen)
    everything = manifest.prune.counts(Keep.count(manifest.prune.patches))
    if chosen is not None and manifest.counts(chosen) != everything:
        raise KeepError(f"keep = {printable(keep)}, but mode 'full' drops nothing; keep 1.0, or take mode 'fused' or 'split'")
    return everything


def _chosen(keep: KeepLike) -> Keep | tuple[int, ...] | None:
    if isinstance(keep, (tuple, list)) or (isinstance(keep, np.ndarray) and keep.ndim):
        return tuple(keep)
    return None if keep is None else Keep.of(cast(float, keep))


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
