"""PEFT's adapter folders, in and out: plain LoRA over linear layers, read without trust and written with proof."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mintbook.errors import AdapterError, FormatError, ShapeError, TargetError, nearest
from mintbook.store.page import Page, Site
from mintbook.store.peft_config import LARGEST_RANK, PeftConfig, read_peft_config

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_LARGEST_HEADER = 8 << 20
_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """One adapter as a PEFT folder holds it: its factors in fp32, and what its configuration says of them."""

    page: Page
    config: PeftConfig


def read_peft(folder: Path, sites: Sequence[Site]) -> PeftAdapter:
    """Read a PEFT LoRA folder for the base whose adaptable linear layers are ``sites``, in the base's order.

    Only adapter_config.json and adapter_model.safetensors are opened. Raises `FormatError` for broken or unsafe files
    and for anything but plain LoRA, `TargetError` when base, configuration and weights disagree about the modules,
    and `ShapeError` when a factor does not fit its layer or its rank.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; a PEFT adapter is a folder with {CONFIG} and {WEIGHTS}.")
    config = read_peft_config(_safe(folder, CONFIG))
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise FormatError(
            f"{folder} holds its weights as {PICKLE}, a pickle, which can run code when it is opened. "
            f"Load it with PEFT where you trust it, and save it again with save_pretrained, which writes {WEIGHTS}."
        )
    path = _safe(folder, WEIGHTS)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            present = _adapted(path, list(file.keys()), sites)
            _check_targets(path, config, present, sites)
            ranks = {site.name: _rank(path, file, config, site) for site in present}
            page = _empty_page(present, config, ranks)
            for name, (a, bt) in page.factors().items():
                a.copy_(_finite(path, file, _PREFIX + name + _FACTORS[0]))
                bt.copy_(_finite(path, file, _PREFIX + name + _FACTORS[1]).T)
    except SafetensorError as error:
        raise FormatError(f"{path} is not a readable safetensors file: {error}.") from error
    return PeftAdapter(page, config)


def write_peft(page: Page, folder: Path, *, base_model_name: str, sites: Sequence[Site] | None = None) -> None:
    """Write a page as a folder that ``peft.PeftModel.from_pretrained`` loads, and read it back before it is there.

    With ``sites``, all adaptable layers of the base, the targets are written as short names where these mean exactly
    the page's. PEFT computes each scale as α / r or α / √r; an α that gives the very same double is chosen, or the
    nearest one (a unit in the last place away) for the rare scale that no α gives. Raises `AdapterError` when
    ``folder`` is not empty and `FormatError` when what was written does not read back as it was.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise AdapterError(f"{folder} is there already and not an empty folder. Choose another place for the export.")
    if min(page.ranks) < 1 or page.rank > LARGEST_RANK or not torch.isfinite(page.tensor).all():
        raise AdapterError(
            f"The adapter has ranks from {min(page.ranks)} to {page.rank} and "
            f"{int((~torch.isfinite(page.tensor)).sum())} numbers that are NaN or infinite; PEFT takes ranks of at "
            f"least 1, mintbook up to {LARGEST_RANK}, and both need finite numbers."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
        made = Path(beside) / "adapter"
        made.mkdir()
        config = {"base_model_name_or_path": base_model_name, **_FIXED, **_settings(page)}
        config["target_modules"] = _target_names(page.sites, page.sites if sites is None else sites, short=sites is not None)
        (made / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        save_file(_peft_tensors(page), made / WEIGHTS, metadata={"format": "pt"})
        (made / WEIGHTS).chmod((made / CONFIG).stat().st_mode)
        _check_same(page, read_peft(made, page.sites).page, folder)
        for path in (made / CONFIG, made / WEIGHTS, made):
            _sync(path)
        try:
            made.rename(folder)
        except OSError as error:
            raise AdapterError(f"The export cannot be put at {folder}: {error}. Choose another place.") from error
    _sync(folder.parent)
