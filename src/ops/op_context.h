// What every op gets beside its tensors: the device's team of threads, scratch memory and the chosen bodies.
// An op never allocates from the heap, never synchronises beyond its own fork-join, and never reads a result on the
// host to decide what to do. Scratch taken from the arena is given back before the op returns.
#pragma once
#include "device/buffer.h"
#include "device/cpu_features.h"
#include "device/thread_pool.h"

namespace ekiben {

class LinearTuning;

struct OpContext {
  ThreadPool* pool = nullptr;
  Arena* arena = nullptr;
  Isa isa = Isa::kReference;
  const LinearTuning* tuning = nullptr;  // null: the built-in choice (ops/linear_tuning.h)
};

}  // namespace ekiben
