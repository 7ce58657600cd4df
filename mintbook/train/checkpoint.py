"""The state of a training that is on its way: everything that the next step depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mintbook.errors import CorruptStore
from mintbook.store.filesystem import sync_file, sync_folder
from mintbook.store.page import Page
from mintbook.train.optimizer import AdamW


@dataclass(slots=True, eq=False)
class TrainingState:
    """fp32 master weights, AdamW's moments and counter, and how far the run is.

    The order of examples follows from the seed and ``step``, so no generator state is needed. ``best`` is the best
    validation so far, ``unimproved`` how many came after it, and ``best_state`` the whole state at it.
    """

    page: Page
    optimizer: AdamW
    step: int = 0
    best: float | None = None
    unimproved: int = 0
    best_state: TrainingState | None = None

    def to(self, device: torch.device) -> TrainingState:
        """Return the state on a device; itself when it is there."""
        if self.page.tensor.device == device:
            return self
        moments = AdamW(self.optimizer.first.to(device), self.optimizer.second.to(device), self.optimizer.steps)
        kept = self.best_state.to(device) if self.best_state is not None else None
        page = self.page.like(self.page.tensor.to(device))
        return replace(self, page=page, optimizer=moments, best_state=kept)

    def remember(self) -> None:
        """Keep a copy of the weights and moments as they are now, as the best so far."""
        moments = AdamW(self.optimizer.first.clone(), self.optimizer.second.clone(), self.optimizer.steps)
        self.best_state = TrainingState(self.page.like(self.page.tensor.clone()), moments, self.step)

    def return_to_best(self) -> int:
        """Go back to the best state, in place, and return its step; without one, stay and return the step."""
        kept, self.best_state = self.best_state, None
        if kept is None:
            return self.step
        self.page.tensor.copy_(kept.page.tensor)
        self.optimizer = kept.optimizer
        return kept.step

    def save(self, path: Path) -> None:
        """Write the state beside ``path``, fsync it and rename it.

        So ``path`` is the old state or the new, never between.
        """
        tensors = {
            "master": self.page.tensor,
            "first": self.optimizer.first,
            "second": self.optimizer.second,
        }
        kept = self.best_state
        if kept is not None:
            names = ("best_master", "best_first", "best_second")
            tensors |= dict(zip(names, (kept.page.tensor, kept.optimizer.first, kept.optimizer.second), strict=True))
        numbers = {
            "step": self.step,
            "optimizer_steps": self.optimizer.steps,
            "best": self.best,
            "unimproved": self.unimproved,
            "best_step": kept.step if kept is not None else None,
            "best_optimizer_steps": kept.optimizer.steps if kept is not None else None,
        }
        beside = path.with_suffix(".tmp")  # one name: the record's lease makes the writer the only one
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()}, beside, {"state": json.dumps(numbers)}
        )
        sync_file(beside)
        beside.rename(path)
        sync_folder(path.parent)

    @classmethod
    def load(cls, path: Path, page: Page) -> TrainingState:
        """Read a state whose weights have the layout of ``page``; raise `CorruptStore` when it cannot be read."""
        try:
            with safe_open(path, framework="pt") as file:
                numbers: dict[str, Any] = json.loads(file.metadata()["state"])
                tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CorruptStore(
                f"The training state {path} cannot be read: {error}. Train from a revision instead."
            ) from error
        state = cls(
            page=page.like(tensors["master"]),
            optimizer=AdamW(tensors["first"], tensors["second"], numbers["optimizer_steps"]),
            step=numbers["step"],
            best=numbers["best"],
            unimproved=numbers["unimproved"],
        )
        if "best_master" in tensors:
            moments = AdamW(tensors["best_first"], tensors["best_second"], numbers["best_optimizer_steps"])
            state.best_state = cls(page.like(tensors["best_master"]), moments, numbers["best_step"])
        return state
