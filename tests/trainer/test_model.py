"""Loading a model: weights that are missing, damaged, of another kind or given twice are one clear error, never random weights."""

import io
import json
import logging
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from local_model import TEXT, VISION, write_model
from safetensors.torch import load_file, save_file
from support import REPO
from torch.nn import functional

from prtool.cli.main import app
from prtool.errors import ConfigError, ModelError
from prtool.spec import Keep
from prtool.trainer.drop_in import apply
from prtool.trainer.models.dual_encoder import check_image_size, load_model
from prtool.trainer.models.loading.libraries import OPEN_CLIP
from prtool.trainer.models.loading.source import canonical_name, canonical_pretrained, resolve

open_clip = pytest.importorskip("open_clip", reason="open_clip makes the models")
from open_clip import factory, pretrained  # noqa: E402

CONFIG = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}
SIGLIP = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def field(monkeypatch, tmp_path):
    """A tiny architecture in open_clip's registry, with a form for QuickGELU; tags are added by the tests."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field", CONFIG)
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field-quickgelu", CONFIG | {"quick_gelu": True})
    monkeypatch.setitem(pretrained._PRETRAINED, "tiny-field", {})
    # Stands for the download.
    monkeypatch.setattr(factory, "download_pretrained", lambda tag: tag["file"])
    return pretrained._PRETRAINED["tiny-field"]


def saved(host: torch.nn.Module, path: Path, **more: torch.Tensor) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.contiguous() for name, tensor in host.state_dict().items()} | more
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    return path


def host_of(quick: bool = True, **more: object) -> torch.nn.Module:
    torch.manual_seed(3)
    model = open_clip.CLIP(**(CONFIG | more), quick_gelu=quick).eval()
    with torch.no_grad():
        # The activation decides more of the embedding where what stands behind it is large.
        for block in model.visual.transformer.resblocks:
            block.mlp.c_proj.weight.mul_(8.0)
    return model


OPENAI_MARKS = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(8), "vocab_size": torch.tensor(49408)}


@pytest.mark.parametrize("way", ["tag", "quickgelu and file", "file where all tags agree", "folder", "file in a folder", "openai's state"])
def test_quickgelu_weights_give_their_own_embeddings(field, tmp_path, way):
    host = host_of()
    folder = tmp_path / "model"
    weights = saved(host, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG | {"quick_gelu": True}}))
    alone = saved(host, tmp_path / "alone.safetensors")
    if way in ("tag", "file where all tags agree"):
        field["openai"] = {"file": str(weights), "quick_gelu": True, **SIGLIP}
    name, given = {
        "tag": ("tiny-field", "openai"),
        "quickgelu and file": ("tiny-field-quickgelu", str(alone)),
        "file where all tags agree": ("tiny-field", str(alone)),
        "folder": (f"local-dir:{folder}", ""),
        "file in a folder": ("tiny-field", str(weights)),
        "openai's state": ("tiny-field", str(saved(host, tmp_path / "openai.pt", **OPENAI_MARKS))),
    }[way]
    model = load_model(name, given)
    torch.manual_seed(4)
    pixels, tokens = torch.randn(3, 3, 32, 32), model.token_ids(["a red dot", "a dog"])
    with torch.no_grad():
        wanted, swapped = (functional.normalize(each.encode_image(pixels), dim=-1) for each in (host, _with_state(host_of(quick=False), host)))
        assert torch.allclose(functional.normalize(model.tower(pixels), dim=-1), wanted, atol=1e-5)
        assert (swapped - wanted).abs().max() > 1e-3
        assert torch.allclose(model.text(tokens), host.encode_text(tokens, normalize=True), atol=1e-6)


def _with_state(model: torch.nn.Module, other: torch.nn.Module) -> torch.nn.Module:
    model.load_state_dict(other.state_dict())
    return model


def test_every_tag_gives_the_activation_that_it_names(monkeypatch):
    monkeypatch.setattr(factory, "download_pretrained", lambda _tag: "weights")
    pairs = [(each, tag) for each in open_clip.list_models() for tag in open_clip.list_pretrained_tags_by_model(each)]
    for name, tag in pairs:
        entry, found = open_clip.get_pretrained_cfg(name, tag), resolve(name, tag)
        assert found.config["quick_gelu"] == (entry.get("quick_gelu") or open_clip.get_model_config(name).get("quick_gelu", False)), (name, tag)
        assert (found.preprocess["mean"], found.preprocess["interpolation"]) == (list(entry["mean"]), entry["interpolation"]), (name, tag)


def test_a_file_that_does_not_name_its_activation_is_noted_once(field, tmp_path, caplog):
    field["openai"], field["laion"] = {"quick_gelu": True, **SIGLIP}, dict(SIGLIP)
    weights = saved(host_of(quick=False), tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING, "prtool"):
        load_model("tiny-field", str(weights))
    assert [record.getMessage() for record in caplog.records if "tiny-field-quickgelu" in record.getMessage()] == [caplog.messages[0]]
    assert len(caplog.messages) == 1


def test_a_command_shows_a_note_once_on_stderr(field, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    field["laion"] = dict(SIGLIP)
    saved(host_of(quick=False), tmp_path / "shown.safetensors")
    arguments = ["train", "--model", "tiny-field", "--pretrained", "shown.safetensors", "--phase", "none", "--location", "2", "-o", "run"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    assert [line.split()[:2] for line in result.stderr.splitlines() if line.startswith("note: ")] == [["note:", "shown.safetensors"]]


def test_a_file_takes_the_preprocessing_of_all_tags(field, tmp_path, caplog):
    weights = str(saved(host_of(), tmp_path / "w.safetensors"))
    field["one"], field["two"] = dict(SIGLIP), dict(SIGLIP)
    agreed = load_model("tiny-field-quickgelu", weights).preprocess
    assert (agreed.mean, agreed.std, agreed.interpolation, agreed.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "bilinear", "squash")
    assert not caplog.messages
    field["two"] = SIGLIP | {"mean": (0.0, 0.0, 0.0)}
    assert load_model("tiny-field-quickgelu", weights).preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert "w.safetensors" in caplog.text


def test_a_file_takes_the_preprocessing_of_the_configuration_next_to_it(field, tmp_path):
    folder = tmp_path / "model"
    weights = saved(host_of(), folder / "w.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}))
    assert load_model("tiny-field", str(weights)).preprocess.mean == (0.1, 0.2, 0.3)


def test_weights_for_images_of_another_size_are_an_error(field, tmp_path):
    other = open_clip.CLIP(16, {**VISION, "image_size": 48}, TEXT)
    with pytest.raises(ModelError, match="37 positions"):
        load_model("tiny-field-quickgelu", str(saved(other, tmp_path / "w.safetensors")))


def test_a_bias_in_the_weights_is_taken_and_one_that_lacks_is_an_error(field, tmp_path, monkeypatch):
    biased = saved(host_of(), tmp_path / "w.safetensors", logit_bias=torch.tensor([-3.5]))
    assert load_model("tiny-field-quickgelu", str(biased)).logit_bias == -3.5
    plain = saved(host_of(), tmp_path / "plain.safetensors")
    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field-quickgelu", CONFIG | {"init_logit_bias": -10})
    with pytest.raises(ModelError, match="logit_bias"):
        load_model("tiny-field-quickgelu", str(plain))


@pytest.mark.parametrize("scale", [float("nan"), 1e6])
def test_a_scale_without_a_finite_value_is_an_error(tmp_path, scale):
    name = write_model(tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    save_file(load_file(weights) | {"logit_scale": torch.tensor(scale)}, weights)
    with pytest.raises(ModelError, match="logit_scale"):
        load_model(name)


def test_a_tokenizer_beyond_the_table_of_the_text_side_is_an_error(tmp_path):
    name = write_model(tmp_path / "model", text={"vocab_size": 30522})
    with pytest.raises(ModelError, match="49407"):
        load_model(name)


def test_byte_pairs_with_a_larger_table_are_noted(tmp_path, caplog):
    load_model(write_model(tmp_path / "model", text={"vocab_size": 50000}))
    assert "50000" in caplog.text


def test_a_torchscript_archive_is_one_line_with_the_conversion(field, tmp_path):
    class Times(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return values * 2

    path = tmp_path / "ViT.pt"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("ViT/constants.pkl", "ViT/data.pkl", "ViT/code/__torch__/model.py"):
            archive.writestr(name, b"x")
    path.write_bytes(content.getvalue())
    with pytest.raises(ModelError, match=r"torch\.jit\.load") as caught:
        load_model("tiny-field", str(path))
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x80\x04not a pickle", None])
def test_damaged_weights_are_an_error(tmp_path, content):
    name, weights = write_model(tmp_path / "model"), tmp_path / "model" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError):
        load_model(name)


@pytest.mark.parametrize("content", [b"", b"\x80\x02not a pickle"])
def test_a_damaged_checkpoint_file_is_an_error(tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pt"):
        load_model("ViT-B-32", str(tmp_path / "weights.pt"))


def test_weights_of_another_model_are_named(field, tmp_path):
    other = open_clip.CLIP(16, {**VISION, "layers": 4}, TEXT)
    with pytest.raises(ModelError, match=r"resblocks\.3"):
        load_model("tiny-field-quickgelu", str(saved(other, tmp_path / "w.safetensors")))


def test_a_pickle_is_not_unpickled(field, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"state_dict": Evil()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="safetensors") as caught:
        load_model("tiny-field", str(tmp_path / "w.pt"))
    assert "weights_only" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_or_with_several_is_an_error(tmp_path):
    name = write_model(tmp_path / "model")
    weights = tmp_path / "model" / "open_clip_model.safetensors"
    weights.rename(weights.with_name("b.safetensors"))
    assert load_model(name).tower.depth == 3
    weights.with_name("a.pth").write_bytes(b"")
    with pytest.raises(ModelError, match=r"a\.pth, b\.safetensors"):
        load_model(name)
    for path in weights.parent.glob("[ab].*"):
        path.unlink()
    with pytest.raises(ModelError):
        load_model(name)


def test_weights_next_to_a_folder_that_brings_its_own_are_an_error(tmp_path):
    with pytest.raises(ModelError, match="pretrained"):
        load_model(write_model(tmp_path / "model"), "openai")


@pytest.mark.parametrize(
    ("name", "pretrained_name", "wanted"),
    [("ViT-B/32", "openai", ("ViT-B-32", "openai")), ("ViT-B-32", "laion400m-e31", ("ViT-B-32", "laion400m_e31"))],
)
def test_spellings_that_open_clip_takes(name, pretrained_name, wanted):
    found = canonical_name(name)
    assert (found, canonical_pretrained(found, pretrained_name)) == wanted


@pytest.mark.parametrize("name", ["vit-b-16", "VIT_B_16", "Vit-b/16"])
def test_names_that_differ_by_case_are_near(name):
    with pytest.raises(ModelError, match="ViT-B-16"):
        load_model(name)


def test_model_folders_by_every_spelling(tmp_path, monkeypatch):
    wanted = write_model(tmp_path / "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for spelling in ("local-dir:~/model", "~/model", "model", "./model", str(tmp_path / "model")):
        assert canonical_name(spelling) == wanted
    with pytest.raises(ModelError, match="nobody-of-this-name"):
        canonical_name("local-dir:~nobody-of-this-name/model")
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        canonical_name("local-dir:")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:../../x", "hf-hub:a/b/c", "hf-hub:/etc"])
def test_what_is_no_repository_is_an_error(name):
    with pytest.raises(ModelError, match="ORG/REPO"):
        canonical_name(name)


def test_warnings_of_model_libraries_become_notes(tmp_path, monkeypatch, caplog):
    import warnings

    build = open_clip.CLIP.__init__

    def noisy(self, *args, **options):
        warnings.warn("numbers may differ", UserWarning, stacklevel=1)
        warnings.warn("renamed in the next release", FutureWarning, stacklevel=1)
        logging.getLogger("timm").warning("positions resized\nand more")
        build(self, *args, **options)

    name = write_model(tmp_path / "model")
    monkeypatch.setattr(open_clip.CLIP, "__init__", noisy)
    load_model(name)
    notes = [record.getMessage() for record in caplog.records if record.name.startswith("prtool")]
    assert [note.split("warns: ")[1] for note in notes] == ["positions resized", "numbers may differ"]


@pytest.mark.parametrize("version", ["4.0.0", "2.32.0", "10.1"])
def test_a_version_of_open_clip_that_is_not_known_is_an_error(monkeypatch, version):
    wanted = re.escape(OPEN_CLIP)
    assert OPEN_CLIP in tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)
    for call in (lambda: load_model("ViT-B-32"), lambda: check_image_size("ViT-B-32", 32), lambda: apply(torch.nn.Identity(), REPO, Keep.ratio(0.5))):
        with pytest.raises(ModelError, match=f"open_clip_torch {version} is installed, but {wanted} is supported; run pip install '{wanted}'"):
            call()


def test_a_prompt_that_is_cut_is_an_error(tmp_path):
    model = load_model(write_model(tmp_path / "model"))
    assert model.token_ids(["a b c d e f"]).shape == (1, 8)
    with pytest.raises(ConfigError, match="a b c d e f g"):
        model.token_ids(["a", "a b c d e f g"])


def test_braces_in_a_class_name_and_a_template_are_text(tmp_path):
    model = load_model(write_model(tmp_path / "model"))
    assert model.class_embeddings(["a{x}", "b"], ["{ {}"]).shape == (2, 16)
