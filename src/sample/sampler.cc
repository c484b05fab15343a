#include "sample/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/philox.h"
#include "sample/logit_scan.h"

namespace ekiben {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr int32_t kBlock = 64;
// top_p of a peaked row is reached within so many candidates; a flat row takes the other path.
constexpr int32_t kFewCandidates = 64;

struct Candidate {
  float logit;
  TokenId token;
};
// Best first, ties by lower id.
bool Before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// Scratch of one thread: grows once, then stays.
struct Scratch {
  std::vector<float> block_max, order, weights;
  std::vector<double> block_sum, bucket_sum, cumulative;
  std::vector<Candidate> best;
};
Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// The first id at which the running sum of weights passes `target`; the last with a weight when rounding leaves none.
TokenId Walk(std::span<const float> weights, std::span<const double> block_sum, double target) {
  double sum = 0;
  size_t block = 0;
  while (block + 1 < block_sum.size() && sum + block_sum[block] <= target) sum += block_sum[block++];
  size_t last = 0;
  for (size_t i = block * kBlock; i < weights.size(); ++i) {
    if (weights[i] == 0) continue;
    sum += static_cast<double>(weights[i]);
    last = i;
    if (sum > target) return static_cast<TokenId>(i);
  }
  while (last == 0 && block-- > 0)  // the tail held no weight: step back to the last that did
    for (size_t i = block * kBlock; i < (block + 1) * kBlock; ++i)
      if (weights[i] != 0) last = i;
  return static_cast<TokenId>(last);
}

// The `count` best of a row into `out`, best first.
void Best(const float* logits, int32_t vocab_size, std::span<const float> block_max, int32_t count,
          std::vector<Candidate>& out) {
  // The count-th largest block maximum is a lower bound of the count-th largest entry: only blocks that reach it are
  // looked into. For k = 40 that is about 40 of 768 blocks.
  out.clear();
  float bound = kMasked;
  auto blocks = static_cast<int32_t>(block_max.size());
  if (count < blocks) {
    std::vector<float>& order = ThreadScratch().order;
    order.assign(block_max.begin(), block_max.end());
    std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<>());
    bound = order[static_cast<size_t>(count - 1)];
  }
  for (int32_t block = 0; block < blocks; ++block) {
    if (block_max[static_cast<size_t>(block)] < bound) continue;
    int32_t end = std::min((block + 1) * kBlock, vocab_size);
    for (int32_t i = block * kBlock; i < end; ++i)
      if (logits[i] >= bound && logits[i] != kMasked) out.push_back({logits[i], i});
  }
  if (static_cast<int32_t>(out.size()) > count) {
    std::nth_element(out.begin(), out.begin() + (count - 1), out.end(), Before);
    out.resize(static_cast<size_t>(count));
  }
  std::sort(out.begin(), out.end(), Before);
}

}  // namespace

Sampler::Sampler(int32_t slots, int32_t vocab_size, Isa isa)
    : slots_(static_cast<size_t>(slots)), vocab_size_(vocab_size), isa_(isa) {}

void Sampler::Bind(SlotId slot_id, const Request& request, int32_t sequence_index, std::span<const TokenId> generated) {
  Slot& slot = slots_[static_cast<size_t>(slot_id.value)];
  slot.request = &request;
  slot.sequence_index = sequence_index;
  slot.generated = static_cast<int32_t>(generated.size());
  slot.seen.clear();
  slot.tail.clear();
  const SamplingParams& params = request.sampling;
  if (!params.needs_history()) return;
  if (!params.bad_words.empty()) {
    slot.tail.reserve(request.prompt.size() + static_cast<size_t>(request.max_tokens));
    slot.tail.assign(request.prompt.begin(), request.prompt.end());
    slot.tail.insert(slot.tail.end(), generated.begin(), generated.end());
  }
  for (TokenId token : request.prompt) slot.seen.push_back({token, 0});
  for (TokenId token : generated) slot.seen.push_back({token, 1});
  std::sort(slot.seen.begin(), slot.seen.end(), [](const Seen& a, const Seen& b) { return a.token < b.token; });
  size_t kept = 0;
  for (size_t i = 0; i < slot.seen.size(); ++i) {
    if (kept > 0 && slot.seen[kept - 1].token == slot.seen[i].token) {
      slot.seen[kept - 1].output_count += slot.seen[i].output_count;
    } else {
      slot.seen[kept++] = slot.seen[i];
    }
  }
  slot.seen.resize(kept);
  slot.seen.reserve(kept + static_cast<size_t>(request.max_tokens));
}

void Sampler::Remember(Slot& slot, TokenId token) const {
  ++slot.generated;
  const SamplingParams& params = slot.request->sampling;
  if (!params.needs_history()) return;
  if (!params.bad_words.empty()) slot.tail.push_back(token);
  auto at = std::lower_bound(slot.seen.begin(), slot.seen.end(), token,
                             [](const Seen& seen, TokenId wanted) { return seen.token < wanted; });
  if (at != slot.seen.end() && at->token == token) {
    ++at->output_count;
  } else {
    slot.seen.insert(at, {token, 1});
  }
}

void Sampler::ApplyRules(const Slot& slot, float* logits) const {
  const Request& request = *slot.request;
  const SamplingParams& params = request.sampling;
  if (!params.allowed_tokens.empty()) {
    std::vector<std::pair<TokenId, float>> kept;  // only requests that ask for it pay
    kept.reserve(params.allowed_tokens.size());
    for (TokenId token : params.allowed_tokens) kept.emplace_back(token, logits[token]);
    std::fill_n(logits, vocab_size_, kMasked);
    for (auto [token, logit] : kept) logits[token] = logit;
  }
  for (auto [token, bias] : params.logit_bias) logits[token] = bias <= -100.0f ? kMasked : logits[token] + bias;
  if (params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    for (const Seen& seen : slot.seen) {
      float& logit = logits[seen.token];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
      if (seen.output_count > 0)
        logit -= params.presence_penalty + params.frequency_penalty * static_cast<float>(seen.output_count);
    }
  }
  for (const std::vector<TokenId>& word : params.bad_words) {
    size_t before = word.size() - 1;
    if (slot.tail.size() < before) continue;
    if (std::equal(word.begin(), word.end() - 1, slot.tail.end() - static_cast<std::ptrdiff_t>(before)))
      logits[word.back()] = kMasked;
  }
  if (slot.generated < params.min_tokens)
    for (TokenId token : request.stop_tokens) logits[token] = kMasked;
}

Sampler::Choice Sampler::Sample(SlotId slot_id, float* logits, PositionLogProbs* logprobs) {
  Slot& slot = slots_[static_cast<size_t>(slot_id.value)];
  CHECK(slot.request != nullptr, "slot {} is not bound", slot_id);
  const SamplingParams& params = slot.request->sampling;
  const bool filtered = !params.greedy() && (params.top_k > 0 || params.top_p < 1.0f);
  const bool ruled = params.needs_history() || !params.logit_bias.empty() || !params.allowed_tokens.empty() ||
                     slot.generated < params.min_tokens;
  std::vector<float>& block_max = ThreadScratch().block_max;
  block_max.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));

  RowSummary row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
  if (!row.finite) return {0, false};
  const bool want_logprobs = logprobs != nullptr && params.logprobs >= 0;
  std::vector<float> raw;
  if (want_logprobs && ruled) raw.assign(logits, logits + vocab_size_);
  if (ruled) {
    ApplyRules(slot, logits);
    row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
    if (row.max == kMasked) return {0, false};  // every token is masked: nothing can be chosen
  }

  TokenId token = row.argmax;
  if (!params.greedy()) {
    float draw =
        UniformDraw(params.seed, static_cast<uint32_t>(slot.sequence_index), static_cast<uint32_t>(slot.generated));
    token = filtered ? DrawFiltered(params, draw, logits, row.max, block_max)
                     : DrawUnfiltered(params, draw, logits, row.max);
  }
  if (want_logprobs) LogProbs(ruled ? raw.data() : logits, token, params.logprobs, logprobs);
  Remember(slot, token);
  return {token, true};
}

// The inverse of the cumulative distribution, in the order of ids: first the block, then inside it.
TokenId Sampler::DrawUnfiltered(const SamplingParams& params, float draw, const float* logits, float max) const {
  Scratch& scratch = ThreadScratch();
  scratch.weights.resize(static_cast<size_t>(vocab_size_));
  scratch.block_sum.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
  double total = ExpRow(isa_, logits, vocab_size_, max, 1.0f / params.temperature, params.min_p, scratch.weights.data(),
                        scratch.block_sum.data());
  return Walk(scratch.weights, scratch.block_sum, static_cast<double>(draw) * total);
}

TokenId Sampler::DrawFiltered(const SamplingParams& params, float draw, const float* logits, float max,
                              std::span<const float> block_max) const {
  Scratch& scratch = ThreadScratch();
  const float inverse_temperature = 1.0f / params.temperature;
  const bool limited = params.top_k > 0 && params.top_k < vocab_size_;
  Best(logits, vocab_size_, block_max, limited ? params.top_k : std::min(kFewCandidates, vocab_size_), scratch.best);
  scratch.cumulative.clear();
  double sum = 0;
  for (const Candidate& candidate : scratch.best) {
    sum += static_cast<double>(ExpNonPositive((candidate.logit - max) * inverse_temperature));
    scratch.cumulative.push_back(sum);
  }
  // With top_k, top_p is a share of the k best; alone, a share of all.
  const double total = limited ? sum : ExpRow(isa_, logits, vocab_size_, max, inverse_temperature, 0, nullptr, nullptr);
  const double wanted = static_cast<double>(params.top_p) * total;
  // The smallest set whose share reaches top_p; at least one token.
  auto cut = std::lower_bound(scratch.cumulative.begin(), scratch.cumulative.end(), wanted);
  const bool reached = cut != scratch.cumulative.end();
  if (!reached && !limited) return DrawNucleus(params, draw, logits, max, wanted);
  size_t kept = reached ? static_cast<size_t>(cut - scratch.cumulative.begin()) + 1 : scratch.cumulative.size();
  while (kept > 1 && ExpNonPositive((scratch.best[kept - 1].logit - max) * inverse_temperature) < params.min_p) --kept;
  const double target = static_cast<double>(draw) * scratch.cumulative[kept - 1];
  auto at = std::upper_bound(scratch.cumulative.begin(), scratch.cumulative.begin() + static_cast<std::ptrdiff_t>(kept),
                             target);
  return scratch.best[std::min(static_cast<size_t>(at - scratch.cumulative.begin()), kept - 1)].token;
}

// top_p over a flat row, where a sort would cost milliseconds: weights go into buckets by the top bits of their floats
// (64 to an octave), whole buckets are kept from the best down while they fit, and only the bucket on the border is
// sorted. Then one walk in the order of ids.
TokenId Sampler::DrawNucleus(const SamplingParams& params, float draw, const float* logits, float max,
                             double wanted) const {
  constexpr int kBucketShift = 17;
  constexpr size_t kBuckets = 64 * 48;  // down to 2^-48, past any draw's reach
  Scratch& scratch = ThreadScratch();
  std::vector<float>& weights = scratch.weights;
  weights.resize(static_cast<size_t>(vocab_size_));
  scratch.block_sum.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
  ExpRow(isa_, logits, vocab_size_, max, 1.0f / params.temperature, params.min_p, weights.data(),
         scratch.block_sum.data());
  auto bucket_of = [](float weight) {
    return static_cast<size_t>((std::bit_cast<uint32_t>(1.0f) - std::bit_cast<uint32_t>(weight)) >> kBucketShift);
  };
  scratch.bucket_sum.assign(kBuckets, 0.0);
  for (float weight : weights)
    if (size_t b = bucket_of(weight); b < kBuckets) scratch.bucket_sum[b] += static_cast<double>(weight);
  size_t border = 0;
  double sum = 0;
  while (border + 1 < kBuckets && sum + scratch.bucket_sum[border] < wanted) sum += scratch.bucket_sum[border++];
  scratch.best.clear();
  for (int32_t i = 0; i < vocab_size_; ++i) {
    size_t b = bucket_of(weights[static_cast<size_t>(i)]);
    if (b == border) scratch.best.push_back({weights[static_cast<size_t>(i)], i});
    if (b >= border) weights[static_cast<size_t>(i)] = 0;
  }
  std::sort(scratch.best.begin(), scratch.best.end(), Before);
  for (const Candidate& candidate : scratch.best) {
    weights[static_cast<size_t>(candidate.token)] = candidate.logit;
    sum += static_cast<double>(candidate.logit);
    if (sum >= wanted) break;
  }
  double total = 0;
  for (size_t block = 0; block < scratch.block_sum.size(); ++block) {
    double in_block = 0;
    size_t end = std::min((block + 1) * kBlock, weights.size());
    for (size_t i = block * kBlock; i < end; ++i) in_block += static_cast<double>(weights[i]);
    scratch.block_sum[block] = in_block;
    total += in_block;
  }
  return Walk(weights, scratch.block_sum, static_cast<double>(draw) * total);
}

void Sampler::LogProbs(const float* logits, TokenId chosen, int32_t count, PositionLogProbs* out) const {
  std::vector<Candidate>& best = ThreadScratch().best;
  std::vector<float>& block_max = ThreadScratch().block_max;
  block_max.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
  RowSummary row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
  auto log_total = static_cast<float>(std::log(ExpRow(isa_, logits, vocab_size_, row.max, 1.0f, 0, nullptr, nullptr)));
  auto logprob = [&](float logit) { return (logit - row.max) - log_total; };
  out->chosen = logprob(logits[chosen]);
  out->count = std::min({count, PositionLogProbs::kAlternativesMax, vocab_size_});
  if (out->count == 0) return;
  Best(logits, vocab_size_, block_max, out->count, best);
  out->count = static_cast<int32_t>(best.size());
  for (size_t i = 0; i < best.size(); ++i) out->best[i] = {best[i].token, logprob(best[i].logit)};
}

}  // namespace ekiben
