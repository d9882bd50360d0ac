"""Runs prtool commands in forks of a process that has imported everything: a command starts in milliseconds and can be killed at any moment.

Reads JSON lines: {"start": arguments, "output": file} is answered with the process id, {"wait": id} with its exit status.
"""

import importlib
import json
import os
import sys

WARM = (
    "prtool.cli.main",
    "prtool.cli.console",
    "prtool.trainer.train",
    "prtool.trainer.evaluation.evaluate",
    "prtool.trainer.evaluation.plots",
    "prtool.export.run",
)
WARM += ("prtool.runtime.embed", "prtool.runtime.build", "onnx", "onnxscript", "onnxruntime", "open_clip", "timm", "torchvision")


def start(arguments: list[str], output: str) -> int:
    """Forks a child that runs one command with its outputs in a file; returns the child's id."""
    child = os.fork()
    if child:
        return child
    for target, path in ((0, "/dev/null"), (1, output + ".out"), (2, output + ".err")):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), target)
    from prtool.cli.main import main
    from prtool.trainer.evaluation.ledger import Ledger

    # Saved after each batch, else evaluations as short as these never save.
    Ledger.__init__.__defaults__ = (0.0, "unfinished")
    main(arguments)
    sys.exit(0)


def serve() -> None:
    """Answers until the input ends."""
    for name in WARM:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = start(asked["start"], asked["output"]) if "start" in asked else os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
