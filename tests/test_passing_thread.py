"""Work in a passing thread: its result, its error, and no thread left."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from mintbook.passing_thread import in_passing_thread


def test_it_runs_elsewhere_and_the_thread_is_gone() -> None:
    where: list[threading.Thread] = []

    def work() -> str:
        where.append(threading.current_thread())
        return "done"

    assert in_passing_thread(work) == "done"
    assert where[0] is not threading.current_thread()
    where[0].join(10)
    assert not where[0].is_alive()


def test_an_error_comes_back_as_it_was_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        in_passing_thread(lambda: 1 // 0)


def test_an_interrupt_does_not_wait_for_the_work() -> None:
    def work() -> None:
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_passing_thread(work)
    assert time.monotonic() - began < 4
