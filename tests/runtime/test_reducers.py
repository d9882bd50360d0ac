"""Bundles that merge tokens or only take smaller images, in every part of the runtime, against the same maths in plain numpy."""

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from models import CONTEXT, SIDE, TinyModel, tiny_bundle
from PIL import Image
from safetensors.numpy import save_file

from prtool.bundle import Bundle, seal
from prtool.cli.main import app
from prtool.engines.base import BuildOptions
from prtool.engines.profiles import call_sizes, choose_profile, graph_profiles, profiles
from prtool.errors import BundleError, ConfigError, InputWarning, KeepError, ParityError, ShapeError
from prtool.runtime.embed import embed_folder
from prtool.runtime.encoder import Encoder, mode_counts
from prtool.runtime.images.preprocess import prepare_batch
from prtool.runtime.pipeline import modes_of
from prtool.runtime.verify import verify
from prtool.spec import Keep

MODELS = {
    "rank at 6 px": TinyModel((2, 3), learnable_tokens=1, side=6),
    "merge": TinyModel((1, 2), method="merge"),
    "merge at 6 px": TinyModel((1,), prefix_tokens=3, method="merge", side=6),
    "none": TinyModel((), prefix_tokens=2, method="none", side=6),
}
WITHOUT_SPLIT = [name for name, model in MODELS.items() if model.method != "rank"]


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: with_probe(tiny_bundle(tmp_path_factory.mktemp("bundle") / "b", model), model) for name, model in MODELS.items()}


def with_probe(bundle: Bundle, model: TinyModel, **changes: Any) -> Bundle:
    """The bundle with the probe that an export writes; a change of None leaves a tensor out."""
    small, native = model.pixels(3), model.pixels(3, side=SIDE)
    tokens = np.random.default_rng(0).integers(0, 11, (2, CONTEXT))
    tensors: dict[str, Any] = {"pixels": small, "embedding_full": model.embed_full(native), "text_embedding": model.embed_text(tokens)}
    tensors |= {} if model.side == SIDE else {"pixels_full": native}
    low, high = bundle.manifest.keep_range
    tensors |= {f"embedding_k{k}": model.embed(small, model.spec.counts(k)) for k in {low, bundle.manifest.default_keep, high}}
    tensors = {name: value for name, value in (tensors | changes).items() if value is not None}
    found = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()} | {"text_tokens": tokens}
    save_file(found, bundle.path / "probe.safetensors")
    seal(bundle.path, bundle.manifest)
    return Bundle.open(bundle.path)


@pytest.mark.parametrize("name", MODELS)
def test_every_mode_and_count_equals_numpy(bundles: dict[str, Bundle], name: str) -> None:
    model, bundle = MODELS[name], bundles[name]
    assert modes_of(model.spec) == (("fused", "full") if name in WITHOUT_SPLIT else ("fused", "split", "full"))
    for mode in modes_of(model.spec):
        with Encoder.load(bundle.path, mode=mode) as encoder:
            if mode == "full":
                pixels = model.pixels(2, side=SIDE)
                np.testing.assert_allclose(encoder.encode_pixels(pixels), model.embed_full(pixels), atol=1e-5)
                continue
            for k in range(bundle.manifest.keep_range[0], model.patches + 1):
                pixels = model.pixels(1 + k % 3, seed=k)
                assert encoder.counts(Keep.count(k)) == model.spec.counts(k)
                np.testing.assert_allclose(encoder.encode_pixels(pixels, Keep.count(k)), model.embed(pixels, model.spec.counts(k)), atol=1e-5)


def test_a_smaller_image_alone_has_no_counts(bundles: dict[str, Bundle]) -> None:
    model, bundle = MODELS["none"], bundles["none"]
    for mode in ("fused", "full"):
        pixels = model.pixels(2) if mode == "fused" else model.pixels(2, side=SIDE)
        with Encoder.load(bundle, mode=mode) as encoder:
            expected = encoder.encode_pixels(pixels)
            for keep in (None, 1.0, 9, Keep.ratio(1.0), ()):
                assert encoder.counts(keep) == ()
                np.testing.assert_array_equal(encoder.encode_pixels(pixels, keep), expected)
            for keep in (0.5, 8, (9,), (8, 4)):
                with pytest.raises(KeepError, match=r"[89]"):
                    encoder.encode_pixels(pixels, keep)


def test_merging_cannot_leave_fewer_than_half_a_block(bundles: dict[str, Bundle]) -> None:
    with Encoder.load(bundles["merge"]) as encoder:
        pixels = MODELS["merge"].pixels(1)
        for keep in (5, 0.3, (16, 7), (7, 7), (9, 4)):
            with pytest.raises(KeepError, match=r"merging|at least half"):
                encoder.encode_pixels(pixels, keep)
        counts = (8, 8)
        np.testing.assert_allclose(encoder.encode_pixels(pixels, counts), MODELS["merge"].embed(pixels, counts), atol=1e-5)


@pytest.mark.parametrize("name", WITHOUT_SPLIT)
def test_a_mode_that_the_method_lacks_is_named(bundles: dict[str, Bundle], name: str) -> None:
    bundle, method, pixels = bundles[name], MODELS[name].method, MODELS[name].pixels(1)
    with pytest.raises(ConfigError, match=f"'split'.*'{method}'.*fused, full"):
        Encoder.load(bundle, mode="split")
    with pytest.raises(ConfigError, match=f"'{method}'"):
        mode_counts(bundle.manifest, "split", None)
    with Encoder.load(bundle) as encoder:
        calls: list[Callable[[Any], object]] = [encoder.scores, encoder.kept, encoder.stages]
        for call in calls:
            with pytest.raises(ConfigError, match=f"'{method}'.*fused, full"):
                call(pixels)


@pytest.mark.parametrize("name", ["rank at 6 px", "merge at 6 px", "none"])
def test_each_mode_reads_images_of_its_own_size(bundles: dict[str, Bundle], name: str) -> None:
    model, image = MODELS[name], np.random.default_rng(3).integers(0, 256, (11, 9, 3), np.uint8)
    for mode, side, other in (("fused", 6, SIDE), ("full", SIDE, 6)):
        with Encoder.load(bundles[name], mode=mode) as encoder:
            assert encoder.mode == mode and encoder.preprocess.size == (side, side)
            prepared = prepare_batch([image], encoder.preprocess)
            assert prepared.shape == (1, 3, side, side)
            np.testing.assert_array_equal(encoder.encode_images([image]), encoder.encode_pixels(prepared))
            for shape in ((1, 3, other, other), (1, 3, side, other)):
                with pytest.raises(ShapeError, match=rf"{other}.*'{mode}'.* {side} x {side}"):
                    encoder.encode_pixels(np.zeros(shape, np.float32))
            for shape in ((3, side, side), (1, 2, side, side), (0, 3, side, side)):
                with pytest.raises(ShapeError, match="pixels"):
                    encoder.encode_pixels(np.zeros(shape, np.float32))
            with pytest.warns(InputWarning, match="200"):
                encoder.encode_pixels(np.full((1, 3, side, side), 200.0, np.float32))
    assert model.side == 6


@pytest.mark.parametrize("name", MODELS)
def test_pickled_encoders_keep_their_mode(bundles: dict[str, Bundle], name: str) -> None:
    for mode in modes_of(MODELS[name].spec):
        with Encoder.load(bundles[name].path, mode=mode) as encoder, pickle.loads(pickle.dumps(encoder)) as again:
            pixels = MODELS[name].pixels(2, side=encoder.preprocess.size[0])
            assert again.mode == mode
            np.testing.assert_array_equal(again.encode_pixels(pixels), encoder.encode_pixels(pixels))


@pytest.mark.parametrize("name", MODELS)
def test_verify_runs_every_mode_that_there_is(bundles: dict[str, Bundle], name: str) -> None:
    report, manifest = verify(bundles[name]), bundles[name].manifest
    assert {case.mode for case in report.cases} == {*modes_of(manifest.prune), "text"} and report.cosine > 0.99999
    low, high = manifest.keep_range
    counts = {low, manifest.default_keep, high}
    assert {case.k for case in report.cases if case.mode == "fused"} == counts
    # The unpruned encoder has the patches of its own size.
    assert {case.k for case in report.cases if case.mode == "full"} == {16}


def test_a_probe_of_the_unpruned_encoder_is_needed_where_its_images_are_larger(tmp_path: Path) -> None:
    model = MODELS["merge at 6 px"]
    for number, changes in enumerate(({"pixels_full": None}, {"pixels_full": model.pixels(3)}, {"pixels_full": model.pixels(2, side=SIDE)})):
        with pytest.raises(BundleError, match="pixels_full"):
            verify(with_probe(tiny_bundle(tmp_path / str(number), model), model, **changes))
    other = with_probe(tiny_bundle(tmp_path / "other", model), model, pixels_full=model.pixels(3, seed=8, side=SIDE))
    with pytest.raises(ParityError, match="full"):
        verify(other)


@pytest.mark.parametrize("mode", ["fused", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folder_is_embedded_at_the_size_of_the_mode(bundles: dict[str, Bundle], name: str, mode: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(tmp_path / f"{number}.png")
    with Encoder.load(bundles[name], mode=mode) as encoder:
        found = embed_folder(encoder, [tmp_path], batch_size=2)
        np.testing.assert_allclose(found.embeddings, encoder.encode_images(found.paths), atol=1e-6)
    assert found.keep == (16 if mode == "full" else bundles[name].manifest.default_keep)


def test_profiles_have_the_axes_that_the_graphs_have(bundles: dict[str, Bundle]) -> None:
    for name, wanted in {"merge": {"batch", "k[1]", "k[2]"}, "merge at 6 px": {"batch", "k"}, "none": {"batch"}}.items():
        manifest = bundles[name].manifest
        for keeps in ((), (manifest.keep_range[0], manifest.keep_range[1])):
            build = BuildOptions(keeps=keeps)
            found = profiles(manifest, build)
            fused = graph_profiles(manifest.graphs["fp32"]["fused"].inputs, found, build)
            assert all(set(profile) == wanted for profile in fused)
            for k in keeps or range(manifest.keep_range[0], manifest.keep_range[1] + 1):
                counts = manifest.prune.counts(k)
                call: dict[str, Any] = {"pixels": MODELS[name].pixels(2)} | ({"k": np.array(counts)} if counts else {})
                choose_profile(fused, call_sizes(manifest.graphs["fp32"]["fused"].inputs, call), "fused.onnx", "trt")
            # TensorRT tries the optimal counts, and may try the others; a merging that removes more than half of the patches fails.
            for end in ("min", "opt", "max") if manifest.prune.locations else ():
                for profile in fused:
                    manifest.prune.check_counts([getattr(allowed, end) for axis, allowed in profile.items() if axis.startswith("k")])
        with pytest.raises(KeepError, match="3"):
            profiles(manifest, BuildOptions(keeps=(3,)))


@pytest.mark.parametrize("name", WITHOUT_SPLIT)
def test_commands(bundles: dict[str, Bundle], name: str, tmp_path: Path) -> None:
    def run(*words: object) -> Any:
        with warnings.catch_warnings():
            return CliRunner().invoke(app, [str(word) for word in words])

    image, bundle = tmp_path / "a.png", bundles[name].path
    Image.fromarray(np.random.default_rng(4).integers(0, 256, (9, 12, 3), np.uint8)).save(image)
    method = MODELS[name].method
    for words in (("show", "-o", tmp_path / "out.png"), ("embed", "--mode", "split", "-o", tmp_path / "out.npz"), ("classify", "--mode", "split")):
        result = run(*words, "--bundle", bundle, image)
        assert (result.exit_code, result.output.count("\n")) == (1, 1) and f"'{method}'" in result.output
    assert not list(tmp_path.glob("out.*"))
    for mode in ("fused", "full"):
        assert run("classify", "--mode", mode, "--bundle", bundle, image).exit_code == 0
        assert run("embed", "--mode", mode, "--bundle", bundle, image, "-o", tmp_path / f"{mode}.npz").exit_code == 0
    assert np.load(tmp_path / "full.npz")["keep"] == 16
    assert run("verify", "--bundle", bundle).exit_code == 0
