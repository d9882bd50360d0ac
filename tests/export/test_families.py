"""The contract of every family of image encoders: loading, pruning, recovery, merging, export, engines and C++, next to the host library."""

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from cpp_programs import built_file
from export_sources import LinearScorer
from families import CLASS, DEPTH, FAMILIES, Family, Made
from families_page import PAGE, page
from PIL import Image
from torch import Tensor
from torch.nn import functional

from prtool.bundle import Bundle
from prtool.engines.registry import list_engines
from prtool.errors import ModelError
from prtool.export.precision.build import at_precision, joined, stages
from prtool.export.source import ExportSource, Pixels
from prtool.export.write import ExportOptions, write_bundle
from prtool.runtime.encoder import Encoder
from prtool.runtime.verify import agreement, verify
from prtool.spec import MERGE, Keep
from prtool.trainer.models.dual_encoder import NoText
from prtool.trainer.models.hosts import tower_of
from prtool.trainer.models.merging import MergedEncoder, merging_steps
from prtool.trainer.models.pruned import PrunedEncoder
from prtool.trainer.models.recovery import Recovery
from prtool.trainer.models.tower import VisionTower

pytest.importorskip("transformers", reason="transformers writes some of the checkpoints and is their reference")
pytestmark = pytest.mark.usefixtures("one_thread")

KEEP, LOCATION, RATE = Keep.ratio(0.5), 2, 1e-3
BY_NAME = {family.name: family for family in FAMILIES}


def usual(*names: str, merging: bool = False) -> list[Any]:
    """All families, or those that merge; without one of `names`, or not `usual` where there are no names, they are slow."""
    found = []
    for family in FAMILIES:
        is_usual = family.name in names if names else family.usual
        if not (merging and family.not_merging):
            found.append(pytest.param(family.name, marks=[] if is_usual else [pytest.mark.slow]))
    return found


@dataclass(frozen=True)
class Subject:
    """A reduced model of a family, and its encoder behind one step of recovery."""

    family: Family
    made: Made
    recovered: VisionTower

    @property
    def tower(self) -> VisionTower:
        return self.made.model.tower

    def pixels(self, images: int, seed: int = 0) -> Tensor:
        return torch.randn(images, 3, *self.tower.image_size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=BY_NAME)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    family = BY_NAME[request.param]
    made = family.make(tmp_path_factory.mktemp("family") / "model")
    return Subject(family, made, after_one_step(made.model.tower))


@pytest.fixture(scope="module")
def source(subject: Subject) -> ExportSource:
    return source_of(subject.made, subject.recovered, LOCATION)


@pytest.fixture(scope="module")
def bundle(source: ExportSource, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    write_bundle(source, folder, ExportOptions(KEEP))
    return Bundle.open(folder)


def source_of(made: Made, tower: VisionTower, location: int) -> ExportSource:
    """What is exported: the image side alone, `tower`, which has the weights of the model or corrected ones."""
    torch.manual_seed(3)
    spec = tower.prune_spec((location,))
    pruned = PrunedEncoder(tower, [LinearScorer(tower.width, tower.prefix_tokens)], spec).eval().requires_grad_(False)
    model = replace(made.model, tower=tower, native=tower, text=NoText(made.model.name), context_length=0)
    return ExportSource(model, pruned, "linear", False, 1000)


def halved(tower: VisionTower, tokens: Tensor) -> Tensor:
    """The prefix and every second patch."""
    return torch.cat((tokens[:, : tower.prefix_tokens], tokens[:, tower.prefix_tokens :: 2]), dim=1)


def step_of(recovery: Recovery, tower: VisionTower, pixels: Tensor) -> Tensor:
    """One minus the cosine of the embeddings of half of the patches, by the corrected tower, and of all, by the tower; (1,)."""
    wanted = tower(pixels)
    found = recovery.running(tower, lambda: tower.run_post(halved(tower, tower.run_pre(pixels, LOCATION)), LOCATION))
    return 1.0 - functional.cosine_similarity(found, wanted).mean()


def after_one_step(tower: VisionTower) -> VisionTower:
    """The tower with the corrections of one step of recovery."""
    recovery = Recovery(tower, LOCATION, 2, torch.Generator().manual_seed(1))
    pixels = torch.randn(4, 3, *tower.image_size, generator=torch.Generator().manual_seed(2))
    step_of(recovery, tower, pixels).backward()
    torch.optim.Adam(recovery.parameters(), lr=RATE).step()
    return recovery.folded(tower)


def kinds(tower: VisionTower) -> set[str]:
    return {type(module).__name__ for module in tower.modules()}


def test_the_docs_have_the_table() -> None:
    assert PAGE.read_text() == page(PAGE.read_text()), "run 'make docs'"


def test_the_real_architecture_has_the_geometry_of_the_table(subject: Subject) -> None:
    """And the reduced model the same kinds of layers."""
    shape, visual = subject.family.geometry, subject.family.outline()
    real = tower_of(visual)
    assert (real.image_size, real.patch_size) == ((shape.side,) * 2, (shape.patch,) * 2)
    assert (real.prefix_tokens, real.rotary) == (shape.prefix, shape.rotary)
    assert (real.head_reads == 1) == (shape.pooling == CLASS)
    assert sum(value.numel() for value in visual.parameters()) / 1e6 == pytest.approx(shape.parameters, abs=0.05)
    assert kinds(real) == kinds(subject.tower)
    assert shape.activation in {type(module).__name__ for module in real.blocks[0].modules()}
    assert subject.tower.depth == DEPTH and subject.tower.grid == (subject.family.grid,) * 2 and subject.tower.prefix_tokens == shape.prefix


@torch.no_grad()
def test_the_pieces_equal_the_host(subject: Subject) -> None:
    tower, pixels = subject.tower, subject.pixels(3)
    tokens = tower.embed(pixels)
    for index in range(DEPTH):
        tokens = tower.block(index, tokens)
    wanted = subject.made.encode(pixels)
    torch.testing.assert_close(tower.head(tokens), wanted, atol=1e-5, rtol=1e-4)
    assert float((wanted[0] - wanted[1]).abs().max()) > 0.1


@torch.no_grad()
def test_queries_and_keys_are_those_of_the_host(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention maps of the host's own forward, caught where it calls PyTorch."""
    maps: list[Tensor] = []
    whole = functional.scaled_dot_product_attention

    def recording(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        scale = options.get("scale") or query.shape[-1] ** -0.5
        maps.append((query @ key.transpose(-1, -2) * scale).softmax(dim=-1))
        return whole(query, key, value, attn_mask, *rest, **options)

    pixels = subject.pixels(2)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", recording)
    torch.backends.mha.set_fastpath_enabled(False)  # it computes queries and keys in one call of C++
    try:
        subject.made.encode(pixels)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    monkeypatch.undo()
    assert len(maps) >= DEPTH
    for index, wanted in enumerate(maps[:DEPTH]):
        queries, keys = subject.tower.queries_keys(index, subject.tower.run_pre(pixels, index + 1))
        torch.testing.assert_close((queries @ keys.transpose(-1, -2)).softmax(dim=-1), wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_masked_patch_is_a_dropped_one(subject: Subject) -> None:
    tower, dropped = subject.tower, subject.tower.prefix_tokens + 5
    tokens = tower.embed(subject.pixels(2))
    mask = torch.zeros(tokens.shape[:2])
    mask[:, dropped] = -torch.inf
    left = [place for place in range(tokens.shape[1]) if place != dropped]
    masked = tokens
    for index in range(DEPTH):
        masked = tower.block(index, masked, mask)
    wanted = tower.head(masked[:, left])
    torch.testing.assert_close(tower.run_post(tokens[:, left], 1), wanted, atol=1e-5, rtol=1e-4)
    assert float((tower.head(tokens) - wanted).abs().max()) > 1e-3


@torch.no_grad()
def test_smaller_images_have_fewer_patches(subject: Subject) -> None:
    grid, side = subject.family.grid - 1, subject.tower.image_size[0] - subject.family.geometry.patch
    small = subject.tower.resized(side)
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    found = small(pixels)
    assert small.embed(pixels).shape[1] == subject.tower.prefix_tokens + grid**2
    assert found.shape == (2, subject.tower.embed_dim) and bool(torch.isfinite(found).all())


def test_a_step_of_recovery_changes_the_blocks_behind_the_cut(subject: Subject) -> None:
    """No other tensor, and it brings the embedding of half of the patches nearer."""
    tower, recovered, pixels = subject.tower, subject.recovered, subject.pixels(4, seed=2)
    numbers = {id(value): number for number, block in enumerate(tower.blocks, start=1) for value in block.parameters()}
    changed = [numbers.get(id(old), 0) for old, new in zip(tower.parameters(), recovered.parameters(), strict=True) if not torch.equal(old, new)]
    assert set(changed) == set(range(LOCATION, DEPTH + 1))
    with torch.no_grad():
        wanted = tower(pixels)
        near, far = (
            functional.cosine_similarity(each.run_post(halved(tower, tower.run_pre(pixels, LOCATION)), LOCATION), wanted).mean()
            for each in (recovered, tower)
        )
    assert near > far


@pytest.mark.parametrize("subject", usual(), indirect=True)
@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
def test_engines_give_what_pytorch_gives(bundle: Bundle, engine: str) -> None:
    """Three keeps, fused and split, and FULL, of the encoder behind the step of recovery."""
    reason = next(status.reason for status in list_engines() if status.name == engine)
    if reason:
        pytest.skip(reason)
    report = verify(bundle, engine)
    assert report.cosine > 0.99999
    counts = {mode: {case.k for case in report.cases if case.mode == mode} for mode in ("fused", "split")}
    assert len(counts["fused"]) == 3 and counts["fused"] == counts["split"]


@pytest.mark.parametrize("subject", usual(), indirect=True)
def test_cpp_gives_what_python_gives(bundle: Bundle, tmp_path: Path) -> None:
    """prtool-run on image files: the family's preprocessing and its graphs."""
    program, files = built_file("programs/prtool-run"), [tmp_path / f"{number}.png" for number in range(2)]
    for number, file in enumerate(files):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (70 + 9 * number, 80, 3), dtype=np.uint8)).save(file)
    words = [program, "embed", bundle.path, *files, "-o", tmp_path / "out.npy", "--keep", "7"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with Encoder.load(bundle) as encoder:
        np.testing.assert_allclose(np.load(tmp_path / "out.npy"), encoder.encode_images(list(files), keep=Keep.count(7)), atol=1e-5)


@pytest.mark.parametrize("subject", usual("DINOv3"), indirect=True)
def test_reduced_precisions_pass_their_gates(subject: Subject, source: ExportSource, tmp_path: Path) -> None:
    pytest.importorskip("nncf", reason="int8 needs NNCF")
    options = ExportOptions(KEEP, ("fp32", "fp16", "bf16", "int8"), calibration=Pixels(subject.pixels(32, seed=1)))
    manifest = write_bundle(source, tmp_path / "bundle", options)
    assert set(manifest.graphs) == {"fp32", "fp16", "bf16", "int8"}


def test_merging_works_or_is_rejected(subject: Subject) -> None:
    if not subject.family.not_merging:
        assert len(merging_steps(subject.tower)) == DEPTH
        return
    with pytest.raises(ModelError, match=f"tokens cannot merge in this .*{subject.family.not_merging}"):
        merging_steps(subject.tower)


@pytest.mark.parametrize("subject", usual("DINOv2 with registers", merging=True), indirect=True)
def test_merged_graphs_equal_pytorch(subject: Subject, source: ExportSource) -> None:
    """FUSED, from stages joined in memory, by ONNX Runtime."""
    encoder = MergedEncoder(subject.tower, subject.tower.prune_spec((1,), method=MERGE)).eval().requires_grad_(False)
    merging = ExportSource(source.model, encoder, "", False, 0)
    graphs = joined(merging, at_precision(merging, stages(merging), "fp32"), "fp32")
    session = onnxruntime.InferenceSession(ir.to_proto(graphs["fused"]).SerializeToString())
    patches = encoder.spec.patches
    for counts in ((patches, patches), (patches - 3, patches // 2 + 1), (patches // 2, patches // 4)):
        pixels = subject.pixels(2, seed=counts[-1])
        (found,) = session.run(None, {"pixels": pixels.numpy(), "k": np.array(counts, np.int64)})
        np.testing.assert_allclose(found, encoder.encode(pixels, counts).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", BY_NAME)
@torch.no_grad()
def test_real_size(name: str, tmp_path: Path) -> None:
    """Every block, channel and patch of the real architecture, with random weights, at half of the patches: about 2 GB and a minute for 86 M."""
    made = BY_NAME[name].make(tmp_path / "model", reduced=False)
    tower = made.model.tower
    source = source_of(made, tower, tower.depth // 3)
    pixels = torch.randn(2, 3, *tower.image_size, generator=torch.Generator().manual_seed(6))
    write_bundle(source, tmp_path / "bundle", ExportOptions(KEEP, pixels=Pixels(pixels)))
    wanted = {"fused": source.pruned(pixels, KEEP), "full": functional.normalize(made.encode(pixels), dim=-1)}
    for engine in ("ort", "openvino"):
        for mode, reference in wanted.items():
            with Encoder.load(tmp_path / "bundle", engine=engine, mode=mode) as encoder:
                found = agreement(encoder.encode_pixels(pixels.numpy(), keep=KEEP if mode == "fused" else None), reference.numpy())
            print(f"{name}, {engine}, {mode}: cosine {found.cosine:.7f}, largest error {found.max_error:.1e}")  # noqa: T201 - the record of a run
            assert found.cosine > 0.99999
