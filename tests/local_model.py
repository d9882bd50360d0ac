"""A tiny seeded CLIP on disk in open_clip's local-dir form, and a small data set of drawn images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

VISION = {"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


def write_model(folder: Path, seed: int = 0, text: dict[str, Any] | None = None, **vision: Any) -> str:
    """Writes the model (16 patches, 3 blocks unless `vision` says otherwise, `text` over the text side); returns its name for `load_model`."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    settings, words = {**VISION, **vision}, {**TEXT, **(text or {})}
    torch.manual_seed(seed)
    model = CLIP(16, CLIPVisionCfg(**settings), CLIPTextCfg(**words))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": settings, "text_cfg": words}, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def write_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Class folders of small pictures, a coloured square on noise: `counts` images of each class in each split."""
    random = np.random.default_rng(seed)
    for split, count in counts.items():
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                row, column = random.integers(0, 16, 2)
                pixels[row : row + 16, column : column + 16] = colour
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder
