"""Checkpoints of transformers put into modules of open_clip and timm that compute the same: CLIP, MetaCLIP 2, SigLIP, DINOv2, DINOv3.

Every later step, from pruning to the graphs, then has one kind of encoder less to know. transformers itself reads the configuration,
the image processor's settings and the tokenizer; its model classes are not built, and code that a checkpoint brings is never run.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP, _build_text_tower, _build_vision_tower
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.text_safety import printable
from prtool.trainer.models.loading.checkpoint import Settings, keeps_shape, pixel_side, preprocess_config, read_object, read_tensors
from prtool.trainer.models.loading.config import ACTIVATIONS, check_checkpoint
from prtool.trainer.models.loading.config import CHECKPOINT_CONFIG as CONFIG
from prtool.trainer.models.loading.libraries import foreign
from prtool.trainer.models.loading.tensor_names import renamed
from prtool.trainer.models.loading.tokenizer import require_transformers
from prtool.trainer.models.loading.trunks import (
    ANY_SIZE,
    DINOV2,
    DINOV2_REGISTERS,
    DINOV3,
    NAFLEX,
    SIGLIP,
    build_trunk_visual,
    hidden_width,
    trunk_settings,
)
from prtool.trainer.models.loading.weights import check_tensors

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_CLIP, _SIGLIP, _SIGLIP2, _DUAL = "clip", "siglip", "siglip2", "vision-text-dual-encoder"
_CLIP_VISION, _CLIP_TEXT = "clip_vision_model", "clip_text_model"
_IMAGE_ONLY = {
    _CLIP_VISION: "CLIPVisionModelWithProjection",
    SIGLIP: "SiglipVisionModel",
    NAFLEX: "Siglip2VisionModel",
    DINOV2: "Dinov2Model",
    DINOV2_REGISTERS: "Dinov2WithRegistersModel",
    DINOV3: "DINOv3ViTModel",
}
_FAMILIES = {
    _CLIP: "CLIPModel",
    "metaclip_2": "MetaClip2Model",
    _SIGLIP: "SiglipModel",
    _SIGLIP2: "Siglip2Model",
    _DUAL: "VisionTextDualEncoderModel",
    **_IMAGE_ONLY,
}
_TOWERS = (_CLIP_VISION, "metaclip_2_vision_model", SIGLIP, *ANY_SIZE)
_TANH = ("gelu_pytorch_tanh", "gelu_new")
_OWN_KEYS = ("tower", "projected", "activation")


class _ImageOnly(nn.Module):
    """An image tower under the name that it has in a dual encoder."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual


class _Model(CustomTextCLIP):  # type: ignore[misc]
    """open_clip's dual encoder of an image and a text tower that are made already."""

    def __init__(self, visual: nn.Module, text: nn.Module, *, biased: bool) -> None:
        nn.Module.__init__(self)
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if biased else None


def read_folder(folder: Path) -> Settings:
    """The settings of a checkpoint.

    Raises:
        ModelError: it is of another class, brings its own code, lacks its image processor or tokenizer, or has a value that is not supported.
    """
    require_transformers(f"{folder} is a checkpoint of transformers")
    from transformers import AutoConfig, AutoImageProcessor

    family = _family(folder)
    failed = f"{folder / CONFIG} cannot be read"
    found = foreign(failed, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    config = foreign(failed, lambda: _translated(found, family, str(folder)))
    if not any(folder.glob("*processor_config.json")):
        raise ModelError(f"{folder} has no preprocessor_config.json, so how its images are resized is unknown; save its processor there as well")
    if "text_cfg" in config and not any((folder / name).is_file() for name in _VOCABULARIES):
        # transformers would make one without a vocabulary.
        raise ModelError(f"{folder} holds no tokenizer ({', '.join(_VOCABULARIES)}); save the model's tokenizer there as well")
    failed = f"the image processor of {folder} cannot be read"
    processor = foreign(failed, lambda: AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    vision = config["vision_cfg"]
    if vision["tower"] in ANY_SIZE:
        vision["image_size"] = foreign(failed, lambda: pixel_side(processor, folder))
    config = check_checkpoint(config, str(folder / CONFIG))
    preprocess = foreign(failed, lambda: preprocess_config(processor, vision["image_size"], folder))
    return Settings(family, config, preprocess, _notes(processor, folder))


def model_config(model: nn.Module) -> dict[str, Any]:
    """The checked configuration of a loaded model of transformers, as `read_folder` gives it, at the image size that it says itself.

    Raises:
        ModelError: it is of a class that is not supported.
    """
    found, kind = getattr(model, "config", None), type(model).__name__
    family = getattr(found, "model_type", None)
    if family not in _FAMILIES or kind != _FAMILIES[family]:
        raise ModelError(f"a {kind} of transformers is not supported; give one of {', '.join(_FAMILIES.values())}")
    translated = foreign(f"the configuration of the {kind} cannot be read", lambda: _translated(found, family, kind))
    return check_checkpoint(translated, kind)


def build_visual(config: Mapping[str, Any]) -> nn.Module:
    """The image tower of a checked configuration, with random weights."""
    vision = config["vision_cfg"]
    if vision["tower"] not in (SIGLIP, *ANY_SIZE):
        return cast(nn.Module, _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**_open_clip(vision)), _is_quick(vision)))
    return build_trunk_visual(config)


def build(config: Mapping[str, Any]) -> nn.Module:
    """The model of a checked configuration with random weights: `visual`, and `text` where it has one."""
    if "text_cfg" not in config:
        return _ImageOnly(build_visual(config))
    text = config["text_cfg"]
    tower = _build_text_tower(config["embed_dim"], CLIPTextCfg(**_open_clip(text)), _is_quick(text))
    return _Model(build_visual(config), tower, biased=text.get("proj_bias", False))


def fitted(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of one of `build`'s modules, which needs no values (device "meta"); all of them.

    Raises:
        ModelError: a file cannot be read, or a tensor is missing, unknown or of another size.
    """
    found = renamed(read_tensors(folder), config["vision_cfg"])
    check_tensors(model.state_dict(), found, folder)
    return found


def _open_clip(tower: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a tower's configuration that is open_clip's."""
    act_kwargs = {"approximate": "tanh"} if tower["activation"] in _TANH else {}
    return {key: value for key, value in tower.items() if key not in _OWN_KEYS} | {"act_kwargs": act_kwargs}


def _is_quick(tower: Mapping[str, Any]) -> bool:
    return bool(tower["activation"] == "quick_gelu")


def _family(folder: Path) -> str:
    """The kind of a checkpoint, read before anything of transformers sees it."""
    content = read_object(folder / CONFIG)
    kind, known = content.get("model_type"), ", ".join(f"{kind} ({name})" for kind, name in _FAMILIES.items())
    if "auto_map" in content:
        named = printable(json.dumps(content["auto_map"]))
        raise ModelError(f"{folder} brings code of its own ({named}), which is not run; give a checkpoint of one of {known}")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise ModelError(f"{folder / CONFIG} has model_type = {printable(repr(kind))}, but it must be one of {known}")
    classes = content.get("architectures")
    if classes and (not isinstance(classes, list) or _FAMILIES[kind] not in classes):
        raise ModelError(
            f"{folder} is a checkpoint of {printable(json.dumps(classes))}, but of model_type {kind} only {_FAMILIES[kind]} is supported"
        )
    return kind


def _notes(processor: Any, folder: Path) -> dict[str, str]:  # noqa: ANN401 - transformers' classes change by version
    """What is done otherwise than transformers does it."""
    if keeps_shape(processor):
        return {"shape": f"the image processor of {folder.name} keeps the shape of images (NaFlex); here all of them become squares"}
    if not type(processor).__name__.startswith("DINOv3ViTImageProcessor"):
        return {}
    what = "resizes in floating point; here 8-bit values are resized, as everywhere, and with a bilinear filter pixels differ by up to 1 of 255"
    return {"pixels": f"the image processor of {folder.name} {what}"}


def _translated(found: Any, family: str, origin: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    """What `build` needs of a configuration of transformers, unchecked."""
    if family in _IMAGE_ONLY:
        projected = family == _CLIP_VISION
        return {"embed_dim": found.projection_dim if projected else found.hidden_size, "vision_cfg": _vision(found, origin, projected=projected)}
    vision, text = found.vision_config, found.text_config
    siglip = family in (_SIGLIP, _SIGLIP2)
    if family == _DUAL and text.model_type != _CLIP_TEXT:
        raise ModelError(f"{origin} has a text side of model_type {printable(repr(text.model_type))}, but only {_CLIP_TEXT} is supported")
    embed_dim = vision.hidden_size if siglip else found.projection_dim
    if siglip and text.projection_size != embed_dim:
        raise ModelError(f"{origin} embeds images in {embed_dim} and texts in {text.projection_size} values; give one where both are the same")
    return {"embed_dim": embed_dim, "vision_cfg": _vision(vision, origin, projected=not siglip), "text_cfg": _text(text, family, origin)}


def _vision(vision: Any, origin: str, *, projected: bool) -> dict[str, Any]:  # noqa: ANN401 - as above
    if vision.model_type not in _TOWERS:
        raise ModelError(f"{origin} has an image side of model_type {printable(repr(vision.model_type))}, but it must be one of {', '.join(_TOWERS)}")
    settings = trunk_settings(vision, origin)
    activation = "gelu" if settings.get("gated_mlp") else vision.hidden_act
    return {
        **_tower(vision, origin, "head_width", activation),
        **settings,
        "tower": vision.model_type,
        "projected": projected,
        "image_size": _native_side(vision, origin),
        "patch_size": _side(vision.patch_size, "patch_size", origin),
    }


def _text(text: Any, family: str, origin: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    if not isinstance(text.eos_token_id, int):
        raise ModelError(f"{origin} has eos_token_id = {printable(repr(text.eos_token_id))}, but it must be one number")
    config = {
        **_tower(text, origin, "heads", text.hidden_act),
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "hf_tokenizer_name": "own",
    }
    if family in (_SIGLIP, _SIGLIP2):
        return config | {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    if family != "metaclip_2" and text.eos_token_id == 2:
        # Written before transformers 4.31, with a number that the tokenizer does not give: the largest one ends a text.
        return config | {"pool_type": "argmax"}
    return config | {"pool_type": "eos", "eos_id": text.eos_token_id}


def _tower(config: Any, origin: str, heads: str, activation: object) -> dict[str, Any]:  # noqa: ANN401 - as above
    width, count = config.hidden_size, config.num_attention_heads
    if activation not in ACTIVATIONS:
        raise ModelError(f"{origin} has hidden_act = {printable(repr(activation))}, but it must be one of {', '.join(ACTIVATIONS)}")
    if width % count:
        raise ModelError(f"{origin} has hidden_size = {width} with {count} attention heads, which do not divide it; correct {CONFIG}")
    return {
        "width": width,
        "layers": config.num_hidden_layers,
        heads: count if heads == "heads" else width // count,
        # Half a channel more: both libraries truncate the product.
        "mlp_ratio": (hidden_width(config) + 0.5) / width,
        "activation": activation,
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _native_side(vision: Any, origin: str) -> int:  # noqa: ANN401 - as above
    """The side of the images that the positions are for."""
    if vision.model_type == NAFLEX:
        return math.isqrt(vision.num_patches) * _side(vision.patch_size, "patch_size", origin)
    return _side(vision.image_size, "image_size", origin)


def _side(value: object, name: str, origin: str) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ModelError(f"{origin} has {name} = {printable(repr(value))}, but only square ones are supported")
    return side
