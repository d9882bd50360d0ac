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
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from prtool.bundle import Bundle
from prtool.engines.base import Array, DeviceArray, EngineInfo, EngineOptions
from prtool.errors import BundleError, ConfigError, EngineError, InputWarning, KeepError, ShapeError
from prtool.manifest import Manifest
from prtool.runtime.classes import DEFAULT_TOP, ClassTable, Prediction
from prtool.runtime.images.decode import ImageSource
from prtool.runtime.images.preprocess import image_list, largest_value, prepare_batch
from prtool.runtime.loaded import Loaded, LoadOptions
from prtool.runtime.patch_tokens import PatchTokens
from prtool.runtime.pipeline import Pipeline, Stage, mode_named, mode_of, modes_of
from prtool.spec import Keep, Preprocess
from prtool.text_safety import printable

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import TorchArrays

KeepLike = Keep | float | int | tuple[int, ...] | list[int] | npt.NDArray[np.integer[Any]] | None
Embeddings = npt.NDArray[np.float32]


class Encoder:
    """Encodes images, and texts where the bundle has a text side; `Encoder.load` makes one.

    Every method may be called from many threads at once; results belong to the caller. `keep`, per call, is a ratio (0.6),
    a count (118), a `Keep`, a sequence with one count per pruning location, or None for the bundle's default.

    A forked process cannot use its parent's encoder: calls raise an EngineError. A pickled encoder (multiprocessing with
    "spawn", DataLoader, joblib) loads itself again from the same bundle when the other process first uses it.
    """

    def __init__(self, how: LoadOptions, loaded: Loaded | None = None) -> None:
        """Takes what `Encoder.load` opened, or opens it on first use, as after unpickling."""
        self._how = how
        self._opened = loaded
        self._closed = False
        self._warned = False
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Self], tuple[LoadOptions]]:
        return type(self), (self._how,)

    @classmethod
    def load(  # noqa: PLR0913 - what an application chooses, each by its name
        cls,
        bundle: str | Path | Bundle,
        *,
        engine: str = "ort",
        mode: str = "fused",
        precision: str = "fp32",
        options: EngineOptions | None = None,
        verify: bool = True,
        jpeg_scaling: bool = False,
    ) -> Self:
        """Opens a bundle and loads its graphs.

        Args:
            bundle: a bundle directory, or an opened bundle.
            engine: a name of the engine registry; `prtool doctor` lists them.
            mode: "fused" (one graph), "split" (selection between two graphs, on the engine's device where it keeps arrays
                there) or "full" (unpruned, the baseline).
            precision: "fp32", or another that the bundle holds.
            options: threads, streams, device and so on; None takes `EngineOptions()`.
            verify: check the SHA-256 of every file of the directory.
            jpeg_scaling: decode large JPEGs at 1/2, 1/4 or 1/8 of their size, so much as leaves twice what they are resized to: 2 to 4 times
                faster from file to pixels for photographs of 3 megapixels and more, which differ by less than 1 of 255 on average (docs/cpp.md).

        Raises:
            BundleError: the bundle is missing, damaged, unsafe or of another schema.
            ConfigError: unknown engine, mode or precision, or the bundle lacks a graph of the mode ("split" needs one that ranks patches).
            EngineUnavailable: the engine's library is not installed, or finds no device.
            EngineError: the engine cannot load a graph.
        """
        mode_named(mode)
        chosen = EngineOptions() if options is None else options
        if not isinstance(chosen, EngineOptions):
            raise ConfigError(f"options = {printable(repr(options))}, but it must be an EngineOptions")
        if not isinstance(bundle, (Bundle, str, PathLike)):
            raise ConfigError(f"bundle = {printable(repr(bundle))}, but it must be a bundle's folder or an opened bundle")
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle, verify=verify)
        how = LoadOptions(opened.path.absolute(), opened.manifest, engine, mode, precision, chosen, verify, jpeg_scaling)
        return cls(how, Loaded(opened, how))

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self._how.manifest

    @property
    def mode(self) -> str:
        """The mode: "fused", "split" or "full"."""
        return self._how.mode

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the pixels of this encoder; "full" may read larger ones than the other modes."""
        return self.manifest.preprocess_for(self._how.mode)

    @property
    def jpeg_scaling(self) -> bool:
        """Whether large JPEGs are decoded at a part of their size."""
        return self._how.jpeg_scaling

    @property
    def info(self) -> EngineInfo:
        """The engine that runs, its version and its device."""
        return self._loaded().pipeline.info

    @property
    def arrays(self) -> "TorchArrays | None":
        """Makes and reads arrays on the engine's device, for `encode_device`; None where the engine keeps no arrays there."""
        return self._loaded().pipeline.arrays

    @property
    def classes(self) -> ClassTable:
        """The bundle's classes, read on first use.

        Raises:
            BundleError: the bundle has no classes, or their file does not fit the manifest.
        """
        return self._loaded().classes

    def counts(self, keep: KeepLike = None) -> tuple[int, ...]:
        """The patches that a call keeps at each pruning location; all of them in mode "full", () where there is no location.

        Raises:
            KeepError: keep is out of the bundle's range, or drops patches in mode "full".
        """
        return mode_counts(self.manifest, self._how.mode, keep)

    def encode_pixels(self, pixels: Array, keep: KeepLike = None) -> Embeddings:
        """Encodes one batch of prepared pixels.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, of the size and normalised as `preprocess` says.
            keep: patches to keep; in mode "full" only None or all of them.

        Returns:
            (batch, E) float32, L2-normalised.

        Raises:
            ShapeError: shape or dtype are not those of the mode.
            KeepError: keep is out of the bundle's range.
            EngineError: the encoder is closed, the engine failed, or an embedding is not finite.
        """
        counts = self.counts(keep)
        given = _array(pixels)
        self._warn_of_range(given)
        return _finite(self._loaded().pipeline.embed(given, counts))

    def encode_device(self, pixels: DeviceArray, keep: KeepLike = None) -> DeviceArray:
        """Encodes one batch that lies on the engine's device, with no copy to the host, and returns without waiting for it.

        On a CUDA device the second call with a batch size and keep records the whole chain as a CUDA graph; later calls replay it.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, of the size and normalised as `preprocess` says: a torch tensor, or any array
                with DLPack or the CUDA array interface; one that lies elsewhere is copied to the device.
            keep: patches to keep; in mode "full" only None or all of them.

        Returns:
            (batch, E) float32, L2-normalised, a torch tensor that belongs to the caller, ready for more
            work on the calling thread's current stream. Whether it is finite is not checked.

        Raises:
            ShapeError: shape or dtype are not those of the mode.
            KeepError: keep is out of the bundle's range.
            EngineError: the engine keeps no arrays on a device, the encoder is closed, or the engine failed.
        """
        counts = self.counts(keep)
        return self._loaded().pipeline.embed_device(pixels, counts)

    def encode_images(self, images: ImageSource | Iterable[ImageSource], keep: KeepLike = None) -> Embeddings:
        """Prepares and encodes images as one batch.

        Args:
            images: paths, files' bytes, files opened with 'rb', PIL images or (height, width, 3) uint8 arrays, in any iterable, or a
                single one; all are held in memory at once.
            keep: patches to keep; in mode "full" only None or all of them.

        Returns:
            (batch, E) float32, L2-normalised.

        Raises:
            ImageError: an image cannot be decoded.
            ConfigError: there are no images, or an item is not an image.
            KeepError, EngineError: as `encode_pixels`.
        """
        counts = self.counts(keep)
        loaded = self._loaded()
        pixels = prepare_batch(image_list(images), self.preprocess, jpeg_scaling=self.jpeg_scaling)
        return _finite(loaded.pipeline.embed(pixels, counts))

    def encode_tokens(self, images: ImageSource | Iterable[ImageSource] | Array, keep: KeepLike = None) -> PatchTokens:
        """The tokens of the patches that stay, for a language model or a dense task; the graph is opened on first use, whatever the mode.

        Args:
            images: as `encode_images` takes them; or prepared pixels (batch, 3, height, width) float32.
            keep: patches to keep.

        Raises:
            ConfigError: the bundle was exported without patch tokens.
            ImageError, ShapeError, KeepError, EngineError: as `encode_images` and `encode_pixels`.
        """
        counts = self.manifest.counts(_chosen(keep))
        if isinstance(images, np.ndarray) and images.ndim == 4:
            pixels = cast(Array, images)
        else:
            pixels = prepare_batch(image_list(cast(ImageSource, images)), self.manifest.preprocess, jpeg_scaling=self.jpeg_scaling)
        found = self._loaded().pipeline.patch_tokens(pixels, counts)
        return PatchTokens(_finite(found["embedding"]), found["patch_tokens"], found["indices"])

    def encode_text(self, texts: str | Iterable[str] | npt.NDArray[np.int64]) -> Embeddings:
        """Encodes texts in fp32, whatever the precision of the images.

        Args:
            texts: strings in any iterable, or a single string, for the bundle's tokenizer; or (batch, context) int64 token ids.

        Returns:
            (batch, E) float32, L2-normalised.

        Raises:
            ConfigError: there is no text, an item is not a string, or has more tokens than the context; or a token id is
                outside the vocabulary.
            ShapeError: the token ids' shape or dtype differ from the manifest's.
            BundleError: the bundle has no text side, or no tokenizer for strings.
            EngineUnavailable: the tokenizers library is not installed.
        """
        return _finite(self._loaded().text.encode(texts))

    def classify(
        self, images: ImageSource | Iterable[ImageSource] | Embeddings, keep: KeepLike = None, top: int = DEFAULT_TOP
    ) -> list[list[Prediction]]:
        """The most probable classes of each image, best first.

        Args:
            images: as `encode_images` takes them; or their embeddings, (batch, E) float32, L2-normalised.
            keep: patches to keep; embeddings take none.
            top: classes per image; all of them where the bundle has fewer.

        Raises:
            BundleError: the bundle has no classes.
            ConfigError: top is below 1, or keep is given with embeddings.
            ShapeError: the embeddings' width is not E, or they are not finite.
            ImageError, KeepError, EngineError: as `encode_images`.
        """
        table = self.classes
        if not (isinstance(images, np.ndarray) and images.ndim == 2 and np.issubdtype(images.dtype, np.floating)):
            return table.predict(self.encode_images(cast(ImageSource, images), keep), top)
        if keep is not None:
            raise ConfigError(f"keep = {printable(keep)}, but embeddings have been pruned already; leave keep out, or give images")
        return table.predict(images, top)

    def scores(self, pixels: Array) -> npt.NDArray[np.float32]:
        """The patch scores at the first location, (batch, patches) float32, high = keep; PRE is opened on first use.

        Raises:
            ConfigError: the bundle ranks no patches.
        """
        prune = self.manifest.prune
        first = next(self._split().stages(_array(pixels), (prune.patches,) * len(prune.locations)))
        return first.tensors["scores"].astype(np.float32, copy=False)

    def kept(self, pixels: Array, keep: KeepLike = None) -> tuple[npt.NDArray[np.int64], ...]:
        """The patches that stay at each pruning location, whatever the mode; the split graphs are opened on first use.

        Args:
            pixels: (batch, 3, height, width) float32, RGB, normalised as the manifest says.
            keep: patches to keep.

        Returns:
            One (batch, k) int64 per location, by falling score there; patch 0 is top left, 1 right of it.

        Raises:
            ConfigError: the bundle ranks no patches.
        """
        kept: list[npt.NDArray[np.int64]] = []
        for stage in self.stages(pixels, keep):
            if "indices" in stage.tensors:
                indices = stage.tensors["indices"]
                kept.append(np.take_along_axis(kept[-1], indices, axis=1) if kept else indices)
            if len(kept) == len(self.manifest.prune.locations):
                break
        return tuple(kept)

    def stages(self, pixels: Array, keep: KeepLike = None) -> Iterator[Stage]:
        """Runs the split graphs, one finished stage for each `next`, whatever the mode; raises ConfigError where the bundle ranks no patches."""
        return self._split().stages(_array(pixels), self.manifest.counts(_chosen(keep)))

    def close(self) -> None:
        """Frees every graph; methods that run one raise an EngineError afterwards. A second call does nothing."""
        self._closed = True
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _split(self) -> Pipeline:
        mode_of("split", self.manifest.prune)
        return self._loaded().pipeline

    def _loaded(self) -> Loaded:
        if self._opened is not None:
            return self._opened
        with self._lock:
            if self._closed:
                raise EngineError(f"the encoder of {self._how.path} is closed; load it again to use it")
            if self._opened is None:
                bundle = Bundle.open(self._how.path, verify=self._how.verify)
                if bundle.manifest != self.manifest:
                    raise BundleError(f"{bundle.path} is no longer the bundle that this encoder was loaded from; load the encoder again")
                self._opened = Loaded(bundle, self._how)
            return self._opened

    def _warn_of_range(self, pixels: Array) -> None:
        """Warns once of pixels that look like 0 to 255; arrays of other dtypes are left to the engine's checks."""
        if self._warned or pixels.dtype != np.float32 or pixels.size == 0:
            return
        high, most = float(pixels.max()), largest_value(self.preprocess)
        if high > most:
            self._warned = True
            warnings.warn(
                f"pixels range from {pixels.min():g} to {high:g}, but normalised ones stay within about {most / 4:.3g}; divide by 255, subtract "
                "the manifest's mean and divide by its std, or call encode_images",
                InputWarning,
                stacklevel=3,
            )


def mode_counts(manifest: Manifest, mode: str, keep: KeepLike) -> tuple[int, ...]:
    """Patches kept at each location for one call in a mode; raises KeepError as `Encoder.counts`, ConfigError as `mode_of`."""
    chosen = _chosen(keep)
    if mode_of(mode, manifest.prune).prunes:
        return manifest.counts(chosen)
    # Whatever range the shortened encoder has.
    everything = manifest.prune.counts(manifest.prune.patches)
    if chosen is not None and (manifest.prune.counts(chosen) if isinstance(chosen, Keep) else chosen) != everything:
        others = " or ".join(repr(name) for name in modes_of(manifest.prune) if name != mode)
        raise KeepError(f"keep = {printable(keep)}, but mode {mode!r} drops nothing; keep 1.0, or take mode {others}")
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
