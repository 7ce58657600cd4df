"""Low-rank updates of many adapters in one batch: grouped rows, gathered rows and their gradients.

The semantics of every op is one equation, ``y_j[t] += s_j · (x[t] A_jᵀ) B_jᵀ``, with the factors and the scales of row
t's slot, for the J linears that share the input x (q, k and v; gate and up; or one alone).
"""

from mintbook_kernels.dispatch import Backend, BackendError, backend
from mintbook_kernels.factors import Factors
from mintbook_kernels.gathered_lora.op import gathered_lora
from mintbook_kernels.grouped_lora.op import grouped_lora
from mintbook_kernels.inspection import LayerShape, inspect
from mintbook_kernels.lora_grad.op import lora_grad
from mintbook_kernels.paged_attention.op import paged_attention
from mintbook_kernels.segments import Segments

__all__ = [
    "Backend",
    "BackendError",
    "Factors",
    "LayerShape",
    "Segments",
    "backend",
    "gathered_lora",
    "grouped_lora",
    "inspect",
    "lora_grad",
    "paged_attention",
]
