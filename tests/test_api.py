"""The public API: its names, and that a command and its function agree in names and defaults."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from api_page import PAGE, page
from PIL import Image
from support import REPO, settable

import prtool
from prtool import api
from prtool.cli.main import app
from prtool.engines.base import BuildOptions, EngineOptions
from prtool.errors import PrtoolError
from prtool.export.layouts.plan import LAYOUTS, PIXELS
from prtool.runtime.bench import BenchConfig
from prtool.runtime.encoder import Encoder
from prtool.spec import Keep
from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, write_dataset
from prtool.studies.tune.config import TuneConfig
from prtool.trainer.config import PRESETS, TrainConfig
from prtool.trainer.data.images import SPLITS
from prtool.trainer.evaluation.config import EvalConfig
from prtool.trainer.settings import GOLDEN, METHOD_NAMES

NAMES = """
train evaluate tune export_bundle write_layout apply verify benchmark build list_engines
Encoder Bundle Manifest Keep PatchTokens Prediction EngineOptions BuildOptions EngineInfo EngineStatus TrainConfig Progress
TrainReport EvalReport TuneReport ExportReport LayoutReport VerifyResult BenchReport BuildReport
PrtoolError ConfigError KeepError ShapeError DataError ImageError ModelError CheckpointError BundleError
ParityError EngineError EngineUnavailable StorageError InputWarning __version__
"""
VERBS: dict[str, Callable[..., object]] = {
    "train": prtool.train,
    "eval": prtool.evaluate,
    "tune": prtool.tune,
    "export": prtool.export_bundle,
    "verify": prtool.verify,
    "bench": prtool.benchmark,
    "build": prtool.build,
}
ALWAYS_FREE = {"help", "as_json", "settings", "output", "show_config"}
"""What a command may have on top of its nine options: -h, --json, --set, -o and --show-config."""
OF_A_LAYOUT = ("layout", "pixels")
"""The options of export that are `write_layout`'s."""
LAYOUT_CHOICES = (("export", "layout", LAYOUTS), ("export", "pixels", PIXELS))


def test_the_public_names() -> None:
    """A change here is a change of the public interface: say so in the changelog."""
    assert sorted(prtool.__all__) == sorted(NAMES.split())
    assert set(prtool.__all__) == set(dir(prtool))
    for name in prtool.__all__:
        assert getattr(prtool, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        prtool.nonsense  # noqa: B018 - the access is what is tested


def test_every_error_is_public() -> None:
    kinds = [PrtoolError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    assert {kind.__name__ for kind in kinds if kind.__module__ == "prtool.errors"} <= set(prtool.__all__)


def test_type_checkers_see_the_names_that_are_loaded() -> None:
    tree = ast.parse(Path(prtool.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {node.module: tuple(alias.name for alias in node.names) for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == prtool._HOMES


def parameters_of(command: str) -> dict[str, click.Parameter]:
    return {str(item.name): item for item in app.commands[command].params}


@pytest.mark.parametrize("command", VERBS)
def test_a_command_has_the_parameters_and_defaults_of_its_function(command: str) -> None:
    wanted = {name: item.default for name, item in inspect.signature(VERBS[command]).parameters.items() if name != "progress"}
    found = parameters_of(command)
    others = set(OF_A_LAYOUT) if command == "export" else set()
    assert set(found) - {"as_json", "show_config"} - others == set(wanted)
    for name, default in wanted.items():
        option = found[name]
        if default is inspect.Parameter.empty:
            assert option.required
        elif name != "settings":
            given = option.default if not isinstance(option.default, Path) else str(option.default)
            assert given in (default, None if default in (None, ()) else default), name


def test_export_takes_what_write_layout_takes() -> None:
    function, command = inspect.signature(prtool.write_layout).parameters, parameters_of("export")
    assert set(function) - {"source", "progress"} == set(command) - {"run", "as_json", "patch_tokens"}
    assert not command["layout"].required  # without one, a bundle is written
    assert command["pixels"].default == function["pixels"].default
    assert command["precision"].default == (function["precision"].default,)


@pytest.mark.parametrize("command", sorted(app.commands))
def test_a_command_has_at_most_nine_options(command: str) -> None:
    """Further settings of a command go to --set."""
    options = [item for item in app.commands[command].params if isinstance(item, click.Option) and item.name not in ALWAYS_FREE]
    assert len(options) <= 9, [item.name for item in options]


@pytest.mark.parametrize("name", ["bundle", "run", "data", "keep", "batch", "engine", "precision", "mode", "threads", "device"])
def test_an_option_of_several_commands_means_the_same_in_each(name: str) -> None:
    """One help text, but for its default and for whether it takes a list."""
    texts = {
        re.split(r";|  \[", str(item.help))[0].rstrip(".")
        for command in app.commands.values()
        for item in command.params
        if isinstance(item, click.Option) and item.name == name and command.name not in ("reproduce",)
    }
    special = {
        "batch": {"Images per call: one number, or the least, the optimal and the largest"},
        "mode": {"Of fused (one graph) and split (two, with the selection between them)"},
    }
    assert len(texts - special.get(name, set())) == 1, texts


def test_defaults_of_commands_that_use_an_encoder() -> None:
    load, options, given = inspect.signature(Encoder.load).parameters, EngineOptions(), parameters_of("classify")
    for name in ("engine", "precision", "mode"):
        assert given[name].default == load[name].default
    assert (given["threads"].default, given["device"].default) == (options.threads, options.device)
    assert given["top"].default == inspect.signature(Encoder.classify).parameters["top"].default


def test_defaults_of_functions_are_those_of_their_configurations() -> None:
    for verb, kind, names in (
        (prtool.evaluate, EvalConfig, {"split": "split", "images": "images", "method": "methods", "keep": "keeps"}),
        (prtool.tune, TuneConfig, {"engine": "engine", "precision": "precision", "batch": "batch", "keep": "keeps", "location": "locations"}),
        (
            prtool.benchmark,
            BenchConfig,
            {"engine": "engines", "precision": "precisions", "batch": "batches", "keep": "keeps", "mode": "modes", "threads": "threads"},
        ),
    ):
        fields = {item.name: item.default for item in dataclasses.fields(kind)}
        for name, field in names.items():
            default = inspect.signature(verb).parameters[name].default
            found, wanted = (tuple(map(Keep.of, value)) if field == "keeps" and value else value for value in (fields[field], default))
            assert found == wanted, (verb, name)
    batch = BuildOptions().batch
    assert inspect.signature(prtool.build).parameters["batch"].default == tuple(dataclasses.astuple(batch))


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("eval", [EvalConfig]),
        ("tune", [TuneConfig]),
        ("bench", [BenchConfig]),
        ("build", [BuildOptions, EngineOptions]),
        *((name, [EngineOptions]) for name in ("verify", "embed", "classify", "show")),
    ],
)
def test_the_settings_that_help_names_exist_and_nothing_is_lost(command: str, kinds: list[type]) -> None:
    options = parameters_of(command)
    shown = str(getattr(options["settings"], "help")).removeprefix("Further settings: ").rstrip(".").split(", ")  # noqa: B009
    known = set().union(*map(settable, kinds))
    assert {name for name in shown if not name.endswith(".*") and name not in known} == set()
    assert all(any(item.startswith(name[:-1]) for item in known) for name in shown if name.endswith(".*"))
    assert set(options).isdisjoint(shown)


def test_the_choices_that_help_names_are_those_of_the_library() -> None:
    for command, option, known in (
        ("eval", "method", (*METHOD_NAMES, GOLDEN)),
        ("eval", "split", SPLITS),
        ("train", "preset", PRESETS),
        *LAYOUT_CHOICES,
    ):
        for name in known:
            assert re.search(rf"\b{name}\b", str(parameters_of(command)[option].to_info_dict()["help"])), name


def test_arguments_win_over_a_configuration_and_settings_over_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prtool.toml").write_text('model = "ViT-B-32"\n[fit]\nepochs = 3\n')
    assert api.train_config() == TrainConfig.load(Path("prtool.toml"))
    made = api.train_config(location=4, phase=["rank", "predictor"], settings={"fit.epochs": 5, "seed": 7})
    assert (made.model, made.prune.locations, made.phases, made.fit.epochs, made.seed) == ("ViT-B-32", (4,), ("rank", "predictor"), 5, 7)
    again = api.train_config(made, model="ViT-B-16", location=(4, 6), settings={"fit.batch": 4})
    assert (again.model, again.prune.locations, again.fit.epochs, again.fit.batch) == ("ViT-B-16", (4, 6), 5, 4)
    assert api.train_config(TrainConfig(), preset="paper").objective == "ranking"
    assert api.train_config("prtool.toml", preset="paper").model == "ViT-B-32"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"preset": "papers"}, "papers"),
        ({"config": "nothing.toml"}, "nothing.toml"),
        ({"settings": {"fit.epoch": 1}}, "epochs"),
        ({"config": TrainConfig(), "settings": {"fit.epoch": 1}}, "epochs"),
        ({"config": TrainConfig(), "settings": {"seed.x": 1}}, "seed"),
        ({"config": TrainConfig(), "settings": {"fit.epochs": "1"}}, "fit.epochs"),
        ({"phase": "ranks"}, "ranks"),
    ],
)
def test_a_wrong_configuration_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(prtool.ConfigError, match=said):
        api.train_config(**wrong)


@pytest.mark.timeout(900)
def test_the_readme_trains_exports_and_encodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed there, in a folder with what `make demo` makes first, on fewer scenes and steps."""
    snippet, drop_in = re.findall(r"```python\n(.*?)```", (REPO / "README.md").read_text(), re.DOTALL)
    assert len(snippet.splitlines()) <= 12 and len(drop_in.splitlines()) <= 5
    write_dataset(tmp_path / "demo" / "data", SceneCounts(train=1, val=1, test=1), seed=0)
    write_model(tmp_path / "demo" / "model")
    for picture, name in zip(sorted((tmp_path / "demo" / "data" / "test").rglob("*.png")), ("cat.jpg", "dog.jpg"), strict=False):
        Image.open(picture).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    Path("prtool.toml").write_text("[distill]\nsteps = 4\n")
    found: dict[str, Any] = {}
    exec(snippet, found)  # the project's own README
    assert len(capsys.readouterr().out.split()) == 2
    assert found["run"].resolve() == Path("runs/latest").resolve()
    np.testing.assert_allclose(np.linalg.norm(found["embeddings"], axis=1), [1.0, 1.0], rtol=1e-5)
    assert len(found["classes"][0]) == 3
    exec(drop_in, found)
    assert found["features"].shape == (1, found["embeddings"].shape[1])


def test_the_page_of_the_api_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text() == page(), "run 'make docs'"
