"""Train learnable tokens: frozen encoders, few labelled images, and the pruned encoder in the loop."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Keep, PruneSpec
from prtool.store import digest
from prtool.trainer.data.images import ImageSet, few_shot
from prtool.trainer.loop import TrainingState, train_epoch
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.prompts import TextContext, VisualTokens, new_context, new_visual
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.settings import TokensConfig
from prtool.trainer.store import TensorStore, tensors_digest
from prtool.trainer.tokens.data import Entry, embed_prepared, prepare_images

SCHEMA = 1
_EVALUATED = 32
_FIRST_VALUES_FROM = 64


@dataclass(frozen=True, slots=True)
class TokensTask:
    """What the tokens are trained for.

    Attributes:
        model: the frozen encoder.
        plain: the same, pruned, without learnable tokens, on the same device.
        train: images to draw the few from.
        val: images that choose the best epoch.
        templates: prompts with one {} each; text context takes the first.
        cache: folder of tokens that enter a block, as for `cache_tokens`.
    """

    model: DualEncoder
    plain: PrunedEncoder
    train: ImageSet
    val: ImageSet
    templates: tuple[str, ...]
    cache: Path

    @property
    def labelled(self) -> bool:
        """Whether every validation image has a label."""
        return bool(self.val.classnames) and min(self.val.labels) >= 0


class TokensEpoch(NamedTuple):
    """What an epoch gave: its mean loss (0 without tokens); on the validation images the mean cosine to the unpruned embedding,
    and the zero-shot accuracy in percent, None without labels."""

    loss: float
    cosine: float
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class TrainedTokens:
    """The tokens of the best epoch, frozen.

    Attributes:
        visual: None where none were learned, or the encoder without them is best.
        context: likewise.
        history: the encoder without tokens first, then each epoch.
        best_epoch: 0 for the encoder without tokens.
        images: few-shot images that were trained on.
    """

    visual: VisualTokens | None
    context: TextContext | None
    history: tuple[TokensEpoch, ...]
    best_epoch: int
    images: int


def train_tokens(task: TokensTask, config: TokensConfig, state: Path | None = None, progress: Progress | None = None) -> TrainedTokens:
    """Trains learnable tokens on few images, in the pruned encoder, and leaves everything else as it was.

    The best epoch is that of the highest validation accuracy, and of equals the one of the highest cosine to the
    unpruned embedding; without labels (label = 0) the cosine alone decides. The encoder without tokens takes part as epoch 0,
    so training never makes it worse on the validation images. Training is saved to the file `state` after each epoch and
    continues from it, with the same result as if it had not been stopped; one of another task or other settings is replaced.

    Raises:
        ConfigError: the tokens do not suit the encoder, a prompt is too long, or the loss leaves the finite numbers.
        DataError: a class has too few images, or labels are missing where `config.label` is above 0.
        ImageError: an image cannot be decoded.
        ModelError: the model's text side cannot take a context.
        StorageError: the state or the cache cannot be written.
    """
    progress = progress or SilentProgress()
    training = _Training(task, config, progress)
    values = training.values()
    sgd = torch.optim.SGD(list(values.values()), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    current = TrainingState(values, sgd)
    store, name = TensorStore(state.parent if state else None, training.key()), state.name if state else ""
    current.resume(store, name)
    if not current.history:
        current.history.append(training.judge(0.0, plain=True))
    with stage(progress, "training tokens (epochs)", config.epochs):
        progress.advance(len(current.history) - 1)
        for epoch in range(len(current.history), config.epochs + 1):
            current.history.append(training.judge(training.train_epoch(sgd, epoch)))
            if _rank(current.history[epoch], config) > _rank(current.history[current.best_epoch], config):
                current.keep_best(epoch)
            current.save(store, name)
            progress.advance()
    history, images = tuple(TokensEpoch(*entry) for entry in current.history), len(training.train)
    if not current.best_epoch:
        return TrainedTokens(None, None, history, 0, images)
    current.set_values(current.best)
    for tensor in values.values():
        tensor.requires_grad_(False)
    return TrainedTokens(training.encoder.visual, training.context, history, current.best_epoch, images)


def spec_with_tokens(spec: PruneSpec, config: TokensConfig) -> PruneSpec:
    """The pruning of the encoder with its learnable tokens.

    Raises:
        ConfigError: the tokens start behind the first location, or have more layers than blocks are left.
    """
    if not config.visual:
        return spec
    first = config.first or spec.locations[0]
    if first > spec.locations[0]:
        raise ConfigError(
            f"tokens.first = {first}, but learnable tokens must be there when patches drop, at block {spec.locations[0]}; "
            f"give 1 to {spec.locations[0]}, or 0 for that block"
        )
    if (layers := _layers(spec, config)) > spec.depth - first + 1:
        raise ConfigError(
            f"learnable tokens in {layers} layers from block {first} on, but the encoder has blocks 1 to {spec.depth}; "
            f"give at most {spec.depth - first + 1} tokens.layers"
        )
    return replace(spec, learnable_tokens=config.visual, learnable_from_block=first)


def _layers(spec: PruneSpec, config: TokensConfig) -> int:
    return config.layers or spec.depth - (config.first or spec.locations[0]) + 1


def _rank(epoch: tuple[float, float, float | None], config: TokensConfig) -> tuple[float, float]:
    """What is compared to find the best epoch; the higher, the better."""
    _, cosine, accuracy = epoch
    return (accuracy if config.label and accuracy is not None else 0.0), cosine


class _Training:
    """The encoder with untrained tokens, and what an epoch needs."""

    def __init__(self, task: TokensTask, config: TokensConfig, progress: Progress) -> None:
        self.task, self.config, model = task, config, task.model
        spec = spec_with_tokens(task.plain.spec, config)
        if config.label and not model.has_text:
            raise ConfigError(f"tokens.label = {config.label} learns from class prompts, but {model.name} has no text side; give tokens.label = 0")
        if config.label:
            task.train.require_labels("the cross-entropy on class prompts (tokens.label above 0)")
            task.val.require_labels("choosing the best epoch by accuracy (tokens.label above 0)")
        few = few_shot(task.train, config.shots, config.seed)
        self.context, self.ids, visual = None, None, None
        if config.text:
            self.context = new_context(model, config.text, config.text_words, task.templates[0]).to(model.tower.device)
            self.ids = self.context.prompt_ids(model, task.train.classnames, task.templates[0])
        # A clone: tensors made in inference mode take no part in a backward pass.
        self.zero_shot = (
            model.class_embeddings(task.val.classnames, task.templates).clone() if config.label or (task.labelled and model.has_text) else None
        )
        self.entry = Entry(spec.learnable_from_block if config.visual else 0, spec.counts(Keep.ratio(config.keep)), task.cache)
        self.train, self.val = (prepare_images(model, task.plain, images, self.entry, progress) for images in (few, task.val))
        if config.visual:
            seen = self.train.inputs[:: max(1, len(self.train) // _FIRST_VALUES_FROM)].float().to(model.tower.device)
            visual = new_visual(model.tower, seen, config.visual, _layers(spec, config), self.entry.first, config.seed)
        self.encoder = PrunedEncoder(model.tower, list(task.plain.scorers), spec, visual).eval()

    def values(self) -> dict[str, Tensor]:
        """The trained tensors."""
        parts = {"visual": self.encoder.visual, "context": self.context}
        return {name: part.values for name, part in parts.items() if part is not None}

    def key(self) -> str:
        """Of all that the result depends on: settings, first values, pruning and data."""
        words = self.context.words if self.context is not None else ""
        tensors = self.values() | {name: part for name, part in (("zero_shot", self.zero_shot), ("ids", self.ids)) if part is not None}
        for name, data in (("train", self.train), ("val", self.val)):
            tensors |= {f"{name}.inputs": data.inputs, f"{name}.targets": data.targets, f"{name}.labels": data.labels}
        made_of = self.task.model.weights_sha256, words, content_digest(self.task.plain.scorers), tensors_digest(tensors)
        return digest(SCHEMA, asdict(self.config), asdict(self.encoder.spec), *made_of)

    def train_epoch(self, sgd: torch.optim.SGD, epoch: int) -> float:
        """Trains for an epoch, counted from 1; its mean loss."""
        config, steps = self.config, math.ceil(len(self.train) / self.config.batch)
        rates = (config.lr_at((epoch - 1 + step / steps) / config.epochs) for step in range(steps))
        found = train_epoch(sgd, self.loss, len(self.train), config, epoch, rates)
        if not math.isfinite(found):
            raise ConfigError(f"the loss of the learnable tokens is {found} in epoch {epoch}; lower tokens.lr, which is {config.lr}")
        return found

    def loss(self, chosen: Tensor, _generator: torch.Generator) -> Tensor:
        """The mean loss of a step over the images `chosen` (batch,) int64."""
        config, data = self.config, self.train
        embeddings = embed_prepared(self.encoder, data.inputs[chosen], self.entry)
        value = embeddings.new_zeros(())
        if config.distill:
            value = value + config.distill * (1.0 - (embeddings * data.targets[chosen].to(embeddings.device)).sum(dim=-1)).mean()
        if config.label:
            logits = self.task.model.logits(embeddings, self._classes(plain=False))
            value = value + config.label * functional.cross_entropy(logits, data.labels[chosen].to(embeddings.device))
        return value

    @torch.no_grad()
    def judge(self, loss: float, *, plain: bool = False) -> TokensEpoch:
        """An epoch of this loss on the validation images; `plain` leaves the learnable tokens out."""
        data, encoder = self.val, self.task.plain if plain else self.encoder
        embeddings = torch.cat([embed_prepared(encoder, inputs, self.entry).cpu() for inputs in torch.split(data.inputs, _EVALUATED)])
        cosine = float((embeddings * data.targets).sum(dim=-1).mean())
        if not self.task.labelled or self.zero_shot is None:
            return TokensEpoch(loss, cosine, None)
        logits = self.task.model.logits(embeddings, self._classes(plain=plain).cpu())
        return TokensEpoch(loss, cosine, 100.0 * float((logits.argmax(dim=-1) == data.labels).float().mean()))

    def _classes(self, *, plain: bool) -> Tensor:
        """Class embeddings (classes, E): of the context where there is one, else the zero-shot ones."""
        if self.context is not None and self.ids is not None and not plain:
            return self.context.embed(self.task.model, self.ids)
        if self.zero_shot is None:
            raise ConfigError("class embeddings need class names, but the images have none; give labelled images, or tokens.label = 0")
        return self.zero_shot
