"""Options: what is refused, and what the three rules of alpha mean."""

from __future__ import annotations

import math

import pytest

from mintbook.config import LoraConfig, SampleConfig, TrainConfig
from mintbook.errors import ConfigError


@pytest.mark.parametrize(("rule", "scale"), [("constant", 8.0), ("ratio", 0.5), ("sqrt", 2.0)])
def test_the_scale_follows_the_rule(rule: str, scale: float) -> None:
    assert LoraConfig(rank=16, alpha=8.0, alpha_rule=rule).scale == pytest.approx(scale)


@pytest.mark.parametrize(
    ("config", "options"),
    [
        (LoraConfig, {"rank": 257}),
        (LoraConfig, {"rank": 2.5}),
        (LoraConfig, {"alpha": 0}),
        (LoraConfig, {"alpha_rule": "log"}),
        (LoraConfig, {"init": "pissa"}),
        (LoraConfig, {"targets": ()}),
        (TrainConfig, {"steps": 0}),
        (TrainConfig, {"learning_rate": -1.0}),
        (TrainConfig, {"warmup": 2.0}),
        (TrainConfig, {"validation": 1.0}),
        (TrainConfig, {"patience": 3}),
        (TrainConfig, {"schedule": "step"}),
        (TrainConfig, {"anchor": -0.1}),
        (TrainConfig, {"learning_rate": math.nan}),
        (SampleConfig, {"max_tokens": 0}),
        (SampleConfig, {"temperature": -1}),
        (SampleConfig, {"temperature": math.nan}),
        (SampleConfig, {"top_p": 0}),
        (SampleConfig, {"top_k": -1}),
        (SampleConfig, {"stop": ("",)}),
        (LoraConfig, {"rank": True}),
        (LoraConfig, {"rank": "16"}),
        (LoraConfig, {"alpha": True}),
        (LoraConfig, {"alpha": 10**400}),
        (LoraConfig, {"alpha": None}),
        (LoraConfig, {"targets": 5}),
        (LoraConfig, {"targets": ("q_proj", "")}),
        (LoraConfig, {"targets": ""}),
        (LoraConfig, {"seed": 2**63}),
        (LoraConfig, {"seed": -1}),
        (TrainConfig, {"seed": 2**40}),
        (TrainConfig, {"batch_size": True}),
        (TrainConfig, {"accumulation": 1.0}),
        (TrainConfig, {"checkpoint_every": -1}),
        (TrainConfig, {"patience": False}),
        (TrainConfig, {"eps": math.nan}),
        (TrainConfig, {"beta1": 1.0}),
        (TrainConfig, {"beta2": "0.9"}),
        (TrainConfig, {"clip": math.inf}),
        (TrainConfig, {"weight_decay": math.inf}),
        (TrainConfig, {"warmup": math.nan}),
        (TrainConfig, {"validation": True}),
        (SampleConfig, {"top_k": 1.5}),
        (SampleConfig, {"top_p": math.nan}),
        (SampleConfig, {"temperature": math.inf}),
        (SampleConfig, {"temperature": 0.00099}),
        (SampleConfig, {"seed": 2**63}),
        (SampleConfig, {"stop": 5}),
        (LoraConfig, {"alpha": "2"}),
        (LoraConfig, {"alpha": math.inf}),
        (LoraConfig, {"targets": [1]}),
        (LoraConfig, {"seed": "abc"}),
        (TrainConfig, {"seed": "x"}),
        (TrainConfig, {"seed": 2**70}),
        (TrainConfig, {"checkpoint_every": 0.5}),
        (TrainConfig, {"learning_rate": math.inf}),
        (SampleConfig, {"seed": 2**70}),
        (SampleConfig, {"seed": 1.5}),
        (SampleConfig, {"max_tokens": True}),
        (SampleConfig, {"temperature": 1e-45}),
        (SampleConfig, {"min_p": 1.01}),
        (SampleConfig, {"min_p": math.nan}),
        (SampleConfig, {"repetition_penalty": 0}),
        (SampleConfig, {"repetition_penalty": 101}),
        (SampleConfig, {"presence_penalty": 2.1}),
        (SampleConfig, {"frequency_penalty": -2.1}),
        (SampleConfig, {"frequency_penalty": "1"}),
        (SampleConfig, {"stop_ids": (-1,)}),
        (SampleConfig, {"stop_ids": True}),
        (SampleConfig, {"stop_ids": "2"}),
        (SampleConfig, {"logprobs": 5}),
        (SampleConfig, {"top_logprobs": 21}),
        (SampleConfig, {"top_logprobs": True}),
        (SampleConfig, {"prompt_logprobs": "yes"}),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused(config: type, options: dict[str, object]) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=name):
        config(**options)


@pytest.mark.parametrize("config", [LoraConfig, TrainConfig, SampleConfig])
def test_options_come_back_from_plain_data(config: type) -> None:
    made = config()
    assert config.from_options(**made.to_dict()) == made
    with pytest.raises(ConfigError, match="It takes"):
        config.from_options(not_an_option=1)


def test_the_ends_of_the_ranges_are_taken() -> None:
    LoraConfig(rank=256, alpha=1, seed=2**63 - 1)
    TrainConfig(seed=2**40 - 1, checkpoint_every=0, clip=0, validation=0.999, warmup=1, weight_decay=0)
    SampleConfig(temperature=1e-3, top_p=1, seed=2**63 - 1)
    SampleConfig(min_p=1, repetition_penalty=0.01, presence_penalty=-2, frequency_penalty=2, top_logprobs=20)


def test_a_refusal_says_what_may_be_given() -> None:
    with pytest.raises(
        ConfigError, match=r"^validation is 1\.0; it must be a finite number, at least 0 and below 1\.$"
    ):
        TrainConfig(validation=1.0)
    with pytest.raises(ConfigError, match=r"^rank is 0; it must be an integer, at least 1 and at most 256\.$"):
        LoraConfig(rank=0)
    with pytest.raises(ConfigError, match=r"^alpha is '2'; it must be a finite number, above 0\.$"):
        LoraConfig(alpha="2")  # type: ignore[arg-type]


def test_one_stop_text_and_a_list_of_targets_are_taken_as_written() -> None:
    assert SampleConfig(stop="END").stop == ("END",)
    assert SampleConfig(stop_ids=7).stop_ids == (7,)
    assert SampleConfig(stop_ids=[7, 0]).stop_ids == (7, 0)
    assert LoraConfig(targets=["q_proj", "v_proj"]).targets == ("q_proj", "v_proj")
