"""The verbs that make and judge a run, and apply, which puts it into a loaded model."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from prtool.api.common import BUNDLE, CONFIG, RUN, AnyKeep, AnyPath, ExportReport, TrainReport, configure, keeps_of, several
from prtool.spec import Keep

if TYPE_CHECKING:
    from torch import nn

    from prtool.progress import Progress
    from prtool.studies.tune.report import TuneReport
    from prtool.trainer.config import TrainConfig
    from prtool.trainer.evaluation.report import EvalReport

Model = TypeVar("Model", bound="nn.Module")
_log = logging.getLogger(__name__)


def train_config(
    config: "TrainConfig | AnyPath | None" = None,
    *,
    preset: str | None = None,
    settings: Mapping[str, object] | None = None,
    **given: object,
) -> "TrainConfig":
    """The configuration that `train` uses for the same arguments; raises ConfigError where one cannot be used."""
    from prtool.errors import ConfigError
    from prtool.trainer.config import PRESETS, TrainConfig

    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset = {preset!r}, but it must be one of {', '.join(PRESETS)}")
    named = {"location": "prune.locations", "phase": "phases"}
    found = {named.get(name, name): value for name, value in given.items() if value is not None}
    found |= {name: list(several(found[name])) for name in named.values() if name in found}
    found |= {"data": str(found["data"])} if "data" in found else {}
    overrides = {**(PRESETS[preset] if preset else {}), **found, **(settings or {})}
    if isinstance(config, TrainConfig):
        return configure(TrainConfig, {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}, overrides)
    in_folder = Path(CONFIG) if Path(CONFIG).is_file() else None
    return TrainConfig.load(in_folder if config is None else Path(config), overrides)


def train(
    config: "TrainConfig | AnyPath | None" = None,
    *,
    model: str | None = None,
    pretrained: str | None = None,
    data: AnyPath | None = None,
    image_size: int | None = None,
    location: int | Sequence[int] | None = None,
    phase: str | Sequence[str] | None = None,
    preset: str | None = None,
    overwrite: bool = False,
    settings: Mapping[str, object] | None = None,
    output: AnyPath | None = None,
    progress: "Progress | None" = None,
) -> TrainReport:
    """Trains a run, resuming where an earlier call was stopped, and points the link `latest` next to it at it.

    Args:
        config: settings, such as a TOML file; default: prtool.toml of the current folder where there is one.
        model: architecture of open_clip, "hf-hub:ORG/REPO" or "local-dir:PATH", or "hf:ORG/REPO" or "hf:PATH" for a checkpoint of
            transformers, or "timm:ARCHITECTURE" with or without ".TAG" for an image tower alone; default: "ViT-B-16".
        pretrained: tag of open_clip or checkpoint file; default: random weights.
        data: FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas (docs/data.md).
        image_size: side in pixels of the images that the encoder reads, a multiple of its patch; default: the native one.
        location: 1-based blocks on entry to which patches drop, or the first in which they merge; default: 4.
        phase: some of "rank", "predictor", "recover" and "tokens", or "none"; default: "predictor" and "recover" where patches are ranked,
            "recover" with another method, and "none" there without data.
        preset: settings by name, "default", "merge" (merge patches in place of dropping them), "smaller-image" (shorten nothing else),
            "leave-one-out" or "paper"; others that are given win over them.
        overwrite: replace a trained run of other settings.
        settings: any other of `prtool train --show-config`, such as {"fit.epochs": 8}.
        output: run folder; default: runs/MODEL-DATA-HASH, the hash of all settings.

    Raises:
        ConfigError: a setting cannot be used, or something else stands at the output, or a run of other settings.
        DataError: the data cannot be read.
        ModelError: the model cannot be loaded or pruned.
        StorageError: the run cannot be written.
    """
    from prtool.trainer.runs.folder import check_training, run_name

    given = {"model": model, "pretrained": pretrained, "data": data, "image_size": image_size, "location": location, "phase": phase}
    chosen = train_config(config, preset=preset, settings=settings, **given)
    run = Path("runs") / run_name(chosen) if output is None else Path(output)
    check_training(chosen, run)
    from prtool.trainer.train import check_latest, point_latest
    from prtool.trainer.train import train as train_run

    check_latest(run)
    checkpoint = train_run(chosen, run, progress, overwrite=overwrite)
    point_latest(run)
    return TrainReport(run, checkpoint)


def evaluate(
    run: AnyPath = RUN,
    *,
    data: AnyPath | None = None,
    split: str = "test",
    keep: AnyKeep | Sequence[AnyKeep] | None = None,
    method: str | Sequence[str] | None = None,
    images: int = 0,
    output: AnyPath | None = None,
    settings: Mapping[str, object] | None = None,
    progress: "Progress | None" = None,
) -> "EvalReport":
    """Accuracy, changed decisions, cosine and retrieval next to the cost, for several ways to spend less; also drawn as a picture.

    Data without labels have no accuracy. Retrieval: overlap of the ten nearest images with those of the unpruned embeddings, and
    recall@1, 5 and 10 between images and captions or class prompts (docs/method.md).

    Args:
        run: folder of a trained run.
        data: FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas (docs/data.md); default: the run's.
        split: part of the data: "train", "val" or "test".
        keep: patches that stay: a ratio (0.6) or a count (118); default: 1.0, 0.8, 0.7, 0.6 and 0.5, as far as the run reaches.
        method: of "patch-ranking", "patch-ranking-tokens", "recovered", "merge", "smaller-image", "tome", "evit", "avit", "cls-attention", "random",
            "golden" (slow), all at equal cost; default: patch-ranking, merge, smaller-image, random, or what suits the run's prune.method.
        images: at most this many; 0 takes all.
        output: picture of accuracy and cosine against cost, a .png file; default: RUN/eval-SPLIT.png.
        settings: other fields of `EvalConfig`, such as {"retrieval_images": 1000, "batch": 8, "seed": 1}.

    Raises:
        CheckpointError: there is no finished run, or it is damaged.
        ConfigError: a value cannot be used, a method does not suit the model, or no data are known.
        DataError: the data cannot be read (ImageError: an image cannot be decoded).
    """
    from prtool.files import PICTURE, check_output
    from prtool.trainer.evaluation.config import EvalConfig
    from prtool.trainer.runs.folder import check_evaluation

    given = {"keeps": None if keep is None else keeps_of(keep), "methods": None if method is None else several(method)}
    config = configure(EvalConfig, {"split": split, "images": images, **given}, settings)
    picture = evaluation_picture(run, split, output)
    check_evaluation(Path(run), data, config)
    check_output(picture, PICTURE)
    from prtool.trainer.evaluation.evaluate import evaluate_run
    from prtool.trainer.evaluation.plots import plot_evaluation

    report = evaluate_run(Path(run), data, config, progress)
    plot_evaluation(report, picture)
    return report


def evaluation_picture(run: AnyPath, split: str, output: AnyPath | None = None) -> Path:
    """The picture that `evaluate` draws for the same arguments."""
    return Path(run) / f"eval-{split}.png" if output is None else Path(output)


def tune(
    run: AnyPath = RUN,
    *,
    max_drop: float | None = None,
    max_latency_ms: float | None = None,
    location: Sequence[int | Sequence[int]] = (),
    image_size: int | Sequence[int] = (),
    keep: AnyKeep | Sequence[AnyKeep] = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3),
    engine: str = "ort",
    precision: str = "fp32",
    batch: int = 8,
    data: AnyPath | None = None,
    settings: Mapping[str, object] | None = None,
    progress: "Progress | None" = None,
) -> "TuneReport":
    """Searches reducer, image size, location and keep by quality on validation images and speed here; `export_bundle` then takes the choice.

    Without a limit the fastest encoder within 0.5 points of accuracy is chosen, or without labels within a mean cosine of 0.98.
    The search ends within about 20 minutes (settings: "minutes"); what was not tried is in the report.

    Args:
        run: folder of a trained run; tune.json and the folder `tune` are written into it.
        max_drop: points of accuracy below the unpruned model, at most; the fastest candidate within it is chosen.
        max_latency_ms: milliseconds of one call of `batch` images, at most; alone, the most accurate candidate within it is chosen.
        location: candidates: a block (4) each, or several (4,6,8,10) for progressive pruning; merging begins at the first; others than the
            run's train sibling runs; default: the run's.
        image_size: candidates: sides of square images in pixels, multiples of the patch; default: the native size and smaller ones.
        keep: patches that stay: a ratio (0.6) or a count (118).
        engine: what runs the graphs, such as ort; `prtool doctor` lists the names.
        precision: arithmetic, of fp32, fp16, bf16 and int8; as engine and bundle have it.
        batch: images per call.
        data: FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas (docs/data.md); default: the run's.
        settings: other fields of `TuneConfig`, such as {"limits.min_cosine": 0.97, "methods": ["merge", "none"], "minutes": 60}.

    Raises:
        ConfigError: a value cannot be used, or no candidate is within the limits.
        CheckpointError: there is no finished run, or it is damaged.
        DataError: the data cannot be read, or lack the split or the labels that a limit needs.
        ModelError: the model cannot do what was asked for, such as merging.
        EngineUnavailable: the engine cannot run here.
    """
    from prtool.studies.tune.config import TuneConfig
    from prtool.studies.tune.limits import Limits
    from prtool.trainer.data.address import parse_data
    from prtool.trainer.runs.folder import data_of
    from prtool.trainer.runs.record import read_record

    bounds = {name.removeprefix("limits."): value for name, value in (settings or {}).items() if name.startswith("limits.")}
    others = {name: value for name, value in (settings or {}).items() if not name.startswith("limits.")}
    limits = configure(Limits, {"max_drop": max_drop, "max_latency_ms": max_latency_ms}, bounds)
    given = {"limits": limits, "locations": tuple(map(several, location)), "image_sizes": several(image_size), "keeps": keeps_of(keep)}
    config = configure(TuneConfig, {**given, "engine": engine, "precision": precision, "batch": batch}, others)
    record = read_record(Path(run))
    config.check_keeps(record.prune)
    parse_data(data_of(Path(run), record, data))
    from prtool.studies.tune.run import tune as tune_run

    return tune_run(Path(run), config, data, progress)


def export_bundle(
    run: AnyPath = RUN,
    output: AnyPath = BUNDLE,
    *,
    keep: AnyKeep | None = None,
    precision: str | Sequence[str] = ("fp32",),
    patch_tokens: int | None = None,
    data: AnyPath | None = None,
    progress: "Progress | None" = None,
) -> ExportReport:
    """Writes a bundle of ONNX graphs, after comparing them with PyTorch.

    Args:
        run: folder of a trained run.
        output: bundle folder; only an earlier bundle is replaced.
        keep: patches that stay: a ratio (0.6) or a count (118); default: what `tune` chose for the run,
            else 0.6, or the nearest that its recovery was trained for; all of them where a run only has a smaller image.
        precision: arithmetic, of fp32, fp16, bf16 and int8; fp32 is always written.
        patch_tokens: also give the tokens of the patches that stay, for a language model or a dense task, as they leave this block: 1-based,
            or negative from the end (-1 the last; -2, the last but one, is what LLaVA reads).
        data: FOLDER, NAME:FOLDER (caltech101:photos), FILE.csv, or several with commas (docs/data.md);
            for the comparison and int8's scales; default: the run's.

    Raises:
        CheckpointError: there is no finished run, or it is damaged.
        ConfigError: a value cannot be used, int8 has too few images, or something else stands at the output.
        DataError: the data cannot be read.
        ModelError: the model cannot be loaded or exported.
        ParityError: a graph disagrees with PyTorch; nothing was written.
        StorageError: the bundle cannot be written.
    """
    from prtool.export.checks import check_export

    (source, kept), out, precisions = _chosen(Path(run), keep), Path(output), several(precision)
    if check_export(source, out, kept, precisions, data, patch_tokens) is None:
        _log.warning("there are no images of the run, so the graphs are compared with PyTorch on noise; --data FOLDER gives images")
    from prtool.export.run import export_run
    from prtool.export.write import PARITY_NAME, ExportOptions
    from prtool.strict import parse_json

    manifest = export_run(source, out, ExportOptions(kept, precisions, patch_tokens=patch_tokens), data, progress)
    judged = [(part["precision"], part["judged"]) for part in parse_json((out / PARITY_NAME).read_bytes())["precisions"] if part["judged"]]
    return ExportReport(out, manifest, tuple(f"{name} was held to {gate['decided_by']}: {gate['why']}" for name, gate in judged))


def apply(model: Model, run: AnyPath = RUN, keep: AnyKeep | None = None) -> Model:
    """Puts a run's encoder in place of the image tower of a loaded model, behind the model's own calls.

    `encode_image` of open_clip and `get_image_features` of transformers then run with fewer patches, on whatever device and with gradients,
    autocast and `torch.compile` as before. The text side stays. `model.visual.keep = 0.5` changes what is kept (in transformers
    `model.vision_model.keep`), and one call of that module takes `keep=0.5`.

    Args:
        model: a model of open_clip, or a CLIPModel, MetaClip2Model, SiglipModel or CLIPVisionModelWithProjection of transformers, with the
            weights that the run was trained for, in float32; convert it afterwards.
        run: folder of a trained run, of any method.
        keep: patches that stay: a ratio (0.6) or a count (118); default: as for `export_bundle`.

    Returns:
        The same object. Images must have the run's size, which `model.visual.image_size` says.

    Raises:
        CheckpointError: there is no finished run, or it was trained for other weights.
        ModelError: the model is of a kind that is not supported, or changed already.
        KeepError: the keep is out of range.
    """
    source, kept = _chosen(Path(run), keep)
    from prtool.trainer import drop_in

    return drop_in.apply(model, source, kept)


def _chosen(run: Path, keep: AnyKeep | None) -> tuple[Path, Keep]:
    """The run to take and what it keeps: as asked, else what `tune` chose, else what is usual."""
    from prtool.export.checks import usual_keep
    from prtool.studies.tune.result import read_result

    tuned = read_result(run) if keep is None else None
    if tuned is None:
        return run, usual_keep(run) if keep is None else Keep.of(keep)
    source = run / tuned.run
    _log.warning("taking what 'prtool tune' chose: %s, %s; --keep overrides it", source, tuned)
    if tuned.is_unpruned:
        _log.warning("'prtool tune' chose the unpruned model: run the bundle with --mode full")
    return source, tuned.kept
