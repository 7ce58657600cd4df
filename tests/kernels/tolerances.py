"""How far an op may be from its fp32 reference: one number for each precision.

The measure is the root mean square of the difference over that of the wanted update. A rounding is off by at most u
(half the spacing at 1) and by at most u / √3 in the root mean square; at most four independent ones lie between the
inputs and a result (h formed, h scaled, the product, the sum with y), so 16-bit results stay under 2 u / √3. Sums of
K ≤ 431 terms add about u √K in fp32 itself, hence 32 u there.
"""

from __future__ import annotations

import torch

TOLERANCE = {
    torch.float64: 1e-6,  # the reference is fp32
    torch.float32: 32 * 2.0**-24,
    torch.float16: 2 * 2.0**-11,
    torch.bfloat16: 2 * 2.0**-8,
}
