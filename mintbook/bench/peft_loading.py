"""What PEFT's ``load_adapter`` takes for the same adapters."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from mintbook.bench.adapters import write_folders
from mintbook.bench.setting import Setting
from mintbook.bench.transformers_side import load_plain
from mintbook.model.base import Base
from mintbook.store.page import Page


def peft_load_s(setting: Setting, base: Base, pages: Sequence[Page]) -> float:
    """Return the median seconds of ``load_adapter`` for all pages but the first, whose files were just written.

    Raises `ImportError` where PEFT is not installed.
    """
    from peft import PeftModel

    with tempfile.TemporaryDirectory(prefix="mintbook-bench-") as place:
        first, *others = write_folders(pages, Path(place), base=base.name, digest=base.digest)
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of PEFT's use of transformers
            model = PeftModel.from_pretrained(load_plain(base.folder, setting.dtype), str(first), adapter_name="a0")
            took = []
            for number, folder in enumerate(others, 1):
                began = time.perf_counter()
                model.load_adapter(str(folder), adapter_name=f"a{number}")
                took.append(time.perf_counter() - began)
    return median(took)
