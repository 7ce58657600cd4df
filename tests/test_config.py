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


def test_one_stop_text_and_a_list_of_targets_are_taken_as_written() -> None:
    assert SampleConfig(stop="END").stop == ("END",)
    assert LoraConfig(targets=["q_proj", "v_proj"]).targets == ("q_proj", "v_proj")
