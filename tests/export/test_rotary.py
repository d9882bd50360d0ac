"""Bundles of towers with rotary positions: every engine, both modes, progressive pruning, learnable tokens, reduced precisions, C++."""

import subprocess

import numpy as np
import pytest
import torch
from cpp_programs import built_file
from export_sources import Progressive, make_source, progressive_source
from towers import ROTARY

from prtool.bundle import Bundle
from prtool.engines.registry import list_engines
from prtool.errors import ModelError
from prtool.export.source import ExportSource, Pixels
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import verify
from prtool.spec import Keep
from prtool.trainer.models.merging import merging_steps

KEEP = Keep.ratio(0.5)


def wanted(source: ExportSource, pixels: torch.Tensor, k: int) -> np.ndarray:
    with torch.no_grad():
        return source.pruned.encode(pixels, source.spec.counts(k)).numpy()


@pytest.fixture(scope="module", params=ROTARY)
def bundle(request, tmp_path_factory) -> tuple[ExportSource, Bundle]:
    source, folder = make_source(request.param), tmp_path_factory.mktemp("rotary") / "bundle"
    write_bundle(source, folder, ExportOptions(KEEP, ("fp32",)))
    return source, Bundle.open(folder)


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_every_engine_and_mode(bundle, engine):
    source, opened = bundle
    status = next(found for found in list_engines() if found.name == engine)
    if status.info is None:
        pytest.skip(status.reason)
    assert min(case.cosine for case in verify(opened, engine).cases) > 0.99999
    pixels = torch.randn(3, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(2))
    for mode in ("fused", "split"):
        with Encoder.load(opened, engine=engine, mode=mode) as encoder:
            for k in (3, 9, source.spec.patches):
                assert np.allclose(encoder.encode_pixels(pixels.numpy(), keep=Keep.count(k)), wanted(source, pixels, k), atol=1e-5)


def test_tokens_carry_their_place(bundle):
    """The declared width is four more than the encoder's."""
    source, opened = bundle
    tower = source.pruned.tower
    pre = opened.manifest.graphs["fp32"]["pre"]
    assert [spec.shape[-1] for spec in pre.outputs if spec.name == "tokens"] == [tower.width + 4]


@pytest.mark.parametrize("kind", ["eva02", pytest.param("dinov3", marks=pytest.mark.slow)])
def test_progressive_with_learnable_tokens(tmp_path, kind):
    source = progressive_source(kind, Progressive((1, 2, 3), tokens=2, layers=2, first=1))
    write_bundle(source, tmp_path / "bundle", ExportOptions(KEEP, ("fp32",)))
    pixels = torch.randn(2, 3, *source.pruned.tower.image_size)
    for mode in ("fused", "split"):
        with Encoder.load(tmp_path / "bundle", mode=mode) as encoder:
            assert np.allclose(encoder.encode_pixels(pixels.numpy(), keep=KEEP), wanted(source, pixels, KEEP.resolve(source.spec.patches)), atol=1e-5)


@pytest.mark.parametrize("kind", ["dinov3", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("eva02", "pe core"))])
def test_reduced_precisions(tmp_path, kind):
    pytest.importorskip("nncf", reason="int8 needs NNCF")
    source = make_source(kind)
    images = torch.randn(32, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(1))
    options = ExportOptions(KEEP, ("fp32", "fp16", "bf16", "int8"), calibration=Pixels(images))
    manifest = write_bundle(source, tmp_path / "bundle", options)
    assert set(manifest.graphs) == {"fp32", "fp16", "bf16", "int8"}


def test_cpp_gives_the_same(bundle, tmp_path):
    """prtool-run on image files, next to Python."""
    from PIL import Image

    program = built_file("programs/prtool-run")
    _, opened = bundle
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(2):
        pixels = np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    files = sorted(folder.iterdir())
    done = subprocess.run(
        [program, "embed", opened.path, *files, "-o", tmp_path / "out.npy", "--keep", "7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with Encoder.load(opened) as encoder:
        assert np.allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(list(files), keep=Keep.count(7)), atol=1e-5)


def test_merging_is_rejected():
    with pytest.raises(ModelError, match=r"cannot merge .* a merged one has none"):
        merging_steps(make_source("dinov3").pruned.tower)
