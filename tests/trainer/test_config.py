"""TrainConfig: what a TOML file may say, and that everything it says comes back."""

import tomllib
from dataclasses import fields, is_dataclass

import pytest

from prtool.errors import ConfigError
from prtool.trainer.config import NOTES, TrainConfig, show_config


def write(tmp_path, text):
    path = tmp_path / "prtool.toml"
    path.write_text(text)
    return path


def test_defaults():
    assert TrainConfig.load() == TrainConfig()


def test_a_file_and_overrides(tmp_path):
    path = write(tmp_path, 'model = "ViT-B-32"\ntemplates = ["{} texture."]\n[prune]\nlocations = [3]\n[fit]\nlr = 1\nepochs = 4\n')
    config = TrainConfig.load(path, {"prune.locations": [5], "fit.loss": "kl", "phases": ["rank"], "data": "pets"})
    assert (config.model, config.templates, config.data, config.phases) == ("ViT-B-32", ("{} texture.",), "pets", ("rank",))
    assert (config.prune.locations, config.fit.lr, config.fit.epochs, config.fit.loss) == ((5,), 1.0, 4, "kl")


def test_json_and_back():
    config = TrainConfig.load(None, {"fit.noise": 0.25, "scorer.arch": "mlp", "golden.group": 1, "device": "cpu"})
    assert TrainConfig.from_json(config.to_json()) == config


def test_shown_config_reads_back(tmp_path):
    config = TrainConfig.load(None, {"model": 'a "b" \\ ü', "fit.final_lr": 1e-5, "scorer.norm": False, "templates": ["{} a", "b {}"]})
    assert TrainConfig.load(write(tmp_path, show_config(config))) == config


def test_every_setting_is_explained():
    names = set()
    for item in fields(TrainConfig):
        value = getattr(TrainConfig(), item.name)
        names |= {f"{item.name}.{inner.name}" for inner in fields(value)} if is_dataclass(value) else {item.name}
    assert names == set(NOTES)
    shown = show_config(TrainConfig())
    assert all(note in shown for note in NOTES.values())
    assert set(tomllib.loads(shown)) == {item.name for item in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modle = "x"', "unknown setting 'modle'; near names: model"),
        ("[fit]\nepoch = 3", "unknown setting 'fit.epoch'; near names: epochs"),
        ("[fit]\nxyzzy = 3", "known names: loss, epochs"),
        ('[fit]\nepochs = "3"', "fit.epochs = '3', but it must be a whole number"),
        ("[fit]\nepochs = 3.0", "fit.epochs = 3.0, but it must be a whole number"),
        ("[fit]\nepochs = true", "fit.epochs = True, but it must be a whole number"),
        ("[scorer]\nnorm = 1", "scorer.norm = 1, but it must be true or false"),
        ("templates = 'a {}'", "templates = 'a {}', but it must be a list"),
        ("templates = [3]", r"templates\[0\] = 3, but it must be text"),
        ("templates = ['photo']", "exactly once"),
        ("fit = 3", "fit = 3, but it must be a section"),
        ("phases = ['none', 'tokens']", "none alone"),
        ("[prune]\nrescore = true", r"prune.locations = \[4\]"),
        ("[prune]\nlocations = []", r"prune.locations = \[\]"),
        ("[prune]\nlocations = [0]", r"prune.locations = \[0\]"),
        ("[prune]\nlocations = [6, 4]", r"prune.locations = \[6, 4\]"),
        ("[prune]\nlocations = [4, 6]\ncounts = [118]", r"prune.counts = \[118\]"),
        ("phases = ['learn']", "must be one of rank, predictor, tokens, none"),
        ("phases = ['none', 'rank']", "none alone"),
        ("phases = []", "give some of rank, predictor and tokens"),
        ("device = 'tpu'", "must be one of auto, cpu, cuda"),
        ("train_images = -1", "train_images = -1"),
        ("[scorer]\narch = 'cnn'", "must be one of mix-mlp"),
        ("model = ", "cannot be read as TOML"),
        ("x = " + "[" * 100_000, "cannot be read as TOML"),
        ("x = " + "[" * 20_000, "cannot be read as TOML"),
        ("seed = " + "1" * 5000, "cannot be read as TOML"),
        ("[fit]\nlr = 1" + "0" * 400, "cannot be read as TOML"),
        ("[fit]\nlr = 1" + "0" * 400 + ".0", "cannot be read as TOML"),
        ("[fit]\nlr = nan", "cannot be read as TOML"),
        (".".join("a" * 20_000) + " = 1", "cannot be read as TOML"),
        (".".join("a" * 100_000) + " = 1", "cannot be read as TOML"),
        ("y" * 60_000 + " = 1", "unknown setting 'yyy"),
        ("device = '" + "y" * 60_000 + "'", "device = 'yyy"),
        ("seed = '" + "y" * 60_000 + "'", "seed = 'yyy"),
        ("templates = ['" + "y" * 60_000 + "']", "exactly once"),
        ("[scorer]\narch = '" + "y" * 60_000 + "'", "must be one of mix-mlp"),
        ("[fit]\nloss = '" + "y" * 60_000 + "'", "yyy"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        TrainConfig.load(write(tmp_path, text))
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("value", [float("inf"), 10**400, 2**53 + 1])
def test_numbers_beyond_the_limits_are_rejected_from_python_too(value):
    with pytest.raises(ConfigError, match="cannot be used"):
        TrainConfig.load(None, {"fit.lr": value})


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="--show-config"):
        TrainConfig.load(tmp_path / "none.toml")


def test_an_override_cannot_enter_a_plain_value():
    with pytest.raises(ConfigError, match="section"):
        TrainConfig.load(None, {"model": "x", "model.size": 3})
