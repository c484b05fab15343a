// What a device's sampler must know of a slot's sequence, written out as plain memory (ops/cuda_ops.h says how it is
// laid out), and which requests it serves. Host only, tested without a device. Thread: any.
#pragma once
#include <cstdint>
#include <span>

#include "ops/cuda_ops.h"
#include "request/request.h"

namespace ekiben {

// True when the device's argmax alone serves the request.
bool IsPlainGreedy(const Request& request);
// False: the host samples. A grammar, allowed_tokens (a list as long as the vocabulary), prompt_logprobs (rows that are
// not sampled), a bias that names a token twice (their order would count), or more stop tokens, bad words or bias
// entries than a slot has room for.
bool DeviceSamples(const Request& request);

struct SlotMemory {
  cuda::SlotSampling* parameters = nullptr;
  std::span<int32_t> rules;  // kRuleWords
  std::span<int32_t> tail;   // kTailTokens
};
// Returns how many rule words are used. The tail is written when the request has bad words. REQUIRES:
// DeviceSamples(request).
int32_t WriteSlotSampling(const Request& request, int32_t sequence_index, std::span<const TokenId> generated,
                          const SlotMemory& out);
// repetition, presence or frequency: the device counts tokens.
bool IsPenalized(const SamplingParams& params);

}  // namespace ekiben
