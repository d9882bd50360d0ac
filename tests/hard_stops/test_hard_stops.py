"""Kills, full disks and two processes at once, on whole commands: the next call ends with the bytes of an undisturbed one, and nothing is left over.

About half an hour on two cores: `pytest -m slow tests/hard_stops`. A table of what was tried is printed.
"""

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hard_stop_world import Ended, Job, World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = {
    "predictor": 9,
    "leave-one-out": 8,
    "tokens": 10,
    "progressive": 7,
    "export": 2,
    "export over": 2,
    "build": 2,
    "embed": 5,
    "eval": 5,
}
FULL_DISKS = {"tokens": 7, "leave-one-out": 3, "progressive": 3, "export over": 2, "build": 1, "embed": 3, "eval": 1}
AT_ONCE = ("predictor", "tokens", "export over", "build", "embed", "eval")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("world"))
    yield made
    made.commands.close()


def job_of(world: World, name: str) -> Job:
    place, made = world.place, world.made
    if name == "build":
        if importlib.util.find_spec("tensorrt_rtx") is None:
            pytest.skip("tensorrt_rtx is not installed")
        arguments = (
            "build",
            "--bundle",
            str(place / "bundle"),
            "--engine",
            "trt-rtx",
            "--set",
            f"cache={place / 'cache'}",
            "--set",
            "level=0",
            "--batch",
            "8",
        )
        return Job(name, arguments, {"bundle": made / "bundle"}, "cache", bytes_differ=True)
    jobs = {
        "predictor": lambda: world.training(name, "--location", "3"),
        "leave-one-out": lambda: world.training(name, "--location", "3", "--preset", "leave-one-out"),
        "tokens": lambda: world.training(name, "--location", "3", "--phase", "predictor,tokens", run=made / "run"),
        "progressive": lambda: world.training(name, "--location", "2,3", "--set", "prune.rescore=true"),
        "export": lambda: world.exporting(name, "0.6"),
        "export over": lambda: world.exporting(name, "0.6", made / "bundle"),
        "embed": lambda: Job(name, _embed(world), {"bundle": made / "bundle", "out.npz": made / "out.npz"}, "out.npz"),
        "eval": lambda: Job(name, ("eval", str(place / "run"), "--keep", "1.0,0.5", "--json"), {"run": made / "run"}, "run"),
    }
    if name == "embed" and not (made / "out.npz").exists():
        # An earlier file, of other images.
        world.undisturbed(Job("earlier embed", _embed(world, "val"), {"bundle": made / "bundle"}))
        shutil.copy(place / "out.npz", made / "out.npz")
    return jobs[name]()


def _embed(world: World, split: str = "test") -> tuple[str, ...]:
    return "embed", str(world.root / "data" / split), "--bundle", str(world.place / "bundle"), "-o", str(world.place / "out.npz")


def own_part(found: dict[str, str], job: Job) -> dict[str, str]:
    """What the command replaces: the record of a run, whose files it names, else everything."""
    record = f"{job.own}/checkpoint.json"
    return {name: digest for name, digest in found.items() if (name == record if record in found else name.split("/")[0] == job.own)}


def same_end(job: Job, ended: Ended, found: dict[str, str], expected: dict[str, str], whole: Ended) -> None:
    assert ended.status == 0, ended.err
    assert found == expected
    if not job.bytes_differ:
        assert ended.out == whole.out


def row(capsys: pytest.CaptureFixture[str], kind: str, name: str, text: str) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n| {kind} | {name} | {text} |")
        sys.stdout.flush()


@pytest.mark.parametrize("name", KILLS)
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(world: World, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job, moments, killed, tried = job_of(world, name), random.Random(name), 0, 0
    expected, whole = world.undisturbed(job)
    world.prepare(job)
    earlier = own_part(world.found(job), job)
    seconds = whole.seconds
    while killed < KILLS[name] and tried < 3 * KILLS[name]:
        tried += 1
        world.prepare(job)
        child = world.commands.start(job)
        time.sleep(moments.uniform(0.02, 0.95) * seconds)
        os.kill(child, signal.SIGKILL)
        stopped = world.commands.wait(child)
        killed += stopped.status == -signal.SIGKILL
        seconds *= 1.0 if stopped.status else 0.7  # the machine was busier when the whole command was timed
        if earlier and not job.bytes_differ:
            assert own_part(world.found(job), job) in (earlier, own_part(expected, job)), "neither the earlier result nor the new one stands"
        same_end(job, world.commands.run(job), world.found(job), expected, whole)
    row(capsys, "kill -9", name, f"{tried} tried, {killed} killed before the end, {tried} reruns with the same bytes, 0 left over")


@pytest.fixture
def disk(world: World) -> Iterator[Path]:
    """The place of work as a file system of its own, whose size can be set."""
    if os.geteuid() or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(world.place)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {done.stderr.strip()}")
    yield world.place
    subprocess.run(["umount", str(world.place)], check=True)


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def used(disk: Path) -> int:
    status = os.statvfs(disk)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


@pytest.mark.parametrize("name", FULL_DISKS)
def test_a_full_disk_is_one_line_and_loses_nothing(world: World, name: str, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, shares = job_of(world, name), random.Random(name)
    expected, whole = world.undisturbed(job)
    page = os.sysconf("SC_PAGE_SIZE")
    for _ in range(FULL_DISKS[name]):
        resize(disk, 1 << 30)
        world.prepare(job)
        before, given = used(disk), world.found(job)
        # A bundle or a file is written next to the earlier one, a run into it.
        needed = world.size[job.name] if job.own != "run" else world.size[job.name] - before
        resize(disk, max(page, before + int(shares.uniform(0.0, 0.9) * needed) // page * page))
        stopped = world.commands.run(job)
        assert stopped.status == 1, f"{stopped.status}: {stopped.err}"
        assert "Traceback" not in stopped.err
        assert sum("no space left on the disk" in line for line in stopped.err.splitlines()) == 1, stopped.err
        assert "no space left on the disk" in stopped.err.splitlines()[-1]
        left = world.found(job)
        assert not [file for file in left if file.endswith((".part", ".old"))]
        assert {file: digest for file, digest in left.items() if file in given} == given
        resize(disk, 1 << 30)
        same_end(job, world.commands.run(job), world.found(job), expected, whole)
    row(capsys, "full disk", name, f"{FULL_DISKS[name]} tried, {FULL_DISKS[name]} one-line errors, earlier results whole, reruns with the same bytes")


@pytest.mark.parametrize("name", AT_ONCE)
def test_two_processes_at_once_end_well(world: World, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = job_of(world, name)
    expected, whole = world.undisturbed(job)
    world.prepare(job)
    children = [world.commands.start(job) for _ in range(2)]
    ends = [world.commands.wait(child) for child in children]
    for ended in ends:
        assert ended.status == 0 or (ended.status == 1 and "Traceback" not in ended.err), ended.err
    assert world.found(job) == expected
    same_end(job, world.commands.run(job), world.found(job), expected, whole)
    row(capsys, "two at once", name, f"exit {ends[0].status} and {ends[1].status}, the bytes of one alone")
