"""Recovery: what is corrected, against plain arithmetic; what is learned, kept and resumed; the runs, exports and evaluations with it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_model import write_images, write_model
from PIL import Image
from tiny_encoder import tiny_encoder
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.errors import CheckpointError, ConfigError, DataError, KeepError, ModelError
from prtool.export.checks import usual_keep
from prtool.export.run import export_run
from prtool.export.write import ExportOptions
from prtool.progress import SilentProgress
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.copies import Copies
from prtool.trainer.data.load import load_split, pixel_batches
from prtool.trainer.evaluation.evaluate import EvalConfig, evaluate_run
from prtool.trainer.evaluation.plots import STYLES, plot_evaluation
from prtool.trainer.models.recovery import Recovery, corrected
from prtool.trainer.recovery.train import directions, keep_range
from prtool.trainer.runs.checkpoint import Checkpoint
from prtool.trainer.runs.record import RecoveryRecord
from prtool.trainer.settings import GOLDEN, METHOD_NAMES
from prtool.trainer.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS: dict[str, Any] = {"prune.locations": [2], "device": "cpu", "distill.steps": 2, "scorer.channels": 8, "scorer.heads": 2}
SETTINGS |= {
    "recover.steps": 60,
    "recover.batch": 12,
    "recover.lr": 0.004,
    "recover.judged": 12,
    "recover.rank": 4,
    "recover.precision": "fp32",
    "recover.macs_low": 0.4,
    "recover.macs_high": 0.9,
}
METHODS: dict[str, dict[str, Any]] = {
    "rank": {"phases": ["predictor", "recover"]},
    "progressive": {"phases": ["predictor", "recover"], "prune.locations": [2, 3]},
    "merge": {"prune.method": "merge", "prune.locations": [1], "phases": ["recover"], "recover.lr": 3e-4},
    "none": {"prune.method": "none", "image_size": 24, "phases": ["recover"]},
    "rank on smaller images": {"phases": ["predictor", "recover"], "image_size": 24},
}


class Stop(SilentProgress):
    """Raises in the given pass of recovery, as Ctrl-C would."""

    def __init__(self, after: int) -> None:
        self.left, self.counting = after, False

    def start(self, what: str, _total: int) -> None:
        self.counting = "recovery (passes)" in what

    def advance(self, count: int = 1) -> None:
        self.left -= count * self.counting
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recovery")


@pytest.fixture(scope="module")
def base(root: Path) -> dict[str, Any]:
    """Model, whose blocks are large enough to matter, and data."""
    from safetensors.torch import load_file, save_file

    name = write_model(root / "model", layers=4)
    file = root / "model" / "open_clip_model.safetensors"
    tensors = load_file(file)
    save_file({key: tensor * 3 if "visual.transformer" in key and tensor.dim() == 2 else tensor for key, tensor in tensors.items()}, file)
    return {"model": name, "data": str(write_images(root / "data", {"train": 12, "val": 4, "test": 4})), **SETTINGS}


@pytest.fixture(scope="module", params=METHODS)
def run(request: pytest.FixtureRequest, root: Path, base: dict[str, Any]) -> Path:
    folder = root / str(request.param)
    train(TrainConfig.load(None, base | METHODS[request.param]), folder)
    return folder


def random_recovery(kind: str = "cls") -> tuple[Any, Recovery]:
    tower = tiny_encoder(kind).tower
    recovery = Recovery(tower, 2, 3, torch.Generator().manual_seed(1))
    with torch.no_grad():
        for number, parameter in enumerate(recovery.parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    recovery.scale = 0.5
    return tower, recovery


def test_untrained_corrections_change_nothing() -> None:
    tower = tiny_encoder("cls").tower
    folded = Recovery(tower, 2, 3).folded(tower)
    for (name, own), (other, new) in zip(tower.named_parameters(), folded.named_parameters(), strict=True):
        assert name == other and torch.equal(own, new)


@pytest.mark.parametrize("kind", ["cls", "siglip", "dinov2 registers"])
def test_a_corrected_weight_is_what_the_formula_says(kind: str) -> None:
    """Each matrix against W + s B A, queries, keys and values apart; each vector against b + s d; nothing before the first block changes."""
    tower = tiny_encoder(kind).tower
    recovery = Recovery(tower, 2, 3, torch.Generator().manual_seed(1))
    tensors = {
        name: 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        for number, (name, tensor) in enumerate(recovery.tensors().items())
    }
    recovery.load(tensors)
    recovery.scale = 0.5
    before = {name: value.clone() for name, value in tower.named_parameters()}
    folded = dict(recovery.folded(tower).named_parameters())
    keys = {name: key for key, name, _ in corrected(tower, 2)}
    assert keys and len(keys) < len(before)
    for name, old in before.items():
        assert torch.equal(dict(tower.named_parameters())[name], old), "the tower itself stays"
        if name not in keys:
            assert torch.equal(folded[name], old)
        elif old.dim() == 1:
            assert torch.allclose(folded[name], old + 0.5 * tensors[f"shift.{keys[name]}"])
        else:
            down, up = tensors[f"down.{keys[name]}"], tensors[f"up.{keys[name]}"]
            parts = 3 if "qkv" in name or "in_proj" in name else 1
            assert len(down) == parts
            wanted = np.concatenate([up[part].double().numpy() @ down[part].double().numpy() for part in range(parts)])
            assert np.allclose(folded[name].numpy(), old.numpy() + 0.5 * wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["cls", "siglip", "dinov2 registers", "eva", "eva02", "dinov3"])
def test_the_corrected_tower_runs_as_the_folded_one(kind: str) -> None:
    tower, recovery = random_recovery(kind)
    pixels = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        plain, folded = tower(pixels), recovery.folded(tower)(pixels)
        assert torch.allclose(recovery.running(tower, lambda: tower(pixels)), folded, atol=1e-6)
        assert not torch.allclose(plain, folded, atol=1e-3) and torch.equal(tower(pixels), plain)
    for _ in range(2):
        recovery.running(tower, lambda: tower(pixels)).sum().backward()
    assert all(value.grad_fn is None for value in tower.parameters()), "nothing is left in the tower"
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in recovery.parameters())
    assert all(parameter.grad is None for parameter in tower.parameters())


def test_tensors_of_another_encoder_are_an_error() -> None:
    tower, recovery = random_recovery()
    with pytest.raises(CheckpointError, match="rank 2"):
        Recovery(tower, 2, 2).load(recovery.tensors())
    with pytest.raises(CheckpointError, match="block 3"):
        Recovery(tower, 3, 3).load(recovery.tensors())


def test_copies_are_crops_of_their_image() -> None:
    pixels = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3)
    image, seen = Image.fromarray((pixels % 251).astype(np.uint8)), set()
    copies = Copies(3, 4, 0.35)
    assert len(copies) == 15 and [copies.image(item) for item in (0, 4, 14)] == [0, 1, 2]
    assert copies.view(image, 2) is image
    whole = np.asarray(image)
    for item in range(3, 15):
        view = np.asarray(copies.view(image, item))
        assert np.array_equal(view, np.asarray(copies.view(image, item)))
        height, width = view.shape[:2]
        assert 0.3 <= height * width / (40 * 60) <= 1.0
        places = [(y, x, flip) for y in range(41 - height) for x in range(61 - width) for flip in (1, -1)]
        assert any(np.array_equal(whole[y : y + height, x : x + width][:, ::flip], view) for y, x, flip in places)
        seen.add((height, width))
    assert len(seen) > 6


@pytest.mark.parametrize(("method", "locations"), [("rank", (2,)), ("rank", (2, 3)), ("merge", (1, 2, 3))])
def test_the_range_of_keeps_is_one_of_cost(method: str, locations: tuple[int, ...]) -> None:
    """Against every number of patches, one by one."""
    tower = tiny_encoder("cls").tower
    spec, cost = tower.prune_spec(locations, method=method), tower.cost()
    everything = cost.pruned_gmacs(spec, spec.counts(spec.patches))
    shares = {k: cost.pruned_gmacs(spec, spec.counts(k)) / everything for k in range(spec.least_keep, spec.patches + 1)}
    for low, high in ((0.5, 0.8), (0.7, 0.95), (0.01, 1.0)):
        inside = [k for k, share in shares.items() if low <= share <= high]
        assert keep_range(spec, cost, low, high) == (min(inside), max(inside))
    nearest = keep_range(spec, cost, 0.01, 0.02)
    assert nearest == (spec.least_keep, spec.least_keep)
    assert keep_range(tower.prune_spec((), method="none"), cost, 0.5, 0.8) == (spec.patches, spec.patches)


def test_recovery_brings_embeddings_nearer_and_none_farther(run: Path) -> None:
    record = Checkpoint.load(run).recovery
    kept = record.kept
    assert kept is not None and kept.rank == 4 and 0.0 < kept.scale <= 1.0 and kept.images == 36 and record.best_pass >= 1
    negligible = 0.01 * max(1.0 - cosine for cosine in kept.before)
    assert all(after >= before - negligible for before, after in zip(kept.before, kept.after, strict=True))
    assert sum(kept.after) > sum(kept.before) + 1e-4
    assert len(record.losses) == 20 and min(record.losses) < 1.5
    checkpoint = Checkpoint.load(run)
    assert kept.first == (1 if checkpoint.image_size else checkpoint.prune.locations[0]), "every block sees fewer tokens of a smaller image"


def test_the_recorded_cosines_are_the_encoder_s(run: Path) -> None:
    """The folded encoder on the validation images, decoded again, against the unpruned one."""
    checkpoint = Checkpoint.load(run)
    model, images = checkpoint.load_model(), load_split(str(checkpoint.data.root), "val")
    encoder, spec, kept = checkpoint.pruned_encoder(model.tower), checkpoint.prune, checkpoint.recovery.kept
    sides = [next(iter(pixel_batches(images, each, range(len(images)), 64)))[1] for each in (model.preprocess, model.native_preprocess)]
    assert kept is not None
    with torch.inference_mode():
        wanted = functional.normalize(model.native(sides[1]), dim=-1)
        for k, after in zip(kept.keeps, kept.after, strict=True):
            counts = () if spec.method == "none" else spec.counts(Keep.count(k))
            assert float((encoder.encode(sides[0], counts) * wanted).sum(dim=1).mean()) == pytest.approx(after, abs=2e-3)


def test_a_second_call_trains_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prtool.trainer.train.recover", None)
    before = Checkpoint.load(run)
    assert train(TrainConfig.from_json(before.config), run).files == before.files


@pytest.mark.parametrize("method", ["rank", "merge"])
def test_a_stopped_run_ends_with_the_same_bytes(method: str, root: Path, base: dict[str, Any]) -> None:
    """With merging nothing but recovery's own files are there when it stops."""
    config = TrainConfig.load(None, base | METHODS[method])
    whole, stopped = root / method, root / f"stopped-{method}"
    train(config, whole)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(config, stopped, Stop(1))
    assert train(config, stopped).files == Checkpoint.load(whole).files


def test_eval_compares_the_recovered_encoder(run: Path, tmp_path: Path) -> None:
    """Its rows are those of the run's own encoder, next to the same methods without corrections."""
    checkpoint = Checkpoint.load(run)
    own = "recovered"
    keep = Keep.ratio(1.0 if checkpoint.prune.method == "none" else 0.75)
    report = evaluate_run(run, None, EvalConfig(keeps=(keep,)))
    plot_evaluation(report, tmp_path / "eval.png")
    row = report.of(own)[0]
    assert len(report.rows) > 2 and row.accuracy is not None
    model, images = checkpoint.load_model(), load_split(str(checkpoint.data.root), "test")
    encoder, spec = checkpoint.pruned_encoder(model.tower), checkpoint.prune
    sides = [next(iter(pixel_batches(images, each, range(len(images)), 64)))[1] for each in (model.preprocess, model.native_preprocess)]
    with torch.inference_mode():
        wanted = functional.normalize(model.native(sides[1]), dim=-1)
        found = encoder.encode(sides[0], () if spec.method == "none" else spec.counts(keep))
    assert row.cosine == pytest.approx(float((found * wanted).sum(dim=1).mean()), abs=1e-4)
    others = [other for other in report.rows[1:] if other.method in ("patch-ranking", "merge") and other.method.startswith(spec.method[:4])]
    assert all(other.gmacs == pytest.approx(row.gmacs) for other in others)
    assert not any("the recovery learned" in note for note in report.notes)
    if spec.locations:
        _, high = checkpoint.keep_range
        asked = EvalConfig(keeps=(Keep.count(high), Keep.count(spec.patches)), methods=(own,))
        (note,) = [each for each in evaluate_run(run, None, asked).notes if "the recovery learned" in each]
        assert high < spec.patches and note.startswith(f"{spec.patches} patches are outside of")


def test_every_method_has_a_line_of_its_own() -> None:
    assert set(STYLES) == {*METHOD_NAMES, GOLDEN} and len(set(STYLES.values())) == len(STYLES)


def test_the_bundle_has_the_corrections_and_full_has_not(run: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.load(run)
    keep = usual_keep(run)
    manifest = export_run(run, tmp_path / "bundle", ExportOptions(keep))
    said = manifest.recovery
    assert said is not None and said == checkpoint.recovery.kept
    assert manifest.keep_range == checkpoint.keep_range == (said.keeps[0], said.keeps[-1])
    if checkpoint.prune.locations:
        with pytest.raises(KeepError, match=r"but the recovery was trained for \d+ to \d+; .*recover.macs_high"):
            export_run(run, tmp_path / "other", ExportOptions(Keep.ratio(1.0)))
    assert Bundle.open(tmp_path / "bundle").manifest.recovery == said
    model, spec = checkpoint.load_model(), checkpoint.prune
    own = torch.randn(2, 3, *model.tower.image_size, generator=torch.Generator().manual_seed(5))
    native = torch.randn(2, 3, *model.native.image_size, generator=torch.Generator().manual_seed(6))
    counts = () if spec.method == "none" else spec.counts(manifest.resolve(None))
    with torch.inference_mode():
        wanted, full = checkpoint.pruned_encoder(model.tower).encode(own, counts), functional.normalize(model.native(native), dim=-1)
        plain = replace(checkpoint, recovery=RecoveryRecord()).pruned_encoder(model.tower).encode(own, counts)
    with Encoder.load(Bundle.open(tmp_path / "bundle")) as encoder:
        found = torch.from_numpy(encoder.encode_pixels(own.numpy()))
    with Encoder.load(Bundle.open(tmp_path / "bundle"), mode="full") as encoder:
        # Whatever keeps the recovery was trained for.
        assert functional.cosine_similarity(torch.from_numpy(encoder.encode_pixels(native.numpy(), keep=1.0)), full).min() > 0.99999
    assert functional.cosine_similarity(found, wanted).min() > 0.99999
    assert (found - plain).abs().max() > 50 * (found - wanted).abs().max()


def test_tokens_are_trained_on_top(root: Path, base: dict[str, Any]) -> None:
    """The encoder with tokens has the corrections too; a recovery that comes later would replace both, and must be asked for."""
    settings = base | {"phases": ["predictor", "recover", "tokens"], "tokens.visual": 2, "tokens.shots": 2, "tokens.epochs": 1}
    made = train(TrainConfig.load(None, settings), root / "tokens")
    tower = made.load_model().tower
    assert made.recovery.kept is not None and made.recovery.kept.rank == 4 and made.recovered(tower) is not tower
    other = settings | {"recover.rank": 2}
    with pytest.raises(ConfigError, match="--overwrite"):
        train(TrainConfig.load(None, other), root / "tokens")
    again = train(TrainConfig.load(None, other | {"phases": ["recover"]}), root / "tokens", overwrite=True)
    assert again.recovery.kept is not None and again.recovery.kept.rank == 2 and not again.tokens.visual


def test_directions_are_counted() -> None:
    draw = torch.Generator().manual_seed(0)
    for count in (1, 3, 8):
        assert directions(torch.randn(4000, count, generator=draw) @ torch.linalg.qr(torch.randn(8, 8, generator=draw))[0][:count]) == pytest.approx(
            count, rel=0.02
        )
    assert directions(torch.ones(5, 4)) == 0.0


def test_validation_images_are_others(root: Path, base: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Copies of training images do not judge; where there are no others, recovery stops."""
    data, settings = tmp_path / "data", base | METHODS["merge"] | {"data": str(tmp_path / "data"), "recover.steps": 3}
    shutil.copytree(base["data"], data)
    for folder in (data / "train").iterdir():
        copied = sorted(folder.iterdir())[0]
        shutil.copy(copied, data / "val" / folder.name / f"copy of {copied.name}")
    train(TrainConfig.load(None, settings), tmp_path / "run")
    assert "3 of 15 validation images are training images too" in caplog.text and "training images are of one kind" in caplog.text
    shutil.rmtree(data / "val")
    shutil.copytree(data / "train", data / "val")
    with pytest.raises(DataError, match="all 36 validation images are training images too"):
        train(TrainConfig.load(None, settings), tmp_path / "none")


def test_what_cannot_be_recovered_says_why(root: Path, base: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="predictor,recover"):
        train(TrainConfig.load(None, base | {"phases": ["recover"]}), tmp_path / "no predictor")
    with pytest.raises(DataError, match="has 20 training images, but needs at least 32"):
        train(TrainConfig.load(None, base | METHODS["merge"] | {"train_images": 20}), tmp_path / "few")
    with pytest.raises(ModelError, match=r"loss of recovery is nan in step [1-9] of pass \d+; lower recover.lr, which is 1e\+20"):
        train(TrainConfig.load(None, base | METHODS["merge"] | {"recover.lr": 1e20}), tmp_path / "nan")
    with pytest.raises(ConfigError, match=r"recover.macs_low = 0.9, but it must be at most recover.macs_high = 0.8"):
        TrainConfig.load(None, base | METHODS["merge"] | {"recover.macs_low": 0.9, "recover.macs_high": 0.8})
    with pytest.raises(ConfigError, match="has no predictor"):
        TrainConfig.load(None, base | {"prune.method": "merge", "phases": ["predictor", "recover"]})
