// What this processor can run.
#pragma once
#include "arithmetic.h"

namespace softless {

// the arithmetics for a dtype that this processor has, the fastest first, ended by null
const Arithmetic* const* arithmetics(bool bf16);

// the first, from that name on (null: from the fastest), whose unit divides both widths; null where there is none
const Arithmetic* choose(bool bf16, const char* name, int64_t D, int64_t E);

}  // namespace softless
