"""The picture: kept patches as they are, dropped ones darker, every column labelled."""

import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from fakes import FakeEncoder, fake_manifest
from PIL import Image

from prtool.errors import ConfigError, ImageError, KeepError, StorageError
from prtool.runtime import show as style
from prtool.runtime.images.preprocess import prepare_batch, view
from prtool.runtime.show import draw, show
from prtool.spec import Keep


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, length in {"LEAST_SIDE": 32, "TITLE_SIZE": 10, "NOTE_SIZE": 10}.items():
        monkeypatch.setattr(style, name, length)


def noise(seed: int = 0, height: int = 60, width: int = 50) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def cell(picture: Image.Image, row: int, column: int, size: tuple[int, int], foot: int) -> npt.NDArray[np.uint8]:
    """One photograph of the picture: where the layout's lengths say it lies."""
    head = style.MARGIN + style.TITLE_SIZE + style.NOTE_SIZE + 20
    x = style.MARGIN + column * (size[1] + style.GAP)
    y = head + row * (size[0] + foot + style.GAP)
    return np.asarray(picture)[y : y + size[0], x : x + size[1]]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("size", "grid"), [((32, 32), (4, 4)), ((32, 48), (4, 6)), ((36, 33), (4, 4))])
def test_kept_patches_are_unchanged_and_dropped_ones_veiled(size: tuple[int, int], grid: tuple[int, int]) -> None:
    encoder = FakeEncoder(fake_manifest(size, grid))
    images, keeps = [noise(0), noise(1)], [Keep.ratio(0.5), Keep.count(3), Keep.ratio(1.0)]
    picture = draw(encoder, images, keeps)
    high, wide = size[0] // grid[0], size[1] // grid[1]
    for row, image in enumerate(images):
        seen = np.asarray(view(image, encoder.manifest.preprocess))
        assert np.array_equal(cell(picture, row, 0, size, 0), seen)
        for column, keep in enumerate(keeps[:2], start=1):
            shown = cell(picture, row, column, size, 0)
            kept = set(encoder.kept(prepare_batch([image], encoder.manifest.preprocess), keep)[-1][0].tolist())
            for patch in range(grid[0] * grid[1]):
                y, x = patch // grid[1] * high, patch % grid[1] * wide
                inside = np.s_[y + 1 : y + high, x + 1 : x + wide]  # without the lines
                if patch in kept:
                    assert np.array_equal(shown[inside], seen[inside])
                else:
                    assert (np.ptp(shown[inside], axis=(0, 1)) < 0.25 * np.ptp(seen[inside], axis=(0, 1))).all()


@pytest.mark.usefixtures("small")
def test_a_later_location_veils_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped patches lose contrast by the share of the veil: full at the first location, the late one at the last."""
    made = fake_manifest()
    encoder = FakeEncoder(replace(made, prune=replace(made.prune, depth=5, locations=(2, 3, 4))))
    monkeypatch.setattr(style, "VEIL_OPACITY", 0.9)
    monkeypatch.setattr(style, "LATE_VEIL_OPACITY", 0.3)
    image = noise()
    picture = draw(encoder, [image], [Keep.count(4)])
    seen, shown = (cell(picture, 0, column, (32, 32), 0).astype(np.float64) for column in (0, 1))
    kept = encoder.kept(prepare_batch([image], encoder.manifest.preprocess), Keep.count(4))
    assert [left.shape[1] for left in kept] == [12, 8, 4]
    veils = {patch: 0.9 for patch in range(16)}
    for left, veil in zip(kept, (0.6, 0.3, 0.0), strict=True):
        veils |= {int(patch): veil for patch in left[0]}
    for patch, veil in veils.items():
        inside = np.s_[patch // 4 * 8 + 1 : patch // 4 * 8 + 8, patch % 4 * 8 + 1 : patch % 4 * 8 + 8]
        expected = (1.0 - veil) * seen[inside] + veil * np.array(style.VEIL)
        assert np.abs(shown[inside] - expected).max() <= 0.51


@pytest.mark.usefixtures("small")
def test_every_patch_kept_is_the_plain_photograph() -> None:
    encoder = FakeEncoder()
    picture = draw(encoder, [noise()], [Keep.ratio(1.0)])
    assert np.array_equal(cell(picture, 0, 1, (32, 32), 0), cell(picture, 0, 0, (32, 32), 0))


def test_small_views_are_enlarged_and_labels_fit(tmp_path: Path) -> None:
    path = tmp_path / ("a-very-long-name-" * 9 + ".png")
    Image.fromarray(noise()).save(path)
    picture = np.asarray(draw(FakeEncoder(), [path, str(path)], [Keep.ratio(0.5)]))
    assert picture.shape[1] == 2 * style.MARGIN + 2 * 224 + style.GAP
    header = picture[: style.MARGIN + style.TITLE_SIZE + style.NOTE_SIZE + 20]
    for left in (style.MARGIN, style.MARGIN + 224 + style.GAP):
        assert (header[:, left : left + 224] < 128).any()  # ink over both columns
    assert (picture[:, -style.MARGIN :] == 255).all() and (picture[:, : style.MARGIN] == 255).all()  # none in the margins


def test_show_writes_a_png(tmp_path: Path) -> None:
    show(FakeEncoder(), [noise()], [Keep.ratio(0.5)], tmp_path / "new" / "out.png")
    with Image.open(tmp_path / "new" / "out.png") as image:
        assert image.format == "PNG" and np.array_equal(np.asarray(image), np.asarray(draw(FakeEncoder(), [noise()], [Keep.ratio(0.5)])))


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    encoder, keeps, out = FakeEncoder(), [Keep.ratio(0.5)], tmp_path / "out.png"
    with pytest.raises(ConfigError, match=r"\.png"):
        show(encoder, [noise()], keeps, tmp_path / "out.jpg")
    with pytest.raises(ConfigError, match=r"0.*1"):
        show(encoder, [], keeps, out)
    with pytest.raises(ConfigError, match=r"1.*0"):
        show(encoder, [noise()], [], out)
    with pytest.raises(KeepError, match="k = 1"):
        show(encoder, [noise()], [Keep.count(1)], out)
    with pytest.raises(ImageError, match=r"none\.jpg"):
        show(encoder, [tmp_path / "none.jpg"], keeps, out)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(image: Image.Image, path: Path, **options: object) -> None:
        path.write_bytes(b"half of the")
        raise OSError(errno.ENOSPC, "No space left on device")

    show(FakeEncoder(), [noise()], [Keep.ratio(0.5)], tmp_path / "out.png")
    before = (tmp_path / "out.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match=r"out\.png"):
        show(FakeEncoder(), [noise()], [Keep.ratio(0.5)], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_a_real_bundle_is_drawn(tmp_path: Path) -> None:
    models = pytest.importorskip("models", reason="onnx makes the test graphs")
    from prtool.runtime.encoder import Encoder

    with Encoder.load(models.tiny_bundle(tmp_path / "bundle", models.TinyModel())) as encoder:
        show(encoder, [noise()], [Keep.ratio(0.5), Keep.ratio(1.0)], tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
