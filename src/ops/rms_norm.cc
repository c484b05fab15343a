#include "ops/rms_norm.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "ops/lane_sum.h"

namespace ekiben {

void reference::RunRmsNormRow(const RmsNormRow& row) {
  LaneSum squares;
  for (int64_t i = 0; i < row.columns; ++i) {
    if (row.delta != nullptr) row.x[i] += row.delta[i];
    float& lane = squares.lane[i % 16];
    lane = std::fma(row.x[i], row.x[i], lane);
  }
  float scale = 1.0f / std::sqrt(squares.Total() / static_cast<float>(row.columns) + row.eps);
  for (int64_t i = 0; i < row.columns; ++i) row.y[i] = row.x[i] * scale * row.weight[i];
}

namespace {

// A fork pays from about this many elements on.
constexpr int64_t kGrainElements = 8192;

void CheckSameShape(const TensorView& a, const TensorView& b) {
  CHECK_EQ(a.shape[0], b.shape[0]);
  CHECK_EQ(a.shape[1], b.shape[1]);
}

// `quantized`: null, or what takes each row of y, which then serves as scratch of one row a piece of work.
void Run(OpContext& ctx, const TensorView& y, const TensorView& x, const TensorView* delta, const float* weight,
         float eps, const QuantizedRows* quantized) {
  int64_t tokens = x.shape[0], columns = x.shape[1];
  CheckSameShape(y, x);
  if (delta != nullptr) CheckSameShape(*delta, x);
  auto body = ctx.isa == Isa::kAvx512 ? avx512::RunRmsNormRow
              : ctx.isa == Isa::kAvx2 ? avx2::RunRmsNormRow
                                      : reference::RunRmsNormRow;
  int64_t grain = std::max<int64_t>(1, kGrainElements / columns);
  ctx.pool->ParallelFor(tokens, grain, [&](int64_t begin, int64_t end, int) {
    auto run = [&](int64_t t, float* to) {
      body({to, x.row<float>(t), delta != nullptr ? delta->row<float>(t) : nullptr, weight, columns, eps});
    };
    if (quantized == nullptr) {
      for (int64_t t = begin; t < end; ++t) run(t, y.row<float>(t));
      return;
    }
    RowQuantizer quantizer(ctx.isa, *quantized);
    for (int64_t t = begin; t < end; ++t) {
      run(t, y.row<float>(begin));
      quantizer.Row(t, y.row<float>(begin));
    }
  });
}

}  // namespace

void RmsNorm(OpContext& ctx, TensorView y, TensorView x, const float* weight, float eps) {
  Run(ctx, y, x, nullptr, weight, eps, nullptr);
}

void AddRmsNorm(OpContext& ctx, TensorView y, TensorView residual, TensorView delta, const float* weight, float eps) {
  Run(ctx, y, residual, &delta, weight, eps, nullptr);
}

QuantizedRows RmsNormQuantized(OpContext& ctx, TensorView scratch, TensorView x, const float* weight, float eps) {
  QuantizedRows rows = TakeQuantizedRows(ctx, x.shape[0], x.shape[1]);
  Run(ctx, scratch, x, nullptr, weight, eps, &rows);
  return rows;
}

QuantizedRows AddRmsNormQuantized(OpContext& ctx, TensorView scratch, TensorView residual, TensorView delta,
                                  const float* weight, float eps) {
  QuantizedRows rows = TakeQuantizedRows(ctx, residual.shape[0], residual.shape[1]);
  Run(ctx, scratch, residual, &delta, weight, eps, &rows);
  return rows;
}

}  // namespace ekiben
