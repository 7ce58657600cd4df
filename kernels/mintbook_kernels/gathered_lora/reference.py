"""The oracle of the tests: decode computes what grouped rows compute."""

from mintbook_kernels.grouped_lora.reference import grouped_lora as gathered_lora

__all__ = ["gathered_lora"]
