"""Checkpoints: what is saved is read back, and what was changed is refused."""

import hashlib
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from local_model import write_model

from prtool.errors import CheckpointError, StorageError
from prtool.spec import Keep, PruneSpec
from prtool.trainer.config import TrainConfig
from prtool.trainer.models.predictor import ScorerConfig, TransformerScorer, later_config, make_scorer, scorer_macs
from prtool.trainer.models.prompts import TextContext, VisualTokens
from prtool.trainer.models.pruned import FirstOrder
from prtool.trainer.runs import checkpoint as module
from prtool.trainer.runs.checkpoint import Checkpoint, load_seeded, scorer_tensors, token_tensors
from prtool.trainer.runs.record import RECORD_NAME, SCHEMA, DataInfo, MatchRow, Metrics, TokensRecord

FILES = (RECORD_NAME, "tensors-*.safetensors")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def name(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(name):
    return load_seeded(name, "", 0)


@pytest.fixture
def checkpoint(model):
    torch.manual_seed(0)
    prune = model.tower.prune_spec((2,))
    config = ScorerConfig(channels=8, token_hidden=4, channel_hidden=16, heads=2)
    return Checkpoint(
        schema=SCHEMA,
        model=model.name,
        pretrained="",
        model_seed=0,
        weights_sha256=model.weights_sha256,
        width=model.tower.width,
        prune=prune,
        scorer_config=config,
        scorer_trained=True,
        classnames=("red", "grün"),
        templates=("a {}.",),
        config=TrainConfig().to_json(),
        data=DataInfo("/data", "1", "2", 9, 1, held_out=True),
        metrics=Metrics((MatchRow(8, 0.75, 0.5, 0.6),), 3, (1.0, 0.5), (0.6, 0.7), 8),
        versions={"torch": "2"},
        tensors=scorer_tensors([make_scorer(config, model.tower.width, prune.patches, prune.prefix_tokens)]),
    )


def test_saved_is_loaded(checkpoint, tmp_path):
    written = checkpoint.save(tmp_path / "run")
    found = Checkpoint.load(tmp_path / "run")
    assert found == written
    assert replace(found, files={}) == checkpoint
    assert found.tensors.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(found.tensors[key], checkpoint.tensors[key]) for key in found.tensors)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {RECORD_NAME, *written.files}
    assert TrainConfig.from_json(found.config) == TrainConfig()


def test_saving_twice_gives_the_same_bytes(checkpoint, tmp_path):
    for run in ("a", "b"):
        checkpoint.save(tmp_path / run)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_scorer_and_encoder(checkpoint, model, tmp_path):
    checkpoint.save(tmp_path)
    found = Checkpoint.load(tmp_path)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    encoder = found.ranking_encoder(found.load_model().tower)
    tokens = model.tower.run_pre(pixels, 2)
    scores = found.scorer()(tokens)
    colour = torch.tensor([1.0 if (row + column) % 2 == 0 else -1.0 for row in range(found.prune.grid[0]) for column in range(found.prune.grid[1])])
    scores = (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True) + found.scorer_config.checkerboard / 2 * colour
    kept = scores.sort(dim=1, descending=True, stable=True).indices[:, :5]
    expected = [model.tower.run_post(tokens[i : i + 1, [0, *(1 + kept[i]).tolist()]], 2)[0] for i in range(2)]
    with torch.no_grad():
        embedding = encoder(pixels, Keep.count(5))
    torch.testing.assert_close(embedding, torch.nn.functional.normalize(torch.stack(expected), dim=-1).detach())
    assert not encoder.training


@pytest.mark.parametrize("file", FILES)
def test_any_changed_byte_is_rejected(checkpoint, tmp_path, file):
    checkpoint.save(tmp_path)
    (path,) = tmp_path.glob(file)
    content = path.read_bytes()
    for place in np.linspace(0, len(content) - 1, 60).astype(int):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match="prtool train"):
            Checkpoint.load(tmp_path)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "a FIFO"])
def test_damaged_files_are_rejected(checkpoint, tmp_path, file, damage):
    checkpoint.save(tmp_path)
    (path,) = tmp_path.glob(file)
    content = path.read_bytes()
    path.unlink()
    if damage == "a FIFO":
        os.mkfifo(path)
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="prtool train"):
        Checkpoint.load(tmp_path)


def test_an_unknown_schema_is_refused(checkpoint, tmp_path):
    replace(checkpoint, schema=7).save(tmp_path)
    with pytest.raises(CheckpointError, match="schema 7"):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("value", ["[]", "3", "null", '{"schema": 1}', "[" * 100_000, "1" * 5000])
@pytest.mark.parametrize("sealed", [False, True])
def test_other_json_is_rejected(checkpoint, tmp_path, value, sealed):
    checkpoint.save(tmp_path)
    body = f'{{\n "schema": {SCHEMA},\n "model": {value}'.encode()
    tail = f',\n "seal": "{hashlib.sha256(body).hexdigest()}"\n}}\n'.encode()
    (tmp_path / RECORD_NAME).write_bytes(body + tail if sealed else value.encode())
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.load(tmp_path)
    assert RECORD_NAME in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize("step", ["write_bytes", "write_sealed", "remove_others"])
@pytest.mark.parametrize("error", [StorageError("no space left on the disk"), KeyboardInterrupt()])
def test_stopped_while_saving_the_earlier_checkpoint_or_the_new_one_stands(checkpoint, tmp_path, monkeypatch, step, error):
    first, second = tmp_path / "first", tmp_path / "second"
    trained = replace(checkpoint, scorer_trained=True, tensors={name: 2 * tensor for name, tensor in checkpoint.tensors.items()})
    earlier, later = checkpoint.save(first), trained.save(second)

    def stop(*arguments):
        raise error

    with monkeypatch.context() as patched, pytest.raises(type(error)):
        patched.setattr(module, step, stop)
        trained.save(first)
    assert Checkpoint.load(first) == (later if step == "remove_others" else earlier)
    assert trained.save(first) == later
    assert contents(first) == contents(second)


def test_what_a_kill_left_of_other_checkpoints_is_removed(checkpoint, tmp_path):
    checkpoint.save(tmp_path)
    before = contents(tmp_path)
    for name in ("tensors-0123456789abcdef.safetensors", ".tensors-0123456789abcdef.safetensors.01234567.part"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "notes-of-mine.txt").write_text("x")
    Checkpoint.tidy(tmp_path)
    assert contents(tmp_path) == {**before, "notes-of-mine.txt": b"x"}


def test_two_processes_that_save_leave_a_checkpoint_of_one_of_them(checkpoint, tmp_path):
    others = [replace(checkpoint, tensors={name: factor * tensor for name, tensor in checkpoint.tensors.items()}) for factor in (2, 3)]
    threads = [threading.Thread(target=lambda made=made: [made.save(tmp_path) for _ in range(20)]) for made in others]
    checkpoint.save(tmp_path)
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        Checkpoint.load(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_tensors_of_another_scorer_are_refused(checkpoint, tmp_path):
    replace(checkpoint, scorer_config=ScorerConfig("mlp", channels=8, heads=2)).save(tmp_path)
    with pytest.raises(CheckpointError, match="mlp"):
        Checkpoint.load(tmp_path)


def progressive(checkpoint, rescored):
    """The same checkpoint with three locations and learnable tokens of both kinds."""
    prune = PruneSpec(checkpoint.prune.grid, checkpoint.prune.depth, (1, 2, 3), checkpoint.prune.prefix_tokens, learnable_tokens=2)
    kinds = [checkpoint.scorer_config, *[later_config(checkpoint.scorer_config)] * (2 if rescored else 0)]
    torch.manual_seed(5)
    scorers = scorer_tensors([make_scorer(kind, checkpoint.width, prune.patches, prune.prefix_tokens) for kind in kinds])
    visual, context = VisualTokens(torch.randn(3, 2, checkpoint.width)), TextContext(torch.randn(2, 8), "a b")
    tokens = TokensRecord(visual=2, first=1, layers=3, text=2, words="a b", keep=0.5)
    return replace(checkpoint, prune=prune, rescored=rescored, tokens=tokens, tensors=scorers | token_tensors(visual, context))


@pytest.mark.parametrize("rescored", [False, True])
def test_scorers_of_several_locations_and_learnable_tokens_come_back(checkpoint, model, tmp_path, rescored):
    made = progressive(checkpoint, rescored)
    made.save(tmp_path)
    found = Checkpoint.load(tmp_path)
    assert [type(scorer) for scorer in found.scorers()[1:]] == [TransformerScorer if rescored else FirstOrder] * 2
    first, *later = [scorer.macs() for scorer in (found.scorer(), *(found.scorers()[1:] if rescored else ()))]
    assert scorer_macs(found.scorers()) == first + sum(later)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tuned = found.ranking_encoder(model.tower)(pixels, Keep.ratio(0.5))
        plain = found.ranking_encoder(model.tower, with_tokens=False)(pixels, Keep.ratio(0.5))
    assert torch.equal(found.visual().values, made.tensors["visual.values"])
    assert torch.equal(found.context().values, made.tensors["context.values"])
    assert (tuned - plain).abs().max() > 1e-4
    assert not torch.equal(found.class_embeddings(model), found.class_embeddings(model, with_tokens=False))


@pytest.mark.parametrize(
    ("change", "says"),
    [({"visual": 3}, "visual.values"), ({"text": 3}, "context.values"), ({"layers": 2}, "visual")],
)
def test_learnable_tokens_of_another_shape_are_refused(checkpoint, tmp_path, change, says):
    made = progressive(checkpoint, True)
    prune = replace(made.prune, learnable_tokens=change.get("visual", 2))
    replace(made, prune=prune, tokens=replace(made.tokens, **change)).save(tmp_path)
    with pytest.raises(CheckpointError, match=says):
        Checkpoint.load(tmp_path)


def test_changed_model_weights_are_refused(checkpoint, tmp_path):
    moved = replace(checkpoint, model=write_model(tmp_path / "model", seed=1))
    with pytest.raises(CheckpointError):
        moved.load_model()


def test_random_weights_come_back():
    state = torch.random.get_rng_state()
    first, second, other = (load_seeded("ViT-S-32-alt", "", seed).weights_sha256 for seed in (3, 3, 4))
    assert first == second != other
    assert torch.equal(torch.random.get_rng_state(), state)


def test_where_nothing_can_be_written(checkpoint, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        checkpoint.save(tmp_path / "file" / "run")


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(CheckpointError):
        Checkpoint.load(tmp_path / "nowhere")
