"""Patch tokens out: the kept patches' tokens and their numbers next to the embedding, on every engine."""

import functools
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from cpp_programs import built_file
from export_sources import Progressive, make_source, merging_source, progressive_source, smaller_source
from hostile.sealing import read_manifest, reseal
from local_model import write_model

from prtool.bundle import Bundle
from prtool.cli.main import app
from prtool.engines.registry import list_engines
from prtool.errors import BundleError, ConfigError, KeepError
from prtool.export.source import ExportSource, Pixels
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import verify
from prtool.spec import NONE, Keep

KEEP = Keep.ratio(0.5)
SOURCES = {
    "cls": lambda: make_source("cls"),
    "dinov3": lambda: make_source("dinov3"),
    "two locations": lambda: progressive_source("cls", Progressive((1, 3), ("own",), tokens=0)),
    "learnable tokens": lambda: progressive_source("cls", Progressive((1, 2, 3), tokens=2, layers=2, first=1)),
    "smaller image": lambda: smaller_source("siglip", NONE),
}


def plain_walk(source: ExportSource, pixels: torch.Tensor, kept: tuple[np.ndarray, ...], block: int) -> np.ndarray:
    """The tokens of the patches `kept` at each location as they leave a block, those of the last in rising order.

    The host's own blocks run on one image at a time; no learnable tokens.
    """
    tower, prefix, rows = source.pruned.tower, source.spec.prefix_tokens, []
    with torch.no_grad():
        for number, image in enumerate(pixels):
            tokens, left = tower.embed(image[None]), list(range(source.spec.patches))
            for at in range(1, block + 1):
                if at in source.spec.locations:
                    chosen = sorted(kept[source.spec.locations.index(at)][number])
                    tokens = tokens[:, [*range(prefix), *(prefix + left.index(patch) for patch in chosen)]]
                    left = chosen
                tokens = tower.block(at - 1, tokens)
            rows.append(tokens[0, prefix:, : tower.width].numpy())
    return np.stack(rows)


def write_image(folder: Path) -> Path:
    """A file of noise."""
    from PIL import Image

    file = folder / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(file)
    return file


def pixels_of(source: ExportSource, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Callable[[str], tuple[ExportSource, Bundle]]:
    """The source and bundle of a name, each exported once."""

    @functools.cache
    def made(name: str) -> tuple[ExportSource, Bundle]:
        source, folder = SOURCES[name](), tmp_path_factory.mktemp("tokens") / "bundle"
        keep = KEEP if source.spec.locations else Keep.ratio(1.0)
        write_bundle(source, folder, ExportOptions(keep, ("fp32", "bf16") if name == "cls" else ("fp32",), patch_tokens=-2))
        return source, Bundle.open(folder)

    return made


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name == "two locations" else ()) for name in SOURCES])
def exported(request, bundles) -> tuple[ExportSource, Bundle]:
    return bundles(request.param)


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_every_engine_agrees_with_pytorch(exported, engine):
    status = next(found for found in list_engines() if found.name == engine)
    if status.info is None:
        pytest.skip(status.reason)
    cases = verify(exported[1], engine).cases
    assert [case.cosine > 0.99999 for case in cases if case.mode == "tokens"] == [True]


def test_indices_are_the_kept_patches_in_order(exported):
    source, bundle = exported
    pixels, counts = pixels_of(source).numpy(), source.spec.counts(bundle.manifest.default_keep)
    with Encoder.load(bundle) as encoder:
        found = encoder.encode_tokens(pixels)
        kept = np.sort(encoder.kept(pixels)[-1]) if counts else np.arange(source.spec.patches)[None].repeat(2, 0)
        assert (found.indices == kept).all()
        assert found.tokens.shape == (2, kept.shape[1], source.pruned.tower.width)
        assert np.allclose(found.embeddings, encoder.encode_pixels(pixels), atol=1e-6)


def check_against_blocks(source: ExportSource, bundle: Bundle) -> None:
    """The tokens of the graph against `plain_walk`."""
    info, pixels = bundle.manifest.patch_tokens, pixels_of(source)
    assert info is not None
    with Encoder.load(bundle, mode="full") as encoder:
        found = encoder.encode_tokens(pixels.numpy())
        kept = encoder.kept(pixels.numpy()) if source.spec.locations else ()
    assert np.allclose(found.tokens, plain_walk(source, pixels, kept, info.block), atol=1e-4)


@pytest.mark.parametrize("name", ["cls", "dinov3", pytest.param("two locations", marks=pytest.mark.slow), "smaller image"])
def test_tokens_are_those_of_the_blocks_on_the_kept_patches(bundles, name):
    check_against_blocks(*bundles(name))


def test_tokens_of_the_last_block(tmp_path):
    source = SOURCES["cls"]()
    write_bundle(source, tmp_path / "bundle", ExportOptions(KEEP, patch_tokens=-1))
    bundle = Bundle.open(tmp_path / "bundle")
    assert bundle.manifest.patch_tokens is not None and bundle.manifest.patch_tokens.block == source.spec.depth
    check_against_blocks(source, bundle)


@pytest.mark.slow
def test_int8(tmp_path):
    pytest.importorskip("nncf", reason="int8 needs NNCF")
    source = make_source("cls")
    calibration = Pixels(torch.randn(32, 3, *source.pruned.tower.image_size, generator=torch.Generator().manual_seed(1)))
    manifest = write_bundle(source, tmp_path / "bundle", ExportOptions(KEEP, ("int8",), calibration=calibration, patch_tokens=-2))
    assert "tokens" in manifest.graphs["int8"]


def test_images_are_prepared(exported, tmp_path):
    file = write_image(tmp_path)
    with Encoder.load(exported[1]) as encoder:
        found = encoder.encode_tokens([file, file])
        assert np.allclose(found.embeddings, encoder.encode_images([file, file]), atol=1e-6)


@pytest.mark.parametrize("block", [0, 1, 5, -4, -9])
def test_blocks_in_front_of_the_last_location_or_behind_the_encoder_are_rejected(tmp_path, block):
    with pytest.raises(ConfigError, match=rf"patch_tokens = {block}, but it must be a block from 2"):
        write_bundle(make_source("cls"), tmp_path / "bundle", ExportOptions(KEEP, patch_tokens=block))
    assert not (tmp_path / "bundle").exists()


def test_merged_tokens_are_rejected(tmp_path):
    with pytest.raises(ConfigError, match="merged tokens stand for several patches"):
        write_bundle(merging_source("cls"), tmp_path / "bundle", ExportOptions(Keep.ratio(0.6), patch_tokens=-1))


def test_a_bundle_without_patch_tokens_says_how_to_get_them(tmp_path, bundles):
    source, bundle = bundles("cls")
    root = shutil.copytree(bundle.path, tmp_path / "bundle")
    value = read_manifest(root) | {"patch_tokens": None}
    for roles in value["graphs"].values():
        del roles["tokens"]
    reseal(root, value, digests=False)
    with Encoder.load(root) as encoder, pytest.raises(ConfigError, match="--patch-tokens"):
        encoder.encode_tokens(pixels_of(source).numpy())


def test_a_keep_outside_the_range_is_rejected(exported):
    with Encoder.load(exported[1]) as encoder, pytest.raises(KeepError):
        encoder.encode_tokens(pixels_of(exported[0]).numpy(), 10_000)


def test_a_manifest_whose_block_does_not_exist_is_rejected(exported):
    manifest = exported[1].manifest
    assert manifest.patch_tokens is not None
    wrong = replace(manifest, patch_tokens=replace(manifest.patch_tokens, block=manifest.prune.depth + 1))
    with pytest.raises(BundleError, match="patch_tokens"):
        type(manifest).from_json(wrong.to_json())


@pytest.mark.parametrize("name", ["cls", pytest.param("smaller image", marks=pytest.mark.slow)])
def test_cpp_opens_and_runs_such_a_bundle(tmp_path, bundles, name):
    """The library checks the graph's signature, and gives the same embeddings as without it."""
    program, (_, bundle), file = built_file("programs/prtool-run"), bundles(name), write_image(tmp_path)
    done = subprocess.run([program, "embed", bundle.path, file, "-o", tmp_path / "out.npy"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Encoder.load(bundle) as encoder:
        assert np.allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(file), atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"block": 0}, {"block": 1}, {"block": 99}, {"block": "2"}, {"width": 0}, {"width": 65}, {"width": 65_537}, {"more": 1}, None]
)
def test_python_and_cpp_reject_the_same_manifests(tmp_path, bundles, wrong):
    """`None` takes the field away, and the graph has no field then."""
    root = shutil.copytree(bundles("cls")[1].path, tmp_path / "bundle")
    value = read_manifest(root)
    value["patch_tokens"] = None if wrong is None else value["patch_tokens"] | wrong
    reseal(root, value, digests=False)
    with pytest.raises(BundleError):
        Bundle.open(root)
    call = [built_file("programs/prtool-run"), "embed", root, write_image(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "tokens" in done.stderr, done.stderr


def test_the_command_counts_blocks_from_the_end(tmp_path):
    write_model(tmp_path / "model")
    for call in (
        ["train", "--model", f"local-dir:{tmp_path / 'model'}", "--phase", "none", "--location", "2", "-o", tmp_path / "run"],
        ["export", tmp_path / "run", "--patch-tokens", "-2", "-o", tmp_path / "bundle"],
    ):
        result = CliRunner().invoke(app, [str(word) for word in call])
        assert result.exit_code == 0, result.output
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.patch_tokens is not None and manifest.patch_tokens.block == manifest.prune.depth - 1
