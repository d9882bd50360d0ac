"""The train verb: golden ranking, predictor, recovery, learnable tokens; each phase continues where it was stopped."""

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from prtool.errors import ConfigError, DataError
from prtool.exchange import alone
from prtool.files import storage_errors
from prtool.progress import Progress, SilentProgress
from prtool.records import to_plain
from prtool.spec import MERGE, RANK
from prtool.store import Store, digest
from prtool.trainer.config import RANKING, TrainConfig
from prtool.trainer.data.formats.known import DEFAULT_TEMPLATES
from prtool.trainer.data.images import ImageSet, few_shot
from prtool.trainer.data.listing import path_hash
from prtool.trainer.data.load import available_splits, load_split, templates_for
from prtool.trainer.data.seen import Seen
from prtool.trainer.features import Features, cache_tokens, cache_unpruned
from prtool.trainer.loop import Examples, FitResult, predict, train_scorer
from prtool.trainer.models.dual_encoder import DualEncoder, check_image_size
from prtool.trainer.models.loading.source import canonical_name, canonical_pretrained
from prtool.trainer.models.merging import merging_steps
from prtool.trainer.models.predictor import PatchScorer, later_config, make_scorer
from prtool.trainer.objectives.distill import DistillObjective
from prtool.trainer.objectives.golden import GoldenSearch
from prtool.trainer.objectives.golden_store import GoldenRanking, rank_images
from prtool.trainer.objectives.matching import constant_ranking, default_count, matching_rate, order_of, random_rate, usual_counts
from prtool.trainer.objectives.ranking import RankingObjective
from prtool.trainer.recovery.train import RecoverTask, check_enough, recover
from prtool.trainer.runs.checkpoint import Checkpoint, load_seeded, recovery_tensors, scorer_tensors, token_tensors, without_tokens
from prtool.trainer.runs.folder import check_training, only_trainer
from prtool.trainer.runs.record import SCHEMA, DataInfo, MatchRow, Metrics, RecoveryRecord, TokensRecord
from prtool.trainer.runs.resume import earlier, finished
from prtool.trainer.settings import LABELLED_SCORES
from prtool.trainer.tokens.train import TokensTask, TrainedTokens, spec_with_tokens, train_tokens

HELD_OUT_SHARE = 0.1
"""Share of the training images that validate, where the data has no val split."""
_log = logging.getLogger(__name__)
_RANKED = "golden.json"
_VERSIONS = ("prtool", "torch", "open_clip_torch", "timm", "numpy")
_Rankings = tuple[GoldenRanking, GoldenRanking]
"""Of the training and the validation images."""


@dataclass(frozen=True, slots=True)
class RunImages:
    """The images of a run; `held_out` says that `val` was taken out of the training split."""

    train: ImageSet
    val: ImageSet
    held_out: bool

    def info(self) -> DataInfo:
        """What the checkpoint says about them."""
        root = self.train.origin or str(self.train.root.resolve())
        return DataInfo(root, self.train.digest(), self.val.digest(), len(self.train), len(self.val), self.held_out)


@dataclass(frozen=True, slots=True)
class _Run:
    """One call of `train`: what its steps share."""

    config: TrainConfig
    folder: Path
    model: DualEncoder
    images: RunImages
    progress: Progress


def train(config: TrainConfig, run: Path, progress: Progress | None = None, *, overwrite: bool = False) -> Checkpoint:
    """Runs the phases of `config` and writes a checkpoint into the folder `run`.

    Finished work is not done again: golden rankings and tokens are cached under `run`, the predictor's state is saved every few
    epochs, and a checkpoint of the same settings, model and data is returned as it is. So a run that was stopped, in any way
    and at any moment, continues with the same call and ends with the same bytes.

    Args:
        config: settings. Phase "rank" ranks, and leaves an untrained scorer or adds matching rates to a trained one; "predictor"
            needs that ranking where the objective is "ranking"; "recover" and "tokens" need the predictor of phase "predictor", of
            this or an earlier call, where patches are ranked; "none" leaves an untrained scorer, and needs no data.
        run: the run's folder. A trained run of other settings is left as it is, and so is anything that is not a run.
        progress: started for each phase.
        overwrite: replace a trained run of other settings.

    Raises:
        ConfigError: a setting cannot be used, phase "predictor" finds no ranking, or phase "tokens" no predictor; `run` is or holds an
            input, or holds something else than a run, or a trained run of other settings.
        DataError: the data set, or one of its images (ImageError), cannot be read.
        ModelError: the model cannot be loaded or pruned.
        StorageError: the run cannot be written.
    """
    check_training(config, run)
    config = replace(config, image_size=check_image_size(config.model, config.image_size))
    images = run_images(config)
    if images is not None and "recover" in config.phases:
        check_enough(images.train)
    name = canonical_name(config.model)
    model = load_seeded(name, canonical_pretrained(name, config.pretrained), config.seed, _device(config.device), config.image_size)
    blank = _blank(config, model, images)
    with only_trainer(run):
        before = earlier(run, blank, overwrite=overwrite)
        if images is None or config.phases == ("none",):
            if before is not None and before.trained and not overwrite:
                raise finished(run, "a trained predictor or recovery, and phase none would leave neither")
            return before if before is not None and not before.trained else blank.save(run)
        current = _Run(config, run, model, images, progress or SilentProgress())
        found = _with_scorers(current, blank, before)
        if "recover" in config.phases:
            found = _with_recovery(current, found, overwrite)
        return found if "tokens" not in config.phases else _with_tokens(current, found, overwrite)


def _with_scorers(run: _Run, blank: Checkpoint, before: Checkpoint | None) -> Checkpoint:
    """The checkpoint with its scorers, trained where phase "predictor" or an earlier call did so."""
    phases = run.config.phases
    if before is not None and (before.scorer_trained or "predictor" not in phases):
        found = _with_matching(run, before, _rank(run)) if "rank" in phases else before
        return found if found is before else found.save(run.folder)
    if not {"rank", "predictor"} & set(phases):
        return blank
    # The distillation objective needs no ranking; a ranking that is there adds the matching rates.
    rankings = _rank(run) if "rank" in phases or run.config.objective == RANKING else []
    if "predictor" not in phases:
        return blank.save(run.folder)
    fits = [_train_scorer(run, place, blank.scorer(place), rankings) for place in range(len(_scored_locations(run.config)))]
    seen = Seen.of(run.images.train, run.images.val).to_bytes()
    tensors = scorer_tensors([result.scorer for result in fits])
    match_at = (run.config.fit.match_at or default_count(fits[0].scorer.patches)) if run.config.objective == RANKING else 0
    losses, rates = zip(*fits[0].history, strict=True)
    metrics = Metrics((), fits[0].best_epoch, losses, rates, match_at)
    trained = replace(blank, scorer_trained=True, metrics=metrics, tensors=tensors, seen=seen)
    return _with_matching(run, trained, rankings).save(run.folder)


def run_images(config: TrainConfig) -> RunImages | None:
    """The images a configuration trains on, or None where it has no data.

    Without a val split, about a tenth of the training images is held out.

    Raises:
        DataError: the data set cannot be read, or is too small.
    """
    if not config.data:
        return None
    training = load_split(config.data, "train").take(config.train_images, config.seed)
    if training.note:
        _log.warning("%s", training.note)
    if "val" in available_splits(config.data):
        return RunImages(training, load_split(config.data, "val").take(config.val_images, config.seed), held_out=False)
    if len(training) < 2:
        raise DataError(f"{config.data} has one training image and no val split; training and validation need at least one image each")
    # By a hash of the seed and the path, so that an image more moves no other; at least one, not all.
    hashes = [path_hash(path, f"{config.seed} ") for path in training.paths]
    order = sorted(range(len(training)), key=lambda index: hashes[index])
    count = min(max(1, sum(value < HELD_OUT_SHARE for value in hashes)), len(training) - 1)
    held, rest = training.subset(sorted(order[:count])), training.subset(sorted(order[count:]))
    return RunImages(rest, held.take(config.val_images, config.seed), held_out=True)


def templates_of(config: TrainConfig) -> tuple[str, ...]:
    """The prompts of a configuration: its own, or those of its data set."""
    if config.templates:
        return config.templates
    return templates_for(config.data) if config.data else DEFAULT_TEMPLATES


def check_latest(run: Path) -> Path:
    """The link `latest` next to a run, checked before training to be replaceable.

    Raises:
        ConfigError: something that is no link has its name.
    """
    link = run.parent / "latest"
    if link.exists() and not link.is_symlink():
        raise ConfigError(f"{link} is a file or folder, but it is to be the link to the newest run; move it away, or give another -o")
    return link


def point_latest(run: Path) -> Path:
    """Points the link `latest` next to a run at it, atomically; returns the link.

    Raises:
        ConfigError: something that is no link has its name.
        StorageError: the link cannot be made.
    """
    link = check_latest(run)
    temporary = run.parent / ".latest.part"
    with storage_errors(link), alone(run.parent):
        temporary.unlink(missing_ok=True)  # what a killed process left
        temporary.symlink_to(run.name, target_is_directory=True)
        try:
            temporary.replace(link)
        finally:
            temporary.unlink(missing_ok=True)
    return link


def _rank(run: _Run) -> list[_Rankings]:
    """The golden rankings at each location that has a scorer: computed by phase "rank", or read back for phase "predictor"."""
    config, data = run.config, run.images
    made_of = [to_plain(config.golden), _scored_locations(config), templates_of(config), run.model.weights_sha256, config.image_size]
    marker = Store(run.folder, digest(made_of, data.train.digest(), data.val.digest()))
    if "rank" not in config.phases and marker.read(_RANKED) is None:
        raise ConfigError(f"phase predictor finds no finished golden ranking for these settings in {run.folder}; give --phase rank,predictor")
    classes = None
    if config.golden.score in LABELLED_SCORES:
        data.train.require_labels(f"the golden score {config.golden.score!r}")
        classes = run.model.class_embeddings(data.train.classnames, templates_of(config))
    cache, found = run.folder / "golden", []
    for location in _scored_locations(config):
        search = GoldenSearch(run.model, location, config.golden, classes)
        learned = rank_images(search, data.train, cache / "train", run.progress)
        found.append((learned, rank_images(search, data.val, cache / "val", run.progress)))
    marker.write(_RANKED, "ranked")
    return found


def _scored_locations(config: TrainConfig) -> tuple[int, ...]:
    """The locations that have a scorer of their own."""
    return config.prune.locations if config.prune.rescore else config.prune.locations[:1]


def _train_scorer(run: _Run, place: int, scorer: PatchScorer, rankings: Sequence[_Rankings]) -> FitResult:
    """Trains the scorer of one location, numbered from 0; those behind the first learn on random parts of the patches."""
    config, later = run.config, place > 0
    scorer = scorer.to(run.model.tower.device)
    state = run.folder / (f"fit-{place}.safetensors" if later else "fit.safetensors")
    tokens = _features(run, place)
    if config.objective == RANKING:
        learned, judged = (Examples(part, golden.ranking) for part, golden in zip(tokens, rankings[place], strict=True))
        return train_scorer(scorer, RankingObjective(learned, judged, config.fit, subsets=later), config.fit, state, run.progress)
    location = _scored_locations(config)[place]
    seen, held = (
        Examples(part, cache_unpruned(run.model, images, location, part, run.folder / "tokens", run.progress))
        for images, part in zip((run.images.train, run.images.val), tokens, strict=True)
    )
    objective = DistillObjective(run.model.tower, location, seen, held, config.distill, None if later else config.scorer.checkerboard)
    return train_scorer(scorer, objective, config.distill.schedule(config.fit, len(objective)), state, run.progress)


def _features(run: _Run, place: int) -> list[Features]:
    """The tokens of training and validation images that enter a location."""
    location, cache = _scored_locations(run.config)[place], run.folder / "tokens"
    return [cache_tokens(run.model, images, location, cache, run.progress) for images in (run.images.train, run.images.val)]


def _with_matching(run: _Run, found: Checkpoint, rankings: Sequence[_Rankings]) -> Checkpoint:
    """A checkpoint with the matching rates of its first scorer on the validation images, next to a random and a constant order's."""
    if not found.scorer_trained or not rankings or found.metrics.matching:
        return found
    golden, constant = rankings[0][1].ranking, constant_ranking(rankings[0][0].ranking)
    scorer = found.scorer(0).to(run.model.tower.device)
    patches, order = golden.shape[1], order_of(predict(scorer, _features(run, 0)[1]))
    rows = tuple(
        MatchRow(m, matching_rate(order, golden, m), random_rate(patches, m), matching_rate(constant, golden, m)) for m in usual_counts(patches)
    )
    return replace(found, metrics=replace(found.metrics, matching=rows))


def _with_recovery(run: _Run, found: Checkpoint, overwrite: bool) -> Checkpoint:
    """The checkpoint with the corrections of these settings; those of others, and tokens trained without them, are replaced only when asked."""
    config = run.config.recover
    if found.prune.method == RANK and not found.scorer_trained:
        raise ConfigError(f"phase recover finds no trained predictor for these settings in {run.folder}; give --phase predictor,recover")
    if found.recovery != RecoveryRecord() and found.config.get("recover") == to_plain(config):
        return found
    if (found.recovery.kept or found.tokens != TokensRecord()) and not overwrite:
        raise finished(run.folder, "a recovery of other settings, or learnable tokens that were trained without it")
    plain = replace(found, recovery=RecoveryRecord(), prune=without_tokens(found.prune), tokens=TokensRecord())
    scorers = {name: tensor for name, tensor in found.tensors.items() if name.split(".")[0].isdigit()}
    task = RecoverTask(run.model, plain.pruned_encoder(run.model.tower), run.images.train, run.images.val, run.folder / "recovery")
    made = recover(task, config, run.folder / "recovery.safetensors", run.progress)
    return replace(
        plain,
        recovery=RecoveryRecord(made.kept, made.losses, made.best_pass),
        config={**found.config, "recover": to_plain(config)},
        tensors=scorers | recovery_tensors(made.recovery),
        seen=found.seen or Seen.of(run.images.train, run.images.val).to_bytes(),
    ).save(run.folder)


def _with_tokens(run: _Run, scored: Checkpoint, overwrite: bool) -> Checkpoint:
    """The checkpoint with the learnable tokens of these settings; those of others are replaced only when asked for."""
    config = run.config.tokens
    if not scored.scorer_trained:
        raise ConfigError(
            f"phase tokens finds no trained predictor for these settings in {run.folder}; give --phase predictor,tokens "
            "(with rank for objective ranking)"
        )
    if scored.tokens != TokensRecord() and scored.config["tokens"] == to_plain(config):
        return scored
    if (scored.tokens.visual or scored.tokens.text) and not overwrite:
        raise finished(run.folder, "learnable tokens that were trained with other settings")
    # The scorers may have learned on a part of the images; the few of each class are drawn from all of them.
    images = load_split(run.config.data, "train") if not run.images.held_out else run.images.train
    plain = scored.ranking_encoder(run.model.tower, with_tokens=False)
    task = TokensTask(run.model, plain, images, run.images.val, scored.templates, run.folder / "tokens")
    found = train_tokens(task, config, run.folder / "tokens.safetensors", run.progress)
    learned = {name: tensor for name, tensor in scored.tensors.items() if not name.startswith(("visual.", "context."))}
    seen = Seen.from_bytes(scored.seen).joined(Seen.of(few_shot(images, config.shots, config.seed), run.images.val)).to_bytes()
    return replace(
        scored,
        prune=plain.spec if found.visual is None else spec_with_tokens(plain.spec, config),
        tokens=_tokens_record(found, config.keep),
        config={**scored.config, "tokens": to_plain(config)},
        tensors=learned | token_tensors(found.visual, found.context),
        seen=seen,
    ).save(run.folder)


def _tokens_record(found: TrainedTokens, keep: float) -> TokensRecord:
    visual, context = found.visual, found.context
    return TokensRecord(
        visual=0 if visual is None else visual.count,
        first=1 if visual is None else visual.first,
        layers=0 if visual is None else len(visual.values),
        text=0 if context is None else len(context.values),
        words="" if context is None else context.words,
        keep=keep,
        losses=tuple(epoch.loss for epoch in found.history[1:]),
        accuracies=tuple(epoch.accuracy for epoch in found.history if epoch.accuracy is not None),
        cosines=tuple(epoch.cosine for epoch in found.history),
        best_epoch=found.best_epoch,
    )


def _blank(config: TrainConfig, model: DualEncoder, images: RunImages | None) -> Checkpoint:
    """The checkpoint of these settings with a freshly initialised scorer."""
    prune = model.tower.prune_spec(config.prune.locations, method=config.prune.method)
    if config.prune.counts:
        prune = prune.with_counts(config.prune.counts)
    if prune.method == MERGE:
        merging_steps(model.tower)
    kinds = [config.scorer, *[later_config(config.scorer)] * (len(_scored_locations(config)) - 1)] if prune.method == RANK else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        scorers = [make_scorer(kind, model.tower.width, prune.patches, prune.prefix_tokens) for kind in kinds]
    return Checkpoint(
        schema=SCHEMA,
        model=model.name,
        pretrained=model.pretrained,
        model_seed=config.seed,
        weights_sha256=model.weights_sha256,
        image_size=config.image_size,
        width=model.tower.width,
        prune=prune,
        scorer_config=config.scorer,
        rescored=config.prune.rescore,
        scorer_trained=False,
        classnames=() if images is None else images.train.classnames,
        templates=templates_of(config),
        config=config.to_json(),
        data=DataInfo() if images is None else images.info(),
        versions={name: importlib.metadata.version(name) for name in _VERSIONS},
        tensors=scorer_tensors(scorers),
    )


def _device(name: str) -> str:
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("device = cuda, but torch finds no CUDA device; give cpu or auto")
    return "cuda" if name != "cpu" and available else "cpu"
