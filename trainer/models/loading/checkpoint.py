"""The files of a checkpoint of transformers: JSON, weights in one or several parts, and the image processor's settings."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from prtool.errors import ModelError
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.models.loading.config import check_preprocess
from prtool.trainer.models.loading.weights import read_weights

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_BYTES = 1 << 22
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a checkpoint says without its tensors.

    Attributes:
        family: what transformers calls its kind.
        config: checked, in open_clip's words; without a text_cfg where it has no text side.
        preprocess: a checked `preprocess_cfg`.
        notes: what is done otherwise than transformers does it, by subject.
    """

    family: str
    config: dict[str, Any]
    preprocess: dict[str, Any]
    notes: dict[str, str]


def read_object(path: Path) -> dict[str, Any]:
    """The object in one of a checkpoint's JSON files.

    Raises:
        ModelError: the file cannot be read, or holds something else.
    """
    try:
        content = parse_json(read_regular(path, _BYTES))
    except (OSError, ValueError) as cause:
        raise ModelError(f"{path} cannot be read: {printable(cause)}; give a complete checkpoint") from cause
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no object; give a complete checkpoint")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files with a checkpoint's tensors.

    Raises:
        ModelError: there are none, or the index names one that is missing or lies elsewhere.
    """
    first = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ModelError(f"{folder} holds none of {', '.join(_WEIGHTS)}; give a complete checkpoint")
    if first.suffix != ".json":
        return [first]
    index = read_object(first).get("weight_map")
    names = sorted(set(cast("dict[str, str]", index).values())) if isinstance(index, dict) and index else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(f"{first} names no files of its folder under weight_map; give a complete checkpoint")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder} lacks {printable(missing[0])}, which {first.name} names, so its download is not complete; download it again")
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, under its own names.

    Raises:
        ModelError: as `weight_files`, or a file cannot be read.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_weights(file)
    return state


def pixel_side(processor: Any, folder: Path) -> int:  # noqa: ANN401 - transformers' classes change by version
    """The side of the square images that an image processor gives.

    Raises:
        ModelError: they are not square, or not all of one size.
    """
    crops = bool(getattr(processor, "do_center_crop", False))
    size = _sides(getattr(processor, "crop_size", None) or {}) if crops else _size(processor)
    if set(size) != {"height", "width"} or size["height"] != size["width"]:
        does = "crops" if crops else "resizes"
        raise ModelError(f"the image processor of {folder} {does} to {size}, which is not supported; only square images of one size are")
    return size["height"]


def preprocess_config(processor: Any, side: int, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - as above
    """A `preprocess_cfg`, with the rounding of the crop and the ratio of the resize to it, of a processor that gives `side` x `side` pixels.

    Raises:
        ModelError: it gives another size, or does something that is not supported.
    """
    size, crop = _size(processor), _sides(getattr(processor, "crop_size", None) or {})
    crops = bool(getattr(processor, "do_center_crop", False))
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    wrong = [name for name, wanted in steps.items() if getattr(processor, name, None) is not wanted]
    if wrong or abs(processor.rescale_factor - 1 / 255) > 1e-9 or processor.resample not in _FILTERS:
        what = f"{wrong[0]} off" if wrong else f"rescale_factor = {processor.rescale_factor}, resample = {processor.resample}"
        raise ModelError(f"the image processor of {folder} has {what}, but images must be resized, rescaled by 1/255 and normalised")
    if crops and (crop.get("height"), crop.get("width")) != (side, side):
        raise ModelError(f"the image processor of {folder} crops to {crop}, but the image tower reads {side} x {side} pixels")
    square, shortest = size == {"height": side, "width": side}, size.get("shortest_edge", 0)
    if not square and not (crops and size == {"shortest_edge": shortest} and shortest >= side):
        raise ModelError(f"the image processor of {folder} resizes to {size}{f' and crops to {crop}' if crops else ''}, which is not supported")
    plain = {
        "mean": list(map(float, processor.image_mean)),
        "std": list(map(float, processor.image_std)),
        "interpolation": _FILTERS[processor.resample],
        "resize_mode": "squash" if square else "shortest",
    }
    ratio = 1.0 if square else shortest / side
    return check_preprocess(plain, f"the image processor of {folder}") | {"crop_rounding": "floor", "resize_ratio": ratio}


def keeps_shape(processor: Any) -> bool:  # noqa: ANN401 - as above
    """Whether a processor gives images of any shape with a limit on their patches (NaFlex)."""
    return getattr(processor, "max_num_patches", None) is not None


def _size(processor: Any) -> Mapping[str, int]:  # noqa: ANN401 - as above
    """What a processor resizes to; NaFlex, a square image."""
    if not keeps_shape(processor):
        return _sides(processor.size)
    rows = math.isqrt(processor.max_num_patches)
    if rows * rows != processor.max_num_patches:
        return {"max_num_patches": processor.max_num_patches}
    return {"height": rows * processor.patch_size, "width": rows * processor.patch_size}


def _sides(value: Any) -> Mapping[str, int]:  # noqa: ANN401 - a number, a mapping or a class, by version
    items: Iterable[tuple[str, Any]] = [("shortest_edge", value)] if isinstance(value, int) else dict(value).items()
    return {name: side for name, side in items if side is not None}
