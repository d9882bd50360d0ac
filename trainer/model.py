"""Loading a dual encoder by any name that open_clip takes."""

import difflib
import hashlib
import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from prtool.errors import ConfigError, ModelError
from prtool.spec import Preprocess
from prtool.trainer.hosts import tower_of
from prtool.trainer.vit import VisionTower

_LOADING_ERRORS = (
    *(RuntimeError, OSError, ValueError, ImportError, LookupError, AttributeError, EOFError, StopIteration),
    *(SafetensorError, pickle.UnpicklingError),
)
"""What open_clip and the readers below it raise for weights that are missing, cut off or none."""


class Tokenizer(Protocol):
    """Texts to token ids (texts, length) int64, cut and padded; the model's context length where no length is given, as open_clip's are."""

    def __call__(self, texts: Sequence[str], context_length: int | None = None, /) -> Tensor: ...  # noqa: D102 - as the class says


class TextTower(nn.Module):
    """The text side: token ids (batch, context) int64 -> embedding (batch, E), L2-normalised."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.host = cast(Any, model)

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102 - as the class says
        return functional.normalize(self.host.encode_text(tokens), dim=-1)


@dataclass(frozen=True, slots=True)
class DualEncoder:
    """A frozen CLIP: image tower, text tower, tokenizer and what they need around them.

    Attributes:
        name, pretrained: as given to `load_model`.
        logit_scale, logit_bias: class logits are scale x cosine + bias.
        weights_sha256: digest of the image tower's tensors, names included.
        context_length: token ids a prompt.
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

    @torch.inference_mode()
    def class_embeddings(self, classnames: Sequence[str], templates: Sequence[str], batch: int = 256) -> Tensor:
        """Zero-shot class embeddings: (classes, E) float32, L2-normalised mean over the templates.

        Args:
            classnames: in label order; underscores read as spaces (CoOp).
            templates: prompts with one `{}` each.
            batch: prompts encoded at once.

        Raises:
            ModelError: a template does not hold `{}` once.
            ConfigError: a prompt is longer than the model reads.
        """
        for template in templates:
            if template.count("{}") != 1:
                raise ModelError(f"prompt template {template!r} must hold {{}} exactly once, where the class name goes")
        prompts = [template.replace("{}", name.replace("_", " ")) for name in classnames for template in templates]
        device = next(self.tower.parameters()).device
        chunks = [self.text(self.token_ids(prompts[i : i + batch]).to(device)) for i in range(0, len(prompts), batch)]
        stacked = torch.cat(chunks).float().reshape(len(classnames), len(templates), -1)
        return functional.normalize(stacked.mean(dim=1), dim=-1)

    def token_ids(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (prompts, context length) int64 of prompts that the model reads whole.

        Raises:
            ConfigError: a prompt is longer; the tokenizer would cut it, and say nothing.
        """
        texts = list(prompts)
        ids = self.tokenizer(texts)
        # A tokenizer ends what it cuts with its end token, so a cut prompt differs from its longer form.
        cut = (self.tokenizer(texts, 2 * ids.shape[1])[:, : ids.shape[1]] != ids).any(dim=1)
        if bool(cut.any()):
            raise ConfigError(
                f"prompt {texts[int(cut.int().argmax())]!r} is longer than the {ids.shape[1]} tokens that {self.name} reads; give a shorter template "
                "or class names, or fewer context tokens (tokens.text)"
            )
        return ids

    def logits(self, embeddings: Tensor, classes: Tensor) -> Tensor:
        """Class logits (batch, classes) of L2-normalised embeddings (batch, E)."""
        return self.logit_scale * embeddings @ classes.T + self.logit_bias


def load_model(name: str, pretrained: str = "", device: str = "cpu") -> DualEncoder:
    """Loads a model, frozen, in float32 and evaluation mode.

    Args:
        name: an open_clip architecture ("ViT-B-16"), "hf-hub:ORG/REPO" or "local-dir:PATH".
        pretrained: a tag ("openai") or a checkpoint file for an architecture name; "" gives random weights,
            seeded by the caller through torch.manual_seed.
        device: where its tensors live.

    Raises:
        ModelError: unknown name or tag, weights that cannot be had or read, or an unsupported image tower.
    """
    import open_clip

    _check_name(name, pretrained)
    try:
        # weights_only: a checkpoint file is data from outside and must never be unpickled into code.
        model = open_clip.create_model(
            name, pretrained=pretrained or None, device=device, weights_only=True, require_pretrained=bool(pretrained) or _brings_weights(name)
        )
        tokenizer = open_clip.get_tokenizer(name)
    except _LOADING_ERRORS as cause:
        raise ModelError(f"model {name!r} with pretrained {pretrained!r} cannot be loaded: {str(cause) or type(cause).__name__}") from cause
    model = model.eval().requires_grad_(False)
    tower = tower_of(cast(nn.Module, model.visual)).eval()
    bias = getattr(model, "logit_bias", None)
    return DualEncoder(
        name=name,
        pretrained=pretrained,
        tower=tower,
        text=TextTower(model).eval(),
        tokenizer=cast(Tokenizer, tokenizer),
        preprocess=_preprocess(model.visual, tower),
        logit_scale=float(cast(Tensor, model.logit_scale).exp()),
        logit_bias=0.0 if bias is None else float(bias),
        weights_sha256=tensor_digest(cast(nn.Module, model.visual)),
        context_length=int(getattr(model, "context_length", 77)),
    )


def tensor_digest(module: nn.Module) -> str:
    """SHA-256 over a module's named tensors: name, dtype, shape and bytes, in name order."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def content_digest(part: Tensor | nn.Module | None) -> str | None:
    """SHA-256 of a tensor, or of a module's kind, parameters and buffers, kept or not; None of None."""
    if part is None:
        return None
    found = hashlib.sha256()
    named = [("", part)] if isinstance(part, Tensor) else [*part.named_parameters(), *part.named_buffers()]
    found.update(type(part).__name__.encode())
    for name, tensor in named:
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _brings_weights(name: str) -> bool:
    """Whether the address of a model is that of its weights too."""
    return name.startswith(("local-dir:", "hf-hub:"))


def _check_name(name: str, pretrained: str) -> None:
    import open_clip

    if pretrained and _brings_weights(name):
        raise ModelError(f"pretrained = {pretrained!r}, but {name!r} brings its own weights; leave pretrained out")
    if name.startswith("local-dir:"):
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / "open_clip_config.json").is_file():
            raise ModelError(f"{folder} holds no open_clip_config.json; give 'local-dir:' and a folder in open_clip's format")
        return
    if name.startswith("hf-hub:"):
        return
    known = open_clip.list_models()
    if name.replace("/", "-") not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
        raise ModelError(f"unknown model {name!r}; near names: {', '.join(near) or 'none'}; or give 'hf-hub:ORG/REPO' or 'local-dir:PATH'")
    if not pretrained or Path(pretrained).is_file():
        return
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and pretrained.replace("-", "_") not in tags:
        near = difflib.get_close_matches(pretrained, tags, n=4, cutoff=0.3) or tags
        raise ModelError(f"unknown pretrained tag {pretrained!r} for {name}, and no such file; known tags: {', '.join(near) or 'none'}")


def _preprocess(visual: object, tower: VisionTower) -> Preprocess:
    config: dict[str, Any] = getattr(visual, "preprocess_cfg", {})
    logging.getLogger(__name__).debug("preprocess_cfg %s", config)
    mean, std = config["mean"], config["std"]
    size = config.get("size", tower.image_size)
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(height, width),
        mean=_three(mean),
        std=_three(std),
        # open_clip takes bicubic for every value but "bilinear" when it makes an inference transform.
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        resize_mode=config.get("resize_mode") or "shortest",
        fill=int(config.get("fill_color") or 0),
    )


def _three(values: float | Sequence[float]) -> tuple[float, float, float]:
    listed = [float(v) for v in values] if isinstance(values, (list, tuple)) else [float(cast(float, values))] * 3
    return listed[0], listed[1], listed[2]
