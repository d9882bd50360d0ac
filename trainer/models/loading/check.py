"""Run a model's parts once while it loads, so that what cannot run or be exported fails before any training."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.trainer.models.loading.libraries import foreign
from prtool.trainer.models.tower import VisionTower


@torch.inference_mode()
def check_towers(tower: VisionTower, text: nn.Module, token_ids: Tensor, name: str) -> None:
    """Runs the patch embedding, one block and the head on a blank image, and the text side on the ids (1, context) int64 of one prompt.

    Raises:
        ModelError: a part fails, gives another shape than it declares, or values that are not finite.
    """
    declared = getattr(getattr(tower, "host", None), "image_size", tower.image_size)
    if tuple(declared) != tower.image_size:
        raise ModelError(f"{name} declares images of {tuple(declared)}, but its image tower reads {tower.image_size}; correct vision_cfg.image_size")
    foreign(f"the cost of the image tower of {name} cannot be counted", tower.cost)
    embedding, sequence = (1, tower.embed_dim), (1, tower.prefix_tokens + tower.patches, tower.width)
    tokens = _run(f"the patch embedding of the image tower of {name}", lambda: tower.embed(torch.zeros(1, 3, *tower.image_size)), sequence)
    left = _run(f"the first block of the image tower of {name}", lambda: tower.block(0, tokens), sequence)
    _run(f"the head of the image tower of {name}", lambda: tower.head(left), embedding)
    _run(f"the text side of {name}", lambda: text(token_ids), embedding)


def _run(what: str, call: Callable[[], Tensor], shape: tuple[int, ...]) -> Tensor:
    found = foreign(f"{what} does not run", call)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{what} gives {seen}, but {shape} is needed; use another model")
    if not bool(torch.isfinite(found).all()):
        raise ModelError(f"{what} gives values that are not finite; check the weights")
    return found
