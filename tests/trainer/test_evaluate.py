"""Evaluation against a plain loop over single images, on a tiny seeded tower and drawn images."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from towers import open_clip_visual, timm_visual

from prtool.errors import ConfigError, KeepError, ShapeError, StorageError
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep, Preprocess
from prtool.trainer.config import TrainConfig
from prtool.trainer.data.images import ImageSet
from prtool.trainer.data.load import load_split
from prtool.trainer.evaluation import evaluate as module
from prtool.trainer.evaluation.baselines.random_ import Random
from prtool.trainer.evaluation.evaluate import EvalConfig, Pruner, evaluate, evaluate_run
from prtool.trainer.evaluation.plots import plot_evaluation
from prtool.trainer.models.dual_encoder import DualEncoder, TextTower
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.predictor import PatchScorer, ScorerConfig, make_scorer
from prtool.trainer.models.tower import VisionTower
from prtool.trainer.objectives.golden import GoldenConfig
from prtool.trainer.settings import PruneConfig
from prtool.trainer.train import train

LOCATION, SIDE, CELL, IMAGES = 2, 64, 16, 12
KEEPS = (Keep.ratio(1.0), Keep.ratio(0.5), Keep.count(3))
METHODS = ("golden", "patch-ranking", "cls-attention", "random")


def model_of(tower: VisionTower) -> DualEncoder:
    return DualEncoder(
        name="local-dir:tiny",
        pretrained="",
        tower=tower,
        text=TextTower(nn.Identity()),
        tokenizer=lambda _: torch.empty(0),
        preprocess=Preprocess((SIDE, SIDE), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        logit_scale=20.0,
        logit_bias=0.0,
        weights_sha256="0" * 64,
        context_length=8,
        native=tower,
    )


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    return model_of(tower_of(open_clip_visual("cls")))


@pytest.fixture(scope="module")
def scorer(model: DualEncoder) -> PatchScorer:
    torch.manual_seed(4)
    return make_scorer(ScorerConfig(channels=16, heads=2), model.tower.width, 16, 1)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageSet, np.ndarray]:
    """A bright square of 2 x 2 cells in its class's colour among darker cells of any colour, and the right ranking: the square first."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    rows = []
    for number in range(IMAGES):
        colours = np.eye(3)[rng.integers(0, 3, (4, 4))] * 150
        top, left = rng.integers(0, 3, 2)
        colours[top : top + 2, left : left + 2] = np.eye(3)[number % 3] * 255
        Image.fromarray(colours.repeat(CELL, 0).repeat(CELL, 1).astype(np.uint8)).save(root / f"{number}.png")
        rows.append(np.argsort(-colours.max(axis=-1).flatten(), kind="stable"))
    paths = tuple(f"{number}.png" for number in range(IMAGES))
    return ImageSet(root, paths, tuple(number % 3 for number in range(IMAGES)), ("red", "green", "blue")), np.stack(rows).astype(np.int16)


@pytest.fixture(scope="module")
def images(scenes: tuple[ImageSet, np.ndarray]) -> ImageSet:
    return scenes[0]


@pytest.fixture(scope="module")
def object_first(scenes: tuple[ImageSet, np.ndarray]) -> np.ndarray:
    return scenes[1]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch, object_first: np.ndarray) -> None:
    monkeypatch.setattr(module, "rank_images", lambda *_: SimpleNamespace(ranking=torch.from_numpy(object_first)))


@pytest.fixture(scope="module")
def classes(model: DualEncoder, images: ImageSet, object_first: np.ndarray) -> Tensor:
    """A class is what the encoder makes of its objects alone."""
    alone = torch.cat([encode_one(model, images, index, object_first[index, :4]) for index in range(IMAGES)])
    return functional.normalize(torch.stack([alone[label::3].mean(dim=0) for label in range(3)]), dim=-1)


def pruner_of(scorer: PatchScorer | None, model: DualEncoder, trained: bool = True) -> Pruner:
    return Pruner(model.tower.prune_spec((LOCATION,)), () if scorer is None else (scorer,), trained, GoldenConfig())


@torch.no_grad()
def encode_one(model: DualEncoder, images: ImageSet, index: int, kept: np.ndarray) -> Tensor:
    """One image through the host's own blocks, with its patches dropped by hand."""
    tower = model.tower
    tokens = tower.embed(torch.from_numpy(prepare(images.file(index), model.preprocess))[None])
    for number, block in enumerate(tower.blocks, start=1):
        if number == LOCATION:
            tokens = torch.cat([tokens[:, :1], tokens[:, 1 + kept.astype(np.int64)]], dim=1)
        tokens = block(tokens)
    return functional.normalize(tower.head(tokens), dim=-1)


@torch.no_grad()
def scores_one(method: str, model: DualEncoder, scorer: PatchScorer, images: ImageSet, index: int) -> np.ndarray:
    tokens = model.tower.run_pre(torch.from_numpy(prepare(images.file(index), model.preprocess))[None], LOCATION)
    if method == "patch-ranking":
        return scorer(tokens)[0].numpy()
    if method == "random":
        return np.random.RandomState([7, index]).random_sample(16)
    block = model.tower.blocks[LOCATION - 1]
    return block.attn(*[block.ln_1(tokens)] * 3, need_weights=True)[1][0, 0, 1:].numpy()


@pytest.mark.usefixtures("ranked")
def test_every_figure_equals_a_plain_loop(
    model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor, object_first: np.ndarray
) -> None:
    config = EvalConfig(keeps=KEEPS, methods=METHODS, seed=7, batch=5)
    report = evaluate(model, pruner_of(scorer, model), images, classes, config)
    assert len({row.accuracy for row in report.rows}) > 3
    full = [encode_one(model, images, index, np.arange(16)) for index in range(IMAGES)]
    assert report.unpruned.accuracy == pytest.approx(accuracy_of(full, classes, images))
    assert [row.method for row in report.rows] == ["unpruned", *(name for name in METHODS for _ in KEEPS)]
    for method in METHODS:
        orders = object_first if method == "golden" else np.stack([order_of(scores_one(method, model, scorer, images, i)) for i in range(IMAGES)])
        for row, k in zip(report.of(method), (16, 8, 3), strict=True):
            embeddings = [encode_one(model, images, index, orders[index, :k]) for index in range(IMAGES)]
            assert row.keep == {16: 1.0, 8: 0.5, 3: 3 / 16}[k]
            assert row.images == IMAGES
            assert row.accuracy == pytest.approx(accuracy_of(embeddings, classes, images)), (method, k)
            assert row.cosine == pytest.approx(np.mean([float((a * b).sum()) for a, b in zip(embeddings, full, strict=True)]), abs=1e-5)
            shared = [len(set(orders[i, :k]) & set(object_first[i, :k])) / k for i in range(IMAGES)]
            assert row.matching_rate == pytest.approx(np.mean(shared))


def order_of(scores: np.ndarray) -> np.ndarray:
    return np.array(sorted(range(len(scores)), key=lambda patch: (-scores[patch], patch)))


def accuracy_of(embeddings: list[Tensor], classes: Tensor, images: ImageSet) -> float:
    hits = [int((embedding @ classes.T).argmax()) == label for embedding, label in zip(embeddings, images.labels, strict=True)]
    return 100 * sum(hits) / len(hits)


@pytest.mark.usefixtures("ranked")
def test_the_oracle_beats_random(model: DualEncoder, images: ImageSet, classes: Tensor) -> None:
    config = EvalConfig(keeps=(Keep.count(4),), methods=("golden", "random"))
    report = evaluate(model, pruner_of(None, model), images, classes, config)
    golden, random = report.of("golden")[0], report.of("random")[0]
    assert golden.accuracy == 100.0 > random.accuracy
    assert golden.matching_rate == 1.0
    assert random.matching_rate == pytest.approx(0.25, abs=0.2)


def test_results_do_not_depend_on_the_batch(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    reports = [evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=KEEPS, batch=batch)) for batch in (1, 5, 32)]
    for report in reports[1:]:
        for row, other in zip(report.rows, reports[0].rows, strict=True):
            assert (row.method, row.keep, row.accuracy, row.gmacs) == (other.method, other.keep, other.accuracy, other.gmacs)
            assert row.cosine == pytest.approx(other.cosine, abs=1e-6)


def test_only_the_kept_patches_are_computed(
    model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences are physically shorter, and a keep of 1.0 costs no pass of its own."""
    lengths, finish = [], type(model.tower).run_post

    def spy(tower: VisionTower, tokens: Tensor, location: int) -> Tensor:
        lengths.append(tokens.shape[1])
        return finish(tower, tokens, location)

    monkeypatch.setattr(type(model.tower), "run_post", spy)
    evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=KEEPS, methods=("patch-ranking", "random")))
    assert lengths == [17, 9, 4, 9, 4]


def test_costs_are_the_specs(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    report = evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=KEEPS, methods=("patch-ranking", "random")))
    spec, cost = model.tower.prune_spec((LOCATION,)), model.tower.cost()
    assert report.unpruned.gmacs == cost.full_gmacs(spec)
    assert [row.gmacs for row in report.of("random")] == [cost.pruned_gmacs(spec, spec.counts(keep)) for keep in KEEPS]
    assert [row.gmacs for row in report.of("patch-ranking")] == pytest.approx(
        [cost.pruned_gmacs(spec, spec.counts(keep)) + scorer.macs() / 1e9 for keep in KEEPS]
    )


def test_the_json_form(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    """Names that other programs read: a change here is a change of the public interface."""
    report = evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",), images=5, seed=3))
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    facts = [
        "model",
        "pretrained",
        "weights_sha256",
        "data",
        "split",
        "seed",
        "locations",
        "patches",
        "predictor_trained",
        "seen_images",
        "seen_paths",
        "retrieval_images",
        "texts",
        "prune_method",
        "accuracy_by",
    ]
    assert list(value) == ["results", *facts, "notes"]
    columns = ["method", "keep", "accuracy", "images", "gmacs", "matching_rate", "cosine", "lost", "won", "image_size"]
    columns += ["overlap_own", "overlap_cross", "text_to_image", "image_to_text", "macs_share", "drop", "drop_low", "drop_high"]
    assert [list(row) for row in value["results"]] == [columns] * 2
    assert [(row["method"], row["keep"], row["images"], row["matching_rate"]) for row in value["results"]] == [
        ("unpruned", 1.0, 5, None),
        ("random", 0.5, 5, None),
    ]
    values = [value[name] for name in ("model", "data", "split", "seed", "locations", "patches", "predictor_trained")]
    assert values == ["local-dir:tiny", str(images.root), "test", 3, [LOCATION], 16, True]


def test_the_table_names_every_row(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    methods = ("patch-ranking", "cls-attention", "random")
    report = evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=KEEPS, methods=methods))
    columns, rows = report.table()
    assert len(rows) == 1 + 3 * 3
    assert all(len(row) == len(columns) for row in rows)
    places = {name: columns.index(name) for name in ("method", "keep", "px", "MACs %", "accuracy %", "cosine", "overlap own/cross")}
    assert [rows[0][place] for place in places.values()] == [
        "unpruned",
        "1.0",
        "64",
        "100.0",
        f"{report.unpruned.accuracy:.1f}",
        "1.0000",
        "1.000/1.000",
    ]
    assert [row[1] for row in rows[1:]] == [keep for keep in ("1.0", "0.5", "0.1875") for _ in range(3)], "methods of equal cost stand together"
    shares = [float(row[places["MACs %"]]) for row in rows[1:]]
    assert shares == sorted(shares, reverse=True)


def test_notes_say_what_the_figures_do_not(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    def notes(trained: bool, methods: tuple[str, ...]) -> str:
        config = EvalConfig(keeps=(Keep.ratio(0.5),), methods=methods)
        return " / ".join(evaluate(model, pruner_of(scorer, model, trained), images, classes, config).notes)

    assert "untrained" in notes(False, ("patch-ranking",))
    assert "untrained" not in notes(True, ("patch-ranking",))
    assert "untrained" not in notes(False, ("random",))


@pytest.mark.usefixtures("ranked")
def test_the_oracle_is_called_one(model: DualEncoder, images: ImageSet, classes: Tensor) -> None:
    notes = evaluate(model, pruner_of(None, model), images, classes, EvalConfig(keeps=(Keep.ratio(0.5),), methods=("golden",))).notes
    assert any("oracle" in note for note in notes)


@pytest.fixture
def untrained(tmp_path: Path) -> TrainConfig:
    """Phase none on a tiny CLIP in open_clip's own form."""
    import open_clip

    vision = {"image_size": SIDE, "layers": 3, "width": 64, "head_width": 32, "patch_size": CELL}
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    clip = open_clip.CLIP(embed_dim=32, vision_cfg=vision, text_cfg=text)
    (tmp_path / "model").mkdir()
    save_file({name: tensor.contiguous() for name, tensor in clip.state_dict().items()}, tmp_path / "model" / "open_clip_model.safetensors")
    settings = {"model_cfg": {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(settings))
    return TrainConfig(
        model=f"local-dir:{tmp_path / 'model'}",
        phases=("none",),
        device="cpu",
        golden=GoldenConfig(group=2),
        prune=PruneConfig(locations=(LOCATION,)),
    )


def test_a_run_is_evaluated_as_it_was_trained(untrained: TrainConfig, images: ImageSet, tmp_path: Path) -> None:
    entries = [[path, label, images.classnames[label]] for path, label in zip(images.paths, images.labels, strict=True)]
    (images.root / "split_coop.json").write_text(json.dumps({"train": entries[:6], "val": [], "test": entries[6:]}))
    run = tmp_path / "run"
    checkpoint = train(dataclasses.replace(untrained, data=str(images.root)), run)
    config = EvalConfig(keeps=KEEPS, methods=METHODS)
    report = evaluate_run(run, None, config)
    model = checkpoint.load_model()
    test = load_split(images.root, "test")
    classes = model.class_embeddings(images.classnames, checkpoint.templates)
    expected = evaluate(model, Pruner(checkpoint.prune, (checkpoint.scorers()[0],), False, GoldenConfig(group=2)), test, classes, config)
    assert report.rows == expected.rows
    assert report.locations == (LOCATION,)
    assert report.unpruned.images == 6
    assert any("untrained" in note for note in report.notes)
    again = evaluate_run(run, images.root, config)
    assert again.rows == report.rows


def test_a_run_is_evaluated_on_captions(untrained: TrainConfig, images: ImageSet, tmp_path: Path) -> None:
    """A CSV file with captions and no labels, as `--data` takes it; recall against a plain loop with the model's own tokenizer."""
    checkpoint = train(untrained, tmp_path / "run")
    rows = [
        f"{path},a {images.classnames[label]} square {number},test"
        for number, (path, label) in enumerate(zip(images.paths, images.labels, strict=True))
    ]
    (images.root / "captions.csv").write_text("\n".join(["path,caption,split", *rows, f"{images.paths[3]},something,test"]))
    report = evaluate_run(tmp_path / "run", images.root / "captions.csv", EvalConfig(keeps=(Keep.ratio(1.0),)))
    assert report.methods == ("patch-ranking", "merge", "smaller-image", "random")
    assert (report.texts, report.unpruned.accuracy, report.unpruned.lost) == ("captions", None, None)
    model = checkpoint.load_model()
    captions, owners = [*(row.split(",")[1] for row in rows), "something"], [*range(IMAGES), 3]
    with torch.no_grad():
        texts = model.text(model.tokenizer(captions)).numpy()
    vectors = torch.cat([encode_one(model, images, index, np.arange(16)) for index in range(IMAGES)]).numpy()
    first = [int(np.argmax(vectors @ text)) == owner for text, owner in zip(texts, owners, strict=True)]
    five = [owner in np.argsort(-(vectors @ text))[:5] for text, owner in zip(texts, owners, strict=True)]
    assert report.unpruned.text_to_image == pytest.approx((100 * np.mean(first), 100 * np.mean(five), report.unpruned.text_to_image[2]))
    assert report.unpruned.image_to_text[0] == pytest.approx(100 * np.mean([owners[int(np.argmax(texts @ v))] == i for i, v in enumerate(vectors)]))


def test_a_run_without_data_asks_for_it(untrained: TrainConfig, tmp_path: Path) -> None:
    train(untrained, tmp_path / "run")
    with pytest.raises(ConfigError, match="--data"):
        evaluate_run(tmp_path / "run", None, EvalConfig())


BAD: list[tuple[Callable[[], EvalConfig], str]] = [
    (lambda: EvalConfig(methods=("evit-2",)), "must be one of patch-ranking, .*merge, smaller-image, tome, .*golden"),
    (lambda: EvalConfig(methods=("random", "random")), "random"),
    (lambda: EvalConfig(methods=()), "methods"),
    (lambda: EvalConfig(keeps=()), "keep"),
    (lambda: EvalConfig(split="dev"), "train, val, test"),
    (lambda: EvalConfig(batch=0), "batch"),
    (lambda: EvalConfig(images=-1), "images"),
    (lambda: EvalConfig(seed=-1), "seed = -1"),
    (lambda: EvalConfig(retrieval_images=-1), "retrieval_images = -1"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[text for _, text in BAD])
def test_settings_that_cannot_be_used(make: Callable[[], EvalConfig], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_does_not_fit_is_refused_before_any_work(
    model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("images were ranked although the call could not succeed")

    monkeypatch.setattr(module, "rank_images", never)
    ready = pruner_of(scorer, model)
    with pytest.raises(ConfigError, match=r"0\.5 = 8.*8 = 8"):
        evaluate(model, ready, images, classes, EvalConfig(keeps=(Keep.ratio(0.5), Keep.count(8))))
    with pytest.raises(KeepError, match="16"):
        evaluate(model, ready, images, classes, EvalConfig(keeps=(Keep.count(17),)))
    with pytest.raises(ShapeError, match=r"\(3, 32\)"):
        evaluate(model, ready, images, classes[:2], EvalConfig())
    with pytest.raises(ConfigError, match="predictor"):
        evaluate(model, pruner_of(None, model), images, classes, EvalConfig(methods=("golden", "patch-ranking")))
    siglip = model_of(tower_of(timm_visual("siglip")))
    with pytest.raises(ConfigError, match="class token"):
        evaluate(siglip, pruner_of(scorer, siglip), images, torch.zeros(3, 64), EvalConfig(methods=("golden", "cls-attention")))


def test_random_weights_are_told(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    random = dataclasses.replace(model, name="ViT-B-16")
    report = evaluate(random, pruner_of(scorer, model), images, classes, EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",)))
    assert any("random weights" in note for note in report.notes)


def test_a_subset_is_drawn_by_the_seed(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor) -> None:
    config = EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",), images=6, seed=2)
    part = evaluate(model, pruner_of(scorer, model), images, classes, config)
    whole = evaluate(model, pruner_of(scorer, model), images.take(6, 2), classes, EvalConfig(keeps=config.keeps, methods=config.methods, seed=2))
    assert part.rows == whole.rows
    assert Random(2).seed == config.seed


@pytest.mark.usefixtures("ranked")
def test_the_picture_is_a_png(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor, tmp_path: Path) -> None:
    report = evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=KEEPS, methods=METHODS))
    plot_evaluation(report, tmp_path / "new" / "accuracy.png")
    with Image.open(tmp_path / "new" / "accuracy.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00), (0x77, 0x77, 0x77)} <= colours
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["accuracy.png"]


def test_a_picture_that_cannot_be_written(model: DualEncoder, scorer: PatchScorer, images: ImageSet, classes: Tensor, tmp_path: Path) -> None:
    report = evaluate(model, pruner_of(scorer, model), images, classes, EvalConfig(keeps=(Keep.ratio(0.5),), methods=("random",)))
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        plot_evaluation(report, tmp_path / "file" / "accuracy.png")
