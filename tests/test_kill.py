"""``kill -9`` in the middle of training and of saving: the store opens, and the run goes on as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kill_training import OPTIONS, POINTS
from safetensors import safe_open

from mintbook.events import read_events
from mintbook.store.store import Store
from mintbook.train.examples import Examples

HERE = Path(__file__).parent


def start(base: Path, store: Path, *point: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "kill_training.py"), str(base), str(store), "alice", *point]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def outcome(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return next(line for line in out.splitlines() if line.startswith("done"))


@pytest.fixture(scope="module")
def uninterrupted(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    store = tmp_path_factory.mktemp("whole")
    told = outcome(start(tiny_base_folder, store))
    assert nothing_half_written(store)
    return told


def nothing_half_written(store: Path) -> bool:
    """Check the store as it opens, and return whether the revision is in it, once and of the last step."""
    for examples in store.glob("runs/*/examples.jsonl"):
        assert Examples.load(examples).sequences
    for checkpoint in store.glob("runs/*/checkpoint.safetensors"):
        with safe_open(checkpoint, framework="pt") as file:
            assert "master" in file.keys()  # noqa: SIM118 — not a mapping
    with Store.open(store) as opened:
        assert opened.verify() == []
        record = opened.find_record("alice")
        if record is None or record.head is None:
            assert record is None or all(row.status != "done" for row in opened.runs(record="alice"))
            return False
        assert [revision.number for revision in opened.revisions("alice")] == [1]
        assert opened.resolve("alice").manifest.metrics["step"] == OPTIONS["steps"]
        return True


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_at_a_named_point_loses_nothing(
    tiny_base_folder: Path, tmp_path: Path, uninterrupted: str, point: str
) -> None:
    killed = start(tiny_base_folder, tmp_path, point)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert nothing_half_written(tmp_path) is (point == "after the commit, before the run's last word")
    assert outcome(start(tiny_base_folder, tmp_path)) == uninterrupted
    assert nothing_half_written(tmp_path)
    with Store.open(tmp_path) as opened:
        assert opened.runs(record="alice", limit=1)[0].status == "done"


def test_kills_at_random_moments_lose_nothing(tiny_base_folder: Path, tmp_path: Path, uninterrupted: str) -> None:
    chance = random.Random(0)
    for _ in range(3):
        process = start(tiny_base_folder, tmp_path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen = steps_logged(tmp_path)
        while steps_logged(tmp_path) < seen + 2 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        process.kill()
        process.communicate()
        if nothing_half_written(tmp_path):
            break
    else:
        assert outcome(start(tiny_base_folder, tmp_path)) == uninterrupted
    assert nothing_half_written(tmp_path)
    with Store.open(tmp_path) as opened:
        assert opened.resolve("alice").weights_digest == uninterrupted.split()[1]


def steps_logged(store: Path) -> int:
    logs = list(store.glob("runs/*/events.jsonl"))
    return sum(event.kind == "step" for log in logs for event in read_events(log))
