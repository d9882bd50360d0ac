"""The demonstration's tiny CLIP: kept compactly in this package, written out as a folder that open_clip loads."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from prtool.errors import ModelError
from prtool.files import check_output, file_kind, new_directory, new_file, write_json

WEIGHTS = Path(__file__).with_name("weights.safetensors")
"""The committed weights, made by examples/pretrain_demo.py."""
TEMPLATE = "a photo of a {}."
"""The prompt that the model's accuracy is stated for."""
SCHEMA = "1"
COMPACT_WEIGHTS = file_kind(
    "weights of the demo's model", {".safetensors": re.compile(rb'.{8}\{"__metadata__":\{[^}]*\},"token_embedding\.ids"', re.DOTALL)}
)

_VOCABULARY = 49408
_TABLE = "token_embedding.weight"
_ROWS = "token_embedding.rows"
_IDS = "token_embedding.ids"

MODEL_CONFIG: dict[str, dict[str, object]] = {
    "model_cfg": {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 96, "patch_size": 8, "width": 96, "layers": 8, "head_width": 32},
        "text_cfg": {"context_length": 16, "vocab_size": _VOCABULARY, "width": 32, "heads": 1, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "shortest"},
}
"""What open_clip_config.json says: 12 x 12 patches and a class token, 8 blocks."""


def save_weights(path: Path, state: Mapping[str, NDArray[np.generic]], token_ids: Sequence[int], facts: Mapping[str, str]) -> None:
    """Writes a model compactly: float16, and of the token table only the rows in use (1.6 million values become a thousand).

    Args:
        path: a safetensors file; of what stands there, only weights of this form are replaced.
        state: open_clip's state dict, floating point.
        token_ids: ids of all tokens that the captions use; other rows are dropped and come back as zeros.
        facts: how the weights were made, kept as the file's metadata.

    Raises:
        ConfigError: something else stands at `path`.
        StorageError: the file cannot be written.
    """
    check_output(path, COMPACT_WEIGHTS)
    tensors = {name: np.array(value, dtype=np.float16, order="C") for name, value in state.items() if name != _TABLE}
    ids = np.asarray(sorted(set(token_ids)), dtype=np.int32)
    tensors[_ROWS] = np.array(state[_TABLE][ids], dtype=np.float16, order="C")
    with new_file(path) as temporary:
        save_file({**tensors, _IDS: ids}, temporary, metadata={"schema": SCHEMA, **facts})


def load_weights(path: Path = WEIGHTS) -> dict[str, NDArray[np.float32]]:
    """Reads what `save_weights` wrote back into open_clip's state dict, float32, with the whole token table.

    Raises:
        ModelError: the file is missing, damaged or of another schema.
    """
    try:
        with safe_open(path, framework="np") as stream:
            schema = (stream.metadata() or {}).get("schema")
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError) as cause:
        raise ModelError(f"the demo weights {path} cannot be read ({cause}); make them with examples/pretrain_demo.py") from cause
    if schema != SCHEMA:
        raise ModelError(f"the demo weights {path} have schema {schema}, but this version reads {SCHEMA}; run examples/pretrain_demo.py")
    rows, ids = tensors.pop(_ROWS), tensors.pop(_IDS)
    table = np.zeros((_VOCABULARY, rows.shape[1]), dtype=np.float32)
    table[ids] = rows
    return {**{name: value.astype(np.float32) for name, value in tensors.items()}, _TABLE: table}


def write_model(folder: Path, weights: Path = WEIGHTS) -> None:
    """Writes the model as a folder for open_clip's `local-dir:` names; it appears whole or not at all.

    Args:
        folder: missing or empty; gets open_clip_config.json and open_clip_model.safetensors.
        weights: a compact file as `save_weights` writes.

    Raises:
        ModelError: the weights are missing, damaged or of another schema.
        ConfigError: something stands at `folder`.
        StorageError: the folder cannot be written.
    """
    state = load_weights(weights)
    with new_directory(folder) as temporary:
        save_file(dict(state), temporary / "open_clip_model.safetensors")
        write_json(temporary / "open_clip_config.json", MODEL_CONFIG)
