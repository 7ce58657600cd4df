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

from mintbook.events import read_events
from mintbook.store.store import Store

HERE = Path(__file__).parent


def start(base: Path, store: Path, name: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "kill_training.py"), str(base), str(store), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def steps_logged(store: Path) -> int:
    logs = list(store.glob("runs/*/events.jsonl"))
    return sum(event.kind == "step" for log in logs for event in read_events(log))


def outcome(process: subprocess.Popen[str]) -> str:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return next(line for line in out.splitlines() if line.startswith("done"))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_training_resumes_to_the_same_losses_and_weights(
    tiny_base_folder: Path, tmp_path: Path, seed: int
) -> None:
    expected = outcome(start(tiny_base_folder, tmp_path / "whole", "alice"))
    store, chance = tmp_path / "killed", random.Random(seed)
    for _ in range(3):
        process = start(tiny_base_folder, store, "alice")
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        seen = steps_logged(store)
        while steps_logged(store) < seen + 2 and process.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.15)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        with Store.open(store) as opened:
            assert opened.verify() == []
            record = opened.find_record("alice")
            if record is not None and record.head is not None:
                assert opened.resolve("alice").manifest.metrics["step"] == 40
                break
            assert opened.runs(record="alice", limit=1)[0].status == "interrupted"
    with Store.open(store) as opened:
        finished = opened.record("alice").head is not None
        if finished:
            digest = opened.resolve("alice").weights_digest
    if finished:
        assert digest == expected.split()[1]
    else:
        assert outcome(start(tiny_base_folder, store, "alice")) == expected
