// Sampling on the CUDA device, seen from the host: what each slot asks for is copied there when it is bound; a step
// then names the rows to sample, and nothing comes back but tokens and, where asked for, log-probabilities.
//
// It serves what sample/sampler.h does, to the bit, for what DeviceSamples (slot_sampling.h) says. Memory: by slot two
// bytes a vocabulary entry for penalties, and the lists of its rules. Thread: the executor's.
#pragma once
#include <span>
#include <vector>

#include "backend/slot_sampling.h"
#include "device/cuda/cuda_device.h"
#include "ops/cuda_ops.h"
#include "request/request.h"

namespace ekiben {

class CudaSampling {
 public:
  CudaSampling() = default;
  static Result<CudaSampling> Create(CudaStream& stream, int32_t slots, int32_t vocab_size, int32_t max_seq_len);

  // Before the first step of the sequence. REQUIRES: DeviceSamples(request). What is copied stays untouched until the
  // slot is bound again, and then the copies follow in stream order.
  Result<void> Bind(CudaStream& stream, cuda::Queue& queue, SlotId slot, const Request& request, int32_t sequence_index,
                    std::span<const TokenId> generated);
  // Chooses for `count` rows of `arguments.rows` after a step's logits; see cuda::Sample. Fills in what is this
  // class's.
  void Run(cuda::Queue& queue, cuda::SamplingArguments arguments, int32_t count) const;
  size_t bytes() const;

 private:
  int32_t vocab_size_ = 0, tokens_max_ = 0;
  size_t counts_pitch_ = 0;
  DeviceBuffer parameters_, rules_, tails_, counts_, tokens_;
  PinnedBuffer host_parameters_, host_rules_, host_tails_, host_tokens_;
};

}  // namespace ekiben
