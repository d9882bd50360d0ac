"""Loading a dual encoder by any name that open_clip takes, or from a checkpoint of transformers."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.spec import Preprocess
from prtool.store import digest
from prtool.text_safety import printable
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.loading.libraries import check_open_clip, foreign, library_warnings
from prtool.trainer.models.loading.source import (
    HUGGING_FACE,
    TIMM,
    ModelSource,
    canonical_name,
    canonical_pretrained,
    model_config,
    read_checkpoint,
    resolve,
)
from prtool.trainer.models.loading.tokenizer import Tokenizer, check_text_model, check_vocabulary, cut_prompts, make_tokenizer
from prtool.trainer.models.loading.weights import BIG_VISION, fitted, is_openai, read_weights
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.store import tensors_digest

_log = logging.getLogger(__name__)


class TextTower(nn.Module):
    """The text side: token ids (batch, context) int64 -> embedding (batch, E), L2-normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.host = cast(Any, model)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102 - as the class says
        return functional.normalize(self.host.encode_text(tokens), dim=-1)


class NoText(TextTower):
    """What an image tower alone has in place of a text side: every call is an error."""

    def __init__(self, name: str) -> None:
        super().__init__(nn.Identity())
        self.name = name

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: ARG002, D102 - as the class says
        raise _no_text(self.name)

    def tokenize(self, texts: Sequence[str], context_length: int | None = None, /) -> Tensor:  # noqa: ARG002
        """The same for its tokenizer."""
        raise _no_text(self.name)


def _no_text(name: str) -> ModelError:
    return ModelError(f"{name} has no text side, so there are no class prompts, captions or texts to compare with; use what needs images alone")


@dataclass(frozen=True, slots=True)
class DualEncoder:
    """A frozen CLIP: image tower, text tower, tokenizer and what they need around them; or an image tower alone.

    Attributes:
        name, pretrained: as given to `load_model`.
        tower: the image tower, at the image size that was asked for.
        native: the image tower at its native size, the reference of every comparison: the same one, or one that shares its tensors.
        preprocess: of the images that `tower` reads.
        logit_scale, logit_bias: class logits are scale x cosine + bias.
        weights_sha256: digest of the native image tower's tensors, names included; the same for every image size.
        context_length: token ids a prompt; 0 without a text side.
    """

    name: str
    pretrained: str
    tower: VisionTower
    text: TextTower
    tokenizer: Tokenizer
    preprocess: Preprocess
    logit_scale: float
    logit_bias: float
    weights_sha256: str
    context_length: int
    native: VisionTower

    @property
    def has_text(self) -> bool:
        """Whether there is a text side; without, everything that needs one is a ModelError."""
        return not isinstance(self.text, NoText)

    @property
    def native_preprocess(self) -> Preprocess:
        """How the same images become the pixels that `native` reads."""
        return replace(self.preprocess, size=self.native.image_size)

    @torch.inference_mode()
    def class_embeddings(self, classnames: Sequence[str], templates: Sequence[str], batch: int = 256) -> Tensor:
        """Zero-shot class embeddings (classes, E) float32, in label order: L2-normalised means over the templates, each with one `{}`.

        Underscores in class names read as spaces (CoOp); `batch` prompts are encoded at once.

        Raises:
            ModelError: a template does not hold `{}` once.
            ConfigError: a prompt is longer than the model reads.
        """
        if wrong := [template for template in templates if template.count("{}") != 1]:
            raise ModelError(f"prompt template {wrong[0]!r} must hold {{}} exactly once, where the class name goes")
        if not self.has_text:
            raise _no_text(self.name)
        prompts = [template.replace("{}", name.replace("_", " ")) for name in classnames for template in templates]
        chunks = [self.text(self.token_ids(prompts[i : i + batch]).to(self.tower.device)) for i in range(0, len(prompts), batch)]
        stacked = torch.cat(chunks).float().reshape(len(classnames), len(templates), -1)
        return functional.normalize(stacked.mean(dim=1), dim=-1)

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (prompts, context length) int64 of prompts that the model reads whole.

        Raises:
            ConfigError: a prompt is longer; the tokenizer would cut it silently.
        """
        texts = list(prompts)
        cut = cut_prompts(self.tokenizer, texts)
        if bool(cut.any()):
            raise ConfigError(
                f"prompt {printable(texts[int(cut.int().argmax())])!r} is longer than the {self.context_length} tokens that {printable(self.name)} "
                "reads; give a shorter template or class names, or fewer context tokens (tokens.text)"
            )
        return self.tokenizer(texts)

    def logits(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Class logits (batch, classes) of L2-normalised embeddings (batch, E)."""
        return self.logit_scale * embeddings @ classes.T + self.logit_bias


def load_model(name: str, pretrained: str = "", device: str = "cpu", image_size: int = 0) -> DualEncoder:
    """Loads a model, frozen, in float32 and evaluation mode. What had to be assumed is logged as a warning of the logger "prtool".

    Args:
        name: an open_clip architecture ("ViT-B-16"), "hf-hub:ORG/REPO", "local-dir:PATH", or "hf:ORG/REPO" or "hf:PATH" for a checkpoint of
            transformers, PATH alone is understood; or "timm:ARCHITECTURE[.TAG]" for an image tower alone.
        pretrained: a tag ("openai") or a checkpoint file for an architecture name; "" gives random weights,
            seeded by the caller through torch.manual_seed.
        device: where its tensors live.
        image_size: side of the square images that it reads, with interpolated positions (`VisionTower.resized`); 0 for its native size.

    Raises:
        ModelError: unknown name or tag, weights that cannot be had or read, an unsupported image tower, or a version of open_clip that is.
        ConfigError: the image size is no multiple of the patch, or larger than native.
    """
    check_open_clip()
    check_image_size(name, image_size)
    if (canonical := canonical_name(name)).startswith(TIMM):
        from prtool.trainer.models.loading.image_only import load_trunk

        weights = canonical_pretrained(canonical, pretrained)
        return _image_only(canonical, weights, device, image_size, lambda notes: load_trunk(canonical, weights, notes))
    source = resolve(name, pretrained)
    if not source.has_text:
        return _image_only(name, pretrained, device, image_size, lambda notes: _checkpoint_tower(source, notes))
    notes = dict(source.notes)
    with library_warnings(notes):
        # Before the weights: this fails within a second where a library or a file is missing.
        tokenizer = make_tokenizer(source)
        model = _build(source, notes).eval().requires_grad_(False)
        native = tower_of(cast(nn.Module, model.visual)).eval()
        tower = native.resized(image_size) if image_size else native
        notes["vocabulary"] = check_vocabulary(tokenizer, model, source.name)
        text = TextTower(model).eval()
        _check_towers(native, text, tokenizer(["a"]), source.name)
    for note in filter(None, notes.values()):
        _log.warning("%s", note)
    return DualEncoder(
        name=name,
        pretrained=pretrained,
        tower=tower.to(device),
        text=text.to(device),
        tokenizer=tokenizer,
        preprocess=_preprocess(source.preprocess, tower.image_size),
        logit_scale=_number(model, "logit_scale", math.exp, source),
        logit_bias=_number(model, "logit_bias", float, source),
        weights_sha256=tensors_digest(cast(nn.Module, model.visual).state_dict()),
        context_length=tokenizer([""]).shape[1],
        native=native.to(device),
    )


def _checkpoint_tower(source: ModelSource, notes: dict[str, str]) -> tuple[nn.Module, dict[str, Any]]:
    """The image tower of a checkpoint that has no text side, and its `preprocess_cfg`."""
    notes.update(source.notes)
    return cast(nn.Module, _build(source, notes).visual), source.preprocess


def _image_only(
    name: str, pretrained: str, device: str, image_size: int, load: Callable[[dict[str, str]], tuple[nn.Module, dict[str, Any]]]
) -> DualEncoder:
    """An image tower alone; `load` gives it and its `preprocess_cfg`, and adds notes."""
    notes: dict[str, str] = {}
    with library_warnings(notes):
        visual, config = load(notes)
        native = tower_of(visual.eval().requires_grad_(False)).eval()
        _check_image_side(native, name)
    for note in filter(None, notes.values()):
        _log.warning("%s", note)
    tower, text = native.resized(image_size) if image_size else native, NoText(name)
    return DualEncoder(
        name=name,
        pretrained=pretrained,
        tower=tower.to(device),
        text=text,
        tokenizer=text.tokenize,
        preprocess=_preprocess(config, tower.image_size),
        logit_scale=1.0,
        logit_bias=0.0,
        weights_sha256=tensors_digest(visual.state_dict()),
        context_length=0,
        native=native.to(device),
    )


def check_image_size(name: str, image_size: int) -> int:
    """Checks an image size against a model's configuration; no weights are read.

    Args:
        name: as `load_model` takes it.
        image_size: side of the square images in pixels; 0 for the native size.

    Returns:
        The image size; 0 where it is the native one.

    Raises:
        ModelError: unknown name, an unsupported image tower, or one that cannot be resized.
        ConfigError: the image size is no multiple of the patch, or larger than native.
    """
    if not image_size:
        return 0
    check_open_clip()
    name = canonical_name(name)
    with torch.device("meta"), library_warnings({}):
        tower = tower_of(foreign(f"model {name!r} cannot be built", lambda: _outline(name)))
    tower.check_size(image_size)
    return image_size if tower.image_size != (image_size, image_size) else 0


def _outline(name: str) -> nn.Module:
    """The image tower of a canonical name with random weights."""
    if name.startswith(HUGGING_FACE):
        from prtool.trainer.models.loading.hugging_face import build_visual

        return build_visual(read_checkpoint(name).config)
    if name.startswith(TIMM):
        from prtool.trainer.models.loading.image_only import build_trunk

        return build_trunk(name)
    from open_clip.model import _build_vision_tower

    config, _ = model_config(name)
    vision, quick = {**config["vision_cfg"], "timm_model_pretrained": False}, bool(config.get("quick_gelu"))
    return cast(nn.Module, _build_vision_tower(config["embed_dim"], cast(Any, vision), quick))


def _build(source: ModelSource, notes: dict[str, str]) -> nn.Module:
    """The model with its weights, on the CPU; clears the notes where the weights leave nothing to assume."""
    config, failed = dict(source.config), f"model {source.name!r} cannot be built"
    path = source.weights
    if path is None or path.suffix in BIG_VISION:
        model = foreign(failed, lambda: _construct(config))
        if path is not None:
            from open_clip.convert import load_big_vision_weights

            foreign(f"{path} does not fit the model", lambda: load_big_vision_weights(cast(Any, model), str(path)))
        return model
    if source.family:
        from prtool.trainer.models.loading import hugging_face

        return _filled(failed, lambda: hugging_face.build(config), lambda made: hugging_face.fitted(made, path, config))
    state = read_weights(path)
    if source.is_file and is_openai(state):
        config["quick_gelu"] = True
        notes.clear()
    if "logit_bias" in state and config.get("init_logit_bias") is None:
        config["init_logit_bias"] = 0.0
    return _filled(failed, lambda: _construct(config), lambda made: fitted(made, state, path))


def _filled(failed: str, construct: Callable[[], nn.Module], fitting: Callable[[nn.Module], dict[str, Tensor]]) -> nn.Module:
    """A module with the tensors that fit it."""
    # Without memory first: a configuration can ask for any amount, and the weights must fit it exactly.
    with torch.device("meta"):
        outline = foreign(failed, construct)
    state = fitting(outline)
    model = foreign(failed, construct)
    foreign(failed, lambda: model.load_state_dict(state, strict=True))
    return model


def _construct(config: Mapping[str, Any]) -> nn.Module:
    """open_clip's module for a checked `model_cfg`, of the class that its `create_model` takes."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    hf_text = config["text_cfg"].get("hf_model_name")
    if hf_text:
        check_text_model(hf_text)
    own = {key: value for key, value in config.items() if key != "custom_text"}
    own["vision_cfg"] = {**config["vision_cfg"], "timm_model_pretrained": False}
    own["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    custom = config.get("custom_text") or hf_text
    kind = CLIP if not custom else CoCa if "multimodal_cfg" in own else CustomTextCLIP
    return cast(nn.Module, kind(**own))


def content_digest(part: Tensor | nn.Module | None) -> str | None:
    """SHA-256 of a tensor, or of a module's kind, parameters and all its buffers, also those outside its state dict; None of None."""
    if part is None:
        return None
    named = [("", part)] if isinstance(part, Tensor) else [*part.named_parameters(), *part.named_buffers()]
    return digest(type(part).__name__, tensors_digest(dict(named)))


def _preprocess(config: Mapping[str, Any], size: tuple[int, int]) -> Preprocess:
    """The preprocessing of a checked `preprocess_cfg`, OpenAI's where it says nothing, at the tower's size."""
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return Preprocess(
        size=size,
        mean=_three(config.get("mean", OPENAI_DATASET_MEAN)),
        std=_three(config.get("std", OPENAI_DATASET_STD)),
        # open_clip takes bicubic for every value but "bilinear" when it makes an inference transform.
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        resize_mode=config.get("resize_mode") or "shortest",
        fill=int(config.get("fill_color") or 0),
        crop_rounding=config.get("crop_rounding", "nearest"),
        resize_ratio=config.get("resize_ratio", 1.0),
    )


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    first, second, third = map(float, values if isinstance(values, Sequence) else [values] * 3)
    return first, second, third


def _number(model: nn.Module, name: str, convert: Callable[[float], float], source: ModelSource) -> float:
    """A scale or bias of the class logits; 0 where the model has none."""
    tensor = getattr(model, name, None)
    if tensor is None:
        return 0.0
    try:
        found = convert(float(tensor))
    except (RuntimeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ModelError(f"the {name} of {source.name} is {printable(tensor.tolist())}, which gives no finite number; check the weights")
    return found


@torch.inference_mode()
def _check_towers(tower: VisionTower, text: nn.Module, token_ids: Tensor, name: str) -> None:
    """Runs the patch embedding, one block and the head on a blank image, and the text side on the ids (1, context) int64 of one prompt.

    Raises:
        ModelError: a part fails, gives another shape than it declares, or values that are not finite.
    """
    _check_image_side(tower, name)
    _run_part(f"the text side of {name}", lambda: text(token_ids), (1, tower.embed_dim))


@torch.inference_mode()
def _check_image_side(tower: VisionTower, name: str) -> None:
    declared = getattr(getattr(tower, "host", None), "image_size", tower.image_size)
    if tuple(declared) != tower.image_size:
        raise ModelError(f"{name} declares images of {tuple(declared)}, but its image tower reads {tower.image_size}; correct vision_cfg.image_size")
    foreign(f"the cost of the image tower of {name} cannot be counted", tower.cost)
    embedding, sequence = (1, tower.embed_dim), (1, tower.prefix_tokens + tower.patches, tower.token_width)
    tokens = _run_part(f"the patch embedding of the image tower of {name}", lambda: tower.embed(torch.zeros(1, 3, *tower.image_size)), sequence)
    left = _run_part(f"the first block of the image tower of {name}", lambda: tower.block(0, tokens), sequence)
    _run_part(f"the head of the image tower of {name}", lambda: tower.head(left), embedding)


def _run_part(what: str, call: Callable[[], Tensor], shape: tuple[int, ...]) -> Tensor:
    found = foreign(f"{what} does not run", call)
    if not isinstance(found, Tensor) or tuple(found.shape) != shape:
        seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(f"{what} gives {seen}, but {shape} is needed; use another model")
    if not bool(torch.isfinite(found).all()):
        raise ModelError(f"{what} gives values that are not finite; check the weights")
    return found
