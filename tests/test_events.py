from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import mintbook.errors
from mintbook.errors import CorruptStore, RunError
from mintbook.events import EventLog, read_events


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def test_what_is_appended_is_read_in_order(path: Path) -> None:
    with EventLog(path) as log:
        written = [log.append("step", loss=1 / n, text="ä\n\u2028") for n in range(1, 6)]
        assert read_events(path) == written
    assert [event.seq for event in written] == [1, 2, 3, 4, 5]
    assert [event.time for event in written] == sorted(event.time for event in written)
    assert len(path.read_bytes().split(b"\n")) == 6


def test_only_what_is_new_is_read(path: Path) -> None:
    with EventLog(path) as log:
        for number in range(1000):
            log.append("step", number=number, padding="x" * 200)
        assert [event.seq for event in read_events(path, after=997)] == [998, 999, 1000]
        assert [event.seq for event in read_events(path)] == list(range(1, 1001))
        assert read_events(path, after=1000) == []
    broken = path.read_bytes()
    path.write_bytes(b"not an event\n" + broken.partition(b"\n")[2])
    assert [event.seq for event in read_events(path, after=997)] == [998, 999, 1000]
    with pytest.raises(CorruptStore, match="not an event"):
        read_events(path)


def test_numbers_that_are_not_finite_come_back(path: Path) -> None:
    with EventLog(path) as log:
        log.append("step", loss=math.nan, norm=math.inf)
    (event,) = read_events(path)
    assert math.isnan(event.data["loss"]) and event.data["norm"] == math.inf


def test_every_torn_tail_is_dropped(path: Path) -> None:
    with EventLog(path) as log:
        for number in range(3):
            log.append("step", number=number)
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path.write_bytes(whole[:cut])
        assert [event.seq for event in read_events(path)] == [1, 2]
        with EventLog(path) as log:
            assert log.append("again").seq == 3
        assert [event.kind for event in read_events(path)] == ["step", "step", "again"]


def test_a_tail_of_zeros_is_dropped(path: Path) -> None:
    with EventLog(path) as log:
        log.append("step")
    with path.open("ab") as file:
        file.write(b"\0" * 100)
    assert len(read_events(path)) == 1
    with EventLog(path) as log:
        assert log.append("step").seq == 2


@pytest.mark.parametrize("damage", [b'{"seq":1', b"\0\0", b"[]", b'{"seq":1}'])
def test_damage_before_the_tail_is_an_error(path: Path, damage: bytes) -> None:
    with EventLog(path) as log:
        log.append("step")
        log.append("step")
    _, second, _ = path.read_bytes().split(b"\n")
    path.write_bytes(damage + b"\n" + second + b"\n")
    with pytest.raises(CorruptStore, match=path.name):
        read_events(path)
    with pytest.raises(CorruptStore, match=path.name):
        EventLog(path)


def test_a_missing_line_is_an_error_when_the_log_is_opened(path: Path) -> None:
    with EventLog(path) as log:
        for _ in range(3):
            log.append("step")
    first, _, third, _ = path.read_bytes().split(b"\n")
    path.write_bytes(first + b"\n" + third + b"\n")
    with pytest.raises(CorruptStore, match="event 3 where 2 belongs"):
        EventLog(path)


def test_threads_share_a_log(path: Path) -> None:
    with EventLog(path) as log:
        threads = [
            threading.Thread(target=lambda: [log.append("step", x="y" * 500) for _ in range(100)]) for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        seen = 0
        while any(thread.is_alive() for thread in threads):
            seen += len(read_events(path, after=seen))
        for thread in threads:
            thread.join()
    assert [event.seq for event in read_events(path)] == list(range(1, 801))
    assert seen <= 800


def test_a_failed_write_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with EventLog(path) as log:
        log.append("step")

        def full(descriptor: int, data: bytes) -> int:
            if len(data) <= 5:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[:5])

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            log.append("step")
        monkeypatch.undo()
        assert log.append("step").seq == 2
    assert [event.seq for event in read_events(path)] == [1, 2]


def test_events_survive_the_process_that_wrote_them(path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from mintbook.events import EventLog\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for n in range(10): log.append('step', n=n)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(mintbook.errors.__file__).parents[1])}
    ran = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert ran.returncode == -9
    assert [event.data["n"] for event in read_events(path)] == list(range(10))
    assert json.loads(path.read_text().splitlines()[0])["kind"] == "step"


def test_a_closed_log_takes_nothing_more(path: Path) -> None:
    log = EventLog(path)
    log.close()
    log.close()
    with pytest.raises(RunError, match="closed"):
        log.append("step")
