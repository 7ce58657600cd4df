"""PEFT's adapter folders, in and out: plain LoRA over linear layers, read without trust and written with proof."""

from __future__ import annotations

import json
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
from mintbook.store.filesystem import sync_file, sync_folder
from mintbook.store.page import Page, Site
from mintbook.store.peft_alpha import alphas_of
from mintbook.store.peft_config import LARGEST_RANK, PeftConfig, read_peft_config
from mintbook.store.untrusted import check_safetensors_header, ordinary_file

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
BASE_KEY = "mintbook_base"
_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_DTYPES = ("F32", "F16", "BF16")
_PLAIN_LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "modules_to_save": None,
    "use_dora": False,
}


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """One adapter as a PEFT folder holds it: its factors in fp32, and what its configuration says of them."""

    page: Page
    config: PeftConfig
    base_digest: str | None = None
    """The base that the weights file names, where mintbook wrote it."""


def read_peft(folder: Path, sites: Sequence[Site]) -> PeftAdapter:
    """Read a PEFT LoRA folder for the base whose adaptable linear layers are ``sites``, in the base's order.

    Only adapter_config.json and adapter_model.safetensors are opened. Raises `FormatError` for broken or unsafe files
    and for anything but plain LoRA, `TargetError` when base, configuration and weights disagree about the modules,
    and `ShapeError` when a factor does not fit its layer or its rank.
    """
    if not folder.is_dir():
        raise FormatError(f"{folder} is not a folder; a PEFT adapter is a folder with {CONFIG} and {WEIGHTS}.")
    config = read_peft_config(ordinary_file(folder, CONFIG))
    if not (folder / WEIGHTS).exists() and (folder / PICKLE).exists():
        raise FormatError(
            f"{folder} holds its weights as {PICKLE}, a pickle, which can run code when it is opened. "
            f"Load it with PEFT where you trust it, and save it again with save_pretrained, which writes {WEIGHTS}."
        )
    path = ordinary_file(folder, WEIGHTS)
    check_safetensors_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            base_digest = (file.metadata() or {}).get(BASE_KEY)
            present = _adapted(path, list(file.keys()), sites)
            _check_targets(path, config, present, sites)
            ranks = {site.name: _rank(path, file, config, site) for site in present}
            page = _empty_page(present, config, ranks)
            for name, (a, bt) in page.factors().items():
                a.copy_(_finite(path, file, _PREFIX + name + _FACTORS[0]))
                bt.copy_(_finite(path, file, _PREFIX + name + _FACTORS[1]).T)
    except SafetensorError as error:
        raise FormatError(f"{path} is not a readable safetensors file: {error}.") from error
    return PeftAdapter(page, config, base_digest)


def write_peft(
    page: Page, folder: Path, *, base_model_name: str, base_digest: str, sites: Sequence[Site] | None = None
) -> None:
    """Write a page as a folder that ``peft.PeftModel.from_pretrained`` loads, and read it back before it is there.

    With ``sites``, all adaptable layers of the base, the targets are written as short names where these mean exactly
    the page's. ``base_digest`` goes into the weights file's metadata, where only mintbook looks.
    PEFT computes each scale as α / r or α / √r; an α that gives the very same double is chosen, or the
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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as beside:
            made = Path(beside) / "adapter"
            made.mkdir()
            _write_config(page, made, base_model_name, sites)
            metadata = {"format": "pt", BASE_KEY: base_digest}
            save_file(_peft_tensors(page), made / WEIGHTS, metadata=metadata)
            # safetensors writes for the owner alone; an export is as readable as its configuration.
            (made / WEIGHTS).chmod((made / CONFIG).stat().st_mode)
            _check_same(page, read_peft(made, page.sites).page, folder)
            sync_file(made / CONFIG)
            sync_file(made / WEIGHTS)
            sync_folder(made)
            made.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise AdapterError(f"The export cannot be put at {folder}: {error}. Choose another place.") from error


def _write_config(page: Page, made: Path, base_model_name: str, sites: Sequence[Site] | None) -> None:
    config = {"base_model_name_or_path": base_model_name, **_PLAIN_LORA, **_settings(page)}
    config["target_modules"] = _target_names(page.sites, sites)
    (made / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _adapted(path: Path, tensors: Sequence[str], sites: Sequence[Site]) -> list[Site]:
    """Return the sites that have both factors, in the base's order."""
    known = {site.name for site in sites}
    ends: dict[str, set[str]] = {}
    for tensor in tensors:
        end = next((end for end in _FACTORS if tensor.endswith(end)), None)
        if end is None or not tensor.startswith(_PREFIX):
            raise FormatError(
                f"{path} holds the tensor {tensor[:200]!r}; plain LoRA has {_PREFIX}<module>{_FACTORS[0]} and "
                f"{_FACTORS[1]} only."
            )
        ends.setdefault(tensor[len(_PREFIX) : -len(end)], set()).add(end)
    if not ends:
        raise FormatError(f"{path} holds no tensors.")
    for module, found in ends.items():
        if module not in known:
            raise TargetError(
                f"{path} adapts {module[:200]!r}, which is no linear layer of this base that can be adapted."
                f"{nearest(module[:200], known)} The adapter may belong to another base."
            )
        if len(found) == 1:
            raise FormatError(f"{path} holds only the {found.pop()[1:7]} of {module!r}; its partner is missing.")
    return [site for site in sites if site.name in ends]


def _check_targets(path: Path, config: PeftConfig, present: Sequence[Site], sites: Sequence[Site]) -> None:
    held = {site.name for site in present}
    for site in sites:
        if config.selects(site.name) != (site.name in held):
            raise TargetError(
                f"{path} has no factors for {site.name!r}, which the target_modules of its {CONFIG} select."
                if site.name not in held
                else f"{path} has factors for {site.name!r}, which the target_modules of its {CONFIG} do not select; "
                "PEFT would leave them out."
            )


def _rank(path: Path, file: Any, config: PeftConfig, site: Site) -> int:
    rank = config.rank_of(site.name)
    for end, asked in zip(_FACTORS, ([rank, site.in_features], [site.out_features, rank]), strict=True):
        tensor = file.get_slice(_PREFIX + site.name + end)
        if tensor.get_dtype() not in _DTYPES:
            raise FormatError(f"{path}: {site.name}{end} is {tensor.get_dtype()}; {', '.join(_DTYPES)} are taken.")
        if tensor.get_shape() != asked:
            raise ShapeError(
                f"{path}: {site.name}{end} is {tensor.get_shape()}; the base's layer "
                f"({site.in_features} → {site.out_features}) and rank {rank} of {CONFIG} ask for {asked}."
            )
    return rank


def _empty_page(sites: Sequence[Site], config: PeftConfig, ranks: Mapping[str, int]) -> Page:
    return Page(
        tensor=torch.zeros(max(ranks.values()), sum(site.width for site in sites)),
        sites=tuple(sites),
        ranks=tuple(ranks[site.name] for site in sites),
        scales=tuple(config.scale_of(site.name) for site in sites),
    )


def _finite(path: Path, file: Any, name: str) -> Tensor:
    tensor: Tensor = file.get_tensor(name).float()
    if not torch.isfinite(tensor).all():
        raise FormatError(
            f"{path}: {name} holds {int((~torch.isfinite(tensor)).sum())} numbers that are NaN or infinite."
        )
    return tensor


def _settings(page: Page) -> dict[str, Any]:
    use_rslora, alphas = alphas_of(page.ranks, page.scales)
    rank = Counter(page.ranks).most_common(1)[0][0]
    alpha = Counter(alphas).most_common(1)[0][0]
    names = [site.name for site in page.sites]
    return {
        "r": rank,
        "lora_alpha": _written(alpha),
        "use_rslora": use_rslora,
        "rank_pattern": {name: own for name, own in zip(names, page.ranks, strict=True) if own != rank},
        "alpha_pattern": {name: _written(own) for name, own in zip(names, alphas, strict=True) if own != alpha},
    }


def _written(alpha: float) -> float:
    return int(alpha) if alpha.is_integer() and abs(alpha) < 1 << 53 else alpha


def _target_names(adapted: Sequence[Site], sites: Sequence[Site] | None) -> list[str]:
    ends = sorted({site.name.rsplit(".", 1)[-1] for site in adapted})
    if sites is not None and [site for site in sites if site.name.rsplit(".", 1)[-1] in ends] == list(adapted):
        return ends
    return [site.name for site in adapted]


def _peft_tensors(page: Page) -> dict[str, Tensor]:
    tensors = {}
    for name, (a, bt) in page.factors().items():
        tensors[_PREFIX + name + _FACTORS[0]] = a.detach().cpu().contiguous()
        tensors[_PREFIX + name + _FACTORS[1]] = bt.detach().cpu().T.contiguous()
    return tensors


def _check_same(page: Page, again: Page, folder: Path) -> None:
    """Compare bit for bit, scales to the unit in the last place that `alphas_of` may leave."""
    bits = torch.int32
    pairs = zip(page.factors().values(), again.factors().values(), strict=True)
    same = page.sites == again.sites and page.ranks == again.ranks
    same = same and all(
        torch.equal(old.detach().cpu().float().view(bits), new.view(bits))
        for before, after in pairs
        for old, new in zip(before, after, strict=True)
    )
    close = all(abs(old - new) <= abs(old) * 2**-52 for old, new in zip(page.scales, again.scales, strict=True))
    if not (same and close):
        raise FormatError(f"The export to {folder} does not read back as it was written, and was not kept.")
