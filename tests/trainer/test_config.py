"""TrainConfig: what a TOML file may say, and that everything it says comes back."""

import tomllib
from dataclasses import fields, is_dataclass

import pytest

from prtool.errors import ConfigError
from prtool.records import meanings
from prtool.trainer.config import TrainConfig, show_config


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


def test_every_setting_is_explained_and_shown():
    config, notes = TrainConfig(), meanings(TrainConfig)
    names = set()
    for item in fields(TrainConfig):
        value = getattr(config, item.name)
        names |= {f"{item.name}.{inner.name}" for inner in fields(value)} if is_dataclass(value) else {item.name}
    assert names == set(notes)
    shown = show_config(config)
    assert all(note in shown for note in notes.values())
    assert set(tomllib.loads(shown)) == {item.name for item in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("golden.score", "x"), ("golden.precision", "fp8"), ("golden.group", 0), ("golden.step", -1), ("golden.memory_mb", 0)),
        *(("scorer.heads", 0), ("scorer.heads", 7), ("scorer.checkerboard", 10.5), ("scorer.auxiliary", ["norm", "norm"])),
        *(("fit.epochs", 0), ("fit.lr", -1.0), ("fit.match_at", -1), ("distill.keep_low", 0.0), ("distill.keep_low", 0.9)),
        *(("distill.keep_high", 1.0), ("distill.floor", 0.0), ("distill.temperature", 1.5), ("tokens.keep", 0.0), ("tokens.momentum", 1.0)),
        *(("tokens.visual", 0), ("seed", 2**32), ("phases", ["rank", "rank"])),
    ],
)
def test_values_outside_their_limits_are_named(name, value):
    with pytest.raises(ConfigError, match=name) as caught:
        TrainConfig.load(None, {name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('modle = "x"', r"modle.*model"),
        ("[fit]\nepoch = 3", r"fit.epoch'.*epochs"),
        ("[fit]\nxyzzy = 3", r"xyzzy.*loss, epochs"),
        ('[fit]\nepochs = "3"', "fit.epochs = '3'"),
        ("[fit]\nepochs = 3.0", "fit.epochs = 3.0"),
        ("[fit]\nepochs = true", "fit.epochs = True"),
        ("[scorer]\nnorm = 1", "scorer.norm = 1"),
        ("templates = 'a {}'", "templates = 'a {}'"),
        ("templates = [3]", r"templates\[0\] = 3"),
        ("templates = ['photo']", "templates"),
        ("fit = 3", "fit = 3"),
        ("phases = ['none', 'tokens']", "none"),
        ("[prune]\nrescore = true", r"locations \[4\]"),
        ("[prune]\nlocations = []", r"prune.locations = \[\]"),
        ("[prune]\nlocations = [0]", r"prune.locations = \[0\]"),
        ("[prune]\nlocations = [6, 4]", r"prune.locations = \[6, 4\]"),
        ("[prune]\nlocations = [4, 6]\ncounts = [118]", r"prune.counts = \[118\]"),
        ("phases = ['learn']", r"learn.*rank, predictor, recover, tokens, none"),
        ("phases = ['none', 'rank']", "none"),
        ("phases = ['none', 'rank']", "rank, predictor, recover and tokens"),
        ("phases = ['predictor']\n[prune]\nmethod = 'merge'", "merge"),
        ("[prune]\nmethod = 'none'", "image_size"),
        ("[prune]\nmethod = 'drop'", "merge"),
        ("[prune]\nmethod = 'merge'\nlocations = [3, 4, 5]", "3, 4, 5"),
        ("image_size = -14", "-14"),
        ("device = 'tpu'", r"tpu.*auto, cpu, cuda"),
        ("train_images = -1", "train_images = -1"),
        ("[scorer]\narch = 'cnn'", "mix-mlp"),
        ("model = ", "TOML"),
        ("x = " + "[" * 100_000, "TOML"),
        ("x = " + "[" * 20_000, "TOML"),
        ("seed = " + "1" * 5000, "TOML"),
        ("[fit]\nlr = 1" + "0" * 400, "TOML"),
        ("[fit]\nlr = 1" + "0" * 400 + ".0", "TOML"),
        ("[fit]\nlr = nan", "TOML"),
        (".".join("a" * 20_000) + " = 1", "TOML"),
        (".".join("a" * 100_000) + " = 1", "TOML"),
        ("y" * 60_000 + " = 1", "'yyy"),
        ("device = '" + "y" * 60_000 + "'", "device = 'yyy"),
        ("seed = '" + "y" * 60_000 + "'", "seed = 'yyy"),
        ("templates = ['" + "y" * 60_000 + "']", "templates"),
        ("[scorer]\narch = '" + "y" * 60_000 + "'", "mix-mlp"),
        ("[fit]\nloss = '" + "y" * 60_000 + "'", "yyy"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        TrainConfig.load(write(tmp_path, text))
    assert len(str(caught.value)) <= 1000


@pytest.mark.parametrize("value", [float("inf"), 10**400, 2**53 + 1])
def test_numbers_beyond_the_limits_are_rejected_from_python_too(value):
    with pytest.raises(ConfigError):
        TrainConfig.load(None, {"fit.lr": value})


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ConfigError, match="--show-config"):
        TrainConfig.load(tmp_path / "none.toml")


def test_an_override_cannot_enter_a_plain_value():
    with pytest.raises(ConfigError, match="section"):
        TrainConfig.load(None, {"model": "x", "model.size": 3})


@pytest.mark.parametrize(
    ("given", "phases"),
    [
        ({}, ("predictor", "recover")),
        ({"prune.method": "merge", "data": "photos"}, ("recover",)),
        ({"prune.method": "merge"}, ("none",)),
        ({"prune.method": "none", "image_size": 168, "data": "photos"}, ("recover",)),
        ({"phases": ["predictor"], "data": "photos"}, ("predictor",)),
    ],
)
def test_recovery_is_part_of_training_wherever_there_are_images(given: dict[str, object], phases: tuple[str, ...]) -> None:
    assert TrainConfig.load(None, given).phases == phases
