"""Whole exports: what a bundle holds, that it is proved, and that a failed export leaves nothing."""

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export_sources import make_source
from safetensors.numpy import load_file

from prtool.bundle import Bundle
from prtool.errors import ConfigError, KeepError, ParityError, ShapeError, StorageError
from prtool.export import write
from prtool.export.source import ExportSource, Pixels
from prtool.export.validation.agreement import verify_with_model
from prtool.export.write import ExportOptions, write_bundle
from prtool.files import sha256_file
from prtool.manifest import FileDigest
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import verify
from prtool.spec import Keep


class Steps:
    """Counts what a Progress hears."""

    def __init__(self) -> None:
        self.stages: list[list[int]] = []

    def start(self, what: str, total: int) -> None:
        assert what
        self.stages.append([total, 0])

    def advance(self, count: int = 1) -> None:
        self.stages[-1][1] += count

    def finish(self) -> None:
        assert self.stages[-1][0] == self.stages[-1][1] or self.stages[-1][1] == 0


@pytest.fixture(scope="module")
def source() -> ExportSource:
    return make_source("cls", classes=True)


@pytest.fixture(scope="module")
def bundle(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One exported bundle, compared on given images."""
    pixels = torch.randn(5, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    out, steps = tmp_path_factory.mktemp("export") / "bundle", Steps()
    manifest = write_bundle(source, out, ExportOptions(Keep.ratio(0.6), pixels=Pixels(pixels)), steps)
    opened = Bundle.open(out)
    assert opened.manifest == manifest
    assert [total for total, _ in steps.stages] == [5, 21]
    return opened


def test_manifest(source: ExportSource, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert (manifest.default_keep, manifest.keep_range) == (10, (1, 16))
    assert manifest.prune == source.spec
    assert (manifest.model.scorer, manifest.model.scorer_trained) == ("linear", False)
    assert manifest.model.weights_sha256 == source.model.weights_sha256
    assert manifest.cost.scorer_macs == 1000
    assert {"prtool", "torch", "onnx", "onnxscript", "open_clip_torch"} <= set(manifest.versions)
    assert set(manifest.graphs["fp32"]) == {"full", "pre", "post", "fused", "text"}
    assert manifest.parity["cosine"] > 0.99999
    assert manifest.parity["index_agreement"] == 1.0


def test_every_file_has_the_rights_of_any_new_file(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    rights = {(bundle.path / name).stat().st_mode for name in [*bundle.manifest.files, "prtool.json"]}
    assert rights == {(tmp_path / "plain").stat().st_mode}


def test_parity_has_three_counts_two_batches_and_every_mode(bundle: Bundle) -> None:
    report = json.loads(bundle.file("parity.json").read_bytes())
    (part,) = report["precisions"]
    cases = {(case["graph"], case["batch"], case["k"]) for case in part["cases"]}
    for batch in (1, 3):
        assert {(graph, batch, k) for graph in ("fused", "split", "post") for k in (16, 10, 4)} <= cases
        assert ("full", batch, 16) in cases
    assert report["images"] == "given"
    assert min(case["cosine"] for case in part["cases"]) == bundle.manifest.parity["cosine"]


def test_users_get_what_torch_gives(source: ExportSource, bundle: Bundle) -> None:
    pixels = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    for mode in ("fused", "split"):
        with Encoder.load(bundle, mode=mode) as encoder:
            np.testing.assert_allclose(encoder.encode_pixels(pixels.numpy(), 7), source.pruned(pixels, Keep.count(7)).numpy(), atol=2e-6)
    with Encoder.load(bundle) as encoder:
        prompts = ["a photo of a cat.", "Two DOGS, and a bicycle; it's late"]
        expected = source.model.text(source.model.tokenizer(prompts)).numpy()
        np.testing.assert_allclose(encoder.encode_text(prompts), expected, atol=2e-6)
        classes = source.model.class_embeddings(source.classnames, source.templates).numpy()
        np.testing.assert_array_equal(encoder.classes.embeddings, classes)
        assert encoder.classes.names == ("cat", "hot_dog", "car")


def test_verify_passes_without_torch(bundle: Bundle) -> None:
    report = verify(bundle.path)
    assert report.cosine > 0.99999
    assert {(case.mode, case.batch) for case in report.cases} >= {(mode, batch) for mode in ("fused", "split", "full") for batch in (1, 3)}
    assert ("text", 2) in {(case.mode, case.batch) for case in report.cases}


def test_the_probe_is_torch(source: ExportSource, bundle: Bundle) -> None:
    probe = load_file(bundle.file("probe.safetensors"))
    expected = source.pruned(torch.from_numpy(probe["pixels"]), Keep.count(10)).numpy()
    np.testing.assert_allclose(probe["embedding_k10"], expected, atol=1e-6)


def test_agreement_over_many_images(source: ExportSource, bundle: Bundle) -> None:
    pixels = torch.randn(11, 3, 64, 64, generator=torch.Generator().manual_seed(4))
    rows = verify_with_model(bundle, source, Pixels(pixels), (16, 5))
    assert [(row.k, row.images) for row in rows] == [(16, 11), (5, 11)]
    assert all(row.cosine_min > 0.99999 and row.same_patches == 1.0 and row.top1 == 1.0 for row in rows)
    with pytest.raises(ConfigError, match="images"):
        verify_with_model(bundle, source, Pixels(pixels[:0]), (5,))


def test_recall_of_the_engine_next_to_that_of_pytorch(source: ExportSource, bundle: Bundle) -> None:
    """Against a plain sort of PyTorch's embeddings; without the classes of all images there is none."""
    pixels, labels = torch.randn(11, 3, 64, 64, generator=torch.Generator().manual_seed(4)), [place % 3 for place in range(11)]
    (row,) = verify_with_model(bundle, source, Pixels(pixels), (5,), labels=labels)
    images, classes = (
        source.pruned(pixels, Keep.count(5)).detach().numpy(),
        source.model.class_embeddings(source.classnames, source.templates).numpy(),
    )
    by_class = [np.argsort(-(images @ prompt), kind="stable") for prompt in classes]
    found = [100 * np.mean([any(labels[image] == label for image in order[:k]) for label, order in enumerate(by_class)]) for k in (1, 5, 10)]
    first = 100 * np.mean([int(np.argmax(classes @ image)) == label for image, label in zip(images, labels, strict=True)])
    assert row.recall is not None
    assert row.recall == row.recall_pytorch
    assert row.recall.text_to_image == pytest.approx(found)
    assert row.recall.image_to_text == pytest.approx((first, 100.0, 100.0))
    for unknown in ((), [-1, *labels[1:]]):
        assert verify_with_model(bundle, source, Pixels(pixels), (5,), labels=unknown)[0].recall is None


def external(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and length of each tensor of a graph that lies in the weights file."""
    found = {}
    for weight in onnx.load(path, load_external_data=False).graph.initializer:
        if weight.data_location == onnx.TensorProto.EXTERNAL:
            assert [entry.key for entry in weight.external_data] == ["location", "offset", "length"]
            location, offset, length = (entry.value for entry in weight.external_data)
            assert location == "weights.bin"
            found[weight.name] = (int(offset), int(length))
        else:
            assert onnx.numpy_helper.to_array(weight).nbytes < 1024
    return found


def test_graphs_share_one_weights_file(bundle: Bundle, tmp_path: Path) -> None:
    """Each content is stored once, at a multiple of 64 bytes; a moved bundle still finds it."""
    content = bundle.file("weights.bin").read_bytes()
    graphs = [external(path) for path in bundle.path.glob("*.onnx")]
    assert len(graphs) == 5
    assert all(graphs)
    places = {place for graph in graphs for place in graph.values()}
    assert all(offset % 64 == 0 for offset, _ in places)
    assert len({content[offset : offset + length] for offset, length in places}) == len(places)
    assert sum(length for _, length in places) <= len(content) < sum(length + 64 for _, length in places)
    moved = tmp_path / "renamed"
    shutil.copytree(bundle.path, moved)
    assert verify(moved).cosine > 0.99999


def test_the_same_model_gives_the_same_files(source: ExportSource, bundle: Bundle, tmp_path: Path) -> None:
    write_bundle(source, tmp_path / "again", ExportOptions(Keep.ratio(0.6)))
    for name in ("weights.bin", "full.onnx", "fused.onnx", "post.onnx", "text.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == bundle.file(name).read_bytes()


def test_every_file_is_hashed_once(source: ExportSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("prtool.files.sha256_file", count)
    made = write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.ratio(0.6)))
    assert sorted(hashed) == sorted({*made.files} - {"weights.bin"})


def negate_scorer(source: ExportSource) -> None:
    source.pruned.scorers[0].linear.weight.neg_()


def bend_head(source: ExportSource) -> None:
    source.pruned.tower.host.proj.mul_(torch.linspace(0.5, 1.0, 32))


def bend_text(source: ExportSource) -> None:
    source.model.text.host.text_projection.mul_(torch.linspace(0.5, 1.0, 32))


@pytest.mark.parametrize(("change", "words"), [(negate_scorer, "pre.onnx"), (bend_head, "0.9"), (bend_text, r"text.*2")])
def test_a_graph_that_disagrees_is_not_written(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: Callable[[ExportSource], None], words: str
) -> None:
    """The graphs are taken from a good bundle, and the PyTorch side changes under them."""
    fresh = make_source("cls", classes=True)
    host = fresh.model.text.host
    saved = {name: tensor.clone() for name, tensor in host.state_dict().items()}

    def copy_graphs(source: ExportSource, root: Path, *_: object) -> dict[str, FileDigest]:
        for path in (*bundle.path.glob("*.onnx"), bundle.file("weights.bin")):
            shutil.copy(path, root)
        return {}

    monkeypatch.setattr(write, "_write_graphs", copy_graphs)
    old = tmp_path / "bundle"
    shutil.copytree(bundle.path, old)
    with torch.no_grad():
        change(fresh)
    try:
        with pytest.raises(ParityError, match=words):
            write_bundle(fresh, old, ExportOptions(Keep.count(5)))
    finally:
        host.load_state_dict(saved)
    assert Bundle.open(old).manifest == bundle.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_full_or_locked_disk_keeps_the_old_bundle(
    source: ExportSource, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "bundle"
    shutil.copytree(bundle.path, out)

    def fail(*_: object) -> None:
        raise OSError(number, "from the test")

    monkeypatch.setattr(write, "_write_graphs", fail)
    with pytest.raises(StorageError, match=re.escape(str(out))):
        write_bundle(source, out, ExportOptions(Keep.count(5)))
    assert Bundle.open(out).manifest == bundle.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_bad_options(source: ExportSource, tmp_path: Path) -> None:
    with pytest.raises(KeepError, match=r"17.* 16"):
        write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.count(17)))
    for pixels in (torch.zeros(2, 3, 32, 32), torch.zeros(0, 3, 64, 64), torch.zeros(2, 3, 64, 64, dtype=torch.float64)):
        with pytest.raises(ShapeError, match="pixels"):
            write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.count(5), pixels=Pixels(pixels)))
    assert not list(tmp_path.iterdir())
