"""Embeds collections of images: decoding stays ahead of the encoder, and files that cannot be read are listed."""

import contextlib
import functools
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from prtool import files
from prtool.cpus import granted_cpus
from prtool.errors import ConfigError, DataError, ImageError
from prtool.extras import install_hint
from prtool.files import OutputKind, new_file
from prtool.progress import Progress, SilentProgress, stage
from prtool.records import check_value
from prtool.runtime.encoder import Encoder, KeepLike
from prtool.runtime.images.files import expand_images
from prtool.runtime.images.preprocess import Pixels, prepare
from prtool.text_safety import printable

OUTPUT_SUFFIXES = (".npz", ".parquet")
_MAX_WORKERS = 16
_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class EmbedResult:
    """The embeddings of a collection, in the order of its paths.

    Attributes:
        paths: n files that were embedded, as they were given or found.
        embeddings: (n, E) float32, one L2-normalised row a path.
        keep: patches k kept of each image.
        skipped: (path, reason) of each file that could not be read.
        seconds: wall time from the first file opened to the last embedding.
        note: how many image files of the folders were left out, and why, in one line; "" for none.
    """

    paths: list[str]
    embeddings: Pixels
    keep: int
    skipped: list[tuple[str, str]]
    seconds: float
    note: str = ""

    @property
    def images_per_s(self) -> float:
        """Embedded images a second, decoding and preprocessing included."""
        return len(self.paths) / self.seconds


def embed_folder(
    encoder: Encoder, paths: Sequence[str | Path], progress: Progress | None = None, *, keep: KeepLike = None, batch_size: int = 32, workers: int = 0
) -> EmbedResult:
    """Embeds image files and folders of them.

    Memory: the embeddings (n x E x 4 bytes: 2 GB for a million images at E = 512), and pixels for about three
    batches (0.6 MB an image at 224 x 224). Collections beyond that are embedded in parts.

    Args:
        paths: files, taken whatever their suffix, and folders, searched as `image_files.search` does.
        progress: advanced once per file, read or skipped.
        keep: patches kept of each image, as `Encoder` takes them; None takes the bundle's default.
        batch_size: images per call of the encoder.
        workers: threads that decode; 0 takes one for each core of this process, at most 16.

    Raises:
        ConfigError: batch_size is below 1 or workers below 0.
        DataError: there is no image, or none of them could be read, or a folder cannot be listed.
        KeepError: the encoder does not allow this many patches.
    """
    check_value("batch_size", batch_size, minimum=1)
    check_value("workers", workers, minimum=0)
    counts = encoder.counts(keep)
    files, left_out = expand_images(paths)
    if not files:
        where = printable(", ".join(map(str, paths)) or "an empty list of paths", 300)
        raise DataError("; ".join(filter(None, (f"no image found in {where}; give image files or folders that hold some", left_out.note()))))
    progress = progress or SilentProgress()
    # One allocation: joining parts at the end would need the memory twice.
    rows = np.empty((len(files), encoder.manifest.model.embed_dim), np.float32)
    done: list[str] = []
    skipped: list[tuple[str, str]] = []
    started = time.perf_counter()
    threads = workers or min(granted_cpus(), _MAX_WORKERS)
    preparing = functools.partial(prepare, spec=encoder.preprocess, jpeg_scaling=encoder.jpeg_scaling)
    decoded = _decoded(files, preparing, threads, threads + 2 * batch_size)
    with stage(progress, "embedding images", len(files)), contextlib.closing(decoded) as stream:
        while batch := list(itertools.islice(stream, batch_size)):
            readable = [(str(path), pixels) for path, pixels in batch if not isinstance(pixels, ImageError)]
            skipped += [(str(path), str(reason)) for path, reason in batch if isinstance(reason, ImageError)]
            if readable:
                rows[len(done) : len(done) + len(readable)] = encoder.encode_pixels(np.stack([pixels for _, pixels in readable]), counts)
                done += [path for path, _ in readable]
            progress.advance(len(batch))
    if not done:
        reasons = "; ".join(reason for _, reason in skipped[:_REASONS_SHOWN])
        raise DataError(f"none of {len(files)} images can be read: {reasons}{'; ...' if len(files) > _REASONS_SHOWN else ''}")
    kept = encoder.manifest.patches_kept(encoder.mode, counts)
    return EmbedResult(done, rows[: len(done)], kept, skipped, time.perf_counter() - started, left_out.note())


def check_output(out: str | Path, paths: Iterable[str | Path] = ()) -> None:
    """Checks, before an hour of work, that `save_embeddings` can write to `out`, and that it can hold `paths`; writes nothing there.

    Raises:
        ConfigError: the suffix is unknown, its library is not installed, or `out` exists and is no file of embeddings.
        DataError: a path is not valid Unicode, which Parquet cannot hold.
        StorageError: the folder cannot be made or written to.
    """
    out = Path(out)
    if out.suffix.lower() not in OUTPUT_SUFFIXES:
        raise ConfigError(f"output = {out}, but its name must end in {' or '.join(OUTPUT_SUFFIXES)}")
    if out.suffix.lower() == ".parquet":
        _pyarrow()
        for path in map(str, paths):
            if not path.isascii() and path != path.encode("utf-8", "replace").decode():
                raise DataError(f"the path {printable(path, 300)} is not valid Unicode, which Parquet cannot hold; write .npz, or rename the file")
    files.check_output(out, _EMBEDDINGS)


def save_embeddings(result: EmbedResult, out: str | Path) -> None:
    """Writes embeddings to one file, which appears whole or not at all.

    A `.npz` holds `paths` (n, unicode), `embeddings` ((n, E) float32) and `keep` (int64, patches kept of each
    image); numpy reads it without pickle. A `.parquet` holds a column `path`, a column `embedding` (E floats a
    row) and `keep` in the file's metadata; it needs the extra `parquet`.

    Raises:
        ConfigError, DataError: as `check_output`.
        StorageError: the file cannot be written; whatever stood at `out` is untouched.
    """
    out = Path(out)
    check_output(out, result.paths)
    table = _table(result) if out.suffix.lower() == ".parquet" else None
    with new_file(out) as temporary, temporary.open("wb") as stream:
        if table is None:
            np.savez(stream, paths=np.array(result.paths, dtype=np.str_), embeddings=result.embeddings, keep=np.int64(result.keep))
        else:
            _pyarrow()[1].write_table(table, stream)


_NPZ = re.compile(rb"PK\x03\x04.{26}paths\.npy", re.DOTALL)


def _is_ours(path: Path) -> bool:
    """Whether a file is what `save_embeddings` writes under its suffix."""
    if path.suffix.lower() == ".npz":
        with path.open("rb") as stream:
            return _NPZ.match(stream.read(64)) is not None
    arrow, parquet = _pyarrow()
    try:
        found: list[str] = parquet.read_schema(path).names
    except arrow.ArrowInvalid:
        return False
    return found == ["path", "embedding"]


_EMBEDDINGS = OutputKind("a file of embeddings", _is_ours)


def _decoded(files: Sequence[Path], preparing: Callable[[Path], Pixels], workers: int, ahead: int) -> Generator[tuple[Path, Pixels | ImageError]]:
    """Each file with its pixels or the reason why it has none, in order; threads work up to `ahead` files ahead."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prtool-decode")
    try:
        coming = ((file, pool.submit(preparing, file)) for file in files)
        waiting = deque(itertools.islice(coming, ahead))
        while waiting:
            file, future = waiting.popleft()
            try:
                done: Pixels | ImageError = future.result()
            except ImageError as cause:
                done = cause
            waiting.extend(itertools.islice(coming, 1))
            yield file, done
    finally:
        pool.shutdown(cancel_futures=True)


def _pyarrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as cause:
        raise ConfigError(f"Parquet needs pyarrow, which cannot be imported ({cause}); {install_hint('parquet')}, or write .npz") from cause
    return pyarrow, pyarrow.parquet


def _table(result: EmbedResult) -> Any:  # noqa: ANN401 - pyarrow's
    arrow, _ = _pyarrow()
    values: npt.NDArray[np.float32] = np.ascontiguousarray(result.embeddings).reshape(-1)
    columns = {
        "path": arrow.array(result.paths, arrow.string()),
        "embedding": arrow.FixedSizeListArray.from_arrays(arrow.array(values), result.embeddings.shape[1]),
    }
    return arrow.table(columns).replace_schema_metadata({"keep": str(result.keep)})
