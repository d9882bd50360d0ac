"""A model folder from elsewhere: its configuration is checked key by key, nothing in it is executed, and errors are one line."""

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from local_model import write_images, write_model

from prtool.cli.main import app
from prtool.errors import ModelError
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.dual_encoder import load_model
from prtool.trainer.models.loading.config import check_model
from prtool.trainer.train import train

open_clip = pytest.importorskip("open_clip", reason="open_clip has the configurations")

MUTATIONS = 150
NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 1000, 8192, 65536, 10**9, 2**53, 10**400, 0.0, -0.5, 1e-30, 1e308),
    *("", "x y", "../evil", "\x1b[31m", "\ud800", "é" * 500, [], {}, [1], [32, 32], [3, 4, 6, 3], {"a": 1}, [[[]]], {"trust_remote_code": True}),
)


def config_of(name: str) -> Path:
    return Path(name.removeprefix("local-dir:")) / "open_clip_config.json"


def edit(name: str, **text: Any) -> None:
    """Adds keys to the text side of a model folder's configuration."""
    path = config_of(name)
    content = json.loads(path.read_text())
    content["model_cfg"]["text_cfg"] |= text
    path.write_text(json.dumps(content))


@pytest.fixture(params=["trust_remote_code", "no keyword"])
def hostile(request, tmp_path, monkeypatch):
    """Makes a model folder hostile: its tokenizer has code of its own, which leaves a file where it ran."""
    pytest.importorskip("transformers", reason="transformers would run the code")
    ran = tmp_path / "ran"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def poison(name: str) -> Path:
        folder = config_of(name).parent
        (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nclass EvilTokenizer: pass\n")
        auto = {"tokenizer_class": "EvilTokenizer", "auto_map": {"AutoTokenizer": [None, "evil.EvilTokenizer"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(auto))
        more = {"tokenizer_kwargs": {"trust_remote_code": True}} if request.param == "trust_remote_code" else {}
        edit(name, hf_tokenizer_name="x", **more)
        return ran

    return poison


@pytest.mark.parametrize("way", ["train --model", "prtool.toml", "export RUN", "eval RUN"])
def test_no_code_of_a_model_folder_runs(hostile, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    name, images = write_model(tmp_path / "model"), write_images(tmp_path / "data", {"train": 2, "val": 1, "test": 1})
    if way in ("export RUN", "eval RUN"):
        train(TrainConfig.load(None, {"model": name, "phases": ["none"], "prune.locations": [2]}), tmp_path / "run")
    ran = hostile(name)
    if way == "prtool.toml":
        (tmp_path / "prtool.toml").write_text(f'model = "{name}"\nphases = ["none"]\n')
    arguments = {
        "train --model": ["train", "--model", name, "--phase", "none", "-o", "out"],
        "prtool.toml": ["train", "-o", "out"],
        "export RUN": ["export", "run", "-o", "bundle"],
        "eval RUN": ["eval", "run", "--data", str(images)],
    }[way]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not ran.exists()
    assert result.exit_code == 1
    assert "tokenizer" in result.stderr.partition("error: ")[2]


@pytest.mark.parametrize("key", ["hf_tokenizer_name", "hf_model_name"])
@pytest.mark.parametrize("value", ["./evil", "/tmp/evil", "../evil", "a/b/c", "~/evil"])
def test_names_of_text_sides_are_no_paths(tmp_path, key, value):
    name = write_model(tmp_path / "model")
    edit(name, **{key: value})
    with pytest.raises(ModelError, match=f"text_cfg.{key}"):
        load_model(name)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("text_cfg", "tokenizer_kwargs", {"use_fast": False}),
        ("text_cfg", "act_kwargs", {"approximate": "evil"}),
        ("text_cfg", "norm_kwargs", {"device": "meta"}),
        ("vision_cfg", "timm_model_name", "hf-hub:evil/model"),
        ("vision_cfg", "cache_dir", "/tmp"),
        ("vision_cfg", "layers", "3"),
        ("vision_cfg", "width", True),
        ("vision_cfg", "head_width", 64),
        ("text_cfg", "heads", 3),
        ("text_cfg", "context_length", 65536),
    ],
)
def test_unknown_keys_and_wrong_values_are_named(tmp_path, section, key, value):
    name = write_model(tmp_path / "model")
    content = json.loads(config_of(name).read_text())
    content["model_cfg"][section][key] = value
    config_of(name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=next(iter(value)) if isinstance(value, dict) else key):
        load_model(name)


@pytest.mark.parametrize("key", ["cast_dtype", "output_dict", "trust_remote_code"])
def test_unknown_keys_of_the_whole_model_are_named(tmp_path, key):
    name = write_model(tmp_path / "model")
    content = json.loads(config_of(name).read_text())
    content["model_cfg"][key] = "x"
    config_of(name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=key):
        load_model(name)


def test_every_configuration_of_open_clip_passes():
    for name in open_clip.list_models():
        assert check_model(open_clip.get_model_config(name), name) == open_clip.get_model_config(name)


def test_a_configuration_larger_than_its_weights_is_an_error_before_memory_is_taken(tmp_path):
    name = write_model(tmp_path / "model")
    content = json.loads(config_of(name).read_text())
    content["model_cfg"]["vision_cfg"] |= {"width": 65536, "head_width": 65536, "layers": 20, "image_size": 8192, "patch_size": 1}
    config_of(name).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="67108865"):
        load_model(name)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in _places(item, (*path, key))]


def _mutated(content: Any, draw: random.Random) -> bytes:
    changed = copy.deepcopy(content)
    *above, last = draw.choice(_places(content))
    parent = changed
    for key in above:
        parent = parent[key]
    kind = draw.random()
    if kind < 0.15:
        del parent[last]
    elif kind < 0.3 and isinstance(parent, dict):
        parent[draw.choice(["cls", "kwargs", "pretrained", "device", last + "_", "\x1b[2J"])] = draw.choice(NASTY)
    else:
        parent[last] = draw.choice(NASTY)
    text = json.dumps(changed).encode()
    return text[: draw.randrange(len(text))] if kind > 0.95 else text


def test_every_damaged_configuration_loads_or_is_one_clear_error(tmp_path, monkeypatch):
    """What still loads must have the tensors that were saved: no value may be exchanged for another."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name = write_model(tmp_path / "model", layers=1, text={"vocab_size": 49408, "width": 2})
    wanted = load_model(name).weights_sha256
    content = json.loads(config_of(name).read_text())
    content["model_cfg"] |= {"quick_gelu": False, "custom_text": False, "init_logit_scale": 2.6}
    content["model_cfg"]["vision_cfg"] |= {
        "mlp_ratio": 4.0,
        "pool_type": "tok",
        "ls_init_value": None,
        "norm_kwargs": {"eps": 1e-5},
        "no_ln_pre": False,
    }
    content["model_cfg"]["text_cfg"] |= {"hf_tokenizer_name": None, "tokenizer_kwargs": {"clean": "lower"}, "pool_type": "argmax", "mlp_ratio": 4.0}
    content["preprocess_cfg"] |= {"size": 32, "mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    draw, errors = random.Random(17), 0
    for _ in range(MUTATIONS):
        damaged = _mutated(content, draw)
        config_of(name).write_bytes(damaged)
        try:
            assert load_model(name).weights_sha256 == wanted, damaged
        except ModelError as error:
            errors += 1
            assert len(str(error)) <= 1000, damaged
            assert str(error).isprintable(), damaged
    assert MUTATIONS // 2 < errors < MUTATIONS


@pytest.mark.parametrize("content", [b"", b"[" * 100_000, b'{"model_cfg": {}}', b"{}", b"[]", b'{"model_cfg": 1}', b"\xff", b'{"model_cfg": NaN}'])
def test_what_is_no_configuration_is_an_error(tmp_path, content):
    name = write_model(tmp_path / "model")
    config_of(name).write_bytes(content)
    with pytest.raises(ModelError, match=r"open_clip_config\.json"):
        load_model(name)


def test_a_tokenizer_in_the_folder_is_used_without_code(tmp_path):
    """A tokenizer of transformers' own kinds loads, and the text side may have its vocabulary."""
    pytest.importorskip("transformers", reason="it makes the tokenizer")
    name = write_model(tmp_path / "model", text={"vocab_size": 7})
    folder = config_of(name).parent
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    edit(name, hf_tokenizer_name="bert-base-uncased")
    model = load_model(name)
    assert model.token_ids(["a red dog"]).tolist() == [[2, 4, 5, 6, 3, 0, 0, 0]]
    shutil.rmtree(folder)
    smaller = write_model(folder, text={"vocab_size": 6})
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "dog"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}))
    edit(smaller, hf_tokenizer_name="bert-base-uncased")
    with pytest.raises(ModelError, match="6"):
        load_model(smaller)


def test_without_transformers_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "transformers" else found(name, *more))
    with pytest.raises(ModelError, match=r"\.\[hf\]"):
        load_model("ViT-B-16-SigLIP")


def test_random_weights_follow_torchs_seed(monkeypatch):
    from local_model import TEXT, VISION
    from open_clip import factory

    monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-field", {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT})
    digests = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        digests.append(load_model("tiny-field").weights_sha256)
    assert digests[0] == digests[1] != digests[2]
