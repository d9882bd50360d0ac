"""What `prtool tune` evaluates a run by: accuracy and cosine where images have labels, cosine alone where they have none."""

import math
from dataclasses import replace
from pathlib import Path

import torch

from prtool.progress import Progress
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.load import NO_LABEL, ImageSet, load_split
from prtool.trainer.evaluation.evaluate import EvalConfig, EvalReport, EvalRow, Pruner, evaluate, evaluate_run
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.settings import PATCH_RANKING_TOKENS


def evaluate_quality(run: Path, data: str | Path | None, config: EvalConfig, progress: Progress | None = None) -> EvalReport:
    """`evaluate_run`, and for images without labels the same rows with an accuracy of NaN.

    Args:
        run: folder of a checkpoint.
        data: as `evaluate_run` takes it.
        config: what is compared; its methods may ask for the run's learnable tokens.
        progress: hears about images.

    Raises:
        Everything that `evaluate_run` raises, but the lack of labels.
    """
    checkpoint = Checkpoint.load(run)
    root = data or checkpoint.data.root
    images = load_split(root, config.split) if root else None
    if images is None or NO_LABEL not in images.labels:
        return evaluate_run(run, data, config, progress)
    return _without_labels(run, checkpoint, images, config, progress)


def _without_labels(run: Path, checkpoint: Checkpoint, images: ImageSet, config: EvalConfig, progress: Progress | None) -> EvalReport:
    wanted = TrainConfig.from_json(checkpoint.config).device
    device = torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
    model = checkpoint.load_model(str(device))
    pruner = Pruner.of_run(checkpoint, run, config.split, device)
    if PATCH_RANKING_TOKENS in config.methods:
        pruner = replace(pruner, tuned=checkpoint.pruned_encoder(model))
    # Two classes that mean nothing: what is right among them is thrown away below.
    blank = replace(images, labels=(0,) * len(images), classnames=("a", "b"))
    classes = torch.eye(2, model.tower.embed_dim, device=device)
    stored = replace(config, store=config.store or run / "eval" / config.split)
    report = evaluate(model, pruner, blank, classes, stored, progress)
    notes = ["the images have no labels: quality is the mean cosine to the unpruned embedding"]
    if not checkpoint.scorer_trained:
        notes.append("the predictor is freshly initialised and untrained: the patches that it keeps mean nothing")
    return replace(report, rows=tuple(map(_unlabelled, report.rows)), notes=tuple(notes))


def _unlabelled(row: EvalRow) -> EvalRow:
    return replace(row, accuracy=math.nan, lost=None, won=None)
