"""The runtime encoder against the same maths in plain numpy."""

import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from models import EMBED, LOGIT_BIAS, LOGIT_SCALE, SIDE, VOCABULARY, TinyModel, class_embeddings, tiny_bundle
from PIL import Image
from safetensors.numpy import save_file

from prtool.bundle import Bundle, seal
from prtool.engines.base import EngineOptions
from prtool.errors import BundleError, ConfigError, EngineError, EngineUnavailable, ImageError, InputWarning, KeepError, ShapeError
from prtool.manifest import ClassInfo, TextInfo
from prtool.runtime.encoder import Encoder
from prtool.runtime.images.preprocess import prepare
from prtool.spec import Keep

MODELS = {
    "one location": TinyModel(),
    "kept tokens": TinyModel(prefix_tokens=2, learnable_tokens=3),
    "three locations": TinyModel(locations=(2, 3, 4), learnable_tokens=1),
}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return {name: tiny_bundle(tmp_path_factory.mktemp("bundle") / "b", model) for name, model in MODELS.items()}


@pytest.fixture(scope="module")
def bundle(bundles: dict[str, Bundle]) -> Bundle:
    return bundles["one location"]


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> Iterator[Encoder]:
    with Encoder.load(bundle, options=EngineOptions(threads=2)) as opened:
        yield opened


@pytest.fixture
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (11, 9, 3), np.uint8) for _ in range(3)]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", ["fused", "split"])
def test_pruned_modes_equal_numpy(bundles: dict[str, Bundle], name: str, mode: str) -> None:
    model = MODELS[name]
    with Encoder.load(bundles[name].path, mode=mode) as encoder:
        for batch, k in ((1, 2), (3, 5), (2, 16), (5, 11)):
            pixels = model.pixels(batch, seed=k)
            counts = model.spec.counts(Keep.count(k))
            result = encoder.encode_pixels(pixels, k)
            assert result.dtype == np.float32
            np.testing.assert_allclose(result, model.embed(pixels, counts), atol=1e-5)
            np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_full_keeps_every_patch_and_knows_no_learnable_tokens(bundles: dict[str, Bundle], name: str) -> None:
    pixels = MODELS[name].pixels(3)
    with Encoder.load(bundles[name], mode="full") as full:
        for keep in (None, 1.0, 16, Keep.ratio(1.0), (16,) * len(MODELS[name].locations)):
            np.testing.assert_allclose(full.encode_pixels(pixels, keep), MODELS[name].embed_full(pixels), atol=1e-5)
        with pytest.raises(KeepError, match="full"):
            full.encode_pixels(pixels, 0.5)


def test_every_form_of_keep(encoder: Encoder) -> None:
    pixels = MODELS["one location"].pixels(2)
    default = encoder.encode_pixels(pixels)
    for keep in (10, 0.6, 0.625, Keep.count(10), Keep.ratio(0.6)):
        np.testing.assert_array_equal(encoder.encode_pixels(pixels, keep), default)
    assert not np.allclose(encoder.encode_pixels(pixels, 3), default, atol=1e-3)


@pytest.mark.parametrize(
    ("keep", "message"),
    [(17, "17"), (1, "1"), (Keep.count(1), r"2.*16"), (0.0, "0.0"), (1.5, "1.5"), (float("nan"), "nan"), (0, "0")],
)
@pytest.mark.parametrize("mode", ["fused", "split", "full"])
def test_keep_out_of_range(bundle: Bundle, mode: str, keep: Keep | float, message: str) -> None:
    with Encoder.load(bundle, mode=mode) as encoder, pytest.raises(KeepError, match=message if mode != "full" else None):
        encoder.encode_pixels(MODELS["one location"].pixels(1), keep)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("keep", [2, 7, 1.0])
def test_scores_and_kept_equal_numpy(bundles: dict[str, Bundle], name: str, keep: float) -> None:
    model, pixels = MODELS[name], MODELS[name].pixels(3)
    counts = model.spec.counts(Keep.of(keep))
    with Encoder.load(bundles[name]) as encoder:
        np.testing.assert_allclose(encoder.scores(pixels), model.scores(pixels), atol=1e-5)
        assert encoder.kept(pixels, keep)[-1].tolist() == [model.kept(image.astype(np.float64), counts) for image in pixels]


@pytest.mark.parametrize("counts", [(16, 9, 2), (5, 5, 5), (13, 4, 3)])
def test_a_count_for_each_location(bundles: dict[str, Bundle], counts: tuple[int, ...]) -> None:
    model, pixels = MODELS["three locations"], MODELS["three locations"].pixels(3)
    for mode in ("fused", "split"):
        with Encoder.load(bundles["three locations"], mode=mode) as encoder:
            np.testing.assert_allclose(encoder.encode_pixels(pixels, counts), model.embed(pixels, counts), atol=1e-5)
    with Encoder.load(bundles["three locations"]) as encoder:
        kept = encoder.kept(pixels, counts)
        assert tuple(patches.shape[1] for patches in kept) == counts
        assert all(set(after) <= set(before) for before, after in zip(kept[0].tolist(), kept[1].tolist(), strict=True))
        assert kept[2].tolist() == [model.kept(image.astype(np.float64), counts) for image in pixels]


@pytest.mark.parametrize("counts", [(), (9,), (9, 8, 7, 6), (9, 10, 4), (17, 9, 4), (9, 8, 1), (9, 8, 0), (9, 8.0, 4), (True, True, True)])
def test_counts_that_grow_or_do_not_fit(bundles: dict[str, Bundle], counts: tuple[int, ...]) -> None:
    message = r"the locations 2, 3, 4 take 3 whole numbers that do not rise, from at most 16 .*such as|allows 2 to 16|must be whole numbers, such as"
    with Encoder.load(bundles["three locations"]) as encoder:
        for call in (encoder.encode_pixels, encoder.kept, encoder.stages):
            with pytest.raises(KeepError, match=message):
                call(MODELS["three locations"].pixels(1), counts)


def test_full_refuses_counts_that_drop(bundles: dict[str, Bundle]) -> None:
    with Encoder.load(bundles["three locations"], mode="full") as full, pytest.raises(KeepError, match="full"):
        full.encode_pixels(MODELS["three locations"].pixels(1), (16, 16, 9))


def test_stages_end_in_the_embedding(bundles: dict[str, Bundle]) -> None:
    pixels = MODELS["three locations"].pixels(2)
    with Encoder.load(bundles["three locations"]) as encoder:
        stages = list(encoder.stages(pixels, 4))
        assert [stage.name for stage in stages] == ["pre", "select_1", "mid_1", "select_2", "mid_2", "select_3", "post"]
        assert [stage.tensors["indices"].shape[1] for stage in stages if stage.name.startswith("select")] == [12, 8, 4]
        np.testing.assert_allclose(stages[-1].tensors["embedding"], encoder.encode_pixels(pixels, 4), atol=1e-5)


def test_images_of_every_kind(encoder: Encoder, images: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(images[0]).save(path)
    kinds = [images[0], str(path), path, path.read_bytes(), Image.fromarray(images[0])]
    pixels = prepare(images[0], encoder.manifest.preprocess)[None].repeat(len(kinds), axis=0)
    np.testing.assert_array_equal(encoder.encode_images(kinds, 0.5), encoder.encode_pixels(pixels, 0.5))


def test_classify_equals_softmax(encoder: Encoder, images: list[np.ndarray]) -> None:
    embeddings, table = encoder.encode_images(images, 0.5).astype(np.float64), class_embeddings(3).astype(np.float64)
    for predictions, embedding in zip(encoder.classify(images, 0.5, top=9), embeddings, strict=True):
        logits = [LOGIT_SCALE * float(embedding @ row) + LOGIT_BIAS for row in table]
        weights = [np.exp(logit) for logit in logits]
        expected = sorted(((w / sum(weights), i) for i, w in enumerate(weights)), key=lambda pair: -pair[0])
        assert [item.label for item in predictions] == [i for _, i in expected]
        assert [item.name for item in predictions] == [("cat", "dog", "car")[i] for _, i in expected]
        np.testing.assert_allclose([item.probability for item in predictions], [p for p, _ in expected], atol=1e-6)
    assert [len(row) for row in encoder.classify(images, top=2)] == [2, 2, 2]
    with pytest.raises(ConfigError, match="top = 0"):
        encoder.classify(images, top=0)


def test_classify_takes_embeddings(encoder: Encoder, images: list[np.ndarray]) -> None:
    embeddings = encoder.encode_images(images, 0.5)
    assert encoder.classify(embeddings, top=2) == encoder.classify(images, 0.5, top=2)
    with pytest.raises(ConfigError, match="embeddings"):
        encoder.classify(embeddings, 0.5)
    with pytest.raises(ShapeError, match=str(EMBED)):
        encoder.classify(embeddings[:, 1:])
    embeddings[1, 2] = np.nan
    with pytest.raises(ShapeError, match="embedding 1"):
        encoder.classify(embeddings)


def test_text_equals_numpy(encoder: Encoder) -> None:
    ids = np.array([[2, 3, 4, 2, 5, 0, 0], [6, 1, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2, 2]], np.int64)
    prompts = ["A photo of a cat", "dog zebra", "a " * 7]
    expected = MODELS["one location"].embed_text(ids)
    np.testing.assert_allclose(encoder.encode_text(ids), expected, atol=1e-5)
    np.testing.assert_allclose(encoder.encode_text(prompts), expected, atol=1e-5)


@pytest.mark.parametrize(
    "prompts",
    ["a cat", ("a cat",), np.array(["a cat"]), np.array("a cat"), (word for word in ["a cat"])],
    ids=["str", "tuple", "array", "0-d", "generator"],
)
def test_prompts_in_any_form(encoder: Encoder, prompts: Any) -> None:
    np.testing.assert_array_equal(encoder.encode_text(prompts), encoder.encode_text(["a cat"]))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "no texts"),
        (None, "NoneType"),
        (5, "int"),
        (b"a cat", "bytes"),
        (["a cat", None], r"1.*None"),
        ([b"a"], "0"),
        ([[1] * 7], "int64"),
        (["\ud800"], "ud800"),
        (["a cat", "a " * 8], r"8.*7"),
    ],
)
def test_prompts_that_are_rejected(encoder: Encoder, prompts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder.encode_text(prompts)


@pytest.mark.parametrize("engine", ["ort", "openvino", "torch"])
@pytest.mark.parametrize("bad", [VOCABULARY, 99999, -1, -(2**40)])
def test_token_ids_outside_the_vocabulary(bundle: Bundle, engine: str, bad: int) -> None:
    pytest.importorskip({"ort": "onnxruntime"}.get(engine, engine), reason=f"{engine} is not installed")
    ids = np.array([[1, 2, bad, 0, 0, 0, 0]], np.int64)
    with Encoder.load(bundle, engine=engine) as encoder, pytest.raises(ConfigError, match=f"{bad}.* {VOCABULARY - 1}"):
        encoder.encode_text(ids)


def test_missing_tokenizers_names_the_pip_line(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with Encoder.load(bundle) as encoder, pytest.raises(EngineUnavailable, match=r"pip install '\.\[text\]'"):
        encoder.encode_text(["a cat"])


@pytest.mark.parametrize("mode", ["fused", "split", "full"])
def test_wrong_pixels(bundle: Bundle, mode: str) -> None:
    good = MODELS["one location"].pixels(2)
    with Encoder.load(bundle, mode=mode) as encoder:
        for pixels in (good[0], good[:, :2], good[:0], good[..., :-1], good.astype(np.float64), good.tolist()):
            with pytest.raises(ShapeError, match="pixels"):
                encoder.encode_pixels(pixels)
        np.testing.assert_array_equal(encoder.encode_pixels(np.asfortranarray(good)), encoder.encode_pixels(good))
        with pytest.raises((EngineError, ShapeError), match=r"NaN"):
            encoder.encode_pixels(np.full((1, 3, SIDE, SIDE), np.nan, np.float32))


@pytest.mark.parametrize("ids", [np.zeros((1, 6), np.int64), np.zeros((1, 7), np.int32)])
def test_wrong_token_ids(encoder: Encoder, ids: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="token"):
        encoder.encode_text(ids)


@pytest.mark.parametrize("form", ["path", "str", "bytes", "bytearray", "memoryview", "BytesIO", "open file", "PIL", "array", "stack", "generator"])
def test_images_in_any_form(encoder: Encoder, images: list[np.ndarray], tmp_path: Path, form: str) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(images[0]).save(path)
    raw = path.read_bytes()
    written = io.BytesIO()
    written.write(raw)  # and left at its end, as by whoever has just written an image into it
    with path.open("rb") as stream:
        forms: dict[str, Any] = {
            "path": path,
            "str": str(path),
            "bytes": raw,
            "bytearray": bytearray(raw),
            "memoryview": memoryview(raw),
            "BytesIO": written,
            "open file": stream,
            "PIL": Image.fromarray(images[0]),
            "array": images[0],
            "stack": np.stack(images[:1]),
            "generator": (item for item in images[:1]),
        }
        expected = encoder.encode_images([images[0]])
        np.testing.assert_array_equal(encoder.encode_images(forms[form]), expected)
        if form not in ("stack", "generator"):
            np.testing.assert_array_equal(encoder.encode_images([forms[form]] * 2), encoder.encode_images([images[0]] * 2))
            np.testing.assert_array_equal(prepare(forms[form], encoder.manifest.preprocess), prepare(images[0], encoder.manifest.preprocess))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "nothing"),
        (None, "None"),
        (5, "5"),
        ({"a": 1}, "{'a': 1}"),
        ([None], "None"),
        ([7], "7"),
        ([io.StringIO("text")], "opened as text"),
        (np.zeros((5, 5)), "shape"),
    ],
)
def test_images_that_are_rejected(encoder: Encoder, images: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        encoder.encode_images(images)


@pytest.mark.parametrize("image", ["absent.png", Path("absent.png"), b"\x89PNG", io.BytesIO(b"")])
def test_one_image_that_cannot_be_read(encoder: Encoder, image: Any) -> None:
    with pytest.raises(ImageError):
        encoder.encode_images(image)


def test_numbers_of_numpy_are_keeps(bundles: dict[str, Bundle]) -> None:
    model = MODELS["three locations"]
    with Encoder.load(bundles["three locations"]) as encoder:
        pixels = model.pixels(2)
        assert Keep.of(np.float32(0.7)) == Keep.ratio(0.7)
        for keep, same in (
            (np.float32(0.7), 0.7),
            (np.float64(0.7), 0.7),
            (np.int64(9), 9),
            ([14, 12, 10], (14, 12, 10)),
            (np.array([14, 12, 10]), None),
        ):
            np.testing.assert_array_equal(encoder.encode_pixels(pixels, keep), encoder.encode_pixels(pixels, same))
        for wrong in ("0.6", "a", b"1", {}, np.array(3), 1 + 2j, True, [14, "12", 10]):
            with pytest.raises(KeepError):
                encoder.encode_pixels(pixels, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", ["0.6", None, 0.5])
def test_keep_counts_are_whole_numbers(keep: Any) -> None:
    with pytest.raises(KeepError):
        Keep.count(keep)


def test_pixels_of_another_range_are_warned_of_once(bundle: Bundle) -> None:
    with Encoder.load(bundle) as encoder:
        encoder.encode_pixels(MODELS["one location"].pixels(8))
        bytes_as_floats = np.full((1, 3, SIDE, SIDE), 3.0, np.float32)
        bytes_as_floats[0, 1, 2, 3] = 251.0
        with pytest.warns(InputWarning, match=r"3.*251"):
            expected = encoder.encode_pixels(bytes_as_floats)
        np.testing.assert_array_equal(encoder.encode_pixels(bytes_as_floats), expected)  # warnings are errors here


@pytest.mark.parametrize("top", [0, -1, 2.5, "3", None])
def test_top_must_be_a_whole_number(encoder: Encoder, images: list[np.ndarray], top: Any) -> None:
    with pytest.raises(ConfigError, match="top = "):
        encoder.classify(images, top=top)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bundle": None},
        {"bundle": 5},
        {"mode": None},
        {"mode": ["fused"]},
        {"engine": None},
        {"engine": {"ort"}},
        {"precision": None},
        {"precision": ["fp32"]},
        {"options": 2},
        {"options": {"threads": 2}},
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind(bundle: Bundle, arguments: dict[str, Any]) -> None:
    (name,) = arguments
    with pytest.raises(ConfigError, match=name):
        Encoder.load(**{"bundle": bundle} | arguments)


@pytest.mark.parametrize(
    "options",
    [{"threads": "2"}, {"threads": 1.0}, {"threads": True}, {"streams": 0}, {"device": None}, {"spinning": 1}, {"cache": 5}, {"build": 8}],
    ids=str,
)
def test_options_of_the_wrong_kind(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        EngineOptions(**options)
    assert EngineOptions(cache=cast(Path, "folder")).cache == Path("folder")


def test_unknown_names(bundle: Bundle) -> None:
    with pytest.raises(ConfigError, match=r"mode = 'splt'.*fused, split, full"):
        Encoder.load(bundle, mode="splt")
    with pytest.raises(ConfigError, match="engine = 'x'"):
        Encoder.load(bundle, engine="x")
    with pytest.raises(ConfigError, match="precision = 'fp8'"):
        Encoder.load(bundle, precision="fp8")


def test_a_bundle_without_text_classes_or_a_graph(tmp_path: Path, images: list[np.ndarray]) -> None:
    bare = tiny_bundle(tmp_path / "bare", MODELS["one location"], text=False, classes=())
    with Encoder.load(bare) as encoder:
        with pytest.raises(BundleError):
            encoder.classify(images)
        with pytest.raises(BundleError):
            encoder.encode_text(["a cat"])
        with pytest.raises(BundleError):
            encoder.encode_text(np.zeros((1, 7), np.int64))
    graphs = {role: graph for role, graph in bare.manifest.graphs["fp32"].items() if role != "fused"}
    with pytest.raises(ConfigError, match="graph = 'fused'"):
        Encoder.load(replace(bare, manifest=replace(bare.manifest, graphs={"fp32": graphs})))


def test_a_bundle_without_a_tokenizer(bundle: Bundle) -> None:
    silent = replace(bundle, manifest=replace(bundle.manifest, text=TextInfo(7, VOCABULARY, "")))
    with Encoder.load(silent) as encoder, pytest.raises(BundleError):
        encoder.encode_text(["a cat"])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"embeddings": class_embeddings(4)}, r"\(4, 6\).*\(3, 6\)"),
        ({"embeddings": class_embeddings(3).astype(np.float16)}, "float16"),
        ({"embeddings": class_embeddings(3) * 2}, r"2.*1"),
        ({"embeddings": np.full((3, EMBED), np.nan, np.float32)}, "nan"),
        ({"other": class_embeddings(3)}, "embeddings"),
        (None, "classes.safetensors"),
    ],
)
def test_damaged_classes(tmp_path: Path, images: list[np.ndarray], tensors: dict[str, np.ndarray] | None, message: str) -> None:
    made = tiny_bundle(tmp_path / "b", MODELS["one location"], text=False)
    path = made.path / "classes.safetensors"
    path.write_bytes(b"\xff" * 40) if tensors is None else save_file(tensors, path)
    seal(made.path, replace(made.manifest, classes=ClassInfo(("cat", "dog", "car"), (), path.name)))
    with Encoder.load(made.path) as encoder, pytest.raises(BundleError, match=message):
        encoder.classify(images)


@pytest.mark.parametrize("content", ["not json", "{}", '{"version": "1.0", "model": {"type": "none"}}'])
def test_damaged_tokenizer(tmp_path: Path, content: str) -> None:
    made = tiny_bundle(tmp_path / "b", MODELS["one location"])
    (made.path / "tokenizer.json").write_text(content)
    seal(made.path, made.manifest)
    with Encoder.load(made.path) as encoder, pytest.raises(BundleError, match=r"tokenizer\.json"):
        encoder.encode_text(["a cat"])


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    made = tiny_bundle(tmp_path / "b", MODELS["one location"])
    content = json.loads((made.path / "tokenizer.json").read_bytes())
    content["model"]["vocab"]["zebra"] = VOCABULARY
    (made.path / "tokenizer.json").write_text(json.dumps(content))
    seal(made.path, made.manifest)
    with Encoder.load(made.path) as encoder, pytest.raises(BundleError, match=f"{VOCABULARY}"):
        encoder.encode_text(["a zebra"])


def test_damaged_bundles(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Encoder.load(tmp_path / "absent")
    made = tiny_bundle(tmp_path / "b", MODELS["one location"])
    path = made.path / "fused.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"fused\.onnx"):
        Encoder.load(made.path)
    path.unlink()
    with pytest.raises(BundleError, match=r"fused\.onnx"):
        Encoder.load(made.path, verify=False)


@pytest.mark.parametrize("mode", ["fused", "split"])
def test_many_threads_give_what_one_gives(bundle: Bundle, mode: str) -> None:
    calls = [(MODELS["one location"].pixels(1 + i % 3, seed=i), 2 + i % 15) for i in range(20)]
    with Encoder.load(bundle, mode=mode) as encoder, ThreadPoolExecutor(8) as pool:
        serial = [encoder.encode_pixels(*call) for call in calls]
        # Scores open PRE lazily, so the eight first calls meet there.
        kept = [[array.tolist() for array in result] for result in pool.map(lambda _: encoder.kept(*calls[0]), range(8))]
        assert kept == [kept[0]] * 8
        for results in pool.map(lambda _: [encoder.encode_pixels(*call) for call in calls], range(8)):
            for parallel, alone in zip(results, serial, strict=True):
                np.testing.assert_allclose(parallel, alone, atol=1e-6)


@pytest.mark.parametrize("mode", ["fused", "split", "full"])
def test_a_closed_encoder_fails_and_closes_twice(bundle: Bundle, mode: str) -> None:
    encoder = Encoder.load(bundle, mode=mode)
    encoder.close()
    encoder.close()
    pixels = MODELS["one location"].pixels(1)
    for call in (lambda: encoder.encode_pixels(pixels), lambda: encoder.scores(pixels), lambda: encoder.encode_text(["a cat"])):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_info_and_manifest(encoder: Encoder, bundle: Bundle) -> None:
    assert (encoder.info.name, encoder.info.device) == ("ort", "CPU, 2 threads")
    assert encoder.manifest == bundle.manifest


def test_the_runtime_loads_neither_torch_nor_its_neighbours() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "tokenizers", "prtool.trainer", "prtool.export")
    code = f"import sys, prtool.runtime.encoder; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def test_an_encoder_runs_without_torch(bundle: Bundle) -> None:
    code = (
        "import sys, numpy as np; from prtool.runtime.encoder import Encoder\n"
        f"pixels = np.zeros((1, 3, {SIDE}, {SIDE}), np.float32)\n"
        f"with Encoder.load({str(bundle.path)!r}) as encoder: print(encoder.encode_pixels(pixels).shape, 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == f"(1, {EMBED}) False"
