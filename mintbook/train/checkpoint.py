"""The state of a training that is on its way: everything that the next step depends on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mintbook.errors import CorruptStore
from mintbook.store.page import Page
from mintbook.train.optimizer import AdamW


@dataclass(slots=True, eq=False)
class TrainingState:
    """fp32 master weights, AdamW's moments and counter, and how far the run is.

    The order of examples follows from the seed and ``step``, so no generator state is needed. ``best`` and
    ``unimproved`` serve early stopping; ``best_page`` holds the weights of the best validation.
    """

    page: Page
    optimizer: AdamW
    step: int = 0
    best: float | None = None
    unimproved: int = 0
    best_page: Page | None = None

    def save(self, path: Path) -> None:
        """Write the state beside ``path``, fsync it and rename it.

        So ``path`` is the old state or the new, never between.
        """
        tensors = {
            "master": self.page.tensor,
            "first": self.optimizer.first,
            "second": self.optimizer.second,
        }
        if self.best_page is not None:
            tensors["best"] = self.best_page.tensor
        numbers = {
            "step": self.step,
            "optimizer_steps": self.optimizer.steps,
            "best": self.best,
            "unimproved": self.unimproved,
        }
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        save_file(
            {k: t.detach().cpu().contiguous() for k, t in tensors.items()}, beside, {"state": json.dumps(numbers)}
        )
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @classmethod
    def load(cls, path: Path, page: Page) -> TrainingState:
        """Read a state whose weights have the layout of ``page``; raise `CorruptStore` when it cannot be read."""
        try:
            with safe_open(path, framework="pt") as file:
                numbers: dict[str, Any] = json.loads(file.metadata()["state"])
                tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise CorruptStore(
                f"The training state {path} cannot be read: {error}. Train from a revision instead."
            ) from error
        return cls(
            page=page.like(tensors["master"]),
            optimizer=AdamW(tensors["first"], tensors["second"], numbers["optimizer_steps"]),
            step=numbers["step"],
            best=numbers["best"],
            unimproved=numbers["unimproved"],
            best_page=page.like(tensors["best"]) if "best" in tensors else None,
        )
