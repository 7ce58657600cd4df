"""The base: one resident foundation model, frozen, identified by a digest and checked when it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from mintbook.display import Card, Facts
from mintbook.display.quantity import bytes_text, number_text, short_digest
from mintbook.display.shown import Shown
from mintbook.errors import BaseUnavailable, BaseUnsupported, ConfigError, MintbookError
from mintbook.model import default_base
from mintbook.model.digest import BaseDigest, digest_folder, read_json
from mintbook.model.fidelity import Fidelity, check_fidelity
from mintbook.model.renderer import Renderer

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Base(Shown):
    """A frozen causal language model in memory.

    ``digest`` names it in every revision and score; ``fidelity`` is how far its packed forward was from its padded one.
    """

    name: str
    folder: Path
    digests: BaseDigest
    model: nn.Module
    renderer: Renderer
    fidelity: Fidelity
    source: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 over weights, config, tokenizer and chat template."""
        return self.digests.base

    @property
    def dtype(self) -> str:
        """The precision in which the base computes, such as ``bfloat16``."""
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the base lies."""
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        """Numbers in the base, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def bytes(self) -> int:
        """Memory that the weights take."""
        return sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence that the base was made for."""
        return int(self.model.config.max_position_embeddings)  # type: ignore[union-attr, arg-type]

    def card(self) -> Card:
        """Return what a person wants to know about the base."""
        config = self.model.config
        kind = f"{config.model_type}, {config.num_hidden_layers} layers, hidden {config.hidden_size}"  # type: ignore[union-attr]
        facts = [
            ("kind", kind),
            ("parameters", number_text(self.parameters)),
            ("precision", f"{self.dtype} on {self.device}, {bytes_text(self.bytes)}"),
            ("context", f"{number_text(self.max_length)} tokens"),
            ("digest", short_digest(self.digest)),
            (
                "packed against padded",
                (
                    f"differs by {max(self.fidelity.prefill, self.fidelity.decode):.1e} of the largest logit "
                    f"(allowed {self.fidelity.tolerance:.0e})"
                ),
            ),
        ]
        made_from = self.source.get("source")
        if isinstance(made_from, dict) and "package" in made_from:
            kind = self.source.get("quantisation", "as published")
            facts.append(("source", f"the package {made_from['package']}, {kind}"))
        return Card(self.name, "base, frozen and shared", [Facts(facts)])

    def __repr__(self) -> str:
        return f"<Base {self.name} · {self.parameters / 1e6:.0f}M · {self.dtype} · {short_digest(self.digest)}>"


def load_base(source: str | Path | None, *, dtype: str, device: str, progress: Progress | None = None) -> Base:
    """Load, freeze and check a base.

    ``source`` is ``None`` (SmolLM2-135M-Instruct from its pinned package), a model folder, or a hub id. Raises
    `ConfigError` for a dtype or device that cannot be used, `BaseUnavailable` when the base cannot be had or is
    damaged, and `BaseUnsupported`, with the reason, when the packed forward does not compute what its own forward
    computes, to the tolerance that `check_fidelity` allows.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
    place = device_of(device)
    say = progress or (lambda _what, _share: None)
    folder = default_base.obtain(progress=progress) if source is None else _resolve(source)
    say("reading the base", None)
    digests = digest_folder(folder)
    model, tokenizer = _read(folder, dtype, place)
    say("comparing the packed forward with the padded one", None)
    return Base(
        name=_name(source, folder),
        folder=folder,
        digests=digests,
        model=model,
        renderer=Renderer(tokenizer),
        fidelity=_checked(model, folder),
        source=read_json(folder / "provenance.json"),
    )


def device_of(device: str) -> torch.device:
    """Return the device with its number, such as ``cuda:0``; raise `ConfigError` for one that is not here."""
    asked: torch.device | None
    try:
        asked = torch.device(device)
    except (RuntimeError, TypeError):
        asked = None  # torch knows no such device
    if asked is None or asked.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; mintbook runs on 'cpu' and 'cuda' (which torch also calls ROCm).")
    if asked.type == "cpu":
        return asked
    if not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but torch finds no CUDA or ROCm device here. Use device='cpu'.")
    count = torch.cuda.device_count()
    if str(asked) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    if asked.index >= count:
        raise ConfigError(
            f"device is {device!r}, but there {'is 1 device' if count == 1 else f'are {count} devices'} here, numbered "
            f"from 0. Use one of {', '.join(repr(f'cuda:{i}') for i in range(count))}."
        )
    return asked


def _resolve(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.is_absolute() or str(source).startswith((".", "~")) or str(source).count("/") != 1:
        raise BaseUnavailable(
            f"There is no model folder {str(source)!r}. Give a folder with config.json and *.safetensors, or a hub id "
            "such as 'HuggingFaceTB/SmolLM2-135M-Instruct', or nothing for the default base."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(source), allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BaseUnavailable(
            f"{str(source)!r} is no folder here and could not be had from the hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}). "
            "Check the id and the network, or give a model folder."
        ) from error


def _read(folder: Path, dtype: str, device: torch.device) -> tuple[nn.Module, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=DTYPES[dtype],
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (ValueError, OSError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise BaseUnavailable(f"transformers cannot read {folder} as a causal language model: {error}") from error
    model, found = loaded
    # transformers fills what is missing with random numbers and says so in a log only.
    if missing := sorted(found["missing_keys"]):
        raise BaseUnavailable(
            f"The weights in {folder} lack {len(missing)} of the tensors of a {type(model).__name__}, such as "
            f"{missing[0]!r}. Get the *.safetensors files again."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise BaseUnavailable(f"transformers cannot read the tokenizer in {folder}: {error}") from error
    module: nn.Module = model
    return module.to(device).eval().requires_grad_(False), tokenizer


def _checked(model: nn.Module, folder: Path) -> Fidelity:
    device = next(model.parameters()).device
    try:
        # Triton launches on the current device, whatever device its tensors are on.
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return check_fidelity(model, model.config.vocab_size)  # type: ignore[union-attr, arg-type]
    except MintbookError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise BaseUnsupported(
            f"{folder.name} is a {type(model).__name__}, whose own code does not run the packed forward "
            f"({type(error).__name__}: {error}). Llama, Qwen2 and Qwen3 models are known to."
        ) from error


def _name(source: str | Path | None, folder: Path) -> str:
    if source is None:
        return default_base.NAME
    return str(source) if not Path(source).is_dir() else folder.name
