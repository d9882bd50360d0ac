"""Checkpoints of transformers' CLIP, MetaCLIP 2 and SigLIP, put into modules of open_clip and timm that compute the same.

Every later step, from pruning to the graphs, then has one kind of encoder less to know. transformers itself reads the configuration,
the image processor's settings and the tokenizer; its model classes are not built, and code that a checkpoint brings is never run.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP, _build_text_tower, _build_vision_tower
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from prtool.errors import ModelError
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable
from prtool.trainer.models.loading.config import CHECKPOINT_CONFIG as CONFIG
from prtool.trainer.models.loading.config import check_model, check_preprocess
from prtool.trainer.models.loading.image_only import TrunkVision
from prtool.trainer.models.loading.libraries import foreign
from prtool.trainer.models.loading.tokenizer import require_transformers
from prtool.trainer.models.loading.weights import check_tensors, read_weights

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
_BYTES = 1 << 22
_SIGLIP = "siglip"
_FAMILIES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model", _SIGLIP: "SiglipModel"}
_ACTIVATIONS = {"quick_gelu": {}, "gelu": {}, "gelu_pytorch_tanh": {"approximate": "tanh"}, "gelu_new": {"approximate": "tanh"}}
_FILTERS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}
_TRUNK_BLOCK = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
# Names in transformers -> in the modules here, by their beginning.
_TEXT_NAMES = {
    "text_model.embeddings.token_embedding.": "text.token_embedding.",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.encoder.layers.": "text.transformer.resblocks.",
    "text_model.final_layer_norm.": "text.ln_final.",
    "text_model.head.": "text.text_projection.",
    "text_projection.weight": "text.text_projection",
}
_CLIP_NAMES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "visual_projection.weight": "visual.proj",
}
_SIGLIP_NAMES = {
    "vision_model.embeddings.patch_embedding.": "visual.trunk.patch_embed.proj.",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.encoder.layers.": "visual.trunk.blocks.",
    "vision_model.post_layernorm.": "visual.trunk.norm.",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.out_proj.": "visual.trunk.attn_pool.proj.",
    "vision_model.head.layernorm.": "visual.trunk.attn_pool.norm.",
    "vision_model.head.mlp.": "visual.trunk.attn_pool.mlp.",
}
_TRANSPOSED = ("visual.proj", "text.text_projection")


class _Model(CustomTextCLIP):  # type: ignore[misc]
    """open_clip's dual encoder of an image and a text tower that are made already."""

    def __init__(self, visual: nn.Module, text: nn.Module, *, biased: bool) -> None:
        nn.Module.__init__(self)
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.logit_bias = nn.Parameter(torch.zeros(())) if biased else None


def read_folder(folder: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The family, the checked configuration and the checked preprocessing of a checkpoint, the latter two in open_clip's words.

    Raises:
        ModelError: it is of another class, brings its own code, lacks its image processor or tokenizer, or has a value that is not supported.
    """
    require_transformers(f"{folder} is a checkpoint of transformers")
    from transformers import AutoConfig, AutoImageProcessor

    family = _family(folder)
    failed = f"{folder / CONFIG} cannot be read"
    found = foreign(failed, lambda: AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    config = check_model(foreign(failed, lambda: _translated(found, family, str(folder))), str(folder / CONFIG))
    if not any(folder.glob("*processor_config.json")):
        raise ModelError(f"{folder} has no preprocessor_config.json, so how its images are resized is unknown; save its processor there as well")
    if not any((folder / name).is_file() for name in _VOCABULARIES):
        # transformers would make one without a vocabulary.
        raise ModelError(f"{folder} holds no tokenizer ({', '.join(_VOCABULARIES)}); save the model's tokenizer there as well")
    failed = f"the image processor of {folder} cannot be read"
    processor = foreign(failed, lambda: AutoImageProcessor.from_pretrained(folder, trust_remote_code=False, local_files_only=True))
    return family, config, _preprocess(processor, config["vision_cfg"]["image_size"], folder)


def model_config(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The family and the checked configuration of a loaded model of transformers, as `read_folder` gives them.

    Raises:
        ModelError: it is of a class that is not supported.
    """
    found, kind = getattr(model, "config", None), type(model).__name__
    family = getattr(found, "model_type", None)
    if family not in _FAMILIES or kind != _FAMILIES[family]:
        raise ModelError(f"a {kind} of transformers is not supported; give one of {', '.join(_FAMILIES.values())}")
    return family, check_model(foreign(f"the configuration of the {kind} cannot be read", lambda: _translated(found, family, kind)), kind)


def build_visual(config: Mapping[str, Any], family: str) -> nn.Module:
    """The image tower of a configuration of `read_folder`, with random weights."""
    vision = config["vision_cfg"]
    if family != _SIGLIP:
        return cast(nn.Module, _build_vision_tower(config["embed_dim"], CLIPVisionCfg(**vision), config["quick_gelu"]))
    trunk = VisionTransformer(
        img_size=vision["image_size"],
        patch_size=vision["patch_size"],
        num_classes=0,
        embed_dim=vision["width"],
        depth=vision["layers"],
        num_heads=vision["width"] // vision["head_width"],
        mlp_ratio=vision["mlp_ratio"],
        class_token=False,
        global_pool="map",
        norm_layer=partial(nn.LayerNorm, **vision["norm_kwargs"]),
        act_layer="quick_gelu" if config["quick_gelu"] else "gelu_tanh" if vision["act_kwargs"] else "gelu",
    )
    return TrunkVision(trunk)


def build(config: Mapping[str, Any], family: str) -> nn.Module:
    """The dual encoder of a configuration of `read_folder`, with random weights."""
    text = _build_text_tower(config["embed_dim"], CLIPTextCfg(**config["text_cfg"]), config["quick_gelu"])
    return _Model(build_visual(config, family), text, biased=family == _SIGLIP)


def renamed(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint under the names, and in the shapes, of `build`'s modules; a name that is not known stays."""
    names = _TEXT_NAMES | (_SIGLIP_NAMES if family == _SIGLIP else _CLIP_NAMES)
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name.endswith(".position_ids"):
            continue
        start = next((old for old in names if name.startswith(old)), "")
        new = names.get(start, "") + name.removeprefix(start)
        if match := re.fullmatch(r"(.*\.)self_attn\.([qkv])_proj\.(weight|bias)", new):
            timm = match[1].startswith("visual.trunk.")
            joined = f"{match[1]}attn.{'qkv.' if timm else 'in_proj_'}{match[3]}"
            parts.setdefault(joined, {})[match[2]] = tensor
        elif match := re.fullmatch(r"vision_model\.head\.attention\.in_proj_(weight|bias)", name):
            # Of the query, which is a third, and of keys and values.
            width = len(tensor) // 3
            found[f"visual.trunk.attn_pool.q.{match[1]}"], found[f"visual.trunk.attn_pool.kv.{match[1]}"] = tensor[:width], tensor[width:]
        else:
            block = _TRUNK_BLOCK if new.startswith("visual.trunk.blocks.") else _BLOCK if ".resblocks." in new else {}
            for old, other in block.items():
                new = new.replace(f".{old}.", f".{other}.")
            found[new] = _reshaped(new, tensor)
    for name, three in parts.items():
        if set(three) == set("qkv"):
            found[name] = torch.cat([three[each] for each in "qkv"])
        else:
            found |= {f"{name}, {each} of q, k and v": tensor for each, tensor in three.items()}
    return found


def fitted(model: nn.Module, folder: Path, family: str) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of one of `build`'s modules, which needs no values (device "meta"); all of them.

    Raises:
        ModelError: a file cannot be read, or a tensor is missing, unknown or of another size.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        state |= read_weights(file)
    found = renamed(state, family)
    check_tensors(model.state_dict(), found, folder)
    return found


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
    index = _json(first).get("weight_map")
    names = sorted(set(cast("dict[str, str]", index).values())) if isinstance(index, dict) and index else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ModelError(f"{first} names no files of its folder under weight_map; give a complete checkpoint")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelError(f"{folder} lacks {printable(missing[0])}, which {first.name} names, so its download is not complete; download it again")
    return [folder / name for name in names]


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name in _TRANSPOSED and tensor.dim() == 2:
        return tensor.T
    if name in ("logit_scale", "logit_bias") and tensor.numel() == 1:
        return tensor.reshape(())
    return tensor[None] if name == "visual.trunk.pos_embed" else tensor


def _json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_regular(path, _BYTES))
    except (OSError, ValueError) as cause:
        raise ModelError(f"{path} cannot be read: {printable(cause)}; give a complete checkpoint") from cause
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no object; give a complete checkpoint")
    return content


def _family(folder: Path) -> str:
    """The kind of a checkpoint, read before anything of transformers sees it."""
    content = _json(folder / CONFIG)
    kind, known = content.get("model_type"), ", ".join(f"{kind} ({name})" for kind, name in _FAMILIES.items())
    if "auto_map" in content:
        named = printable(json.dumps(content["auto_map"]))
        raise ModelError(f"{folder} brings code of its own ({named}), which is not run; give a checkpoint of one of {known}")
    if kind not in _FAMILIES:
        hint = {
            "siglip2": "; its images keep their shape (NaFlex), which is not supported: give a SigLIP 2 of one size",
            "clip_vision_model": "; it has no text side, which is needed",
            "siglip_vision_model": "; it has no text side, which is needed",
        }.get(str(kind), "")
        raise ModelError(f"{folder / CONFIG} has model_type = {printable(repr(kind))}, but it must be one of {known}{hint}")
    return cast(str, kind)


def _translated(found: Any, family: str, origin: str) -> dict[str, Any]:  # noqa: ANN401 - transformers' classes change by version
    """What `build` needs of a configuration of transformers."""
    vision, text, siglip = found.vision_config, found.text_config, family == _SIGLIP
    if siglip and not getattr(vision, "vision_use_head", True):
        raise ModelError(f"{origin} has vision_use_head = false, so its image tower gives no embedding; give a checkpoint with its head")
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in _ACTIVATIONS:
        acts = f"hidden_act = {printable(repr(vision.hidden_act))} and {printable(repr(text.hidden_act))}"
        raise ModelError(f"{origin} has {acts}, but both must be the same of {', '.join(_ACTIVATIONS)}")
    embed_dim = vision.hidden_size if siglip else found.projection_dim
    if siglip and text.projection_size != embed_dim:
        raise ModelError(f"{origin} embeds images in {embed_dim} and texts in {text.projection_size} values; give one where both are the same")
    if not isinstance(text.eos_token_id, int):
        raise ModelError(f"{origin} has eos_token_id = {printable(repr(text.eos_token_id))}, but it must be one number")
    config = {
        "embed_dim": embed_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            **_tower(vision, origin, "head_width"),
            "image_size": _side(vision.image_size, "image_size", origin),
            "patch_size": _side(vision.patch_size, "patch_size", origin),
        },
        "text_cfg": {
            **_tower(text, origin, "heads"),
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "hf_tokenizer_name": "own",
        },
    }
    if siglip:
        config["text_cfg"] |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
    elif family == "clip" and text.eos_token_id == 2:
        # Written before transformers 4.31, with a number that the tokenizer does not give: the largest one ends a text.
        config["text_cfg"]["pool_type"] = "argmax"
    else:
        config["text_cfg"] |= {"pool_type": "eos", "eos_id": text.eos_token_id}
    return config


def _tower(config: Any, origin: str, heads: str) -> dict[str, Any]:  # noqa: ANN401 - as above
    width, count = config.hidden_size, config.num_attention_heads
    if width % count:
        raise ModelError(f"{origin} has hidden_size = {width} with {count} attention heads, which do not divide it; correct {CONFIG}")
    return {
        "width": width,
        "layers": config.num_hidden_layers,
        heads: count if heads == "heads" else width // count,
        # Half a channel more: both libraries truncate the product.
        "mlp_ratio": (config.intermediate_size + 0.5) / width,
        "act_kwargs": dict(_ACTIVATIONS[config.hidden_act]),
        "norm_kwargs": {"eps": config.layer_norm_eps},
    }


def _side(value: object, name: str, origin: str) -> int:
    sides = set(value) if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise ModelError(f"{origin} has {name} = {printable(repr(value))}, but only square ones are supported")
    return side


def _preprocess(processor: Any, side: int, folder: Path) -> dict[str, Any]:  # noqa: ANN401 - as above
    """A `preprocess_cfg` with the rounding of the crop, of an image processor's settings."""
    size, crop = _sides(processor.size), _sides(getattr(processor, "crop_size", None) or {})
    crops = bool(getattr(processor, "do_center_crop", False))
    square = size.get("height") == size.get("width") == side
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    wrong = [name for name, wanted in steps.items() if getattr(processor, name, None) is not wanted]
    if wrong or abs(processor.rescale_factor - 1 / 255) > 1e-9 or processor.resample not in _FILTERS:
        what = f"{wrong[0]} off" if wrong else f"rescale_factor = {processor.rescale_factor}, resample = {processor.resample}"
        raise ModelError(f"the image processor of {folder} has {what}, but images must be resized, rescaled by 1/255 and normalised")
    if crops and (crop.get("height"), crop.get("width")) != (side, side):
        raise ModelError(f"the image processor of {folder} crops to {crop}, but the image tower reads {side} x {side} pixels")
    if not square and not (crops and size == {"shortest_edge": side}):
        raise ModelError(f"the image processor of {folder} resizes to {size}{f' and crops to {crop}' if crops else ''}, which is not supported")
    plain = {
        "mean": list(map(float, processor.image_mean)),
        "std": list(map(float, processor.image_std)),
        "interpolation": _FILTERS[processor.resample],
        "resize_mode": "squash" if square else "shortest",
    }
    return check_preprocess(plain, f"the image processor of {folder}") | {"crop_rounding": "floor"}


def _sides(value: Any) -> dict[str, int]:  # noqa: ANN401 - a number, a mapping or a class, by version
    items: Iterable[tuple[str, Any]] = [("shortest_edge", value)] if isinstance(value, int) else dict(value).items()
    return {name: side for name, side in items if side is not None}
