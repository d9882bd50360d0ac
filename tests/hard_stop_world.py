"""What the hard stops need: the demo's model and images, prtool commands that start at once, and the bytes that an undisturbed command leaves."""

import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from prtool.studies.demo.model import write_model
from prtool.studies.demo.scenes import SceneCounts, write_dataset

_HANGS_S = 900.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TRAIN_IMAGES, _VAL_IMAGES = 70, 10  # two shards and one


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Job:
    """A command and what it finds.

    Attributes:
        name: what the table calls it.
        arguments: of prtool.
        given: files and folders, by their name in the place of work, that lie there before.
        own: what the command replaces, by the same names.
        bytes_differ: engines are timed and dated while they are built: only names are compared.
    """

    name: str
    arguments: tuple[str, ...]
    given: dict[str, Path] = field(default_factory=dict)
    own: str = ""
    bytes_differ: bool = False


class Commands:
    """The server that runs commands."""

    def __init__(self, log: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200"}
        program = [sys.executable, str(Path(__file__).parent / "hard_stops" / "command_server.py")]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self._log, self._count = log, 0
        self._running: dict[int, tuple[Path, float]] = {}

    def start(self, job: Job) -> int:
        """Starts a command; returns its process id."""
        self._count += 1
        output = self._log / f"{self._count:03d}-{job.name.replace(' ', '-')}"
        child = self._ask({"start": job.arguments, "output": str(output)})
        self._running[child] = output, time.monotonic()
        return child

    def wait(self, child: int) -> Ended:
        """Waits for a command; one that hangs is killed."""
        status = self._ask({"wait": child}, child)
        output, started = self._running.pop(child)
        return Ended(status, Path(f"{output}.out").read_text(), Path(f"{output}.err").read_text(), time.monotonic() - started)

    def run(self, job: Job) -> Ended:
        """Runs a command to its end."""
        return self.wait(self.start(job))

    def stop(self) -> None:
        """Kills what still runs, as after a failed test."""
        for child in list(self._running):
            os.kill(child, signal.SIGKILL)
            self.wait(child)

    def close(self) -> None:
        """Ends the server."""
        self.stop()
        self._process.communicate()

    def _ask(self, question: dict[str, object], child: int = 0) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        if child and not select.select([self._process.stdout], [], [], _HANGS_S)[0]:
            os.kill(child, signal.SIGKILL)
        return int(self._process.stdout.readline())


class World:
    """A folder with model, images and finished results, and `place`, where the stopped commands work."""

    def __init__(self, root: Path) -> None:
        self.root, self.place, self.made = root, root / "place", root / "made"
        for folder in (self.place, self.made, root / "log"):
            folder.mkdir()
        write_model(root / "model")
        write_dataset(root / "data", SceneCounts(train=2, val=1, test=1), seed=0)
        self.commands = Commands(root / "log")
        self._undisturbed: dict[str, tuple[dict[str, str], Ended]] = {}
        self.size: dict[str, int] = {}
        # The results that other commands start from.
        self._make(self.training("first", "--location", "3"), "run")
        self._make(self.exporting("first bundle", "0.5"), "bundle")

    def training(self, name: str, *arguments: str, run: Path | None = None) -> Job:
        """A training command of a few seconds."""
        settings = {"train_images": _TRAIN_IMAGES, "val_images": _VAL_IMAGES, "distill.steps": 10, "fit.epochs": 4, "fit.save_every": 1}
        settings |= {"golden.group": 6, "tokens.epochs": 2, "tokens.shots": 1, "tokens.batch": 16}
        given = [word for item, value in settings.items() for word in ("--set", f"{item}={value}")]
        fixed = ("train", "--model", f"local-dir:{self.root / 'model'}", "--data", str(self.root / "data"), "-o", str(self.place / "run"))
        return Job(name, (*fixed, *given, *arguments), {} if run is None else {"run": run}, "run")

    def exporting(self, name: str, keep: str, bundle: Path | None = None) -> Job:
        """An export of the first run, over a bundle where one is given."""
        arguments = ("export", str(self.place / "run"), "-o", str(self.place / "bundle"), "--keep", keep)
        given = {"run": self.made / "run"} | ({} if bundle is None else {"bundle": bundle})
        return Job(name, arguments, given, "bundle")

    def prepare(self, job: Job) -> None:
        """Empties the place of work and puts there what the command finds."""
        self.commands.stop()
        for item in self.place.iterdir():
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        for name, source in job.given.items():
            if source.is_dir():
                shutil.copytree(source, self.place / name, symlinks=True)
            else:
                shutil.copy(source, self.place / name)

    def found(self, job: Job) -> dict[str, str]:
        """Every file and link in the place of work by name, with a digest of its content."""
        files = {str(path.relative_to(self.place)): path for path in sorted(self.place.rglob("*")) if path.is_symlink() or not path.is_dir()}
        names_only = job.bytes_differ
        return {name: "" if names_only else str(path.readlink()) if path.is_symlink() else _digest(path) for name, path in files.items()}

    def undisturbed(self, job: Job) -> tuple[dict[str, str], Ended]:
        """What the command leaves, and how it ends, when nothing stops it; run once."""
        if job.name not in self._undisturbed:
            self.prepare(job)
            ended = self.commands.run(job)
            assert ended.status == 0, ended.err
            self._undisturbed[job.name] = self.found(job), ended
            own = [path for path in self.place.rglob("*") if path.is_file() and (job.own == "run" or path.is_relative_to(self.place / job.own))]
            self.size[job.name] = sum(-(-path.stat().st_size // _PAGE) * _PAGE for path in own)
        return self._undisturbed[job.name]

    def _make(self, job: Job, name: str) -> None:
        self.undisturbed(job)
        shutil.copytree(self.place / name, self.made / name)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
