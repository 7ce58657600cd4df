"""vLLM's CPU build as a side: a process in its own environment that is started early and answers batch by batch."""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mintbook.bench.batch import Answer, Batch
from mintbook.bench.timing import Timing
from mintbook.bench.vllm_environment import clean_environment
from mintbook.errors import MintbookError

REST_S = 0.3
"""How long idle threads of OpenMP may go on spinning, on the processors that the next side needs."""
_WORKER = Path(__file__).with_name("vllm_worker.py")


class VllmSide:
    """One vLLM engine: with ``folders`` it serves these PEFT adapters, without them it is opened without LoRA.

    It starts in the background; `wait_ready` waits for it. ``opening`` is what the worker's first line says.
    """

    def __init__(self, python: Path, folders: Sequence[Path], opening: dict[str, Any]) -> None:
        self.name = "vllm" if folders else "vllm without LoRA"
        self.folders = folders
        self.version = ""
        self._words = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115 — ours until close
        self._process = subprocess.Popen(
            [python, _WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=clean_environment(),
        )
        self._send({**opening, "adapters": len(folders)})

    def wait_ready(self) -> None:
        """Wait until the engine is open; raise `MintbookError` with vLLM's last words when it does not come up."""
        self.version = self._receive()["vllm"]

    def answer(self, batch: Batch) -> Answer:
        """Let the engine answer a batch, one of its own steps after the other."""
        self._send(
            {
                "prompts": batch.prompts,
                "folders": [None if a is None else str(self.folders[a]) for a in batch.adapters],
                "numbers": [a or 0 for a in batch.adapters],
                "steps": batch.steps,
            }
        )
        found = self._receive()
        time.sleep(REST_S)
        tokens = tuple(tuple(row[: batch.steps + 1]) for row in found["tokens"])
        return Answer(Timing(*found["prefill"]), Timing(*found["decode"]), tokens)

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._words.close()

    def _send(self, value: dict[str, Any]) -> None:
        if self._process.stdin is None:
            raise MintbookError("The vLLM process has no stdin. This is a fault of mintbook; please report it.")
        try:
            self._process.stdin.write(json.dumps(value) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise MintbookError(self._last_words()) from error

    def _receive(self) -> dict[str, Any]:
        line = self._process.stdout.readline() if self._process.stdout is not None else ""
        if not line:
            raise MintbookError(self._last_words())
        value: dict[str, Any] = json.loads(line)
        return value

    def _last_words(self) -> str:
        self._words.seek(0)
        said = [line for line in self._words.read().splitlines() if line.strip()]
        last = said[-1][-300:] if said else "nothing"
        return f"The vLLM process ended (status {self._process.wait()}); its last words: {last}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
