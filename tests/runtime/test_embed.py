"""Collections: every readable image is embedded in order, every other one is listed, and nothing is written by halves."""

import builtins
import errno
import os
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from fakes import FakeEncoder, fake_manifest
from models import TinyModel, tiny_bundle
from PIL import Image

from prtool.cli.main import app
from prtool.errors import ConfigError, DataError, KeepError, StorageError
from prtool.runtime import embed
from prtool.runtime.embed import EmbedResult, check_output, embed_folder, save_embeddings
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep


class Record:
    """A Progress that remembers."""

    def __init__(self) -> None:
        self.total = self.done = self.stages = 0
        self.open = False
        self.what = ""

    def start(self, what: str, total: int) -> None:
        self.what, self.total, self.open, self.stages = what, total, True, self.stages + 1

    def advance(self, count: int = 1) -> None:
        assert self.open
        self.done += count

    def finish(self) -> None:
        self.open = False


class Cancelled(Exception):
    """Raised by a caller that has seen enough."""


def write_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for seed, path in enumerate(paths):
        pixels = np.random.default_rng(seed).integers(0, 256, (20 + seed, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def result_of(count: int = 3) -> EmbedResult:
    rows = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return EmbedResult([f"{i}/Äpfel 梨.jpg" for i in range(count)], rows, 10, [], 2.0)


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prtool-decode")]


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (3, 2), (8, 5), (50, 0)])
def test_a_folder_gives_one_row_an_image_in_order(tmp_path: Path, batch_size: int, workers: int) -> None:
    paths = write_images(tmp_path, 11)
    encoder, progress = FakeEncoder(), Record()
    result = embed_folder(encoder, [tmp_path], progress, keep=Keep.ratio(0.5), batch_size=batch_size, workers=workers)
    alone = [[*prepare(path, encoder.manifest.preprocess).mean(axis=(1, 2)), 8.0] for path in paths]
    np.testing.assert_allclose(result.embeddings, np.array(alone), rtol=1e-5, atol=1e-6)
    assert result.paths == [str(path) for path in paths] and result.skipped == [] and result.keep == 8
    assert result.embeddings.dtype == np.float32
    assert sum(encoder.batches) == 11 and max(encoder.batches) == min(batch_size, 11)
    assert (progress.total, progress.done, progress.stages, progress.open) == (11, 11, 1, False)
    assert result.seconds > 0 and result.images_per_s == pytest.approx(11 / result.seconds)
    assert decoding_threads() == []


def test_unreadable_images_are_listed_with_their_reasons(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 8)
    for index, content in ((0, b""), (3, b"no image"), (4, paths[4].read_bytes()[:-100]), (7, b"\xff\xd8\xff")):
        paths[index].write_bytes(content)
    missing = tmp_path / "missing.jpg"
    progress = Record()
    result = embed_folder(FakeEncoder(), [*paths, missing], progress, batch_size=2)
    assert result.paths == [str(paths[i]) for i in (1, 2, 5, 6)]
    assert result.embeddings.shape == (4, 4) and result.keep == 10
    assert [path for path, _ in result.skipped] == [str(path) for path in (paths[0], paths[3], paths[4], paths[7], missing)]
    for (path, reason), words in zip(result.skipped, ("empty", "not an image", "truncated", "damaged", "No such file"), strict=True):
        assert Path(path).name in reason and words in reason
    assert progress.done == progress.total == 9


def test_nothing_to_embed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        embed_folder(FakeEncoder(), [tmp_path])
    with pytest.raises(DataError):
        embed_folder(FakeEncoder(), [])
    for name in "abcd":
        (tmp_path / f"{name}.jpg").touch()
    encoder = FakeEncoder()
    with pytest.raises(DataError, match=r"4.*a\.jpg"):
        embed_folder(encoder, [tmp_path])
    assert encoder.batches == []


def test_a_keep_outside_the_range_is_refused_before_any_work(tmp_path: Path) -> None:
    encoder, progress = FakeEncoder(), Record()
    with pytest.raises(KeepError, match="k = 1"):
        embed_folder(encoder, write_images(tmp_path, 1), progress, keep=Keep.count(1))
    assert progress.stages == 0


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": -1}])
def test_options_are_checked(tmp_path: Path, options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"0|-1"):
        embed_folder(FakeEncoder(), write_images(tmp_path, 1), **options)


def test_decoding_stays_within_two_batches_of_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_images(tmp_path, 40)
    prepared = 0
    lock = threading.Lock()

    def counted(path: Path, spec: Any, *, jpeg_scaling: bool) -> npt.NDArray[np.float32]:
        nonlocal prepared
        with lock:
            prepared += 1
        return prepare(path, spec, jpeg_scaling=jpeg_scaling)

    class Slow(FakeEncoder):
        def encode_pixels(self, pixels: npt.NDArray[np.float32], keep: tuple[int, ...] | None = None) -> npt.NDArray[np.float32]:
            encoded = sum(self.batches) + len(pixels)
            assert prepared <= encoded + 2 * 3 + 2
            return super().encode_pixels(pixels, keep)

    monkeypatch.setattr(embed, "prepare", counted)
    assert len(embed_folder(Slow(), paths, batch_size=3, workers=2).paths) == prepared == 40


def test_a_failing_encoder_or_a_cancelling_caller_stops_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cancel(*arguments: object, **options: object) -> None:
        raise Cancelled

    write_images(tmp_path, 20)
    for owner, method in ((FakeEncoder, "encode_pixels"), (Record, "advance")):
        progress = Record()
        with monkeypatch.context() as patch:
            patch.setattr(owner, method, cancel)
            with pytest.raises(Cancelled):
                embed_folder(FakeEncoder(), [tmp_path], progress, batch_size=4)
        assert progress.stages == 1 and not progress.open and decoding_threads() == []


def test_npz_is_read_without_pickle(tmp_path: Path) -> None:
    result = result_of()
    save_embeddings(result, tmp_path / "new" / "out.npz")
    with np.load(tmp_path / "new" / "out.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["embeddings", "keep", "paths"]
        assert file["paths"].tolist() == result.paths and file["keep"] == 10 and file["keep"].dtype == np.int64
        assert np.array_equal(file["embeddings"], result.embeddings)


def test_parquet_holds_a_row_an_image(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    result = result_of()
    save_embeddings(result, tmp_path / "out.parquet")
    table = parquet.read_table(tmp_path / "out.parquet")
    assert table.column("path").to_pylist() == result.paths
    assert np.array_equal(np.array(table.column("embedding").to_pylist(), np.float32), result.embeddings)
    assert table.schema.metadata[b"keep"] == b"10"


def test_a_path_that_is_not_unicode_goes_to_npz_only(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    odd = b"caf\xe9.jpg".decode("utf-8", "surrogateescape")
    result = EmbedResult([odd], np.zeros((1, 4), np.float32), 10, [], 1.0)
    save_embeddings(result, tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        assert file["paths"].tolist() == [odd]
    with pytest.raises(DataError, match=r"\.npz"):
        save_embeddings(result, tmp_path / "out.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["out.npz"]


def test_a_path_that_is_not_unicode_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    write_images(tmp_path / "photos", 1)
    (tmp_path / "photos" / "000.png").rename(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    loaded: list[object] = []
    tiny_bundle(tmp_path / "bundle", TinyModel())
    monkeypatch.setattr("prtool.runtime.encoder.Encoder.load", lambda *_, **named: loaded.append(named))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["embed", "photos", "-o", "out.parquet"])
    assert result.exit_code == 1 and r"caf\xe9.png" in result.output and not loaded


def test_what_a_folder_holds_and_is_not_embedded_is_counted(tmp_path: Path) -> None:
    write_images(tmp_path / "@eaDir", 2)
    with pytest.raises(DataError, match="2"):
        embed_folder(FakeEncoder(), [tmp_path])
    os.mkfifo(tmp_path / "pipe.jpg")
    write_images(tmp_path, 1)
    result = embed_folder(FakeEncoder(), [tmp_path])
    assert result.paths == [str(tmp_path / "000.png")] and result.skipped == []
    assert result.note.startswith("3 ") and "pipe.jpg" in result.note


@pytest.mark.parametrize("name", ["out.csv", "out", "out.npz.gz"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.npz.*\.parquet"):
        save_embeddings(result_of(), tmp_path / name)


def test_a_folder_as_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out.npz").mkdir()
    with pytest.raises(ConfigError, match="out"):
        check_output(tmp_path / "out.npz")


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError("No module named 'pyarrow'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install '\.\[parquet\]'"):
        check_output(tmp_path / "out.parquet")


def test_check_output_leaves_nothing(tmp_path: Path) -> None:
    check_output(tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


def fail_with(number: int) -> Any:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, "as the system says it")

    return fail


@pytest.mark.parametrize(
    "number",
    [errno.EROFS, errno.EACCES],
)
def test_a_read_only_folder_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", fail_with(number))
    with pytest.raises(StorageError, match=r"out\.npz"):
        check_output(tmp_path / "out.npz")
    with pytest.raises(StorageError, match=r"out\.npz"):
        save_embeddings(result_of(), tmp_path / "out.npz")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["out.npz", "out.parquet"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def full(*arguments: Any, **options: object) -> None:
        stream = next(value for value in arguments if hasattr(value, "write"))
        stream.write(b"half of the")
        raise OSError(errno.ENOSPC, "No space left on device")

    save_embeddings(result_of(), tmp_path / name)
    before = (tmp_path / name).read_bytes()
    monkeypatch.setattr(np, "savez", full)
    monkeypatch.setattr(pyarrow.parquet, "write_table", full)
    with pytest.raises(StorageError, match=name):
        save_embeddings(result_of(5), tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("name", ["out.npz", "out.parquet"])
def test_the_writers_pass_on_what_a_full_device_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The real writers, on a device that fails as a full disk does."""
    pytest.importorskip("pyarrow")
    real = Path.open

    def onto_full(path: Path, mode: str = "r", **options: Any) -> Any:
        return real(Path("/dev/full") if mode == "wb" else path, mode, **options)

    monkeypatch.setattr(Path, "open", onto_full)
    with pytest.raises(StorageError, match=name):
        save_embeddings(result_of(2000), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_default_is_recorded(tmp_path: Path) -> None:
    encoder = FakeEncoder(fake_manifest(default_keep=6))
    result = embed_folder(encoder, write_images(tmp_path, 2))
    assert result.keep == 6 and result.embeddings[:, 3].tolist() == [6.0, 6.0]


def test_a_real_bundle_embeds_as_its_encoder_does(tmp_path: Path) -> None:
    models = pytest.importorskip("models", reason="onnx makes the test graphs")
    from prtool.runtime.encoder import Encoder

    paths = write_images(tmp_path / "photos", 5)
    with Encoder.load(models.tiny_bundle(tmp_path / "bundle", models.TinyModel())) as encoder:
        result = embed_folder(encoder, [tmp_path / "photos"], keep=Keep.ratio(0.5), batch_size=2)
        np.testing.assert_allclose(result.embeddings, encoder.encode_images(paths, keep=0.5), atol=1e-6)
    assert result.keep == models.TinyModel().patches // 2
