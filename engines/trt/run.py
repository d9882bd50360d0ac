"""Running a TensorRT plan: one execution context for each set of shapes, on the caller's stream, from and to device memory."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from prtool.engines.base import Array, DeviceArray, EngineInfo, Profile, check_inputs, opened, reason
from prtool.engines.cuda import address, described
from prtool.engines.nvidia import free_memory, is_capturing
from prtool.engines.profiles import Sizes, call_sizes, choose_profile, is_shape_input
from prtool.errors import EngineError
from prtool.manifest import TensorSpec

if TYPE_CHECKING:
    from prtool.engines.pytorch.arrays import CudaTorchArrays

# Each holds scratch memory for its shapes. The first call of a new set of shapes is slow, so the ones used last are kept.
CONTEXTS_KEPT = 16
_MIB = 1 << 20


@dataclass(frozen=True)
class TrtPlan:
    """A deserialised plan.

    Attributes:
        graph: the ONNX file's name, for messages.
        engine: the engine's name in the registry.
        inputs: the graph's declared inputs.
        outputs: name -> numpy dtype name (or "bfloat16") of each output.
        profiles: the ranges that it was built for, in its order.
        new_context: makes an execution context (IExecutionContext) without memory of its own, or None where it cannot.
        failure: an error with a problem and the library's own reason.
        on_device: makes the plan's GPU the calling thread's current one.
        keeps: what must live as long as the contexts (TensorRT's runtime and engine).
    """

    graph: str
    engine: str
    inputs: tuple[TensorSpec, ...]
    outputs: Mapping[str, str]
    profiles: tuple[Profile, ...]
    new_context: Callable[[], Any]
    failure: Callable[[str], EngineError]
    on_device: AbstractContextManager[object]
    keeps: tuple[Any, ...] = ()


@dataclass(frozen=True)
class _Bucket:
    """A context made ready for one set of shapes; scratch memory and shape values live as long as it does."""

    context: Any
    output_shapes: Mapping[str, tuple[int, ...]]
    scratch: DeviceArray
    shape_values: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class _Call:
    """One call's shapes, what they make of the graph's axes, and its profile."""

    sizes: Sizes = field(hash=False, compare=False)
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    values: tuple[tuple[str, tuple[int, ...]], ...]
    profile: int


class TrtEngine:
    """One plan on one GPU; a `DeviceEngine`.

    `run` and `run_device` may be called from many threads at once: each stream has contexts of its own. Outputs
    belong to the caller. A context that was recorded into a CUDA graph serves that recording alone, and lives as
    long as the engine.
    """

    def __init__(self, plan: TrtPlan, arrays: "CudaTorchArrays", info: EngineInfo) -> None:
        """Makes no context yet. `arrays` are on the plan's device."""
        self._plan: TrtPlan | None = plan
        self._graph = plan.graph
        self._arrays = arrays
        self._info = info
        self._buckets: OrderedDict[tuple[_Call, int], _Bucket] = OrderedDict()
        self._recorded: list[_Bucket] = []
        self._lock = threading.Lock()

    @property
    def info(self) -> EngineInfo:
        """The library's version and the GPU."""
        return self._info

    @property
    def arrays(self) -> "CudaTorchArrays":
        """Arrays on the engine's GPU."""
        return self._arrays

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs the graph once, from and to host arrays; see `Engine.run`. Half-precision outputs come as float32."""
        plan = opened(self._plan, self._graph)
        check_inputs(plan.inputs, inputs, plan.graph)
        on_host = {spec.name for spec in plan.inputs if is_shape_input(spec)}
        with plan.on_device:
            given = {
                name: np.ascontiguousarray(array) if name in on_host else self._arrays.to_device(np.ascontiguousarray(array))
                for name, array in inputs.items()
            }
            return {name: self._arrays.to_host(array) for name, array in self.run_device(given).items()}

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        """Runs the graph once on the current stream; see `DeviceEngine.run_device`. Where memory runs out, the error says which batch should fit."""
        plan = opened(self._plan, self._graph)
        check_inputs(plan.inputs, {name: described(name, array) for name, array in inputs.items()}, plan.graph)
        call = _call(plan, inputs)
        with plan.on_device, self._lock:
            opened(self._plan, self._graph)  # another thread may have closed it while this one waited
            stream = self._arrays.stream
            bucket = self._bucket(plan, call, stream)
            outputs = {name: self._empty(bucket.output_shapes[name], dtype, call) for name, dtype in plan.outputs.items()}
            for name, array in (*((name, inputs[name]) for name, _ in call.shapes), *outputs.items()):
                _done(plan, bucket.context.set_tensor_address(name, address(array)), f"takes no address for {name}")
            _done(plan, bucket.context.execute_async_v3(stream), f"failed on {_words(call.sizes)}")
        return outputs

    def close(self) -> None:
        """Frees the plan and every context, once the device has done what was asked of it; a second call does nothing."""
        with self._lock:
            plan, self._plan = self._plan, None
            if plan is not None:
                self._arrays.synchronise()
                self._buckets.clear()
                self._recorded.clear()

    def _bucket(self, plan: TrtPlan, call: _Call, stream: int) -> _Bucket:
        if is_capturing(stream):
            return self._recordable(call)
        key = (call, stream)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= CONTEXTS_KEPT:
                self._arrays.synchronise()  # its work may still be under way
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = self._new_bucket(plan, call, stream)
        self._buckets.move_to_end(key)
        return bucket

    def _recordable(self, call: _Call) -> _Bucket:
        """Gives away a context that has run these shapes: its memory and addresses become part of the recording."""
        ready = [key for key in self._buckets if key[0] == call]
        if not ready:
            raise EngineError(f"{self._graph} is recorded on {_words(call.sizes)} before it ran on that; run it once, then record it")
        bucket = self._buckets.pop(ready[-1])
        self._recorded.append(bucket)
        return bucket

    def _new_bucket(self, plan: TrtPlan, call: _Call, stream: int) -> _Bucket:
        context = plan.new_context()
        _done(plan, context is not None, f"makes no execution context for {_words(call.sizes)}")
        _done(plan, context.set_optimization_profile_async(call.profile, stream), f"rejects profile {call.profile}")
        for name, shape in call.shapes:
            _done(plan, context.set_input_shape(name, shape), f"rejects {name} of shape {shape}")
        values = {name: np.array(numbers, np.int64) for name, numbers in call.values}
        for name, numbers in values.items():
            _done(plan, context.set_tensor_address(name, numbers.ctypes.data), f"takes no address for {name}")
        lacking = list(context.infer_shapes())
        _done(plan, not lacking, f"lacks a shape or value for {', '.join(lacking)}")
        size = context.update_device_memory_size_for_shapes()
        scratch = self._empty((max(size, 1),), "uint8", call)
        context.set_device_memory(address(scratch), size)
        shapes = {name: tuple(int(n) for n in context.get_tensor_shape(name)) for name in plan.outputs}
        return _Bucket(context, shapes, scratch, values)

    def _empty(self, shape: tuple[int, ...], dtype: str, call: _Call) -> DeviceArray:
        try:
            return self._arrays.empty(shape, dtype)
        except (RuntimeError, EngineError) as cause:
            if "memory" not in str(cause):
                raise EngineError(f"{self._graph} gets no memory on {self._arrays.device} for {_words(call.sizes)}: {reason(cause, 1)}") from cause
            needed = int(np.prod(shape)) * (2 if dtype == "bfloat16" else np.dtype(dtype).itemsize)
            raise EngineError(_out_of_memory(self._graph, call.sizes, needed, free_memory(), str(cause))) from cause


def fitting_batch(batch: int, needed: int, free: int) -> int:
    """The largest batch, halving from `batch`, whose share of `needed` bytes fits into `free`; 0 where not even one image does."""
    share = batch
    while share and needed * share > free * batch:
        share //= 2
    return share


def _call(plan: TrtPlan, inputs: Mapping[str, DeviceArray]) -> _Call:
    sizes = call_sizes(plan.inputs, inputs)
    profile = choose_profile(plan.profiles, sizes, plan.graph, plan.engine)
    tensors = [spec for spec in plan.inputs if not is_shape_input(spec)]
    shapes = tuple((spec.name, tuple(int(n) for n in inputs[spec.name].shape)) for spec in tensors)
    values = tuple((spec.name, tuple(int(value) for value in np.asarray(inputs[spec.name]))) for spec in plan.inputs if is_shape_input(spec))
    return _Call(sizes, shapes, values, profile)


def _done(plan: TrtPlan, did: bool, problem: str) -> None:
    if not did:
        raise plan.failure(f"{plan.graph} {problem}")


def _words(sizes: Sizes) -> str:
    return ", ".join(f"{name} = {', '.join(map(str, values))}" for name, values in sizes.items()) or "its only shapes"


def _out_of_memory(graph: str, sizes: Sizes, needed: int, free: int | None, reason: str) -> str:
    batch = sizes.get("batch", (1,))[0]
    state = f"it needs {needed // _MIB + 1} MiB more" + ("" if free is None else f", and about {free // _MIB} MiB are free")
    fits = batch // 2 if free is None else min(fitting_batch(batch, needed, free), max(batch // 2, 1))
    if batch == 1 or fits == 0:
        advice = "not even one image fits; free memory of the GPU, or take a smaller model"
    else:
        advice = f"batch = {fits} should fit, by an estimate from its share; call with fewer images at once"
    return f"the GPU is out of memory in {graph} at {_words(sizes)}: {state}; {advice} ({reason})"
