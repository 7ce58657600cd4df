"""vLLM in its own environment: a script that answers JSON lines and needs nothing of mintbook.

The first line of stdin says how to open the engine; every further one is a batch, answered with tokens and seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def _seconds() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _open(asked: dict[str, Any]) -> Any:
    """Return an ``LLM`` whose engine runs in this process, so that one call is one step."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        # Left alone, vLLM keeps one core for a front end that does not exist here.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{asked['threads'] - 1}",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    from vllm import LLM

    lora = {"enable_lora": True, "max_loras": asked["adapters"], "max_cpu_loras": asked["adapters"]}
    return LLM(
        asked["base"],
        dtype=asked["dtype"],
        max_model_len=asked["length"],
        max_num_seqs=asked["batch"],
        max_num_batched_tokens=max(2048, asked["length"]),
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=True,
        **(lora | {"max_lora_rank": asked["rank"]} if asked["adapters"] else {}),
    )


def _run(llm: Any, asked: dict[str, Any], number: int) -> dict[str, Any]:
    """Read the prompts, then take ``steps`` decode steps; return the tokens, and wall and CPU time of both parts."""
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

    engine = llm.llm_engine
    steps = asked["steps"]
    for i, (prompt, folder) in enumerate(zip(asked["prompts"], asked["folders"], strict=True)):
        adapter = None if folder is None else LoRARequest(folder, asked["numbers"][i] + 1, folder)
        sampling = SamplingParams(max_tokens=steps + 2, temperature=0.0, ignore_eos=True)
        engine.add_request(f"{number}-{i}", {"prompt_token_ids": prompt}, sampling, lora_request=adapter)
    said: dict[str, list[int]] = {}
    marks = [_seconds()]
    while engine.has_unfinished_requests():
        for output in engine.step():
            said[output.request_id] = list(output.outputs[0].token_ids)
        shortest = min((len(said.get(f"{number}-{i}", ())) for i in range(len(asked["prompts"]))), default=0)
        if shortest == len(marks):  # every request has a first token, a second, …
            marks.append(_seconds())
    first, last = marks[1], marks[steps + 1]
    return {
        "prefill": [b - a for a, b in zip(marks[0], first, strict=True)],
        "decode": [(b - a) / steps if steps else 0.0 for a, b in zip(first, last, strict=True)],
        "tokens": [said[f"{number}-{i}"] for i in range(len(asked["prompts"]))],
    }


def main() -> None:
    """Answer until stdin ends; the protocol has stdout to itself, whatever vLLM prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    llm = _open(json.loads(sys.stdin.readline()))
    from vllm import __version__

    answer({"vllm": __version__})
    for number, line in enumerate(sys.stdin):
        answer(_run(llm, json.loads(line), number))


if __name__ == "__main__":
    main()
