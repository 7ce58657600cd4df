"""From a PEFT folder to a record: an adapter that was made elsewhere, checked before anything is kept."""

from __future__ import annotations

from pathlib import Path

from mintbook.config import LoraConfig
from mintbook.errors import BaseMismatch, RecordExists
from mintbook.model.digest import digest_folder
from mintbook.model.sites import target_names
from mintbook.runtime import Runtime
from mintbook.store.peft_format import PeftAdapter, read_peft
from mintbook.training_run import commit_page, receipt_of


def import_folder(runtime: Runtime, name: str, folder: Path, *, same_base: bool) -> None:
    """Make the folder's adapter the first revision of a new record; see `Session.import_peft` for what is raised."""
    store, sites = runtime.store, runtime.engine.model.sites
    known = store.find_record(name)
    if known is not None and known.head is not None:
        raise RecordExists(f"{name} exists already. Import under another name; revisions of it come from training.")
    peft = read_peft(folder, sites)
    if not same_base:
        _check_origin(runtime, peft, folder)
    lora = LoraConfig(
        rank=peft.page.rank,
        alpha=peft.config.alpha,
        alpha_rule=peft.config.alpha_rule,
        targets=target_names(sites, peft.page.sites),
        init="peft",
    )
    slot = runtime.residency.place(peft.page)
    try:
        facts = {
            "receipt": receipt_of(runtime, peft.page, slot),
            "metrics": {"imported": "peft", "base_named_there": peft.config.base_model_name},
            "seed": lora.seed,
            "compute_dtype": runtime.base.dtype,
        }
        # An import that was cut off between its record and its revision left an empty record, which this one fills.
        if known is None or known.lora != lora or known.base_digest != runtime.base.digest:
            known = store.create_record(name, base_digest=runtime.base.digest, base_name=runtime.base.name, lora=lora)
        commit_page(runtime, known, peft.page, slot, facts=facts)
    except BaseException:
        runtime.residency.discard(slot)
        raise


def _check_origin(runtime: Runtime, peft: PeftAdapter, folder: Path) -> None:
    """Raise `BaseMismatch` unless the folder shows that its adapter was made for the resident base."""
    there = peft.base_digest
    named = peft.config.base_model_name
    if there is None and named and Path(named).is_dir():
        there = digest_folder(Path(named)).base
    if there == runtime.base.digest:
        return
    what = f"for the base {there[:12]}" if there else f"for {named!r}, which cannot be compared with a base here"
    raise BaseMismatch(
        f"The adapter in {folder} was made {what}; this session's base is {runtime.base.name} "
        f"({runtime.base.digest[:12]}). Open a session on its own base. If you know that it is this one, pass "
        "same_base=True."
    )
