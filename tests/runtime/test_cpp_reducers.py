"""Bundles that merge patches, or whose image is smaller and nothing else, in C++ and Python: the same numbers, the same errors."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_programs import built_file, engines, noise_photographs, run
from export_sources import make_source, merging_source
from hostile.sealing import read_manifest, reseal
from models import TinyModel, tiny_bundle
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.errors import BundleError, ConfigError, KeepError
from prtool.export.source import ExportSource
from prtool.export.write import ExportOptions, write_bundle
from prtool.manifest import RecoveryInfo
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare_batch
from prtool.spec import MERGE, NONE, Keep
from prtool.trainer.models.pruned import PlainEncoder, PrunedEncoder
from prtool.trainer.models.recovery import Recovery

MODELS = {
    "merging": TinyModel((1,), method=MERGE),
    "merging twice, of smaller images": TinyModel((1, 2), prefix_tokens=2, method=MERGE, side=6),
    "smaller images": TinyModel((), method=NONE, side=4),
}


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle(tmp_path_factory.mktemp("cpp") / "bundle", MODELS[request.param])


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return noise_photographs(tmp_path_factory.mktemp("photographs"))[:-1]


def keeps(bundle: Bundle) -> list[tuple[int, ...] | int | None]:
    """The default, the least and the most, and a count for each location, which fall unevenly."""
    (least, most), places = bundle.manifest.keep_range, bundle.manifest.prune.locations
    return [None, least, most, *([(most - 1,) * len(places)] if places else [])]


def test_the_public_headers_on_a_bundle(bundle: Bundle) -> None:
    found = run(built_file("tests/prtool-api"), PRTOOL_TEST_BUNDLE=str(bundle.path))
    assert found.returncode == 0, found.stdout + found.stderr
    assert "0 failed" in found.stdout


@pytest.mark.parametrize("engine", ["ort", "openvino"])
@pytest.mark.parametrize("mode", ["fused", "full"])
def test_embeddings_are_pythons(bundle: Bundle, photographs: list[Path], tmp_path: Path, engine: str, mode: str) -> None:
    """Each mode prepares images at its own size."""
    if engine not in engines():
        pytest.skip(f"the library was built without engine {engine}")
    with Encoder.load(bundle, mode=mode) as encoder:
        for keep in keeps(bundle) if mode == "fused" else [None]:
            text = "" if keep is None else ",".join(map(str, keep)) if isinstance(keep, tuple) else str(keep)
            options = ["--engine", engine, "--mode", mode, "--batch", 2, *(["--keep", text] if text else [])]
            found = run(built_file("programs/prtool-run"), "embed", bundle.path, *photographs, "-o", tmp_path / "out.npy", *options)
            assert found.returncode == 0, found.stderr
            np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(photographs, keep), atol=1e-6)


RECOVERY = {"rank": 4, "first": 2, "scale": 0.5, "images": 40, "copies": 2, "keeps": [3, 5], "before": [0.9, 0.99], "after": [0.95, 0.99]}
WRONG_RECOVERIES: list[dict[str, object]] = [
    {"rank": 0},
    {"first": "2"},
    {"images": -1},
    {"scale": "1"},
    {"keeps": []},
    {"keeps": [3]},
    {"keeps": [0, 5]},
    {"before": [0.9]},
    {"after": [0.9, "1"]},
    {"more": 1},
]


def test_a_recovery_is_read_alike(bundle: Bundle, photographs: list[Path], tmp_path: Path) -> None:
    """What the field says changes nothing; what is no such field is rejected in both languages."""
    root = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    program = (built_file("programs/prtool-run"), "embed", root, photographs[0], "-o", tmp_path / "out.npy")
    for change in ({}, *WRONG_RECOVERIES):
        reseal(root, {**read_manifest(bundle.path), "recovery": {**RECOVERY, **change}})
        found = run(*program)
        if change:
            with pytest.raises(BundleError):
                Bundle.open(root)
            assert (found.returncode, found.stderr.count("\n")) == (1, 1) and "recovery" in found.stderr, (change, found.stderr)
        else:
            recovery = Bundle.open(root).manifest.recovery
            assert recovery is not None and recovery.after == (0.95, 0.99)
            assert found.returncode == 0, found.stderr


def test_there_is_no_split_mode(bundle: Bundle, photographs: list[Path]) -> None:
    with pytest.raises(ConfigError):
        Encoder.load(bundle, mode="split")
    found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--mode", "split")
    method = bundle.manifest.prune.method
    assert (found.returncode, found.stderr.count("\n"), found.stdout) == (1, 1, "")
    assert all(word in found.stderr for word in ("split", repr(method), "fused", "full"))


def test_counts_out_of_reach_are_rejected_alike(bundle: Bundle, photographs: list[Path]) -> None:
    spec, (least, most) = bundle.manifest.prune, bundle.manifest.keep_range
    below = spec.patches // 2 - 1
    wrong: list[int | tuple[int, ...]] = [least - 1, most + 1, (most,) * (len(spec.locations) + 2)]
    wrong += [(below,) * len(spec.locations), (*(most - 1 for _ in spec.locations[1:]), most)] if len(spec.locations) > 1 else []
    with Encoder.load(bundle) as encoder:
        for keep in wrong:
            with pytest.raises(ConfigError):
                encoder.counts(keep)
            text = ",".join(map(str, keep)) if isinstance(keep, tuple) else str(keep)
            found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--keep", text)
            assert (found.returncode, found.stderr.count("\n"), found.stdout) == (1, 1, ""), (keep, found.stderr)


def _smaller_source() -> ExportSource:
    """An attention tower at three quarters of its size or so, with nothing shortened."""
    source = make_source("cls")
    native = source.model.tower
    tower = native.resized(native.image_size[0] - native.image_size[0] // native.prune_spec((1,)).grid[0])
    model = replace(source.model, tower=tower, preprocess=replace(source.model.preprocess, size=tower.image_size))
    return replace(source, model=model, pruned=PlainEncoder(tower, tower.prune_spec((), method=NONE)), scorer_name="", scorer_macs=0)


def _recovered(source: ExportSource) -> ExportSource:
    """The same with random corrections in its blocks; the native encoder stays."""
    tower, pruned = source.pruned.tower, source.pruned
    recovery = Recovery(tower, 1, 3, torch.Generator().manual_seed(1))
    recovery.load({name: 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(2)) for name, value in recovery.tensors().items()})
    folded = recovery.folded(tower)
    encoder = PrunedEncoder(folded, list(pruned.scorers), pruned.spec) if isinstance(pruned, PrunedEncoder) else type(pruned)(folded, pruned.spec)
    pixels = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        counts = source.spec.counts(source.spec.patches)
        assert functional.cosine_similarity(encoder.encode(pixels, counts), pruned.encode(pixels, counts)).max() < 0.999
    patches = source.spec.patches
    keeps = (patches // 2, patches - 1) if source.spec.locations else (patches,)
    facts = RecoveryInfo(3, 1, 1.0, 40, 1, keeps, (0.9,) * len(keeps), (0.95,) * len(keeps))
    return replace(source, pruned=encoder.eval().requires_grad_(False), recovery=facts)


SOURCES = {
    "merging": lambda: merging_source("cls"),
    "smaller images": _smaller_source,
    "recovered ranking": lambda: _recovered(make_source("cls")),
    "recovered merging": lambda: _recovered(merging_source("cls")),
    "recovered smaller images": lambda: _recovered(_smaller_source()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_exported_encoders_are_eager_ones(kind: str, tmp_path: Path, photographs: list[Path]) -> None:
    """What is exported, in C++ on each engine of CPUs, next to PyTorch eager and to Python."""
    source = SOURCES[kind]()
    keep = Keep.ratio(1.0 if source.spec.method == NONE else 0.7)
    write_bundle(source, tmp_path / "bundle", ExportOptions(keep))
    bundle = Bundle.open(tmp_path / "bundle")
    with torch.no_grad():
        pixels = {mode: torch.from_numpy(prepare_batch(photographs, bundle.manifest.preprocess_for(mode))) for mode in ("fused", "full")}
        full = functional.normalize(source.model.native(pixels["full"]), dim=-1)
        wanted = {"fused": source.pruned.encode(pixels["fused"], bundle.manifest.counts(keep)), "full": full}
    for engine in set(engines()) & {"ort", "openvino"}:
        for mode, rows in wanted.items():
            options = ["--engine", engine, "--mode", mode, "-o", tmp_path / "out.npy"]
            # The range of a recovery is that of the shortened encoder alone.
            options += ["--keep", "1.0"] if mode == "full" else []
            found = run(built_file("programs/prtool-run"), "embed", bundle.path, *photographs, *options)
            assert found.returncode == 0, found.stderr
            cosines = (np.load(tmp_path / "out.npy") * rows.numpy()).sum(axis=1)
            assert cosines.min() > 0.99999, (engine, mode)
            with Encoder.load(bundle, mode=mode, engine=engine) as encoder:
                every = 1.0 if mode == "full" else None
                np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(photographs, keep=every), atol=2e-6)
    low, high = bundle.manifest.keep_range
    assert (high < source.spec.patches) == (kind.startswith("recovered") and bool(source.spec.locations))
    if high < source.spec.patches:
        found = run(built_file("programs/prtool-run"), "embed", bundle.path, photographs[0], "--keep", "1.0")
        assert found.returncode == 1 and f"this bundle allows {low} to {high}" in found.stderr
        with Encoder.load(bundle) as encoder, pytest.raises(KeepError, match=f"this bundle allows {low} to {high}"):
            encoder.counts(1.0)
