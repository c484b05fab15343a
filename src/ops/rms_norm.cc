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

void Run(OpContext& ctx, const TensorView& y, const TensorView& x, const TensorView* delta, const float* weight,
         float eps) {
  int64_t tokens = x.shape[0], columns = x.shape[1];
  CHECK_EQ(y.shape[0], tokens);
  CHECK_EQ(y.shape[1], columns);
  auto body = ctx.isa == Isa::kAvx512 ? avx512::RunRmsNormRow
              : ctx.isa == Isa::kAvx2 ? avx2::RunRmsNormRow
                                      : reference::RunRmsNormRow;
  int64_t grain = std::max<int64_t>(1, kGrainElements / columns);
  ctx.pool->ParallelFor(tokens, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      body({y.row<float>(t), x.row<float>(t), delta != nullptr ? delta->row<float>(t) : nullptr, weight, columns, eps});
    }
  });
}

}  // namespace

void RmsNorm(OpContext& ctx, TensorView y, TensorView x, const float* weight, float eps) {
  Run(ctx, y, x, nullptr, weight, eps);
}

void AddRmsNorm(OpContext& ctx, TensorView y, TensorView residual, TensorView delta, const float* weight, float eps) {
  CHECK_EQ(delta.shape[0], residual.shape[0]);
  CHECK_EQ(delta.shape[1], residual.shape[1]);
  Run(ctx, y, residual, &delta, weight, eps);
}

}  // namespace ekiben
