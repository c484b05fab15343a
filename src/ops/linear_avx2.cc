#include "ops/linear_body.h"

const ekiben::LinearKernels ekiben::kLinearAvx2 = {
    QuantizeToken,         Rows<Int4Group>, Rows<Int8Group>, SwiGluRows<Int4Group>,
    SwiGluRows<Int8Group>, F32Rows,         BF16Rows,        ToBF16};
