"""The options of mintbook: frozen, keyword-only, checked when they are made."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from mintbook.errors import ConfigError, nearest

AlphaRule = Literal["constant", "ratio", "sqrt"]
Init = Literal["orthonormal", "peft"]
Schedule = Literal["cosine", "constant"]
COLDEST = 1e-3
"""Smallest temperature that is not greedy: below it the division leaves fp32's range."""
BELOW_ONE = 1 - 2**-53


SEEDS = 2**40
"""Seeds are below this: every generator takes them, and so does what is derived from them."""


def _check(holds: object, what: str) -> None:
    if not holds:
        raise ConfigError(what)


def _integer(config: object, name: str, low: int, high: int | None = None) -> None:
    value = getattr(config, name)
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    _check(
        fits, f"{name} is {value!r}; it must be an integer of at least {low}" + (f", at most {high}." if high else ".")
    )


def _number(config: object, name: str, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Check for a finite number in [low, high], or in (low, high] where it must lie ``above`` low."""
    value = getattr(config, name)
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    fits = real and (low < value if above else low <= value) and value <= high
    bound = f"{'above' if above else 'of at least'} {low:g}" + (f", at most {high:g}" if math.isfinite(high) else "")
    _check(fits, f"{name} is {value!r}; it must be a finite number {bound}.")


def _choice(config: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _check(value in known, f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")


def _texts(given: Any) -> tuple[Any, ...]:
    """Return one text or several as a tuple: a user writes ``stop="END"`` as well as ``stop=["END", "##"]``."""
    return (given,) if isinstance(given, str) else tuple(given)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Make a config from keyword arguments; an unknown name raises `ConfigError` with the nearest known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{cls.__name__} has no option {name!r}.{nearest(name, known)} It takes: {', '.join(known)}."
                )
        return cls(**options)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig(_Config):
    """What an adapter is: its rank, its scale, where it sits and how it starts.

    The adapted layer computes ``y = W x + s · B (A x)`` with ``s`` from ``alpha_rule``: ``constant`` s = α,
    ``ratio`` s = α / r (Hu et al. 2021), ``sqrt`` s = α / √r (rsLoRA, Kalajdzievski 2023).
    """

    rank: int = 16
    """Rows of A, columns of B; 1 to 256."""
    alpha: float = 2.0
    alpha_rule: AlphaRule = "constant"
    targets: str | tuple[str, ...] = "upper-linear"
    """``"all-linear"`` (attention and MLP, not the unembedding), ``"upper-linear"`` (these in the upper 60% of the
    blocks: cheaper, and kinder to what the base knows), ``"attention"``, ``"mlp"``, or ends of module names."""
    init: Init = "orthonormal"
    """``orthonormal``: B = 0 and A with orthonormal rows; ``peft``: B = 0 and A Kaiming-uniform, as PEFT starts."""
    seed: int = 0
    """Seed of A's start."""

    def __post_init__(self) -> None:
        _integer(self, "rank", 1, 256)
        _number(self, "alpha", 0, above=True)
        _choice(self, "alpha_rule", get_args(AlphaRule))
        _choice(self, "init", get_args(Init))
        _integer(self, "seed", 0, SEEDS)
        named = isinstance(self.targets, (str, tuple, list)) and bool(self.targets)
        named = named and all(isinstance(target, str) and target for target in self.targets)
        _check(named, f"targets is {self.targets!r}; name at least one module, or say 'all-linear'.")
        object.__setattr__(self, "targets", self.targets if isinstance(self.targets, str) else tuple(self.targets))

    @property
    def scale(self) -> float:
        """The factor s of the update s · B A."""
        if self.alpha_rule == "constant":
            return self.alpha
        return self.alpha / (self.rank if self.alpha_rule == "ratio" else math.sqrt(self.rank))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(_Config):
    """How an adapter is trained on examples (supervised)."""

    steps: int = 40
    """Optimizer steps of this call."""
    batch_size: int = 8
    """Examples in one forward and backward."""
    accumulation: int = 1
    """Forward-backward passes whose gradients are summed into one optimizer step."""
    learning_rate: float = 2e-3
    warmup: float = 0.1
    """Share of the steps during which the learning rate rises from 0."""
    schedule: Schedule = "cosine"
    """``cosine`` falls to a tenth of the rate at the last step, ``constant`` stays."""
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    clip: float = 1.0
    """Largest gradient norm over the whole adapter; 0 disables."""
    max_length: int = 512
    """Tokens of one example; longer ones are cut at the end, and the cut is reported."""
    anchor: float = 5.0
    """Weight of the KL term KL(base ‖ adapter) on anchor answers, which keeps what the base can do; 0 disables."""
    anchor_batch_size: int = 8
    """Anchor answers in one forward and backward."""
    validation: float = 0.0
    """Share of the examples held out; 0 disables."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 disables."""
    validate_every: int = 10
    """Steps between validations."""
    checkpoint_every: int = 20
    """Steps between checkpoints of the training state; 0 disables."""
    seed: int = 0
    """Seed of the order of examples and of the validation split."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "validate_every", "anchor_batch_size"):
            _integer(self, name, 1)
        _integer(self, "max_length", 2)
        for name in ("patience", "checkpoint_every"):
            _integer(self, name, 0)
        _integer(self, "seed", 0, SEEDS)
        for name in ("learning_rate", "eps"):
            _number(self, name, 0, above=True)
        for name in ("clip", "weight_decay", "anchor"):
            _number(self, name, 0)
        _number(self, "warmup", 0, 1)
        for name in ("validation", "beta1", "beta2"):
            _number(self, name, 0, BELOW_ONE)
        _choice(self, "schedule", get_args(Schedule))
        _check(self.patience == 0 or self.validation > 0, "patience needs a validation share above 0 to judge by.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(_Config):
    """How the next token is chosen and when a generation ends."""

    max_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy: always the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 disables."""
    top_p: float = 1.0
    """Choose among the most likely tokens whose probabilities sum to this; 1 disables."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    seed: int = 0
    """Seed of this request's draws."""
    logprobs: bool = False
    """Return the log-probability of every token of the answer."""

    def __post_init__(self) -> None:
        _integer(self, "max_tokens", 1)
        _number(self, "temperature", 0)
        cold = 0 < self.temperature < COLDEST
        _check(not cold, f"temperature is {self.temperature!r}; it must be 0 (greedy) or at least {COLDEST:g}.")
        _integer(self, "top_k", 0)
        _number(self, "top_p", 0, 1, above=True)
        _integer(self, "seed", 0, 2 * SEEDS)
        object.__setattr__(self, "stop", _texts(self.stop))
        named = all(isinstance(text, str) and text for text in self.stop)
        _check(named, f"stop is {self.stop!r}; it must hold non-empty strings.")
