"""Image towers without a text side, by their name in timm: DINOv2 and other vision transformers."""

import math
import sys
from pathlib import Path
from typing import Any, cast

import timm
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.text_safety import printable
from prtool.trainer.models.loading.libraries import foreign
from prtool.trainer.models.loading.source import TIMM
from prtool.trainer.models.loading.weights import check_tensors, read_weights


class TrunkVision(nn.Module):
    """A timm trunk that gives its pooled features, through `head` where there is one, with the attributes of open_clip's TimmModel."""

    def __init__(self, trunk: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head or nn.Identity()
        self.image_size = cast(Any, trunk).patch_embed.img_size

    def set_input_size(self, image_size: int) -> None:
        """Interpolates the positions for square images of that side."""
        cast(Any, self.trunk).set_input_size(img_size=image_size)
        self.image_size = cast(Any, self.trunk).patch_embed.img_size

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) -> (batch, E)."""
        return cast(Tensor, self.head(self.trunk(pixels)))


def load_trunk(name: str, weights: str, notes: dict[str, str]) -> tuple[TrunkVision, dict[str, Any]]:
    """The tower of a name as `build_trunk` takes it, with the weights of its tag, of a file, or random ones, and its `preprocess_cfg`.

    Raises:
        ModelError: as `build_trunk` and `with_file`.
    """
    visual = build_trunk(name, pretrained=not weights)
    if weights:
        with_file(visual, Path(weights))
    return visual, preprocess_of(visual, notes)


def build_trunk(name: str, *, pretrained: bool = False) -> TrunkVision:
    """The tower of a name "timm:ARCHITECTURE" or "timm:ARCHITECTURE.TAG", with random weights, or those of the tag, downloaded.

    Raises:
        ModelError: timm does not know it, it has no patches in a grid, or the weights cannot be downloaded.
    """
    wanted = name.removeprefix(TIMM)
    architecture, _, tag = wanted.partition(".")
    if not timm.is_model(architecture):
        near = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:4]) or "none"
        raise ModelError(f"unknown model {printable(name)!r}; near names in timm: {near}")
    if tag and tag not in (known := timm.models.list_pretrained(f"{architecture}.*")) and wanted not in known:
        raise ModelError(f"timm has no weights {printable(tag)!r} of {architecture}; known: {', '.join(known) or 'none'}")
    trunk = foreign(f"model {name!r} cannot be built", lambda: timm.create_model(wanted, pretrained=pretrained and bool(tag), num_classes=0))
    if not hasattr(getattr(trunk, "patch_embed", None), "img_size"):
        raise ModelError(f"{name} is a {type(trunk).__name__}, but patches can be pruned in vision transformers only")
    return TrunkVision(trunk)


def with_file(visual: TrunkVision, path: Path) -> None:
    """Puts the tensors of a weights file in timm's or the authors' names into a tower; a classifier's are left out.

    Raises:
        ModelError: the file cannot be read, or a tensor is missing, unknown or of another size.
    """
    trunk, state = visual.trunk, read_weights(path)
    convert = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", lambda state, _model: state)
    found = foreign(f"{path} does not fit the model", lambda: dict(convert(state, trunk)))
    kept = {name: tensor for name, tensor in found.items() if not name.startswith(("head.", "mask_token")) or name in trunk.state_dict()}
    check_tensors(trunk.state_dict(), kept, path)
    trunk.load_state_dict(kept)


def preprocess_of(visual: TrunkVision, notes: dict[str, str]) -> dict[str, Any]:
    """A `preprocess_cfg` of what timm says of the weights, with the ratio of its resize to its crop; `notes` gets what is done otherwise."""
    config = resolve_model_data_config(visual.trunk)
    mode = {"center": "shortest", "squash": "squash", "border": "longest"}.get(config["crop_mode"], "shortest")
    plain = {"mean": config["mean"], "std": config["std"], "interpolation": config["interpolation"], "resize_mode": mode}
    if mode == "shortest":
        side = visual.image_size[0]
        return plain | {"resize_ratio": math.floor(side / config["crop_pct"]) / side}
    if config["crop_pct"] != 1.0:
        notes["crop"] = f"timm resizes to {1 / config['crop_pct']:.3g} times the image size before its crop; here the image size is all of it"
    return plain
