"""Engines and fork: a forked child has the objects of the parent's native libraries, but none of the threads behind them."""

import ctypes
import os
import weakref

from prtool.errors import EngineError

# ONNX Runtime on the CPU starts threads of its own for each session. The threads of the others belong to the process: in a child,
# OpenVINO and PyTorch wait for threads that are not there.
_WORKS_AGAIN = frozenset({"ort"})
_SPAWN = "start the workers with multiprocessing's 'spawn', where a pickled Encoder loads itself again"

_objects: weakref.WeakSet[object] = weakref.WeakSet()
_opened: set[str] = set()
_before_fork: set[str] = set()


def track(owner: object, engine: str = "") -> None:
    """Notes an object that holds native ones, so that a forked child never destroys those: their destructors wait for threads.

    Args:
        owner: the object; what its attributes hold when the process forks stays alive in the child.
        engine: the engine's name in the registry, where it is one.
    """
    _objects.add(owner)
    if engine:
        _opened.add(_library(engine))


def check_process(pid: int, what: str) -> None:
    """Raises EngineError where this is a fork of the process, of that `pid`, that loaded `what`."""
    if os.getpid() != pid:
        raise EngineError(f"{what} was loaded before this process was forked, and its threads are not here; load it in each child, or {_SPAWN}")


def check_engine(name: str) -> None:
    """Raises EngineError where this process was forked from one that had opened the engine, and its library does not start again."""
    if _library(name) in _before_fork - _WORKS_AGAIN:
        raise EngineError(
            f"engine {name} was in use before this process was forked, and its library does not start again in a fork; "
            f"load it in the children only, take engine ort, or {_SPAWN}"
        )


def _library(engine: str) -> str:
    return "torch" if engine.startswith("torch") else engine


def _after_fork_in_child() -> None:
    for owner in _objects:
        # One reference too many, on purpose: neither `close` nor the end of the process then destroys what they hold.
        held = (owner, dict(getattr(owner, "__dict__", {})))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    _before_fork.update(_opened)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
