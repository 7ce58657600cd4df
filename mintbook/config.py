"""The options of mintbook: frozen, keyword-only, checked when they are made."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self, get_args

from mintbook.errors import ConfigError, nearest

AlphaRule = Literal["constant", "ratio", "sqrt"]
Init = Literal["orthonormal", "peft"]
Schedule = Literal["cosine", "constant"]
COLDEST = 1e-3
"""Smallest temperature that is not greedy: below it the division leaves fp32's range."""
SEEDS = 2**63
"""Seeds are below this: signed 64-bit integers, which every generator takes."""
TRAIN_SEEDS = 2**40
"""Seeds of a training are below this: the seed of a round over the examples is a million times as large."""


def _check(holds: object, what: str) -> None:
    if not holds:
        raise ConfigError(what)


def _integer(config: object, name: str, low: int, high: int | None = None) -> None:
    value = getattr(config, name)
    fits = isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)
    bound = f"at least {low}" + ("" if high is None else f" and at most {high}")
    _check(fits, f"{name} is {value!r}; it must be an integer, {bound}.")


def _number(
    config: object, name: str, low: float, high: float | None = None, *, above: bool = False, below: bool = False
) -> None:
    """Check for a finite number in [low, high]; ``above`` leaves low itself out, ``below`` high."""
    value = getattr(config, name)
    # Compared, not converted: an integer may be larger than any float.
    finite = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    fits = finite and (low < value if above else low <= value)
    fits = fits and (high is None or (value < high if below else value <= high))
    bound = f"{'above' if above else 'at least'} {low:g}"
    bound += "" if high is None else f" and {'below' if below else 'at most'} {high:g}"
    _check(fits, f"{name} is {value!r}; it must be a finite number, {bound}.")


def _choice(config: object, name: str, known: tuple[str, ...]) -> None:
    value = getattr(config, name)
    _check(value in known, f"{name} is {value!r}; it must be one of {', '.join(map(repr, known))}.")


def _flag(config: object, name: str) -> None:
    value = getattr(config, name)
    _check(isinstance(value, bool), f"{name} is {value!r}; it must be True or False.")


def _token_ids(config: object, name: str) -> tuple[int, ...]:
    value = getattr(config, name)
    ids = (value,) if isinstance(value, int) else value
    fits = isinstance(ids, (tuple, list)) and all(
        isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids
    )
    _check(fits, f"{name} is {value!r}; it must be a token id (an integer, at least 0), or a list of them.")
    return tuple(ids)


def _texts(config: object, name: str) -> tuple[str, ...]:
    """Return one text or several as a tuple: a user writes ``stop="END"`` as well as ``stop=["END", "##"]``."""
    value = getattr(config, name)
    texts = (value,) if isinstance(value, str) else value
    fits = isinstance(texts, (tuple, list)) and all(isinstance(text, str) and text for text in texts)
    _check(fits, f"{name} is {value!r}; it must be a non-empty string, or a list of them.")
    return tuple(texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    elsewhere: ClassVar[dict[str, str]] = {}
    """What to do instead, for names that are looked for here and are not options."""

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain data, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Make a config from keyword arguments; an unknown name raises `ConfigError` with the nearest known ones."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                hint = cls.elsewhere.get(name) or nearest(name, known)
                raise ConfigError(f"{cls.__name__} has no option {name!r}.{hint} It takes: {', '.join(known)}.")
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
        _integer(self, "seed", 0, SEEDS - 1)
        targets = _texts(self, "targets")
        _check(targets, f"targets is {self.targets!r}; name at least one module, or say 'all-linear'.")
        object.__setattr__(self, "targets", self.targets if isinstance(self.targets, str) else targets)

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
    """Seed of the order of examples and of the validation split; below 2**40, because it is multiplied."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulation", "validate_every", "anchor_batch_size"):
            _integer(self, name, 1)
        _integer(self, "max_length", 2)
        for name in ("patience", "checkpoint_every"):
            _integer(self, name, 0)
        _integer(self, "seed", 0, TRAIN_SEEDS - 1)
        for name in ("learning_rate", "eps"):
            _number(self, name, 0, above=True)
        for name in ("clip", "weight_decay", "anchor"):
            _number(self, name, 0)
        _number(self, "warmup", 0, 1)
        for name in ("validation", "beta1", "beta2"):
            _number(self, name, 0, 1, below=True)
        _choice(self, "schedule", get_args(Schedule))
        _check(self.patience == 0 or self.validation > 0, "patience needs a validation share above 0 to judge by.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleConfig(_Config):
    """How the next token is chosen and when a generation ends.

    From the logits l of the whole vocabulary, in this order:

    1. repetition (Keskar et al. 2019), for every token of the prompt and of the answer so far:
       ``l ← l / repetition_penalty if l > 0 else l · repetition_penalty``
    2. presence and frequency, for a token that the answer has n > 0 times already:
       ``l ← l − presence_penalty − n · frequency_penalty``
    3. ``p = softmax(l / temperature)``; at temperature 0 the largest l is taken, and nothing below applies
    4. ``top_k``: the k most likely tokens stay; of equals, those of the smaller token id
    5. ``top_p`` (Holtzman et al. 2020): of these, the fewest most likely ones that hold this share of their probability
    6. ``min_p`` (Nguyen et al. 2024): of these, the ones with ``p ≥ min_p · max p``

    One token is drawn in proportion to p from what is left, with the request's own generator. Log-probabilities are
    natural, and those of the distribution before all of this: ``log_softmax(l)``.
    """

    elsewhere: ClassVar[dict[str, str]] = {
        "n": " For several answers to one prompt: adapter.sample(prompt, n).",
        "max_new_tokens": " It is called 'max_tokens' here.",
    }
    max_tokens: int = 64
    temperature: float = 0.0
    """0 is greedy: always the most likely token. Otherwise at least 0.001."""
    top_k: int = 0
    """Choose among this many most likely tokens; 0 disables."""
    top_p: float = 1.0
    """Choose among the most likely tokens whose probabilities sum to this; 1 disables."""
    min_p: float = 0.0
    """Choose among tokens at least this likely beside the most likely one; 0 disables."""
    repetition_penalty: float = 1.0
    """Divides the positive and multiplies the other logits of tokens in prompt and answer; 1 disables; 0.01 to 100."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that is in the answer; −2 to 2."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token for every time it is in the answer; −2 to 2."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end the answer, beside those of the base; such a token is the last of ``tokens`` and adds no text."""
    seed: int = 0
    """Seed of this request's draws."""
    logprobs: bool = False
    """Return the log-probability of every token of the answer."""
    top_logprobs: int = 0
    """Return this many most likely tokens, with their log-probabilities, at every place of the answer; at most 20."""
    prompt_logprobs: bool = False
    """Return the log-probability of every token of the prompt but the first; the whole prompt is read for it."""

    def __post_init__(self) -> None:
        _integer(self, "max_tokens", 1)
        _number(self, "temperature", 0)
        cold = 0 < self.temperature < COLDEST
        _check(not cold, f"temperature is {self.temperature!r}; it must be 0 (greedy) or at least {COLDEST:g}.")
        _integer(self, "top_k", 0)
        _number(self, "top_p", 0, 1, above=True)
        _number(self, "min_p", 0, 1)
        _number(self, "repetition_penalty", 0.01, 100)
        for name in ("presence_penalty", "frequency_penalty"):
            _number(self, name, -2, 2)
        _integer(self, "seed", 0, SEEDS - 1)
        _integer(self, "top_logprobs", 0, 20)
        for name in ("logprobs", "prompt_logprobs"):
            _flag(self, name)
        object.__setattr__(self, "stop", _texts(self, "stop"))
        object.__setattr__(self, "stop_ids", _token_ids(self, "stop_ids"))

    def seeded(self, count: int) -> list[Self]:
        """Return ``count`` copies of the options, their seeds counting up from ``seed``."""
        return [replace(self, seed=self.seed + i) for i in range(count)]

    @property
    def needs_whole_prompt(self) -> bool:
        """Whether every token of the prompt must go through the model, even where its keys and values are known."""
        return self.prompt_logprobs

    @property
    def penalizes(self) -> bool:
        """Whether the choice depends on which tokens there were before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig(_Config):
    """How much room a resident base has for adapters and requests, and by which rules it is shared."""

    slot_rows: int = 512
    """Rank-rows of the slot bank: bounds the ranks of all loaded adapters together."""
    kv_tokens: int = 16_384
    """Tokens of all running requests and of the prefixes that are kept, together."""
    max_sequences: int = 64
    """Requests that run at the same time."""
    max_adapters: int = 64
    """Distinct adapters in one step; requests of others wait for their turn."""
    prefill_tokens: int = 1024
    """Tokens of new prompts that one step reads."""
    queue_limit: int = 4096
    """Requests that may wait; one more is refused with `CapacityError`."""
    prefix_cache: bool = True
    """Keep the keys and values of prompts that were read, for prompts of the same revision that begin alike."""
    batch_invariant: bool = False
    """Compute on fixed tiles, so that no bit of an answer depends on what else is in the batch; slower."""
    packed_weights: bool = True
    """Keep a second copy of the base's weights in the layout that this CPU multiplies with: decoding is faster."""
    host_cache_bytes: int = 1 << 30
    """Bytes of adapters that are kept in memory beside the slots."""
    loads_in_flight: int = 2
    """Adapters that are read from the store at the same time."""
    load_queue: int = 64
    """Adapters that may wait to be read; a request for one more is refused with `CapacityError`."""

    def __post_init__(self) -> None:
        for name in ("slot_rows", "kv_tokens"):
            _integer(self, name, 16)
        for name in ("max_sequences", "max_adapters", "prefill_tokens", "queue_limit", "loads_in_flight"):
            _integer(self, name, 1)
        for name in ("host_cache_bytes", "load_queue"):
            _integer(self, name, 0)
        for name in ("prefix_cache", "batch_invariant", "packed_weights"):
            _flag(self, name)
