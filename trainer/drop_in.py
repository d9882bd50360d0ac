"""A run's encoder in place of the image tower of a model that is loaded already, behind the model's own calls."""

from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from prtool.errors import CheckpointError, ModelError, ShapeError
from prtool.manifest import check_keep
from prtool.spec import Keep
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.loading.libraries import check_open_clip
from prtool.trainer.models.reduced import ReducedEncoder
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.store import tensors_digest

Model = TypeVar("Model", bound=nn.Module)
_OPEN_CLIP = "visual"
_TRANSFORMERS = "vision_model"
_PROJECTION = "visual_projection"
_CLASSES = ("CLIPModel", "MetaClip2Model", "SiglipModel", "CLIPVisionModelWithProjection")
"""Of transformers, whose calls all go through `vision_model` and read its pooled output alone."""


class ReducedVision(nn.Module):
    """An image tower that drops or merges patches.

    Attributes:
        encoder: the run's encoder, with its corrections and learnable tokens.
        image_size: height and width of the pixels.
    """

    def __init__(self, encoder: ReducedEncoder, checkpoint: Checkpoint, keep: Keep) -> None:
        super().__init__()
        encoder.unit_length = False
        self.encoder, self.image_size = encoder, encoder.tower.image_size
        self._recovery = checkpoint.recovery.kept
        self.keep = keep

    @property
    def keep(self) -> Keep:
        """What calls keep that name nothing else; a ratio (0.6), a count (118) or a `Keep` can be set."""
        return self._keep

    @keep.setter
    def keep(self, value: Keep | float | int) -> None:
        self._keep = Keep.of(value)
        self._counts = self._counts_of(self._keep)

    def embed(self, pixels: Tensor, keep: Keep | float | int | None = None) -> Tensor:
        """Pixels (batch, 3, height, width) -> embeddings (batch, E), not normalised.

        Raises:
            KeepError: the keep is out of range.
            ShapeError: the pixels are of another size than the run's.
        """
        if tuple(pixels.shape[2:]) != self.image_size:
            (height, width), found = self.image_size, " x ".join(map(str, pixels.shape[2:]))
            raise ShapeError(
                f"images of {found} pixels, but the run's encoder reads {height} x {width}; prepare them for image_size of the model's image tower"
            )
        counts = self._counts if keep is None else self._counts_of(Keep.of(keep))
        return self.encoder.encode(pixels, counts)

    def _counts_of(self, keep: Keep) -> tuple[int, ...]:
        return self.encoder.spec.counts(check_keep(keep, self.encoder.spec, self._recovery))


class OpenClipVision(ReducedVision):
    """The same as the `visual` of a model of open_clip."""

    def forward(self, pixels: Tensor, keep: Keep | float | int | None = None) -> Tensor:
        """As `embed`."""
        return self.embed(pixels, keep)


class TransformersVision(ReducedVision):
    """The same as the `vision_model` of one of `_CLASSES`."""

    def forward(self, pixel_values: Tensor, keep: Keep | float | int | None = None, **options: Any) -> Any:  # noqa: ANN401 - a ModelOutput
        """A BaseModelOutputWithPooling whose `pooler_output` is the embeddings (batch, E); it has no hidden states.

        Raises:
            ModelError: hidden states, attention maps or interpolated positions are asked for.
            KeepError, ShapeError: as `embed`.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        asked = [name for name in ("output_hidden_states", "output_attentions", "interpolate_pos_encoding") if options.get(name)]
        if asked:
            raise ModelError(f"{asked[0]} = True, but an encoder with fewer patches gives its embedding only; leave it out")
        return BaseModelOutputWithPooling(pooler_output=self.embed(pixel_values, keep))


def apply(model: Model, run: Path, keep: Keep) -> Model:
    """Puts the encoder of a run in place of a model's image tower; `prtool.apply` says more.

    Raises:
        CheckpointError: there is no finished run, or it was trained for other weights.
        ModelError: the model is of a kind that is not supported, or changed already, or the version of open_clip is not supported.
        KeepError: the keep is out of range.
    """
    check_open_clip()
    checkpoint = Checkpoint.load(run)
    place = _TRANSFORMERS if isinstance(getattr(model, _TRANSFORMERS, None), nn.Module) else _OPEN_CLIP
    own = getattr(model, place, None)
    if isinstance(own, ReducedVision):
        raise ModelError(f"the model's {place} is a run's encoder already; set model.{place}.keep, or load the model again")
    if not isinstance(own, nn.Module) or (place == _TRANSFORMERS and type(model).__name__ not in _CLASSES):
        raise ModelError(
            f"a {type(model).__name__} has no image tower that another can stand for; give a model of open_clip with a visual, or of transformers "
            f"a {', '.join(_CLASSES)}; other encoders run as a bundle, with prtool.Encoder"
        )
    visual = own if place == _OPEN_CLIP else _translated(model)
    _check_weights(visual, checkpoint, run)
    if getattr(visual, "output_tokens", False):
        raise ModelError(f"a {type(model).__name__} also uses the tokens of its image tower, which become fewer; give a model of embeddings alone")
    learns, training = any(parameter.requires_grad for parameter in own.parameters()), own.training
    tower = tower_of(visual).eval()
    encoder = checkpoint.pruned_encoder(tower.resized(checkpoint.image_size) if checkpoint.image_size else tower)
    reduced = (OpenClipVision if place == _OPEN_CLIP else TransformersVision)(encoder, checkpoint, keep)
    setattr(model, place, reduced.requires_grad_(learns).train(training))
    if hasattr(model, _PROJECTION):
        # The tower's last matrix.
        setattr(model, _PROJECTION, nn.Identity())
    return model


def _translated(model: nn.Module) -> nn.Module:
    """The image tower of a model of transformers as a module of open_clip or timm, with tensors of its own where names are joined."""
    from prtool.trainer.models.loading import hugging_face
    from prtool.trainer.models.loading.tensor_names import renamed

    config = hugging_face.model_config(model)
    parameter = next(model.parameters())
    state = renamed(model.state_dict(), config["vision_cfg"])
    with torch.device(parameter.device):
        visual = hugging_face.build_visual(config).to(parameter.dtype)
    visual.load_state_dict({name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")})
    return visual


def _check_weights(visual: nn.Module, checkpoint: Checkpoint, run: Path) -> None:
    found = tensors_digest(cast("dict[str, Tensor]", visual.state_dict()))
    if found != checkpoint.weights_sha256:
        raise CheckpointError(
            f"the model's image tower has weights with SHA-256 {found[:12]}, but {run} was trained for {checkpoint.model} with "
            f"{checkpoint.weights_sha256[:12]}; give that model, in float32 (convert it afterwards)"
        )
