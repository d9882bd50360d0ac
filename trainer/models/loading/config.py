"""Validate a model's configuration: only known keys, with values in range, reach a model library."""

import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prtool.errors import ModelError
from prtool.strict import parse_json, read_regular
from prtool.text_safety import printable

CONFIG_NAME = "open_clip_config.json"
CHECKPOINT_CONFIG = "config.json"
CHECKPOINT_FILES = (
    *(CHECKPOINT_CONFIG, "*processor_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "model*.safetensors*"),
)
"""What is downloaded of a checkpoint of transformers."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
"""A repository on the Hugging Face Hub, "ORG/NAME" or "NAME"; no path."""
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "gelu_new")
"""As transformers names them; the last two are the same."""
_CONFIG_BYTES = 1 << 20
_WIDEST = 1 << 16


# What a value must be, for messages, and its test.
_Rule = tuple[str, Callable[[Any], bool]]
_Rules = dict[str, "_Rule | _Rules"]


def _whole(least: int, most: int) -> _Rule:
    return f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most


def _real(least: float, most: float) -> _Rule:
    return f"a number from {least:g} to {most:g}", lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _one_of(*names: str) -> _Rule:
    return f"one of {', '.join(map(repr, names))}", lambda value: isinstance(value, str) and value in names


def _text(pattern: str | re.Pattern[str], wanted: str) -> _Rule:
    return wanted, lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _or_null(rule: _Rule) -> _Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


def _several(rule: _Rule, *counts: int) -> _Rule:
    many = f"a list of {' or '.join(map(str, counts))} of them"
    return f"{rule[0]}, or {many}", lambda value: rule[1](value) or (isinstance(value, list) and len(value) in counts and all(map(rule[1], value)))


_FLAG: _Rule = ("true or false", lambda value: type(value) is bool)
_SIDE, _WIDTH, _HEADS = _whole(1, 8192), _whole(1, _WIDEST), _whole(1, 1024)
_QUERIES, _LAYERS, _TOKENS = _whole(1, 4096), _whole(1, 1000), _whole(0, 10_000_000)
_SHARE = _real(0, 0.99)
_NAME = _text(PLAIN_NAME, "a name such as 'ORG/NAME', no path")
_BLOCK: _Rules = {
    **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"), _FLAG),
    **dict.fromkeys(("output_tokens", "final_ln_after_pool"), _FLAG),
    "block_type": _or_null(_one_of("default", "custom")),
    "act_kwargs": {"approximate": _one_of("none", "tanh")},
    "norm_kwargs": {"eps": _real(0, 1), "elementwise_affine": _FLAG, "bias": _FLAG},
    "ls_init_value": _or_null(_real(-1e3, 1e3)),
    "mlp_ratio": _real(0.01, 64),
    "width": _WIDTH,
}
_VISION: _Rules = {
    **_BLOCK,
    **dict.fromkeys(("attentional_pool", "no_ln_pre", "timm_model_pretrained", "timm_proj_bias"), _FLAG),
    "layers": _several(_LAYERS, 4),
    "head_width": _WIDTH,
    "patch_size": _or_null(_SIDE),
    "image_size": _several(_SIDE, 2),
    "patch_dropout": _SHARE,
    "attn_pooler_queries": _QUERIES,
    "attn_pooler_heads": _HEADS,
    "pos_embed_type": _one_of("learnable", "sin_cos_2d"),
    "pool_type": _one_of("tok", "avg", "none"),
    "timm_model_name": _or_null(_text(r"\w+", "a model name of timm")),
    "timm_pool": _one_of("", "avg", "max", "avgmax", "token", "map", "abs_attn", "rot_attn"),
    "timm_proj": _or_null(_one_of("", "linear", "mlp", "none")),
    "timm_drop": _SHARE,
    "timm_drop_path": _or_null(_SHARE),
}
_TEXT: _Rules = {
    **_BLOCK,
    **dict.fromkeys(("embed_cls", "no_causal_mask", "proj_bias", "hf_model_pretrained"), _FLAG),
    **dict.fromkeys(("pad_id", "eos_id"), _TOKENS),
    "context_length": _whole(2, 8192),
    "vocab_size": _whole(1, 10_000_000),
    "hf_tokenizer_name": _or_null(_text(f"({PLAIN_NAME.pattern})?", _NAME[0])),
    "tokenizer_mode": _or_null(_one_of("", "clips")),
    # All of this is passed to a tokenizer's constructor, where other keywords run code or read other files.
    "tokenizer_kwargs": {"clean": _one_of("lower", "whitespace", "canonicalize"), "strip_sep_token": _FLAG},
    "heads": _HEADS,
    "layers": _LAYERS,
    "pool_type": _one_of("argmax", "first", "last", "eos", "none"),
    "proj_type": _one_of("linear", "none"),
    "hf_model_name": _or_null(_NAME),
    "hf_proj_type": _or_null(_one_of("linear", "mlp")),
    "hf_pooler_type": _or_null(_one_of("mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler")),
}
_MODEL: _Rules = {
    "embed_dim": _WIDTH,
    "vision_cfg": _VISION,
    "text_cfg": _TEXT,
    "multimodal_cfg": {**_TEXT, "dim_head": _WIDTH, "n_queries": _QUERIES, "attn_pooler_heads": _HEADS},
    **dict.fromkeys(("quick_gelu", "custom_text", "nonscalar_logit_scale"), _FLAG),
    "init_logit_scale": _real(-100, 100),
    "init_logit_bias": _or_null(_real(-1e4, 1e4)),
}
_ACTIVATION = _one_of(*ACTIVATIONS)
_CHECKPOINT: _Rules = {
    "embed_dim": _WIDTH,
    "vision_cfg": {
        **_VISION,
        **dict.fromkeys(("projected", "qkv_bias", "gated_mlp"), _FLAG),
        "tower": _text(r"\w+", "a model_type"),
        "activation": _ACTIVATION,
        "registers": _whole(0, 1024),
        "rope_temperature": _real(1e-3, 1e9),
    },
    "text_cfg": {**_TEXT, "activation": _ACTIVATION},
}
_PREPROCESS: _Rules = {
    "size": _or_null(_several(_SIDE, 1, 2)),
    "mode": _or_null(_one_of("RGB")),
    "mean": _or_null(_several(_real(-1e3, 1e3), 3)),
    "std": _or_null(_several(_real(1e-6, 1e3), 3)),
    "interpolation": _or_null(_one_of("bicubic", "bilinear", "random")),
    "resize_mode": _or_null(_one_of("shortest", "longest", "squash")),
    "fill_color": _or_null(_whole(0, 255)),
}


def read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads and validates a file in the form of open_clip_config.json: its `model_cfg`, and its `preprocess_cfg` without nulls.

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
    """Returns a `model_cfg` with known keys and values in range; `origin` is its file or name, for messages.

    Raises:
        ModelError: names the key.
    """
    checked = _checked(config, _MODEL, origin)
    for key in ("embed_dim", "vision_cfg", "text_cfg"):
        if key not in checked:
            raise ModelError(f"{origin} has no {key}; give a model folder in open_clip's format")
    for key, heads, default_width, default_heads in (("vision_cfg", "head_width", 768, 64), ("text_cfg", "heads", 512, 8)):
        tower = checked[key]
        width, divisor = tower.get("width", default_width), tower.get(heads, default_heads)
        is_own = "timm_model_name" not in tower and "hf_model_name" not in tower
        if is_own and (width < divisor or (heads == "heads" and width % divisor)):
            raise ModelError(f"{origin}.{key} has width {width} with {heads} {divisor}, which does not divide it; correct one of them")
    return checked


def check_checkpoint(config: object, origin: str) -> dict[str, Any]:
    """Returns what `hugging_face` made of a checkpoint's configuration: as `check_model`, with a few keys more, and maybe without a text side."""
    return _checked(config, _CHECKPOINT, origin)


def check_preprocess(config: object, origin: str) -> dict[str, Any]:
    """Returns a `preprocess_cfg` with known keys and values in range, without those that are null; as `check_model`."""
    return {key: value for key, value in _checked(config, _PREPROCESS, origin).items() if value is not None}


def _checked(config: object, rules: _Rules, origin: str) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise ModelError(f"{origin} is {printable(repr(config))}, but it must be an object; give a model folder in open_clip's format")
    for key, value in config.items():
        rule, place = rules.get(key), f"{origin}.{printable(key)}"
        if rule is None:
            near = difflib.get_close_matches(str(key), list(rules), n=3)
            raise ModelError(f"{place} is no key that prtool passes to a model library; remove it{f', or write {near[0]}' if near else ''}")
        if isinstance(rule, dict):
            # Null leaves a section out, except for the two sides, which every model has.
            if value is not None or key in ("vision_cfg", "text_cfg"):
                _checked(value, rule, place)
        elif not rule[1](value):
            raise ModelError(f"{place} = {printable(repr(value))}, but it must be {rule[0]}")
    return dict(config)
