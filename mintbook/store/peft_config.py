"""What a PEFT adapter_config.json says about a LoRA, held against what mintbook can carry out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import regex

from mintbook.errors import FormatError, TargetError

LARGEST_RANK = 256
_LARGEST_FILE = 1 << 20
_MOST_PATTERNS = 4096
_MATCH_SECONDS = 0.2
_LONGEST_QUOTE = 80

_USED = {
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "init_lora_weights",
    "bias",
    "base_model_name_or_path",
}
_INERT = {
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
}
_REASONS = {
    "use_dora": "DoRA rescales the base's own weights",
    "modules_to_save": "it replaces whole modules of the base",
    "lora_bias": "its B has a bias",
    "trainable_token_indices": "it changes rows of the embedding",
    "target_parameters": "it changes parameters that are not linear layers",
    "layer_replication": "it builds the base anew with repeated layers",
    "fan_in_fan_out": "it is made for layers whose weight is stored as [H, O]",
    "alora_invocation_tokens": "it applies only after certain tokens",
}
_PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


class _Pattern(NamedTuple):
    ends: regex.Pattern[str]
    value: float


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The facts of a plain LoRA: ``ΔW_m = scale_m · B_m A_m``, ``scale_m`` = α_m / r_m, or α_m / √r_m under rsLoRA."""

    rank: int
    alpha: float
    alpha_rule: Literal["ratio", "sqrt"]
    target_modules: str | tuple[str, ...]
    base_model_name: str | None
    raw: Mapping[str, Any]
    """The file as it was read."""
    _ranks: tuple[_Pattern, ...]
    _alphas: tuple[_Pattern, ...]

    def rank_of(self, module: str) -> int:
        """Return the rank that a module has by ``rank_pattern``, else the adapter's."""
        return int(_first(self._ranks, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return the factor of a module's BA as PEFT computes it, bit for bit."""
        alpha, rank = _first(self._alphas, module, self.alpha), self.rank_of(module)
        return alpha / math.sqrt(rank) if self.alpha_rule == "sqrt" else alpha / rank

    def selects(self, module: str) -> bool:
        """Say whether PEFT would put the adapter on this linear layer."""
        excluded = self.raw.get("exclude_modules")
        if excluded and (_whole(excluded, module) if isinstance(excluded, str) else _named(excluded, module)):
            return False
        if isinstance(self.target_modules, str):
            return self.target_modules.lower() == "all-linear" or _whole(self.target_modules, module)
        if module in self.target_modules:
            return True
        return _named(self.target_modules, module) and self._transforms(module)

    def _transforms(self, module: str) -> bool:
        wanted = self.raw.get("layers_to_transform")
        if wanted is None or wanted == []:
            return True
        lists = self.raw.get("layers_pattern")
        names = [lists] if isinstance(lists, str) else lists
        forms = [rf"(?:^|.*?\.){name}\.(?P<layer>\d+)\." for name in names or []] or [r".*?\.[^.]*\.(?P<layer>\d+)\."]
        found = next((match for form in forms if (match := _match(_compiled(form), module))), None)
        return found is not None and int(found["layer"]) in ([wanted] if isinstance(wanted, int) else wanted)


def read_peft_config(path: Path) -> PeftConfig:
    """Read an adapter_config.json; raise `FormatError` when it is broken or asks for more than plain LoRA."""
    raw = _json(path)
    for field, taken in (("peft_type", ("LORA",)), ("task_type", (None, "CAUSAL_LM")), ("bias", ("none", None))):
        if raw.get(field) not in taken:
            raise FormatError(f"{path} has {field} {_brief(raw.get(field))}; only {taken[-1] or taken[0]!r} is taken.")
    for field, value in raw.items():
        if field not in _USED | _INERT and value not in (None, False, 0, "", [], {}):
            reason = _REASONS.get(field, "this version of mintbook does not know it to be harmless")
            raise FormatError(
                f"{path} sets {field!r} to {_brief(value)}: {reason}. Only plain LoRA, W + s·BA, is taken."
            )
    _check_start(path, raw.get("init_lora_weights", True))
    _check_choice(path, raw)
    rank = _number(path, "r", raw.get("r", 8), whole=True)
    name = raw.get("base_model_name_or_path")
    return PeftConfig(
        rank=int(rank),
        alpha=_number(path, "lora_alpha", raw.get("lora_alpha", 8)),
        alpha_rule="sqrt" if raw.get("use_rslora") else "ratio",
        target_modules=_targets(path, raw.get("target_modules")),
        base_model_name=name if isinstance(name, str) else None,
        raw=raw,
        _ranks=_patterns(path, "rank_pattern", raw, whole=True),
        _alphas=_patterns(path, "alpha_pattern", raw),
    )


def _json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        text = file.read(_LARGEST_FILE + 1)
    if len(text) > _LARGEST_FILE:
        raise FormatError(f"{path} is larger than {_LARGEST_FILE} bytes, which no adapter's configuration is.")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} is not readable JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise FormatError(f"{path} holds a JSON {type(raw).__name__}; an adapter's configuration is an object.")
    return raw


def _check_start(path: Path, start: Any) -> None:
    kind = start.lower() if isinstance(start, str) else start
    if kind not in _PLAIN_STARTS:
        raise FormatError(
            f"{path} has init_lora_weights {_brief(start)}, which may change the base's own weights, so that the "
            "adapter fits no other base. Convert it to plain LoRA (PEFT: path_initial_model_for_weight_conversion)."
        )


def _check_choice(path: Path, raw: Mapping[str, Any]) -> None:
    for field, kind in (("exclude_modules", str), ("layers_pattern", str), ("layers_to_transform", int)):
        value = raw.get(field)
        values = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, kind) for item in values):
            raise FormatError(f"{path} has {field} {_brief(value)}; {kind.__name__} or a list of it is needed.")


def _targets(path: Path, targets: Any) -> str | tuple[str, ...]:
    if isinstance(targets, str) and targets:
        return targets
    if isinstance(targets, list) and targets and all(isinstance(target, str) for target in targets):
        return tuple(targets)
    raise TargetError(
        f"{path} has target_modules {_brief(targets)}; a list of module names or one expression is needed."
    )


def _number(path: Path, field: str, value: Any, *, whole: bool = False) -> float:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not -1e300 < value < 1e300:
        raise FormatError(
            f"{path} has {field} {_brief(value)}; it must be {'an integer' if whole else 'a finite number'}."
        )
    if whole and not 1 <= value <= LARGEST_RANK:
        raise FormatError(f"{path} has {field} {_brief(value)}; ranks from 1 to {LARGEST_RANK} are taken.")
    return value


def _patterns(path: Path, field: str, raw: Mapping[str, Any], *, whole: bool = False) -> tuple[_Pattern, ...]:
    patterns = raw.get(field) or {}
    if not isinstance(patterns, dict) or len(patterns) > _MOST_PATTERNS:
        raise FormatError(f"{path} has a {field} that is not an object of at most {_MOST_PATTERNS} entries.")
    return tuple(
        _Pattern(_compiled(rf"(.*\.)?({name})$"), _number(path, f"{field} {_brief(name)}", value, whole=whole))
        for name, value in patterns.items()
    )


def _first(patterns: tuple[_Pattern, ...], module: str, default: float) -> float:
    return next((pattern.value for pattern in patterns if _match(pattern.ends, module)), default)


def _whole(expression: str, module: str) -> bool:
    return _match(_compiled(expression), module, whole=True) is not None


def _named(names: Iterable[str], module: str) -> bool:
    return any(module == name or module.endswith(f".{name}") for name in names)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}…"


def _compiled(expression: str) -> regex.Pattern[str]:
    try:
        return regex.compile(expression)
    except regex.error as error:
        raise FormatError(f"The adapter's configuration holds the expression {_brief(expression)}: {error}.") from error


def _match(expression: regex.Pattern[str], module: str, *, whole: bool = False) -> regex.Match[str] | None:
    """Match from the start of the name, in bounded time: an expression from a stranger may take for ever."""
    try:
        return (expression.fullmatch if whole else expression.match)(module, timeout=_MATCH_SECONDS)
    except TimeoutError as error:
        raise FormatError(
            f"The adapter's configuration holds the expression {_brief(expression.pattern)}, which takes more than "
            f"{_MATCH_SECONDS} s on one module name."
        ) from error
