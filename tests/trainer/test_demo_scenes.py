import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter
from pretrain_demo import Recipe, cosine_filters, draw_pool, fresh_scenes, main, train_clip, zero_shot_accuracy
from safetensors.numpy import load_file, save_file

from prtool.errors import ConfigError, DataError, ModelError, ShapeError
from prtool.studies.demo.model import MODEL_CONFIG, WEIGHTS, load_weights, save_weights, write_model
from prtool.studies.demo.scenes import (
    CLASS_NAMES,
    COLOURS,
    IMAGE_SIZE,
    SPLITS,
    SceneCounts,
    draw_scene,
    mask_path,
    patch_coverage,
    read_mask,
    write_dataset,
)
from prtool.trainer.models.dual_encoder import DualEncoder, load_model

PURE_HUES = {"red": 0, "orange": 28, "yellow": 56, "green": 130, "blue": 220, "purple": 284}
ACCURACY_FLOOR = 0.95


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_dataset(folder, SceneCounts(train=2, val=1, test=1), seed=5)
    return folder


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip") / "model"
    write_model(folder)
    return folder


@pytest.fixture(scope="module")
def clip(model_folder: Path) -> DualEncoder:
    return load_model(f"local-dir:{model_folder}")


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others() -> None:
    first, again, other = draw_scene(3, 7), draw_scene(3, 7), draw_scene(4, 7)
    assert first.image.tobytes() == again.image.tobytes()
    assert np.array_equal(first.mask, again.mask)
    assert first.image.tobytes() != other.image.tobytes()
    assert draw_scene(3, 8).image.tobytes() != first.image.tobytes()


@pytest.mark.parametrize(("seed", "label"), [(-1, 0), (0, -1), (0, len(CLASS_NAMES))])
def test_a_scene_that_cannot_be_is_refused(seed: int, label: int) -> None:
    with pytest.raises(ConfigError, match="0 to"):
        draw_scene(seed, label)


@pytest.mark.parametrize("label", range(len(CLASS_NAMES)))
def test_the_class_colour_is_inside_the_mask_and_nowhere_else(label: int) -> None:
    scene = draw_scene(11, label)
    assert scene.image.size == (IMAGE_SIZE, IMAGE_SIZE)
    assert scene.mask.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert 0.07 < scene.mask.mean() < 0.24
    mask = Image.fromarray(scene.mask.astype(np.uint8) * 255)
    inner, outer = (np.asarray(mask.filter(kind)) > 0 for kind in (ImageFilter.MinFilter(3), ImageFilter.MaxFilter(3)))
    hue, saturation, value = np.asarray(scene.image.convert("HSV"), dtype=np.float64).transpose(2, 0, 1)
    turn = np.abs(hue / 255.0 * 360.0 - PURE_HUES[CLASS_NAMES[label].split()[0]])
    colourful = (np.minimum(turn, 360.0 - turn) < 14.0) & (saturation > 153) & (value > 90)
    assert colourful[inner].mean() > 0.97
    assert colourful[~outer].mean() < 0.02


def test_shapes_of_one_size_differ_and_reach_every_place() -> None:
    centres = np.array([np.argwhere(draw_scene(seed, 0).mask).mean(axis=0) for seed in range(40)])
    assert centres.min() < 30 and centres.max() > 66
    shares = [draw_scene(seed, label).mask.mean() for seed in range(3) for label in range(8)]
    assert np.std(shares) > 0.02


def test_coverage_equals_a_loop_over_patches() -> None:
    mask = draw_scene(2, 5).mask[:, :72]
    expected = []
    for row in range(12):
        for column in range(6):
            inside = [mask[row * 8 + y, column * 12 + x] for y in range(8) for x in range(12)]
            expected.append(sum(inside) / len(inside))
    assert np.allclose(patch_coverage(mask, (12, 6)), expected)


@pytest.mark.parametrize("grid", [(7, 12), (12, 7), (0, 12)])
def test_coverage_refuses_a_grid_that_does_not_divide_the_mask(grid: tuple[int, int]) -> None:
    with pytest.raises(ShapeError):
        patch_coverage(np.zeros((96, 96), dtype=bool), grid)


def test_the_data_set_is_what_its_split_file_says(dataset: Path) -> None:
    splits = json.loads((dataset / "split_coop.json").read_text())
    assert tuple(splits) == SPLITS
    assert [len(splits[split]) for split in SPLITS] == [2 * len(CLASS_NAMES), len(CLASS_NAMES), len(CLASS_NAMES)]
    listed = {name for split in SPLITS for name, _, _ in splits[split]}
    assert listed == {path.relative_to(dataset).as_posix() for split in SPLITS for path in (dataset / split).rglob("*.png")}
    contents = set()
    for split in SPLITS:
        for name, label, classname in splits[split]:
            assert classname == CLASS_NAMES[label]
            assert name.startswith(f"{split}/{classname.replace(' ', '_')}/")
            contents.add((dataset / name).read_bytes())
    assert len(contents) == len(listed), "an image occurs twice"


def test_masks_of_the_data_set_are_those_of_the_scenes(dataset: Path) -> None:
    image = dataset / "test" / "blue_moon" / "0001.png"
    assert mask_path(image) == dataset / "masks" / "test" / "blue_moon" / "0001.png"
    mask, pixels = read_mask(image), np.asarray(Image.open(image)).astype(int)
    assert mask.dtype == np.bool_ and mask.shape == (IMAGE_SIZE, IMAGE_SIZE)
    assert pixels[mask][:, 2].mean() > pixels[mask][:, 0].mean() + 80
    with pytest.raises(DataError, match="mask"):
        read_mask(dataset / "test" / "blue_moon" / "0009.png")


def test_a_data_set_is_written_the_same_again(dataset: Path, tmp_path: Path) -> None:
    write_dataset(tmp_path / "again", SceneCounts(train=1, val=1, test=1), seed=5)
    for split in SPLITS:
        name = f"{split}/green_ring/0001.png"
        assert (tmp_path / "again" / name).read_bytes() == (dataset / name).read_bytes()


def test_every_split_needs_images() -> None:
    with pytest.raises(ConfigError):
        SceneCounts(train=4, val=0, test=1)


def test_committed_weights_are_small_and_only_arrays() -> None:
    assert WEIGHTS.stat().st_size < 2_000_000
    assert {value.dtype.name for value in load_file(WEIGHTS).values()} == {"float16", "int32"}


def test_the_written_model_is_one_that_open_clip_loads(model_folder: Path) -> None:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model_folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{model_folder}")(["a photo of a red circle."])
    assert tokens.shape == (1, 16)
    used = load_file(model_folder / "open_clip_model.safetensors")["token_embedding.weight"]
    assert np.abs(used[tokens[0, :9].numpy()]).sum(axis=1).min() > 0
    assert np.count_nonzero(np.abs(used).sum(axis=1)) < 100
    assert model.encode_text(tokens).shape == (1, MODEL_CONFIG["model_cfg"]["embed_dim"])
    scene = draw_scene(1, 1)
    expected = torch.from_numpy(np.asarray(scene.image).copy()).permute(2, 0, 1).float() / 127.5 - 1.0
    assert torch.allclose(transform(scene.image), expected, atol=1e-6)
    assert model.encode_image(transform(scene.image)[None]).shape == (1, MODEL_CONFIG["model_cfg"]["embed_dim"])


def test_the_model_names_unseen_scenes(clip: DualEncoder) -> None:
    scenes = [draw_scene(9_000_000 + seed, label) for seed, label in enumerate(np.random.default_rng(0).integers(0, len(CLASS_NAMES), size=60))]
    assert zero_shot_accuracy(clip, scenes) >= ACCURACY_FLOOR


def test_leaving_out_object_patches_changes_the_embedding_most(clip: DualEncoder) -> None:
    """The golden ranking's score by a plain loop: one 2 x 2 group after the other is left out on entry to block 3."""
    wins = []
    for scene in fresh_scenes(1)[::6]:
        pixels = torch.from_numpy(np.asarray(scene.image).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0
        changes = _change_by_group(clip, pixels)
        coverage = patch_coverage(scene.mask, (6, 6))
        on, off = changes[coverage > 0.25], changes[coverage == 0]
        wins.append((on[:, None] > off[None, :]).mean())
    assert np.mean(wins) > 0.95  # the area under the ROC curve


def _change_by_group(clip: DualEncoder, pixels: torch.Tensor) -> np.ndarray:
    with torch.inference_mode():
        tokens = clip.tower.run_pre(pixels, 3)
        without = []
        for row in range(0, 12, 2):
            for column in range(0, 12, 2):
                gone = {1 + (row + y) * 12 + column + x for y in range(2) for x in range(2)}
                without.append(tokens[0, [i for i in range(tokens.shape[1]) if i not in gone]])
        similar = torch.cosine_similarity(clip.tower.run_post(torch.stack(without), 3), clip.tower.run_post(tokens, 3))
    return 1.0 - similar.numpy()


def test_weights_survive_the_compact_form(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    state = {"token_embedding.weight": random.normal(size=(49408, 2)), "proj": random.normal(size=(3, 2))}
    save_weights(tmp_path / "w.safetensors", state, [7, 3, 7], {"note": "test"})
    back = load_weights(tmp_path / "w.safetensors")
    assert set(back) == set(state)
    assert np.array_equal(back["proj"], state["proj"].astype(np.float16).astype(np.float32))
    table = back["token_embedding.weight"]
    assert np.array_equal(table[[3, 7]], state["token_embedding.weight"][[3, 7]].astype(np.float16).astype(np.float32))
    assert np.count_nonzero(table) == 4


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(WEIGHTS.read_bytes()[:5000])
    foreign = tmp_path / "foreign.safetensors"
    save_file({"a": np.zeros(2, dtype=np.float16)}, foreign)
    for path in (cut, foreign, tmp_path / "absent.safetensors"):
        with pytest.raises(ModelError, match="demo weights"):
            write_model(tmp_path / "model", path)
    assert not (tmp_path / "model").exists()


def test_cosine_filters_are_orthonormal() -> None:
    filters = cosine_filters(8, 96).flatten(1)
    assert filters.shape == (96, 192)
    assert torch.allclose(filters @ filters.T, torch.eye(96), atol=1e-5)


def test_the_pool_holds_the_drawn_scenes() -> None:
    pool = draw_pool(1, seed=2)
    assert pool.labels.tolist() == list(range(len(CLASS_NAMES)))
    pixels, cells, labels = pool.batch(torch.tensor([3]), mirrored=True)
    scene = draw_scene(2 << 20, 3)
    expected = np.asarray(scene.image)[:, ::-1].transpose(2, 0, 1) / 127.5 - 1.0
    assert np.allclose(pixels[0].numpy(), expected, atol=1e-6)
    assert np.allclose(cells[0].mean(dim=1).numpy(), patch_coverage(scene.mask[:, ::-1], (12, 12)), atol=1e-6)
    quarter = scene.mask[:, ::-1][40:44, 52:56].mean()  # the upper right cell of patch (5, 6)
    assert cells[0, 5 * 12 + 6, 1].item() == pytest.approx(quarter)
    assert labels.tolist() == [3]


def test_the_program_writes_the_weights_that_the_recipe_gives(tmp_path: Path) -> None:
    out = tmp_path / "w.safetensors"
    result = CliRunner().invoke(main, ["--out", str(out), *["--seed", "1", "--steps", "1", "--batch", "4", "--rounds", "1", "--threads", "1"]])
    assert result.exit_code == 0, result.output
    assert "scenes" in result.output
    again, written = train_clip(Recipe(seed=1, steps=1, batch=4, rounds=1)).state_dict(), load_weights(out)
    assert set(again) == set(written)
    for name in set(again) - {"token_embedding.weight"}:
        assert np.array_equal(again[name].half().float().numpy(), written[name]), name


def test_recipe_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match=r"steps.*batch"):
        Recipe(steps=0)


def test_colours_are_told_apart_by_hue() -> None:
    assert set(PURE_HUES) == set(COLOURS)
