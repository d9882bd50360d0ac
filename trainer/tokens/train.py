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
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.prompts import TextContext, VisualTokens, check_layers, new_context, new_visual
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.settings import TokensConfig
from prtool.trainer.store import TensorStore, tensors_digest
from prtool.trainer.tokens.data import Entry, PreparedImages, embed_prepared, prepare_images
from prtool.trainer.training_state import TrainingState

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


@dataclass(frozen=True, slots=True)
class _Loop:
    """What an epoch needs; `ids` are those of the prompts with the context, None without one."""

    task: TokensTask
    config: TokensConfig
    entry: Entry
    encoder: PrunedEncoder
    context: TextContext | None
    train: PreparedImages
    val: PreparedImages
    zero_shot: Tensor | None
    ids: Tensor | None

    def values(self) -> dict[str, Tensor]:
        """The trained tensors."""
        parts = {"visual": self.encoder.visual, "context": self.context}
        return {name: part.values for name, part in parts.items() if part is not None}


def train_tokens(task: TokensTask, config: TokensConfig, state: Path | None = None, progress: Progress | None = None) -> TrainedTokens:
    """Trains learnable tokens on few images, in the pruned encoder, and leaves everything else as it was.

    The best epoch is that of the highest validation accuracy, and of equals the one of the highest cosine to the
    unpruned embedding; without labels (label = 0) the cosine alone decides. The encoder without tokens takes part as epoch 0,
    so training never makes it worse on the validation images.

    Args:
        task: the encoder and the images.
        config: how.
        state: file that training is saved to after each epoch and continues from, with the same result as if it had not
            been stopped; one that belongs to another task or other settings is replaced.
        progress: advanced once per image and epoch.

    Raises:
        ConfigError: the tokens do not suit the encoder, a prompt is too long, or the loss leaves the finite numbers.
        DataError: a class has too few images, or labels are missing where `config.label` is above 0.
        ImageError: an image cannot be decoded.
        ModelError: the model's text side cannot take a context.
        StorageError: the state or the cache cannot be written.
    """
    progress = progress or SilentProgress()
    loop = _make_loop(task, config, progress)
    values = loop.values()
    sgd = torch.optim.SGD(list(values.values()), config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    current = TrainingState(values, sgd)
    store, name = TensorStore(state.parent if state else None, _key(loop)), state.name if state else ""
    current.resume(store, name)
    if not current.history:
        current.history.append(_judge(loop, 0.0, plain=True))
    with stage(progress, "training tokens (epochs)", config.epochs):
        progress.advance(len(current.history) - 1)
        for epoch in range(len(current.history), config.epochs + 1):
            current.history.append(_judge(loop, _train_epoch(loop, sgd, epoch)))
            if _rank(current.history[epoch], config) > _rank(current.history[current.best_epoch], config):
                current.keep_best(epoch)
            current.save(store, name)
            progress.advance()
    history = tuple(TokensEpoch(*entry) for entry in current.history)
    if not current.best_epoch:
        return TrainedTokens(None, None, history, 0, len(loop.train))
    current.set_values(current.best)
    for tensor in values.values():
        tensor.requires_grad_(False)
    return TrainedTokens(loop.encoder.visual, loop.context, history, current.best_epoch, len(loop.train))


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
    check_layers(spec.depth, _layers(spec, config), first)
    return replace(spec, learnable_tokens=config.visual, learnable_from_block=first)


def _layers(spec: PruneSpec, config: TokensConfig) -> int:
    return config.layers or spec.depth - (config.first or spec.locations[0]) + 1


def _make_loop(task: TokensTask, config: TokensConfig, progress: Progress) -> _Loop:
    model, spec = task.model, spec_with_tokens(task.plain.spec, config)
    if config.label:
        task.train.require_labels("the cross-entropy on class prompts (tokens.label above 0)")
        task.val.require_labels("choosing the best epoch by accuracy (tokens.label above 0)")
    few = few_shot(task.train, config.shots, config.seed)
    device = next(model.tower.parameters()).device
    context, ids, visual = None, None, None
    if config.text:
        context = new_context(model, config.text, config.text_words, task.templates[0]).to(device)
        ids = context.prompt_ids(model, task.train.classnames, task.templates[0])
    # A clone: tensors made in inference mode take no part in a backward pass.
    zero_shot = model.class_embeddings(task.val.classnames, task.templates).clone() if config.label or task.labelled else None
    entry = Entry(spec.learnable_from_block if config.visual else 0, spec.counts(Keep.ratio(config.keep)), task.cache)
    train, val = (prepare_images(model, task.plain, images, entry, progress) for images in (few, task.val))
    if config.visual:
        seen = train.inputs[:: max(1, len(train) // _FIRST_VALUES_FROM)].float().to(device)
        visual = new_visual(model.tower, seen, config.visual, _layers(spec, config), entry.first, config.seed)
    encoder = PrunedEncoder(model.tower, list(task.plain.scorers), spec, visual).eval()
    return _Loop(task, config, entry, encoder, context, train, val, zero_shot, ids)


def _train_epoch(loop: _Loop, sgd: torch.optim.SGD, epoch: int) -> float:
    # One generator an epoch: what it draws does not depend on where an earlier run was stopped.
    config, data = loop.config, loop.train
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    batches = torch.split(torch.randperm(len(data), generator=generator), config.batch)
    total = 0.0
    for number, chosen in enumerate(batches):
        for group in sgd.param_groups:
            group["lr"] = config.lr_at((epoch - 1 + number / len(batches)) / config.epochs)
        value = _loss(loop, chosen)
        found = float(value.detach())
        if not math.isfinite(found):
            raise ConfigError(f"the loss of the learnable tokens is {found} in epoch {epoch}; lower tokens.lr, which is {config.lr}")
        sgd.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        sgd.step()
        total += found * len(chosen)
    return total / len(data)


def _loss(loop: _Loop, chosen: Tensor) -> Tensor:
    config, data = loop.config, loop.train
    embeddings = embed_prepared(loop.encoder, data.inputs[chosen], loop.entry)
    value = embeddings.new_zeros(())
    if config.distill:
        value = value + config.distill * (1.0 - (embeddings * data.targets[chosen].to(embeddings.device)).sum(dim=-1)).mean()
    if config.label:
        logits = loop.task.model.logits(embeddings, _classes(loop, loop.context))
        value = value + config.label * functional.cross_entropy(logits, data.labels[chosen].to(embeddings.device))
    return value


def _classes(loop: _Loop, context: TextContext | None) -> Tensor:
    """Class embeddings (classes, E): of the context where there is one, else the zero-shot ones."""
    if context is not None and loop.ids is not None:
        return context.embed(loop.task.model, loop.ids)
    if loop.zero_shot is None:
        raise ConfigError("class embeddings need class names, but the images have none; give labelled images, or tokens.label = 0")
    return loop.zero_shot


@torch.no_grad()
def _judge(loop: _Loop, loss: float, *, plain: bool = False) -> TokensEpoch:
    """An epoch of this loss on the validation images; `plain` leaves the learnable tokens out."""
    data, encoder, context = loop.val, loop.task.plain if plain else loop.encoder, None if plain else loop.context
    parts = [embed_prepared(encoder, data.inputs[chosen], loop.entry).cpu() for chosen in torch.split(torch.arange(len(data)), _EVALUATED)]
    embeddings = torch.cat(parts)
    cosine = float((embeddings * data.targets).sum(dim=-1).mean())
    if not loop.task.labelled:
        return TokensEpoch(loss, cosine, None)
    logits = loop.task.model.logits(embeddings, _classes(loop, context).cpu())
    return TokensEpoch(loss, cosine, 100.0 * float((logits.argmax(dim=-1) == data.labels).float().mean()))


def _rank(epoch: tuple[float, float, float | None], config: TokensConfig) -> tuple[float, float]:
    """What is compared to find the best epoch; the higher, the better."""
    _, cosine, accuracy = epoch
    return (accuracy if config.label and accuracy is not None else 0.0), cosine


def _key(loop: _Loop) -> str:
    """Of all that the result depends on: settings, first values, pruning and data."""
    words = loop.context.words if loop.context is not None else ""
    tensors = loop.values() | {name: part for name, part in (("zero_shot", loop.zero_shot), ("ids", loop.ids)) if part is not None}
    for name, data in (("train", loop.train), ("val", loop.val)):
        tensors |= {f"{name}.inputs": data.inputs, f"{name}.targets": data.targets, f"{name}.labels": data.labels}
    scorers = content_digest(loop.task.plain.scorers)
    return digest(SCHEMA, asdict(loop.config), asdict(loop.encoder.spec), loop.task.model.weights_sha256, words, scorers, tensors_digest(tensors))
