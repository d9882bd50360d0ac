"""Loading a model: weights that are missing, damaged or given twice are one clear error, never random weights."""

import pytest
from local_model import write_model

from prtool.errors import ModelError
from prtool.trainer.model import load_model


def test_a_folder_without_weights_is_refused(tmp_path):
    name = write_model(tmp_path / "model")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(name)


@pytest.mark.parametrize("content", [b"", b"\x80\x04not a pickle", None])
def test_damaged_weights_are_refused(tmp_path, content):
    name, weights = write_model(tmp_path / "model"), tmp_path / "model" / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] if content is None else content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(name)


@pytest.mark.parametrize("content", [b"", b"\x80\x02not a pickle"])
def test_a_damaged_checkpoint_file_is_refused(tmp_path, content):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model("ViT-B-32", str(tmp_path / "weights.pt"))


def test_weights_beside_a_folder_that_brings_its_own_are_refused(tmp_path):
    with pytest.raises(ModelError, match="brings its own weights; leave pretrained out"):
        load_model(write_model(tmp_path / "model"), "openai")


def test_braces_in_a_class_name_and_a_template_are_text(tmp_path):
    model = load_model(write_model(tmp_path / "model"))
    assert model.class_embeddings(["a{x}", "b"], ["{ {}"]).shape == (2, 16)
