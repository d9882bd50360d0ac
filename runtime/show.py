"""The picture of a pruned encoder: each image as the encoder sees it, next to the patches that are kept at each keep rate."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from prtool.errors import ConfigError
from prtool.files import PICTURE, PICTURE_METADATA, check_output, new_file
from prtool.manifest import Manifest
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.decode import ImageSource
from prtool.runtime.images.preprocess import prepare_batch, view
from prtool.spec import Keep

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Style:
    """How the picture looks; lengths in pixels.

    Attributes:
        least_side: shorter side of a cell; smaller photographs are enlarged by a whole number.
        veil: colour that dropped patches fade to.
        veil_opacity: share of `veil` in a patch that the first location drops, 0 to 1.
        late_veil_opacity: the same for one that the last of several locations drops; those between lie between.
        line_opacity: share of white in the lines between patches, 0 to 1.
        border_opacity: the same where a kept patch meets a dropped one.
    """

    least_side: int = 224
    gap: int = 14
    margin: int = 28
    title_size: int = 19
    note_size: int = 14
    background: Colour = (255, 255, 255)
    ink: Colour = (28, 30, 36)
    faint_ink: Colour = (120, 124, 134)
    veil: Colour = (52, 57, 70)
    veil_opacity: float = 0.82
    late_veil_opacity: float = 0.5
    line_opacity: float = 0.14
    border_opacity: float = 0.85


def show(encoder: Encoder, images: Sequence[ImageSource], keeps: Sequence[Keep], out: str | Path) -> None:
    """Draws one row per image: what the encoder sees, then the same at each keep rate with dropped patches darkened, the earlier the more.

    Args:
        keeps: one column each, in this order; labelled with the rate and the number of patches k.
        out: a .png file, which appears whole or not at all.

    Raises:
        ConfigError: no image, no keep rate, or `out` does not end in .png, is one of `images`, or is something else than a picture
            that prtool drew.
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


def draw(encoder: Encoder, images: Sequence[ImageSource], keeps: Sequence[Keep], style: Style | None = None) -> Image.Image:
    """The picture that `show` writes.

    Returns:
        A PIL image of mode "RGB".

    Raises:
        ConfigError: no image or no keep rate.
        ImageError: an image cannot be read.
        KeepError: the encoder does not allow a keep rate.
    """
    if not images or not keeps:
        raise ConfigError(f"{len(images)} images and {len(keeps)} keep rates make no picture; give at least one of each")
    style = style or Style()
    manifest = encoder.manifest
    counts = [manifest.counts(keep) for keep in keeps]
    views = [view(image, manifest.preprocess) for image in images]
    pixels = prepare_batch(views, manifest.preprocess)
    veils = [[_veil(kept, manifest.prune.grid, style) for kept in zip(*encoder.kept(pixels, each), strict=True)] for each in counts]
    rows = []
    for seen, of_image in zip(views, zip(*veils, strict=True), strict=True):
        large = _enlarge(seen, style)
        rows.append([large, *(_cell(large, patches, manifest.preprocess.size, style) for patches in of_image)])
    titles = [("what the encoder sees", f"{manifest.prune.patches} patches")]
    titles += [_title(keep, each[-1], manifest) for keep, each in zip(keeps, counts, strict=True)]
    return _sheet(rows, titles, [_name(image) for image in images], style)


def _title(keep: Keep, count: int, manifest: Manifest) -> tuple[str, str]:
    share = count / manifest.prune.patches
    return f"keep {keep}", f"k = {count} of {manifest.prune.patches}" + (f" ({share:.0%})" if keep.is_count else "")


def _name(image: ImageSource) -> str:
    return Path(image).name if isinstance(image, (str, os.PathLike)) else ""


def _veil(kept: Sequence[npt.NDArray[np.int64]], grid: tuple[int, int], style: Style) -> npt.NDArray[np.float32]:
    """Opacity of the veil over each patch of one image, (rows, columns), from the patches (k,) kept at each location; 0 where it stays."""
    opacity = np.zeros(grid[0] * grid[1], np.float32)
    steps = np.linspace(style.veil_opacity, style.late_veil_opacity, len(kept)) if len(kept) > 1 else [style.veil_opacity]
    left = np.ones(len(opacity), np.bool_)
    for indices, veil in zip(kept, steps, strict=True):
        stays = np.isin(np.arange(len(opacity)), indices)
        opacity[left & ~stays] = veil
        left = stays
    return opacity.reshape(grid)


def _enlarge(image: Image.Image, style: Style) -> Image.Image:
    factor = math.ceil(style.least_side / min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.BICUBIC) if factor > 1 else image


def _cell(seen: Image.Image, veils: npt.NDArray[np.float32], size: tuple[int, int], style: Style) -> Image.Image:
    """The photograph with dropped patches veiled, thin lines between patches, and clear ones around kept patches.

    The veil alone is not enough: on a black cat or a white wall, a veil of any colour is hard to see.
    """
    factor = seen.height // size[0]
    patch = size[0] // veils.shape[0] * factor, size[1] // veils.shape[1] * factor
    # Pixels that fill no whole patch at the right and bottom are seen by no patch, so they are veiled as well.
    veil = np.full((seen.height, seen.width), style.veil_opacity, np.float32)
    whole = np.repeat(np.repeat(veils, patch[0], axis=0), patch[1], axis=1)
    veil[: whole.shape[0], : whole.shape[1]] = whole
    stays = veil == 0.0
    opacity = np.zeros(stays.shape, np.float32)
    opacity[patch[0] : whole.shape[0] : patch[0]] = style.line_opacity
    opacity[:, patch[1] : whole.shape[1] : patch[1]] = style.line_opacity
    opacity[1:][stays[1:] != stays[:-1]] = style.border_opacity
    opacity[:, 1:][stays[:, 1:] != stays[:, :-1]] = style.border_opacity
    values = np.asarray(seen).astype(np.float32)
    values += veil[..., None] * (np.array(style.veil, np.float32) - values)
    values += (0.0 if stays.all() else opacity[..., None]) * (255.0 - values)
    return Image.fromarray(np.rint(values).astype(np.uint8))


def _sheet(rows: list[list[Image.Image]], titles: list[tuple[str, str]], names: list[str], style: Style) -> Image.Image:
    """Cells in rows, a title over each column, and each photograph's file name under its first cell."""
    width, height = rows[0][0].size
    head = style.title_size + style.note_size + 20
    foot = style.note_size + 10 if any(names) else 0
    across, down = width + style.gap, height + foot + style.gap
    total = 2 * style.margin + len(titles) * across - style.gap, 2 * style.margin + head + len(rows) * down - style.gap
    sheet = Image.new("RGB", total, style.background)
    canvas = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(style.title_size), ImageFont.load_default(style.note_size)
    for column, (title, note) in enumerate(titles):
        x = style.margin + column * across
        canvas.text((x, style.margin), title, font=large, fill=style.ink)
        canvas.text((x, style.margin + style.title_size + 6), note, font=small, fill=style.faint_ink)
    for row, (cells, name) in enumerate(zip(rows, names, strict=True)):
        y = style.margin + head + row * down
        for column, cell in enumerate(cells):
            sheet.paste(cell, (style.margin + column * across, y))
        canvas.text((style.margin, y + height + 5), _shortened(name, small, width), font=small, fill=style.faint_ink)
    return sheet


def _shortened(name: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """`name`, with its middle left out where it is wider than `width` pixels."""
    if font.getlength(name) <= width:
        return name
    half = len(name) // 2
    while half > 1 and font.getlength(f"{name[:half]}...{name[-half:]}") > width:
        half -= 1
    return f"{name[:half]}...{name[-half:]}"
