"""Arrays on a device against selection on the host: ties, infinities, every size; and how arrays come and go."""

import builtins
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from prtool.engines.cuda import cuda_arrays  # noqa: E402
from prtool.engines.pytorch.arrays import CudaTorchArrays, TorchArrays, torch_arrays  # noqa: E402
from prtool.errors import EngineError, EngineUnavailable, KeepError, ShapeError  # noqa: E402
from prtool.runtime.select import gather, select  # noqa: E402

CPU = torch_arrays("cpu")


def scores_of(seed: int, batch: int, patches: int, dtype: str = "float32") -> np.ndarray:
    """Scores with many equal values, both zeros and both infinities."""
    rng = np.random.default_rng(seed)
    values = np.array([-np.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf])
    mixed = np.where(rng.random((batch, patches)) < 0.7, rng.choice(values, (batch, patches)), rng.standard_normal((batch, patches)))
    return mixed.astype(dtype)


def check_selection(arrays: Any, dtype: str) -> None:
    rng = np.random.default_rng(7)
    for seed in range(40):
        batch, patches = int(rng.integers(1, 6)), int(rng.integers(1, 600))
        k, prefix, appended = int(rng.integers(1, patches + 1)), int(rng.integers(0, 4)), int(rng.integers(0, 3))
        scores = scores_of(seed, batch, patches, dtype)
        expected = select(scores, k)
        indices = arrays.select(arrays.to_device(scores), k)
        np.testing.assert_array_equal(arrays.to_host(indices), expected)
        tokens = rng.standard_normal((batch, prefix + patches + appended, 5)).astype(dtype)
        kept = arrays.gather(arrays.to_device(tokens), indices, prefix, appended)
        np.testing.assert_array_equal(arrays.to_host(kept), gather(tokens, expected, prefix, appended).astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_selection_equals_the_host(dtype: str) -> None:
    check_selection(CPU, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_selection_on_cuda_equals_the_host(dtype: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    check_selection(cuda_arrays(0), dtype)


def test_selection_on_cuda_never_waits() -> None:
    """On tensors without values, where a step that asks for one raises."""
    arrays = CudaTorchArrays(torch.device("cuda", 0))
    with FakeTensorMode():
        indices = arrays.select(torch.empty(3, 16, device="cuda:0"), 5)
        kept = arrays.gather(torch.empty(3, 18, 4, device="cuda:0"), indices, 1, 1)
        assert (indices.shape, kept.shape, kept.device) == ((3, 5), (3, 7, 4), torch.device("cuda", 0))
        with pytest.raises(torch._subclasses.fake_tensor.DataDependentOutputException):
            CPU.select(torch.empty(3, 16), 5)


@pytest.mark.parametrize("k", [0, -1, 6])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(KeepError, match=f"k = {k}"):
        CPU.select(torch.zeros(2, 5), k)


@pytest.mark.parametrize(("scores", "message"), [(torch.zeros(5), r"shape \(5,\)"), (torch.zeros(2, 5, dtype=torch.int64), "int64")])
def test_scores_of_another_form_are_refused(scores: Any, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        CPU.select(scores, 2)


def test_nan_is_refused_where_nothing_waits() -> None:
    with pytest.raises(ShapeError, match="NaN"):
        CPU.select(torch.tensor([[1.0, float("nan")]]), 1)


@pytest.mark.parametrize(("indices", "message"), [([[0, 5]], "5"), ([[-1, 0]], "-1")])
def test_an_index_of_no_patch_is_refused(indices: list[list[int]], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        CPU.gather(torch.zeros(1, 7, 3), torch.tensor(indices), 1, 1)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError):
        CPU.gather(torch.zeros(2, 7, 3), torch.zeros(1, 2, dtype=torch.int64), 1, 1)


class Foreign:
    """An array of another library, known by DLPack alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def test_arrays_come_from_anywhere() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for given in (array, torch.from_numpy(array), Foreign(array), np.asfortranarray(array), torch.from_numpy(array).requires_grad_()):
        tensor = CPU.to_device(given)
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        np.testing.assert_array_equal(CPU.to_host(tensor), array)
    assert CPU.to_device(array).data_ptr() == array.ctypes.data
    assert CPU.to_device(Foreign(array)).data_ptr() == array.ctypes.data


@pytest.mark.parametrize("given", [[1.0], "pixels", np.array(["a"]), np.zeros(2, ">f4")])
def test_what_is_no_array_is_refused(given: Any) -> None:
    with pytest.raises(ShapeError):
        CPU.to_device(given)


def test_halves_come_to_the_host_as_float32() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        host = CPU.to_host(torch.tensor([1.5, -2.0], dtype=dtype))
        assert host.dtype == np.float32
        np.testing.assert_array_equal(host, [1.5, -2.0])


def test_a_cpu_repeats_what_it_cannot_record() -> None:
    source = torch.zeros(3)
    recording = CPU.capture(lambda: source + 1)
    source[...] = 2.0
    assert recording().tolist() == [3.0, 3.0, 3.0]
    assert not CPU.records
    CPU.synchronise()


def test_engines_of_a_device_share_its_arrays() -> None:
    assert torch_arrays("cpu") is torch_arrays("cpu")
    assert isinstance(torch_arrays("cpu"), TorchArrays)
    # Nothing is asked of the driver before an array is made.
    assert isinstance(torch_arrays("cuda:3"), CudaTorchArrays)
    assert torch_arrays("cuda:3").records
    assert torch_arrays("cuda:3").device == "cuda:3"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
def test_without_a_gpu_or_torch_the_reason_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineUnavailable, match=r"cuda:0 .* finds 0 CUDA devices"):
        cuda_arrays(0)
    importing = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == "torch":
            raise ImportError(f"No module named {name!r}")
        return importing(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(EngineUnavailable, match="torch"):
        cuda_arrays(0)


@pytest.mark.gpu
def test_a_cuda_graph_replays_and_a_fence_orders_streams() -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    arrays = cuda_arrays(0)
    assert arrays.records
    source = arrays.to_device(np.ones((512, 512), np.float32))
    recording = arrays.capture(lambda: source @ source)
    for value in (2.0, 3.0):
        source[...] = value
        np.testing.assert_array_equal(arrays.to_host(recording()), np.full((512, 512), 512 * value * value))
    wait = arrays.fence()
    with torch.cuda.stream(torch.cuda.Stream()):
        wait()
        assert float(source.sum()) == 512 * 512 * 3.0
    with pytest.raises(EngineError):
        arrays.capture(lambda: torch.full((2,), float(source.sum())))
