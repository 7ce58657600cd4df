"""How far an op may be from its fp32 reference: one number for each precision.

The measure is the root mean square of the difference over that of the wanted update. A number rounded to u = 2⁻ᵖ (half
the spacing at 1) is off by at most u; at most four roundings lie between the inputs and any result (h formed, h scaled,
the product, the sum with y), so 4 u bounds 16-bit results whatever the size. In fp32 the products themselves err, by
about u √K over K terms; the tests' K are at most 431 terms, hence 32 u.
"""

from __future__ import annotations

import torch

TOLERANCE = {
    torch.float64: 1e-6,  # the reference is fp32
    torch.float32: 32 * 2.0**-24,
    torch.float16: 4 * 2.0**-11,
    torch.bfloat16: 4 * 2.0**-8,
}
