"""Layout `immich`: the folder of one CLIP model in the cache of immich-machine-learning, as its exporter for open_clip writes it."""

from typing import Any

from prtool.errors import ConfigError
from prtool.export.layouts.plan import Contents, Plan
from prtool.export.layouts.tokenizer import NO_PADDING
from prtool.graphs.signature import BATCH, GraphSpec, TensorSpec

_SQUASHED = "releases of immich that do not read resize_mode crop images where this model squashes them: its embeddings are then off"


def plan(contents: Contents) -> Plan:
    """The folder of layout `immich`.

    Raises:
        ConfigError: immich cannot express the preprocessing, or the text side has no tokenizer file.
    """
    manifest, spec = contents.manifest, contents.manifest.preprocess
    side = contents.square_side()
    if spec.resize_ratio != 1.0:
        raise ConfigError(
            f"layout immich cannot express resize_ratio = {spec.resize_ratio:g}: it resizes to the size of its crop; take layout hf or triton"
        )
    files: dict[str, Any] = {
        "config.json": _config(contents),
        "visual/preprocess_cfg.json": {
            "size": [side, side],
            "mode": "RGB",
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "resize_mode": spec.resize_mode,
            "fill_color": spec.fill,
        },
    }
    text: GraphSpec | None = None
    padding = NO_PADDING
    if manifest.text is not None:
        tokenizer, length = contents.needed_tokenizer(), manifest.text.context_length
        padding = tokenizer.own_padding()
        files["textual/tokenizer.json"] = tokenizer.settings
        files["textual/tokenizer_config.json"] = {"model_max_length": length, "pad_token": padding.token}
        text = contents.text("textual/model.onnx", TensorSpec("text", "int32", (BATCH, length)), "embedding")
    image = contents.image("visual/model.onnx", "image", "embedding")
    return Plan(image, text, files, padding.id, (_SQUASHED,) if spec.resize_mode == "squash" else contents.crop_notes())


def _config(contents: Contents) -> dict[str, Any]:
    """open_clip's config, as far as immich reads it; cleaning of texts is part of the tokenizer file."""
    manifest = contents.manifest
    config: dict[str, Any] = {"embed_dim": manifest.model.embed_dim, "vision_cfg": {"image_size": manifest.preprocess.size[0]}}
    if manifest.text is not None:
        config["text_cfg"] = {"context_length": manifest.text.context_length, "vocab_size": manifest.text.vocab_size}
    return config
