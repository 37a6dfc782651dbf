"""What each machine instruction does to a block's state (see `machine.py`).

Integers, addresses, predicates, fp32, fp16 conversions and mma are computed as on a GPU (sums of an
mma in another order), so that a kernel's results can be compared with the truth.
"""

from __future__ import annotations

import instructions_memory
import instructions_real
import instructions_whole
from instruction_table import do

__all__ = ["do", "instructions_memory", "instructions_real", "instructions_whole"]
