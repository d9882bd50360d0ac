"""Tuning learnable tokens: frozen encoders, few labelled images, and the pruned encoder in the loop."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from prtool.errors import ConfigError
from prtool.progress import Progress, SilentProgress, stage
from prtool.spec import Keep, PruneSpec
from prtool.trainer.data.few_shot import few_shot
from prtool.trainer.data.load import ImageSet
from prtool.trainer.models.dual_encoder import DualEncoder, content_digest
from prtool.trainer.models.prompts import TextContext, VisualTokens, check_layers, new_context, new_visual
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.settings import TokensConfig
from prtool.trainer.tokens.data import Entry, TuningImages, embed_prepared, prepare_images
from prtool.trainer.tokens.state import TuningEpoch, TuningState, restore_state, save_state

SCHEMA = 1
_EVALUATED = 32
_FIRST_VALUES_FROM = 64


@dataclass(frozen=True, slots=True)
class TuningTask:
    """What the tokens are tuned for.

    Attributes:
        model: the frozen encoder.
        untuned: the same, pruned, without learnable tokens, on the same device.
        train: images to draw the few from.
        val: images that choose the best epoch.
        templates: prompts with one {} each; text context takes the first.
        cache: folder of tokens that enter a block, as for `cache_tokens`.
    """

    model: DualEncoder
    untuned: PrunedEncoder
    train: ImageSet
    val: ImageSet
    templates: tuple[str, ...]
    cache: Path

    @property
    def labelled(self) -> bool:
        """Whether every validation image has a label."""
        return bool(self.val.classnames) and min(self.val.labels) >= 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """The tokens of the best epoch, frozen.

    Attributes:
        visual: None where none were learned, or the encoder without them is best.
        context: likewise.
        history: the untuned encoder first, then each epoch.
        best_epoch: 0 for the untuned encoder.
        images: few-shot images that were tuned on.
    """

    visual: VisualTokens | None
    context: TextContext | None
    history: tuple[TuningEpoch, ...]
    best_epoch: int
    images: int


@dataclass(frozen=True, slots=True)
class _Loop:
    """What stays the same while tokens are tuned; `ids` are those of the prompts with the context, None without one."""

    task: TuningTask
    config: TokensConfig
    entry: Entry
    encoder: PrunedEncoder
    train: TuningImages
    val: TuningImages
    zero_shot: Tensor | None
    ids: Tensor | None


def tune(task: TuningTask, config: TokensConfig, state: Path | None = None, progress: Progress | None = None) -> Tuned:
    """Tunes learnable tokens on few images, in the pruned encoder, and leaves everything else as it was.

    The best epoch is that of the highest validation accuracy, and of equals the one of the highest cosine to the
    unpruned embedding; without labels (label = 0) the cosine alone decides. The untuned encoder takes part as epoch 0,
    so tuning never makes it worse on the validation images.

    Args:
        task: the encoder and the images.
        config: how.
        state: file that tuning is saved to after each epoch and goes on from, with the same result as if it had not
            been stopped; one that belongs to another task or other settings is replaced.
        progress: hears about images and epochs.

    Raises:
        ConfigError: the tokens do not suit the encoder, a prompt is too long, or the loss leaves the finite numbers.
        DataError: a class has too few images, or labels are missing where `config.label` is above 0.
        ImageError: an image cannot be decoded.
        ModelError: the model's text side cannot take a context.
        StorageError: the state or the cache cannot be written.
    """
    progress = progress or SilentProgress()
    loop, context = _make_loop(task, config, progress)
    visual = loop.encoder.visual
    learned = [part.values for part in (visual, context) if part is not None]
    sgd = torch.optim.SGD(learned, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    current = TuningState(visual, context, sgd, {})
    key = _key(loop, current) if state else ""
    if state is not None:
        restore_state(current, state, key)
    if not current.history:
        current.history.append(_judge(loop, task.untuned, None, 0.0))
    with stage(progress, "tuning tokens (epochs)", config.epochs):
        progress.advance(len(current.history) - 1)
        for epoch in range(len(current.history), config.epochs + 1):
            loss = _train_epoch(loop, current, epoch)
            current.history.append(_judge(loop, loop.encoder, context, loss))
            if _rank(current.history[epoch], config) > _rank(current.history[current.best_epoch], config):
                current.best, current.best_epoch = current.values(), epoch
            if state is not None:
                save_state(current, state, key)
            progress.advance()
    return _outcome(current, len(loop.train))


def tuned_spec(spec: PruneSpec, config: TokensConfig) -> PruneSpec:
    """The pruning of the tuned encoder.

    Raises:
        ConfigError: the tokens start behind the first location, or have more layers than blocks are left.
    """
    if not config.visual:
        return spec
    first = config.first or spec.locations[0]
    if first > spec.locations[0]:
        raise ConfigError(
            f"tokens first = {first}, but learnable tokens must be there when patches drop, at block {spec.locations[0]}; "
            f"give 1 to {spec.locations[0]}, or 0 for that block"
        )
    check_layers(spec.depth, _layers(spec, config), first)
    return replace(spec, learnable_tokens=config.visual, learnable_from_block=first)


def _layers(spec: PruneSpec, config: TokensConfig) -> int:
    return config.layers or spec.depth - (config.first or spec.locations[0]) + 1


def _make_loop(task: TuningTask, config: TokensConfig, progress: Progress) -> tuple[_Loop, TextContext | None]:
    model, spec = task.model, tuned_spec(task.untuned.spec, config)
    if config.label:
        task.train.require_labels("the cross-entropy on class prompts (tokens.label above 0)")
        task.val.require_labels("choosing the best epoch by accuracy (tokens.label above 0)")
    few = few_shot(task.train, config.shots, config.seed)
    device = next(model.tower.parameters()).device
    context, ids = None, None
    if config.text:
        context = new_context(model, config.text, config.text_words, task.templates[0]).to(device)
        ids = context.prompt_ids(model, task.train.classnames, task.templates[0])
    # A clone: tensors made in inference mode take no part in a backward pass.
    zero_shot = model.class_embeddings(task.val.classnames, task.templates).clone() if config.label or task.labelled else None
    entry = Entry(spec.learnable_from_block if config.visual else 0, spec.counts(Keep.ratio(config.keep)), task.cache)
    train, val = (prepare_images(model, task.untuned, images, entry, progress) for images in (few, task.val))
    visual = None
    if config.visual:
        seen = train.inputs[:: max(1, len(train) // _FIRST_VALUES_FROM)].float().to(device)
        visual = new_visual(model.tower, seen, config.visual, _layers(spec, config), entry.first, config.seed)
    encoder = PrunedEncoder(model.tower, list(task.untuned.scorers), spec, visual).eval()
    return _Loop(task, config, entry, encoder, train, val, zero_shot, ids), context


def _train_epoch(loop: _Loop, current: TuningState, epoch: int) -> float:
    # One generator an epoch: what it draws does not depend on where an earlier run was stopped.
    config, data = loop.config, loop.train
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    batches = torch.split(torch.randperm(len(data), generator=generator), config.batch)
    total = 0.0
    for number, chosen in enumerate(batches):
        for group in current.sgd.param_groups:
            group["lr"] = config.lr_at((epoch - 1 + number / len(batches)) / config.epochs)
        value = _loss(loop, current.context, chosen)
        found = float(value.detach())
        if not math.isfinite(found):
            raise ConfigError(f"the loss of tuning tokens became {found} in epoch {epoch}; lower tokens.lr, which is {config.lr}")
        current.sgd.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        current.sgd.step()
        total += found * len(chosen)
    return total / len(data)


def _loss(loop: _Loop, context: TextContext | None, chosen: Tensor) -> Tensor:
    config, data = loop.config, loop.train
    embeddings = embed_prepared(loop.encoder, data.inputs[chosen], loop.entry)
    value = embeddings.new_zeros(())
    if config.distill:
        value = value + config.distill * (1.0 - (embeddings * data.targets[chosen].to(embeddings.device)).sum(dim=-1)).mean()
    if config.label:
        logits = loop.task.model.logits(embeddings, _classes(loop, context))
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
def _judge(loop: _Loop, encoder: PrunedEncoder, context: TextContext | None, loss: float) -> TuningEpoch:
    data = loop.val
    parts = [embed_prepared(encoder, data.inputs[chosen], loop.entry).cpu() for chosen in torch.split(torch.arange(len(data)), _EVALUATED)]
    embeddings = torch.cat(parts)
    cosine = float((embeddings * data.targets).sum(dim=-1).mean())
    if not loop.task.labelled:
        return TuningEpoch(loss, cosine, None)
    logits = loop.task.model.logits(embeddings, _classes(loop, context).cpu())
    return TuningEpoch(loss, cosine, 100.0 * float((logits.argmax(dim=-1) == data.labels).float().mean()))


def _rank(epoch: TuningEpoch, config: TokensConfig) -> tuple[float, float]:
    """What is compared to find the best epoch; the higher, the better."""
    return (epoch.accuracy if config.label and epoch.accuracy is not None else 0.0), epoch.cosine


def _outcome(current: TuningState, images: int) -> Tuned:
    history = tuple(current.history)
    if not current.best_epoch:
        return Tuned(None, None, history, 0, images)
    current.set_values(current.best)
    for part in (current.visual, current.context):
        if part is not None:
            part.requires_grad_(False)
    return Tuned(current.visual, current.context, history, current.best_epoch, images)


def _key(loop: _Loop, current: TuningState) -> str:
    """Says which tuning a saved state belongs to: settings, first values, pruning and data."""
    words = current.context.words if current.context is not None else ""
    plain = [SCHEMA, asdict(loop.config), asdict(loop.encoder.spec), loop.task.model.weights_sha256, words]
    digest = hashlib.sha256(json.dumps([*plain, content_digest(loop.task.untuned.scorers)], sort_keys=True).encode())
    parts = [*current.values().values(), *(part for part in (loop.zero_shot, loop.ids) if part is not None)]
    for data in (loop.train, loop.val):
        parts += [data.inputs, data.targets, data.labels]
    for tensor in parts:
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
