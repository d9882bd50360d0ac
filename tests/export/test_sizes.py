"""Bundles of encoders that read smaller images: every graph against PyTorch, FULL against the native encoder on native pixels."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_sources import smaller_source
from local_model import write_images, write_model
from safetensors.numpy import load_file
from torch.nn import functional

import prtool
from prtool.bundle import Bundle
from prtool.errors import ConfigError, KeepError, ShapeError
from prtool.export.run import export_run, source_of, verify_run
from prtool.export.source import Pixels
from prtool.export.validation.agreement import VerifyRequest
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.verify import verify
from prtool.spec import NONE, RANK, Keep
from prtool.trainer.config import TrainConfig
from prtool.trainer.settings import PruneConfig
from prtool.trainer.train import train

SIDE, NATIVE = 24, 32
KEEPS = {RANK: Keep.ratio(0.6), NONE: Keep.ratio(1.0)}
SETTINGS = {"image_size": SIDE, "prune.locations": [2], "device": "cpu", "distill.steps": 6, "distill.batch": 4, "phases": ["predictor"]}
SETTINGS |= {"scorer.channels": 8, "scorer.token_hidden": 4, "scorer.channel_hidden": 16, "scorer.heads": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sizes")
    write_images(folder / "data", {"train": 6, "val": 2, "test": 4})
    return folder


@pytest.fixture(scope="module")
def config(root: Path) -> TrainConfig:
    return TrainConfig.load(None, {"model": write_model(root / "model"), "data": str(root / "data"), **SETTINGS})


@pytest.fixture(scope="module", params=[RANK, NONE])
def run(request: pytest.FixtureRequest, config: TrainConfig, root: Path) -> Path:
    """A run that ranks patches of smaller images, and one of smaller images alone, each exported next to it."""
    method, folder = request.param, root / request.param
    train(config if method == RANK else replace(config, phases=("none",), prune=PruneConfig(method=NONE)), folder)
    export_run(folder, root / f"{method}-bundle", ExportOptions(KEEPS[method]))
    return folder


@pytest.fixture
def bundle(run: Path) -> Bundle:
    return Bundle.open(run.with_name(f"{run.name}-bundle"))


def test_the_manifest_names_both_sizes(run: Path, bundle: Bundle) -> None:
    manifest, ranks = bundle.manifest, run.name == RANK
    assert (manifest.preprocess.size, manifest.native_size, manifest.prune.grid) == ((SIDE, SIDE), (NATIVE, NATIVE), (3, 3))
    assert set(manifest.graphs["fp32"]) == ({"pre", "post", "fused", "full", "text"} if ranks else {"fused", "full", "text"})
    assert manifest.keep_range == ((1, 9) if ranks else (9, 9))
    assert (manifest.model.scorer, manifest.model.scorer_trained) == (("mix-mlp", True) if ranks else ("", False))
    native = source_of(run).model.native
    assert (manifest.cost.native_tokens, manifest.cost.native_embed_macs) == (17, native.cost().embed_macs)
    # The class token alone is a query in the last block of the exported graphs.
    assert manifest.cost.pruned_gmacs(manifest.prune, manifest.counts(None)) < manifest.cost.full_gmacs(manifest.prune)


def test_the_probe_has_the_same_images_at_both_sizes(run: Path, bundle: Bundle, root: Path) -> None:
    probe, source = load_file(bundle.path / "probe.safetensors"), source_of(run)
    files = sorted((root / "data" / "train").rglob("*.png"))
    own, full = (prepare_batch(files, each) for each in (source.model.preprocess, source.model.native_preprocess))
    for small, large in zip(probe["pixels"], probe["pixels_full"], strict=True):
        ((place,),) = np.nonzero((own == small).all(axis=(1, 2, 3)))
        assert np.array_equal(full[place], large)
    native = functional.normalize(source.model.native(torch.from_numpy(probe["pixels_full"])), dim=-1)
    torch.testing.assert_close(torch.from_numpy(probe["embedding_full"]), native)


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_every_engine_equals_eager(run: Path, bundle: Bundle, root: Path, engine: str) -> None:
    source, files = source_of(run), sorted((root / "data" / "test").rglob("*.png"))[:5]
    own, full = (torch.from_numpy(prepare_batch(files, each)) for each in (source.model.preprocess, source.model.native_preprocess))
    k = 5 if run.name == RANK else 9
    with torch.no_grad():
        wanted = {"fused": source.pruned.encode(own, source.spec.counts(k)), "full": functional.normalize(source.model.native(full), dim=-1)}
    for mode, expected in wanted.items():
        with Encoder.load(bundle, engine=engine, mode=mode) as encoder:
            keep = None if mode == "full" else Keep.count(k)
            for found in (encoder.encode_images(files, keep), encoder.encode_pixels((full if mode == "full" else own).numpy(), keep)):
                torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=0)
            with pytest.raises(ShapeError, match=str(NATIVE if mode == "full" else SIDE)):
                encoder.encode_pixels((own if mode == "full" else full).numpy(), keep)


def check_on_data(run: Path, bundle: Bundle, root: Path, precision: str, least: float) -> None:
    """The probe through every mode, and real images against the run's PyTorch model."""
    modes = {case.mode for case in verify(bundle, "ort", precision=precision).cases}
    assert {"fused", "full"} <= modes and ("split" in modes) == (run.name == RANK)
    found = verify_run(bundle, VerifyRequest("ort", precision, 12), run, root / "data")
    assert [row.k for row in found.rows] == ([9, 5, 2] if run.name == RANK else [9])
    assert all((row.same_patches is None) == (run.name == NONE) and row.images == 12 for row in found.rows)
    assert all(row.cosine_mean > least for row in found.rows)


def test_verify_and_the_comparison_on_data(run: Path, bundle: Bundle, root: Path) -> None:
    check_on_data(run, bundle, root, "fp32", 0.99999)


@pytest.mark.slow
def test_int8_takes_the_scales_of_full_from_native_images(run: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF")
    export_run(run, tmp_path / "bundle", ExportOptions(KEEPS[run.name], ("int8",)))
    opened = Bundle.open(tmp_path / "bundle")
    assert opened.manifest.graphs["int8"]["full"].inputs[0].shape[2:] == (NATIVE, NATIVE)
    check_on_data(run, opened, root, "int8", 0.99)


def test_a_run_of_another_size_or_reducer_is_named(run: Path, bundle: Bundle, config: TrainConfig, tmp_path: Path, root: Path) -> None:
    plain = replace(config, phases=("none",), data="")
    train(replace(plain, image_size=0), tmp_path / "native")
    with pytest.raises(ConfigError, match=rf"\({SIDE}, {SIDE}\).*\({NATIVE}, {NATIVE}\)"):
        verify_run(bundle, VerifyRequest(), tmp_path / "native", root / "data")
    other = replace(plain, prune=PruneConfig(method="merge", locations=(1,)))
    train(other, tmp_path / "merge")
    with pytest.raises(ConfigError, match="merge"):
        verify_run(bundle, VerifyRequest(), tmp_path / "merge", root / "data")


def test_a_smaller_image_alone_keeps_every_patch(config: TrainConfig, tmp_path: Path) -> None:
    train(replace(config, phases=(), data="", prune=PruneConfig(method=NONE)), tmp_path / "run")
    with pytest.raises(KeepError, match="none"):
        prtool.export_bundle(tmp_path / "run", tmp_path / "bundle", keep=0.6)
    assert not (tmp_path / "bundle").exists()
    found = prtool.export_bundle(tmp_path / "run", tmp_path / "bundle").manifest
    assert (found.default_keep, found.counts(None)) == (9, ())


QUICK = [("cls", RANK), ("siglip", NONE)]
OTHERS = [(kind, method) for kind in ("patch14", "dinov2 registers", "mobileclip", "average", "sin cos positions") for method in (RANK, NONE)]


@pytest.mark.parametrize(("kind", "method"), [*QUICK, *(pytest.param(*each, marks=pytest.mark.slow) for each in [*OTHERS, ("siglip", RANK)])])
def test_every_kind_of_tower_at_a_smaller_size(kind: str, method: str, tmp_path: Path) -> None:
    """An export compares every graph with PyTorch; the weights of both sizes stand once in the file that their graphs share."""
    source = smaller_source(kind, method)
    write_bundle(source, tmp_path / "bundle", ExportOptions(Keep.ratio(1.0)))
    tensors = {id(tensor): tensor.nbytes for part in (source.pruned, source.model.text) for tensor in (*part.parameters(), *part.buffers())}
    assert (tmp_path / "bundle" / "weights.bin").stat().st_size < 1.15 * sum(tensors.values())


def test_images_of_the_two_sizes_are_as_many() -> None:
    pixels = torch.zeros(3, 3, SIDE, SIDE)
    with pytest.raises(ShapeError, match="3 images"):
        Pixels(pixels, torch.zeros(2, 3, NATIVE, NATIVE))
    assert Pixels(pixels).full is pixels
