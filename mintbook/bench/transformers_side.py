"""transformers' own ``generate`` as a side, over the plain base and, with PEFT, over mixed adapters."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mintbook.bench.batch import Answer, Batch
from mintbook.bench.timing import Timing
from mintbook.errors import ConfigError
from mintbook.store.page import Page


def load_plain(folder: Path, dtype: str) -> Any:
    """Return a base as transformers loads it, with transformers' own attention and no token that ends an answer."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    # Left trainable, as it comes: for a frozen unembedding torch takes a product that copies it once for every prompt.
    return model.eval()


class TransformersSide:
    """``generate`` over the base, greedy, with its usual cache; it has no adapters."""

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self.model = model

    def answer(self, batch: Batch) -> Answer:
        """Answer a batch of base rows; the clock is read where ``generate`` asks whether to stop, after each token."""
        return _generate(self.model, batch, **self._options(batch))

    def _options(self, batch: Batch) -> dict[str, Any]:
        if any(adapter is not None for adapter in batch.adapters):
            raise ConfigError("transformers alone has no adapters; give it rows of the base.")
        return {}


class PeftSide(TransformersSide):
    """PEFT's mixed batch: ``generate(adapter_names=…)``, adapters in the base's precision.

    Adapters enter by the layers' own ``update_layer``, without the walk over all modules that makes ``load_adapter``
    take about a second.
    """

    name = "peft"

    def __init__(self, model: Any, pages: Sequence[Page]) -> None:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import Linear

        targets = sorted({site.name for site in pages[0].sites})
        configs = [LoraConfig(r=p.rank, lora_alpha=p.scales[0] * p.rank, target_modules=targets) for p in pages]  # type: ignore[arg-type]
        with warnings.catch_warnings(action="ignore", category=FutureWarning):  # of PEFT's use of transformers
            super().__init__(get_peft_model(model, configs[0], adapter_name="a0", autocast_adapter_dtype=False))
        layers = {
            n.removeprefix("base_model.model."): m for n, m in self.model.named_modules() if isinstance(m, Linear)
        }
        for number, (page, config) in enumerate(zip(pages, configs, strict=True)):
            name = f"a{number}"
            self.model.peft_config[name] = config
            for site, (a, bt) in page.factors().items():
                layer = layers[site]
                # On the meta device: the random start of every factor would be thrown away.
                with torch.device("meta"):
                    if name not in layer.lora_A:
                        layer.update_layer(name, page.rank, lora_alpha=config.lora_alpha, config=config)
                layer.lora_A[name].weight = nn.Parameter(a.contiguous(), requires_grad=False)
                layer.lora_B[name].weight = nn.Parameter(bt.T.contiguous(), requires_grad=False)
        self.model.eval().requires_grad_(True)  # see load_plain

    def _options(self, batch: Batch) -> dict[str, Any]:
        return {"adapter_names": ["__base__" if a is None else f"a{a}" for a in batch.adapters]}


def _generate(model: Any, batch: Batch, **options: Any) -> Answer:
    from transformers import StoppingCriteria, StoppingCriteriaList

    marks: list[Timing] = []

    class Clock(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **_others: Any) -> Tensor:
            marks.append(Timing.now())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    prompts = torch.tensor(batch.prompts)
    began = Timing.now()
    with torch.inference_mode():
        found = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=batch.steps + 1,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([Clock()]),
            **options,
        )
    step = marks[-1].since(marks[0], parts=max(1, batch.steps))
    return Answer(marks[0].since(began), step, tuple(map(tuple, found[:, prompts.shape[1] :].tolist())))
