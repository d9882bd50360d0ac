"""Read a model's weights and put them into it: tensors only, every one of them, at the sizes that the model has."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.text_safety import printable
from prtool.trainer.models.loading.libraries import foreign

BIG_VISION = (".npz", ".npy")
"""Endings of weights in the form of Google's big_vision."""
_OPENAI_ONLY = ("input_resolution", "context_length", "vocab_size")
"""Entries that only the state of OpenAI's own TorchScript archives has."""
_POSITIONS = ("visual.positional_embedding", "visual.trunk.pos_embed", "positional_embedding", "text.positional_embedding")
_SHOWN = 3


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name: safetensors, or a state dict saved by torch, which is never unpickled into code.

    Raises:
        ModelError: the file cannot be read, is a TorchScript archive, or holds more than tensors.
    """
    from open_clip.factory import load_state_dict

    _check_archive(path)
    try:
        state = foreign(f"{path} cannot be read as weights", lambda: load_state_dict(str(path), device="cpu", weights_only=True))
    except ModelError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise ModelError(f"{path} is damaged or holds more than tensors, and is not unpickled; save its state_dict as safetensors") from error
        raise
    if not isinstance(state, Mapping) or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise ModelError(f"{path} holds more than named tensors; save the model's state_dict alone, as safetensors")
    return dict(state)


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict comes from one of OpenAI's own archives, all of which were trained with QuickGELU."""
    return all(name in state for name in _OPENAI_ONLY)


def fitted(model: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors of `read_weights` under a model's own names, all of them.

    The model is open_clip's; its tensors need no values (device "meta"). The path is for messages.

    Raises:
        ModelError: a tensor is missing, unknown or of another size; positions are not resized.
    """
    from open_clip import convert, factory

    failed = f"{path} does not fit the model"
    renamed = cast("dict[str, Tensor]", foreign(failed, lambda: convert.convert_state_dict(cast(Any, model), dict(state))))
    if "positional_embedding" in renamed and not hasattr(model, "positional_embedding"):
        renamed = foreign(failed, lambda: factory.convert_to_custom_text_state_dict(renamed))
    for name in (*_OPENAI_ONLY, "text.transformer.embeddings.position_ids"):
        renamed.pop(name, None)
    own = model.state_dict()
    for name in ("logit_scale", "logit_bias"):
        if name in renamed and name in own and renamed[name].numel() == 1:
            renamed[name] = renamed[name].reshape(own[name].shape)
    check_tensors(own, renamed, path)
    return renamed


def _check_archive(path: Path) -> None:
    """Raises ModelError for TorchScript, which holds code; read from the archive's table of contents."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return
    if any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names):
        raise ModelError(
            f"{path} is a TorchScript archive, which holds code; if you trust it, convert it once: "
            "python -c \"import torch; torch.save(torch.jit.load('IN.pt', 'cpu').state_dict(), 'OUT.pt')\""
        )


def check_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raises ModelError unless a file's tensors are those of a state dict, in names and sizes."""
    for name in _POSITIONS:
        if name in own and name in found and own[name].shape != found[name].shape:
            tokens, wanted = (int(tensor[name].shape[-2]) if tensor[name].dim() > 1 else 0 for tensor in (found, own))
            side = "text of another length" if "visual" not in name else "images of another size"
            raise ModelError(
                f"{path} has {tokens} positions in {name}, but the model has {wanted}: it was trained for {side}; "
                "give the architecture of that size, or a model folder that says it"
            )
    if "logit_bias" in own and "logit_bias" not in found:
        raise ModelError(f"{path} has no logit_bias, but the model has one; give an architecture without, or the right weights")
    wrong: dict[str, list[str]] = {
        "lacks": [name for name in own if name not in found],
        "has unknown": [name for name in found if name not in own],
        "has other sizes in": [name for name in own if name in found and own[name].shape != found[name].shape],
    }
    said = [f"{what} {_some(names)}" for what, names in wrong.items() if names]
    if said:
        raise ModelError(f"{path} does not fit the model: it {', '.join(said)}; give the architecture that the weights were made for")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(printable(name) for name in names[:_SHOWN]) + more
