#include "backend/cuda_sampling.h"

#include <algorithm>
#include <cstddef>

#include "base/arithmetic.h"
#include "base/check.h"

namespace ekiben {
namespace {

static_assert(sizeof(cuda::TokenLogProbs) == sizeof(PositionLogProbs));
static_assert(offsetof(cuda::TokenLogProbs, best) == offsetof(PositionLogProbs, best));
static_assert(cuda::TokenLogProbs::kAlternativesMax == PositionLogProbs::kAlternativesMax);

}  // namespace

Result<CudaSampling> CudaSampling::Create(CudaStream& stream, int32_t slots, int32_t vocab_size, int32_t max_seq_len) {
  CudaSampling out;
  auto count = static_cast<size_t>(slots);
  out.vocab_size_ = vocab_size;
  out.tokens_max_ = max_seq_len;
  out.counts_pitch_ = static_cast<size_t>(RoundUp(vocab_size, 8));
  size_t parameters = count * sizeof(cuda::SlotSampling), rules = count * cuda::kRuleWords * sizeof(int32_t),
         tails = count * cuda::kTailTokens * sizeof(int32_t),
         tokens = static_cast<size_t>(max_seq_len) * sizeof(int32_t);
  ASSIGN_OR_RETURN(out.parameters_, DeviceBuffer::Create(parameters));
  ASSIGN_OR_RETURN(out.rules_, DeviceBuffer::Create(rules));
  ASSIGN_OR_RETURN(out.tails_, DeviceBuffer::Create(tails));
  ASSIGN_OR_RETURN(out.counts_, DeviceBuffer::Create(count * out.counts_pitch_ * sizeof(uint16_t)));
  ASSIGN_OR_RETURN(out.tokens_, DeviceBuffer::Create(tokens));
  ASSIGN_OR_RETURN(out.host_parameters_, PinnedBuffer::Create(parameters));
  ASSIGN_OR_RETURN(out.host_rules_, PinnedBuffer::Create(rules));
  ASSIGN_OR_RETURN(out.host_tails_, PinnedBuffer::Create(tails));
  ASSIGN_OR_RETURN(out.host_tokens_, PinnedBuffer::Create(count * tokens));
  for (const DeviceBuffer* buffer : {&out.parameters_, &out.rules_, &out.tails_, &out.counts_})
    RETURN_IF_ERROR(stream.Clear(buffer->data(), buffer->size()));
  return out;
}

size_t CudaSampling::bytes() const {
  return parameters_.size() + rules_.size() + tails_.size() + counts_.size() + tokens_.size();
}

Result<void> CudaSampling::Bind(CudaStream& stream, cuda::Queue& queue, SlotId slot, const Request& request,
                                int32_t sequence_index, std::span<const TokenId> generated) {
  const SamplingParams& s = request.sampling;
  auto index = static_cast<size_t>(slot.value);
  auto all = static_cast<int32_t>(request.prompt.size() + generated.size());
  CHECK_LE(all, tokens_max_);
  auto* parameters = host_parameters_.as<cuda::SlotSampling>() + index;
  int32_t* rules = host_rules_.as<int32_t>() + index * cuda::kRuleWords;
  int32_t* tail = host_tails_.as<int32_t>() + index * cuda::kTailTokens;
  int32_t words = WriteSlotSampling(request, sequence_index, generated,
                                    {parameters, {rules, cuda::kRuleWords}, {tail, cuda::kTailTokens}});
  auto copy = [&](const DeviceBuffer& to, const int32_t* from, size_t pitch, int32_t count) {
    return stream.Copy(to.as<int32_t>() + index * pitch, from, static_cast<size_t>(count) * sizeof(int32_t));
  };
  RETURN_IF_ERROR(copy(rules_, rules, cuda::kRuleWords, words));
  if (!s.bad_words.empty()) RETURN_IF_ERROR(copy(tails_, tail, cuda::kTailTokens, cuda::kTailTokens));
  if (IsPenalized(s)) {
    int32_t* tokens = host_tokens_.as<int32_t>() + index * static_cast<size_t>(tokens_max_);
    std::ranges::copy(generated, std::ranges::copy(request.prompt, tokens).out);
    uint16_t* counts = counts_.as<uint16_t>() + index * counts_pitch_;
    RETURN_IF_ERROR(stream.Clear(counts, counts_pitch_ * sizeof(uint16_t)));
    RETURN_IF_ERROR(stream.Copy(tokens_.data(), tokens, static_cast<size_t>(all) * sizeof(int32_t)));
    cuda::CountTokens(queue, counts, tokens_.as<int32_t>(), static_cast<int32_t>(request.prompt.size()), all);
  }
  return stream.Copy(parameters_.as<cuda::SlotSampling>() + index, parameters, sizeof *parameters);
}

void CudaSampling::Run(cuda::Queue& queue, cuda::SamplingArguments arguments, int32_t count) const {
  arguments.vocab_size = vocab_size_;
  arguments.parameters = parameters_.as<cuda::SlotSampling>();
  arguments.rules = rules_.as<int32_t>();
  arguments.tails = tails_.as<int32_t>();
  arguments.counts = counts_.as<uint16_t>();
  arguments.counts_pitch = counts_pitch_;
  cuda::Sample(queue, arguments, count);
}

}  // namespace ekiben
