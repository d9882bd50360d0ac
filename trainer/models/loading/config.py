"""Validate a model's configuration: only known keys, with values in range, reach a model library."""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prtool.errors import ModelError
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable

CONFIG_NAME = "open_clip_config.json"
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""A repository on the Hugging Face Hub, "ORG/NAME" or "NAME"; no path."""
_CONFIG_BYTES = 1 << 20
_WIDEST = 1 << 16


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a value must be, as a function and as text."""

    accepts: Callable[[Any], bool]
    wanted: str


def _whole(least: int, most: int) -> _Rule:
    return _Rule(lambda value: type(value) is int and least <= value <= most, f"a whole number from {least} to {most}")


def _real(least: float, most: float) -> _Rule:
    def accepts(value: Any) -> bool:  # noqa: ANN401 - any plain value
        return type(value) in (int, float) and math.isfinite(value) and least <= value <= most

    return _Rule(accepts, f"a number from {least:g} to {most:g}")


def _one_of(*names: str) -> _Rule:
    return _Rule(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(map(repr, names))}")


def _or_null(rule: _Rule) -> _Rule:
    return _Rule(lambda value: value is None or rule.accepts(value), f"{rule.wanted}, or null")


def _several(rule: _Rule, counts: tuple[int, ...], *, alone: bool = True) -> _Rule:
    def accepts(value: Any) -> bool:  # noqa: ANN401 - any plain value
        return (alone and rule.accepts(value)) or (isinstance(value, list) and len(value) in counts and all(map(rule.accepts, value)))

    many = f"a list of {' or '.join(map(str, counts))} of them"
    return _Rule(accepts, f"{rule.wanted}, or {many}" if alone else f"{many}: {rule.wanted}")


_FLAG = _Rule(lambda value: type(value) is bool, "true or false")
_SIDE = _whole(1, 8192)
_NAME = _Rule(lambda value: isinstance(value, str) and PLAIN_NAME.fullmatch(value) is not None, "a name such as 'ORG/NAME', no path")
_WIDTH, _HEADS, _MLP = _whole(1, _WIDEST), _whole(1, 1024), _real(0.01, 64)
_LAYER_SCALE = _or_null(_real(-1e3, 1e3))
_ACTIVATION: dict[str, _Rule] = {"approximate": _one_of("none", "tanh")}
_NORM: dict[str, _Rule] = {"eps": _real(0, 1), "elementwise_affine": _FLAG, "bias": _FLAG}
_ATTENTION = dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc", "output_tokens"), _FLAG)
_BLOCK: dict[str, "_Rule | dict[str, Any]"] = {
    **_ATTENTION,
    "block_type": _or_null(_one_of("default", "custom")),
    "act_kwargs": _ACTIVATION,
    "norm_kwargs": _NORM,
    "ls_init_value": _LAYER_SCALE,
    "mlp_ratio": _MLP,
    "width": _WIDTH,
    "final_ln_after_pool": _FLAG,
}
_VISION: dict[str, "_Rule | dict[str, Any]"] = {
    **_BLOCK,
    "layers": _several(_whole(1, 1000), (4,)),
    "head_width": _WIDTH,
    "patch_size": _or_null(_SIDE),
    "image_size": _several(_SIDE, (2,)),
    "patch_dropout": _real(0, 0.99),
    "attentional_pool": _FLAG,
    "attn_pooler_queries": _whole(1, 4096),
    "attn_pooler_heads": _HEADS,
    "no_ln_pre": _FLAG,
    "pos_embed_type": _one_of("learnable", "sin_cos_2d"),
    "pool_type": _one_of("tok", "avg", "none"),
    "timm_model_name": _or_null(_Rule(lambda value: isinstance(value, str) and re.fullmatch(r"\w+", value) is not None, "a model name of timm")),
    "timm_model_pretrained": _FLAG,
    "timm_pool": _one_of("", "avg", "max", "avgmax", "token", "map", "abs_attn", "rot_attn"),
    "timm_proj": _or_null(_one_of("", "linear", "mlp", "none")),
    "timm_proj_bias": _FLAG,
    "timm_drop": _real(0, 0.99),
    "timm_drop_path": _or_null(_real(0, 0.99)),
}
_TEXT: dict[str, "_Rule | dict[str, Any]"] = {
    **_BLOCK,
    "context_length": _whole(2, 8192),
    "vocab_size": _whole(1, 10_000_000),
    "hf_tokenizer_name": _or_null(_Rule(lambda value: value == "" or _NAME.accepts(value), _NAME.wanted)),
    "tokenizer_mode": _or_null(_one_of("", "clips")),
    # Whatever stands here goes to a tokenizer's constructor, where other keywords run code or read other files.
    "tokenizer_kwargs": {"clean": _one_of("lower", "whitespace", "canonicalize"), "strip_sep_token": _FLAG},
    "heads": _HEADS,
    "layers": _whole(1, 1000),
    "embed_cls": _FLAG,
    "pad_id": _whole(0, 10_000_000),
    "eos_id": _whole(0, 10_000_000),
    "no_causal_mask": _FLAG,
    "pool_type": _one_of("argmax", "first", "last", "eos", "none"),
    "proj_bias": _FLAG,
    "proj_type": _one_of("linear", "none"),
    "hf_model_name": _or_null(_NAME),
    "hf_model_pretrained": _FLAG,
    "hf_proj_type": _or_null(_one_of("linear", "mlp")),
    "hf_pooler_type": _or_null(_one_of("mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")),
}
_DECODER = {**_TEXT, "dim_head": _WIDTH, "n_queries": _whole(1, 4096), "attn_pooler_heads": _HEADS}
_MODEL: dict[str, "_Rule | dict[str, Any]"] = {
    "embed_dim": _WIDTH,
    "vision_cfg": _VISION,
    "text_cfg": _TEXT,
    "multimodal_cfg": _DECODER,
    "quick_gelu": _FLAG,
    "custom_text": _FLAG,
    "init_logit_scale": _real(-100, 100),
    "init_logit_bias": _or_null(_real(-1e4, 1e4)),
    "nonscalar_logit_scale": _FLAG,
}
_MEAN, _STD = _real(-1e3, 1e3), _real(1e-6, 1e3)
_PREPROCESS: dict[str, "_Rule | dict[str, Any]"] = {
    "size": _or_null(_several(_SIDE, (1, 2))),
    "mode": _or_null(_one_of("RGB")),
    "mean": _or_null(_several(_MEAN, (3,))),
    "std": _or_null(_several(_STD, (3,))),
    "interpolation": _or_null(_one_of("bicubic", "bilinear", "random")),
    "resize_mode": _or_null(_one_of("shortest", "longest", "squash")),
    "fill_color": _or_null(_whole(0, 255)),
}


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads and validates a model folder's configuration.

    Args:
        path: a file in the form of open_clip_config.json.

    Returns:
        Its `model_cfg` and its `preprocess_cfg`; the latter without values that are null.

    Raises:
        ModelError: the file cannot be read, or holds an unknown key or a value out of range.
    """
    try:
        content = parse_json(read_regular(path, _CONFIG_BYTES))
    except (OSError, ValueError) as cause:
        raise ModelError(f"{path} cannot be read: {printable(cause)}; give a model folder in open_clip's format") from cause
    if not isinstance(content, dict) or "model_cfg" not in content:
        raise ModelError(f"{path} has no model_cfg; give a model folder in open_clip's format")
    preprocess = check_preprocess(content.get("preprocess_cfg") or {}, f"{path}: preprocess_cfg")
    return check_model(content["model_cfg"], f"{path}: model_cfg"), preprocess


def check_model(config: object, origin: str) -> dict[str, Any]:
    """Returns a `model_cfg` with known keys and values in range.

    Args:
        config: as read from a file or from open_clip's registry.
        origin: where it stands, for messages.

    Raises:
        ModelError: names the key.
    """
    checked = _checked(config, _MODEL, origin)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in checked:
            raise ModelError(f"{origin} has no {key}; give a model folder in open_clip's format")
    for key, heads in (("vision_cfg", "head_width"), ("text_cfg", "heads")):
        tower = checked[key]
        width = tower.get("width", 768 if key == "vision_cfg" else 512)
        divisor = tower.get(heads, 64 if key == "vision_cfg" else 8)
        if not any(name in tower for name in ("timm_model_name", "hf_model_name")) and (width < divisor or (heads == "heads" and width % divisor)):
            raise ModelError(f"{origin}.{key} has width {width} with {heads} {divisor}, which does not divide it; correct one of them")
    return checked


def check_preprocess(config: object, origin: str) -> dict[str, Any]:
    """Returns a `preprocess_cfg` with known keys and values in range, without those that are null; as `check_model`."""
    return {key: value for key, value in _checked(config, _PREPROCESS, origin).items() if value is not None}


def _checked(config: object, rules: Mapping[str, Any], origin: str) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ModelError(f"{origin} is {printable(repr(config))}, but it must be an object; give a model folder in open_clip's format")
    found = {}
    for key, value in config.items():
        rule, place = rules.get(key), f"{origin}.{printable(key)}"
        if rule is None:
            near = difflib.get_close_matches(str(key), list(rules), n=3)
            raise ModelError(f"{place} is no key that prtool passes to a model library; remove it{f', or write {near[0]}' if near else ''}")
        if isinstance(rule, dict):
            found[key] = value if value is None and rule is not _VISION and rule is not _TEXT else _checked(value, rule, place)
        elif rule.accepts(value):
            found[key] = value
        else:
            raise ModelError(f"{place} = {printable(repr(value))}, but it must be {rule.wanted}")
    return found
