// What this machine can do, measured, and how near the linears come: the numbers behind `ekiben kernels`.
// Peaks: register-only loops of the instruction that each packing leans on, on every member of the pool at once.
// Bandwidth: a plain 512-bit read loop over more memory than the caches hold. Each is the best of several short runs,
// because other processes only ever slow a run down. A pool of one thread is timed in its own CPU time.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ops/linear.h"
#include "ops/op_context.h"

namespace ekiben {

// Per second, all members together. A multiply-add is two operations.
struct Roofline {
  double int8_operations = 0, bf16_operations = 0, f32_operations = 0;
  double read_bytes = 0;
};

// `seconds` for each of the four.
Roofline MeasureRoofline(ThreadPool& pool, Isa isa, double seconds = 0.3);

struct NamedLinear {
  std::string name;  // of the shape: "qkv", "gate_up"; weights of one name share shape and packing
  LinearWeight weight;
};

struct LinearTiming {
  std::string name;
  Packing packing = Packing::kF32;
  int64_t out_features = 0, in_features = 0, weights = 0;  // weights: how many have this name
  int64_t tokens = 0;
  double seconds = 0;     // one call, quantising included: median over rounds of the mean over the weights
  double operations = 0;  // of one call: 2 * tokens * N * K
  double bytes = 0;       // of one call: packed weight, activations read and written
};

// Times every name for `tokens` tokens, calling the weights in the order given (a model's own), so that each finds the
// caches as a step leaves them. Takes the activations from ctx.arena: LinearTimingScratchBytes.
std::vector<LinearTiming> TimeLinears(OpContext& ctx, std::span<const NamedLinear> linears, int64_t tokens, int rounds);
size_t LinearTimingScratchBytes(std::span<const NamedLinear> linears, int64_t tokens);

// The peak that a packing is measured against.
double PeakOf(const Roofline& roofline, Packing packing);

}  // namespace ekiben
