"""Tiny seeded dual encoders around the towers of towers.py, and image sets drawn in code."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from towers import open_clip_visual, timm_visual

from prtool.spec import Preprocess
from prtool.trainer.data.images import ImageSet
from prtool.trainer.models.dual_encoder import DualEncoder, TextTower
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.store import tensors_digest

CLASSES = 5


def _no_tokens(_: object) -> Tensor:
    raise AssertionError("this encoder has no text side")


def tiny_encoder(kind: str = "cls") -> DualEncoder:
    """A frozen encoder of one kind of towers.py, "cls" and the other open_clip kinds or "siglip" and the other timm kinds."""
    try:
        visual = open_clip_visual(kind)
    except KeyError:
        visual = timm_visual(kind)
    for name, parameter in visual.named_parameters():
        # At the small values that towers are made with, a block does next to nothing, and so does a missing patch.
        if name.endswith("gamma"):
            parameter.fill_(0.5)
        elif parameter.dim() == 2 and "blocks" in name:
            parameter.mul_(4)
    tower = tower_of(visual).eval()
    return DualEncoder(
        name=kind,
        pretrained="",
        tower=tower,
        text=TextTower(nn.Identity()),
        tokenizer=_no_tokens,
        preprocess=Preprocess(tower.image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        logit_scale=8.0,
        logit_bias=-0.5,
        weights_sha256=tensors_digest(visual.state_dict()),
        context_length=8,
        native=tower,
    )


def class_embeddings(model: DualEncoder, classes: int = CLASSES) -> Tensor:
    """(classes, E) float32, L2-normalised, seeded."""
    return functional.normalize(torch.randn(classes, model.tower.embed_dim, generator=torch.Generator().manual_seed(3)), dim=-1)


def entered(model: DualEncoder, images: int, location: int) -> Tensor:
    """(images, prefix + N, D) tokens of seeded noise that enter a location."""
    pixels = torch.randn(images, 3, *model.tower.image_size, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return model.tower.run_pre(pixels, location)


def noise_images(folder: Path, count: int) -> ImageSet:
    """`count` PNG files of seeded coarse noise, in CLASSES classes."""
    random = np.random.default_rng(5)
    paths = tuple(f"{i:04d}.png" for i in range(count))
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)).save(folder / path)
    return ImageSet(folder, paths, tuple(i % CLASSES for i in range(count)), tuple(f"class {i}" for i in range(CLASSES)))
