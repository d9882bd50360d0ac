"""Layout `hf`: the files of Hugging Face's ONNX repositories of CLIP, as transformers.js, fastembed and Optimum name them."""

import math
from typing import Any

from prtool.export.layouts.plan import SEQUENCE, Contents, Plan
from prtool.export.layouts.tokenizer import NO_PADDING, Padding
from prtool.graphs.signature import BATCH, GraphSpec, TensorSpec

_SUFFIXES = {"fp32": "", "fp16": "_fp16", "int8": "_quantized"}
"""Precision -> what transformers.js appends to a model's name: its dtypes fp32, fp16 and q8."""
_RESAMPLE = {"nearest": 0, "bilinear": 2, "bicubic": 3}


def plan(contents: Contents) -> Plan:
    """The folder of layout `hf`.

    Raises:
        ConfigError: CLIPImageProcessor cannot express the preprocessing, or the text side has no tokenizer file.
    """
    manifest = contents.manifest
    files: dict[str, Any] = {"preprocessor_config.json": _preprocessor(contents), "config.json": _config(contents)}
    text: GraphSpec | None = None
    padding = NO_PADDING
    if manifest.text is not None:
        tokenizer = contents.needed_tokenizer()
        padding = tokenizer.special_padding()
        files["tokenizer.json"] = tokenizer.padded_with(padding)
        files["tokenizer_config.json"] = _tokenizer_config(padding, manifest.text.context_length)
        text = contents.text("onnx/text_model.onnx", TensorSpec("input_ids", "int64", (BATCH, SEQUENCE)), "text_embeds")
    image = contents.image(f"onnx/vision_model{_SUFFIXES[contents.options.precision]}.onnx", "pixel_values", "image_embeds")
    return Plan(image, text, files, padding.id, contents.crop_notes())


def _preprocessor(contents: Contents) -> dict[str, Any]:
    side, spec = contents.square_side(), contents.manifest.preprocess
    square = {"height": side, "width": side}
    is_cropped = spec.resize_mode == "shortest"
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(side * spec.resize_ratio)} if is_cropped else square,
        "resample": _RESAMPLE[spec.interpolation],
        "do_center_crop": is_cropped,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }


def _tokenizer_config(padding: Padding, context: int) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "pad_token": padding.token,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
    }


def _config(contents: Contents) -> dict[str, Any]:
    """What loaders look up: the kind of the model, and sizes."""
    manifest = contents.manifest
    model, side = manifest.model, manifest.preprocess.size[0]
    vision = {
        "image_size": side,
        "patch_size": side // manifest.prune.grid[0],
        "num_hidden_layers": manifest.prune.depth,
        "projection_dim": model.embed_dim,
    }
    config: dict[str, Any] = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": model.embed_dim, "vision_config": vision}
    if manifest.text is not None:
        config["text_config"] = {
            "max_position_embeddings": manifest.text.context_length,
            "vocab_size": manifest.text.vocab_size,
            "projection_dim": model.embed_dim,
        }
    if model.logit_scale > 0:
        config["logit_scale_init_value"] = math.log(model.logit_scale)
    return config
