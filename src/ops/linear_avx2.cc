#include "ops/linear_body.h"

const ekiben::LinearKernels ekiben::kLinearAvx2 = {QuantizeToken, Int4Rows, Int8Rows, Int4SwiGlu,
                                                   Int8SwiGlu,    F32Rows,  BF16Rows, ToBF16};
