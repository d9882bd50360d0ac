"""A CPU that behaves like a GPU: PyTorch engines whose arrays record work into fixed memory, as CUDA graphs do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from prtool.engines.base import DeviceArray, EngineInfo, EngineOptions
from prtool.engines.pytorch import eager as torch_
from prtool.engines.pytorch.arrays import TorchArrays
from prtool.errors import EngineUnavailable
from prtool.manifest import TensorSpec


class FakeGpuArrays(TorchArrays):
    """Records as CUDA does: a replay reads and writes the memory of the recording, and nothing else.

    Attributes:
        captures: number of recordings made.
        replays: number of replays.
        waits: number of fences that were waited for.
        synchronisations: number of calls of `synchronise`.
    """

    records = True

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.captures = self.replays = self.waits = self.synchronisations = 0

    @property
    def device(self) -> str:
        return "cuda:0"

    def copy(self, array: DeviceArray) -> DeviceArray:
        return array.clone()

    def fence(self) -> Callable[[], None]:
        def wait() -> None:
            self.waits += 1

        return wait

    def capture(self, step: Callable[[], DeviceArray]) -> Callable[[], DeviceArray]:
        self.captures += 1
        result = step()

        def replay() -> DeviceArray:
            self.replays += 1
            return result.copy_(step())

        return replay

    def synchronise(self) -> None:
        self.synchronisations += 1


ARRAYS = FakeGpuArrays()


class FakeGpuEngine(torch_.TorchEngine):
    """The PyTorch engine with those arrays; it counts its runs.

    Attributes:
        runs: names of the files that ran on the device, in order.
    """

    runs: ClassVar[list[str]] = []

    @property
    def arrays(self) -> FakeGpuArrays:
        return ARRAYS

    def run_device(self, inputs: Mapping[str, DeviceArray]) -> dict[str, DeviceArray]:
        self.runs.append(self._file.name)
        return super().run_device(inputs)


def probe() -> EngineInfo:
    raise EngineUnavailable("only tests open it")


def open_graph(model_path: Path, inputs: Sequence[TensorSpec], options: EngineOptions) -> Any:
    return FakeGpuEngine(model_path, inputs, options, "fake-gpu", lambda graph, _: graph.module)
