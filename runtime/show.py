"""The picture of a pruned encoder: each image as the encoder sees it, next to the patches that are kept at each keep rate."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from prtool.errors import ConfigError
from prtool.files import PICTURE, PICTURE_METADATA, check_output, new_file
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.decode import ImageSource
from prtool.runtime.images.preprocess import prepare_batch, view
from prtool.runtime.pipeline import mode_of
from prtool.spec import Keep

LEAST_SIDE = 224
"""Shorter side of a cell, in pixels, as all lengths; smaller photographs are enlarged by a whole number."""
GAP, MARGIN = 14, 28
TITLE_SIZE, NOTE_SIZE = 19, 14
VEIL = (52, 57, 70)
"""Colour that dropped patches fade to."""
VEIL_OPACITY, LATE_VEIL_OPACITY = 0.82, 0.5
"""Share of `VEIL` in a patch that the first location drops, and in one that the last of several drops; those between lie between."""
_LINE_OPACITY, _BORDER_OPACITY = 0.14, 0.85
"""Share of white in the lines between patches, and where a kept patch meets a dropped one."""
_BACKGROUND, _INK, _FAINT_INK = (255, 255, 255), (28, 30, 36), (120, 124, 134)


def show(encoder: Encoder, images: Sequence[ImageSource], keeps: Sequence[Keep], out: str | Path) -> None:
    """Draws one row per image: what the encoder sees, then the same at each keep rate with dropped patches darkened, the earlier the more.

    The columns are labelled with the rate and the number of patches k; the file appears whole or not at all.

    Raises:
        ConfigError: no image, no keep rate, the bundle ranks no patches, or `out` does not end in .png, is one of `images`, or is something
            else than a picture that prtool drew.
        ImageError: an image cannot be read.
        KeepError: the encoder does not allow a keep rate.
        StorageError: the file cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"output = {out}, but its name must end in .png")
    check_output(out, PICTURE, (image for image in images if isinstance(image, (str, Path))))
    picture = draw(encoder, images, keeps)
    words = PngInfo()
    for name, value in PICTURE_METADATA.items():
        words.add_text(name, value)
    with new_file(out) as temporary:
        picture.save(temporary, format="PNG", pnginfo=words)


def draw(encoder: Encoder, images: Sequence[ImageSource], keeps: Sequence[Keep]) -> Image.Image:
    """The picture that `show` writes, of mode "RGB"; raises its ConfigError, ImageError and KeepError."""
    if not images or not keeps:
        raise ConfigError(f"{len(images)} images and {len(keeps)} keep rates make no picture; give at least one of each")
    manifest = encoder.manifest
    mode_of("split", manifest.prune)
    counts = [manifest.counts(keep) for keep in keeps]
    views = [view(image, manifest.preprocess) for image in images]
    pixels = prepare_batch(views, manifest.preprocess)
    veils = [[_veil(kept, manifest.prune.grid) for kept in zip(*encoder.kept(pixels, each), strict=True)] for each in counts]
    rows = []
    for seen, of_image in zip(views, zip(*veils, strict=True), strict=True):
        factor = math.ceil(LEAST_SIDE / min(seen.size))
        large = seen.resize((seen.width * factor, seen.height * factor), Image.Resampling.BICUBIC) if factor > 1 else seen
        rows.append([large, *(_cell(large, patches, manifest.preprocess.size) for patches in of_image)])
    titles = [("what the encoder sees", f"{manifest.prune.patches} patches")]
    for keep, (*_, count) in zip(keeps, counts, strict=True):
        share = f" ({count / manifest.prune.patches:.0%})" if keep.is_count else ""
        titles.append((f"keep {keep}", f"k = {count} of {manifest.prune.patches}{share}"))
    return _sheet(rows, titles, [Path(image).name if isinstance(image, (str, os.PathLike)) else "" for image in images])


def _veil(kept: Sequence[npt.NDArray[np.int64]], grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Opacity of the veil over each patch of one image, (rows, columns), from the patches (k,) kept at each location; 0 where it stays."""
    opacity = np.zeros(grid[0] * grid[1], np.float32)
    steps = np.linspace(VEIL_OPACITY, LATE_VEIL_OPACITY, len(kept)) if len(kept) > 1 else [VEIL_OPACITY]
    left = np.ones(len(opacity), np.bool_)
    for indices, veil in zip(kept, steps, strict=True):
        stays = np.isin(np.arange(len(opacity)), indices)
        opacity[left & ~stays] = veil
        left = stays
    return opacity.reshape(grid)


def _cell(seen: Image.Image, veils: npt.NDArray[np.float32], size: tuple[int, int]) -> Image.Image:
    """The photograph with dropped patches veiled, thin lines between patches, and clear ones around kept patches.

    The veil alone is not enough: on a black cat or a white wall, a veil of any colour is hard to see.
    """
    factor = seen.height // size[0]
    patch = size[0] // veils.shape[0] * factor, size[1] // veils.shape[1] * factor
    # Pixels that fill no whole patch at the right and bottom are seen by no patch, so they are veiled as well.
    veil = np.full((seen.height, seen.width), VEIL_OPACITY, np.float32)
    whole = np.repeat(np.repeat(veils, patch[0], axis=0), patch[1], axis=1)
    veil[: whole.shape[0], : whole.shape[1]] = whole
    stays = veil == 0.0
    opacity = np.zeros(stays.shape, np.float32)
    opacity[patch[0] : whole.shape[0] : patch[0]] = _LINE_OPACITY
    opacity[:, patch[1] : whole.shape[1] : patch[1]] = _LINE_OPACITY
    opacity[1:][stays[1:] != stays[:-1]] = _BORDER_OPACITY
    opacity[:, 1:][stays[:, 1:] != stays[:, :-1]] = _BORDER_OPACITY
    values = np.asarray(seen).astype(np.float32)
    values += veil[..., None] * (np.array(VEIL, np.float32) - values)
    values += (0.0 if stays.all() else opacity[..., None]) * (255.0 - values)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _sheet(rows: list[list[Image.Image]], titles: list[tuple[str, str]], names: list[str]) -> Image.Image:
    """Cells in rows, a title over each column, and each photograph's file name under its first cell."""
    width, height = rows[0][0].size
    head = TITLE_SIZE + NOTE_SIZE + 20
    foot = NOTE_SIZE + 10 if any(names) else 0
    across, down = width + GAP, height + foot + GAP
    total = 2 * MARGIN + len(titles) * across - GAP, 2 * MARGIN + head + len(rows) * down - GAP
    sheet = Image.new("RGB", total, _BACKGROUND)
    canvas = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(TITLE_SIZE), ImageFont.load_default(NOTE_SIZE)
    for column, (title, note) in enumerate(titles):
        x = MARGIN + column * across
        canvas.text((x, MARGIN), title, font=large, fill=_INK)
        canvas.text((x, MARGIN + TITLE_SIZE + 6), note, font=small, fill=_FAINT_INK)
    for row, (cells, name) in enumerate(zip(rows, names, strict=True)):
        y = MARGIN + head + row * down
        for column, cell in enumerate(cells):
            sheet.paste(cell, (MARGIN + column * across, y))
        canvas.text((MARGIN, y + height + 5), _shortened(name, small, width), font=small, fill=_FAINT_INK)
    return sheet


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`name`, with its middle left out where it is wider than `width` pixels."""
    if font.getlength(name) <= width:
        return name
    half = len(name) // 2
    while half > 1 and font.getlength(f"{name[:half]}...{name[-half:]}") > width:
        half -= 1
    return f"{name[:half]}...{name[-half:]}"
