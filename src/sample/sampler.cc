#include "sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

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
  std::vector<uint64_t> block_sum, bucket_sum, cumulative;
  std::vector<uint16_t> buckets;
  std::vector<Candidate> best;
};
Scratch& ThreadScratch() {
  thread_local Scratch scratch;
  return scratch;
}

// Of a row of weights, the one that a draw in [0, 1) of 24 bits falls on, in the order of ids.
TokenId Walk(std::span<const float> weights, std::span<const uint64_t> block_sum, float draw) {
  uint64_t target = DrawTarget(draw, std::accumulate(block_sum.begin(), block_sum.end(), uint64_t{0}));
  uint64_t sum = 0;
  size_t block = 0;
  while (sum + block_sum[block] <= target) sum += block_sum[block++];
  size_t i = block * kBlock;
  while ((sum += Quanta(weights[i])) <= target) ++i;
  return static_cast<TokenId>(i);
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
  BindGrammar(slot, generated);
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

// A grammar walks what a sequence generated before a preemption once more.
void Sampler::BindGrammar(Slot& slot, std::span<const TokenId> generated) const {
  slot.grammar.reset();
  if (slot.request->constraint == nullptr) return;
  slot.grammar = GrammarState{};
  slot.grammar->matcher = slot.request->constraint->NewMatcher();
  slot.grammar->mask.resize(static_cast<size_t>(TokenMaskWords(vocab_size_)));
  for (TokenId token : generated) slot.grammar->matcher->Accept(token);
}

void Sampler::ApplyGrammar(const GrammarState& grammar, float* logits) const {
  if (grammar.allowed == TokenMatcher::Mask::kAll) return;
  for (size_t word = 0; word < grammar.mask.size(); ++word) {
    auto begin = static_cast<int32_t>(word * 32), end = std::min(begin + 32, vocab_size_);
    if (grammar.mask[word] == -1) continue;
    for (int32_t token = begin; token < end; ++token)
      if (!IsAllowed(grammar.mask, token)) logits[token] = kMasked;
  }
}

// False: the grammar does not take the token.
bool Sampler::Remember(Slot& slot, TokenId token) const {
  if (slot.grammar && !slot.grammar->matcher->Accept(token)) return false;
  ++slot.generated;
  const SamplingParams& params = slot.request->sampling;
  if (!params.needs_history()) return true;
  if (!params.bad_words.empty()) slot.tail.push_back(token);
  auto at = std::lower_bound(slot.seen.begin(), slot.seen.end(), token,
                             [](const Seen& seen, TokenId wanted) { return seen.token < wanted; });
  if (at != slot.seen.end() && at->token == token) {
    ++at->output_count;
  } else {
    slot.seen.insert(at, {token, 1});
  }
  return true;
}

void Sampler::ApplyRules(const Slot& slot, float* logits) const {
  const Request& request = *slot.request;
  const SamplingParams& params = request.sampling;
  if (slot.grammar) ApplyGrammar(*slot.grammar, logits);
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
  const bool limited = params.top_k > 0 && params.top_k < vocab_size_;
  const bool filtered = !params.greedy() && (limited || params.top_p < 1.0f);
  const bool ruled = slot.grammar || params.needs_history() || !params.logit_bias.empty() ||
                     !params.allowed_tokens.empty() || slot.generated < params.min_tokens;
  std::vector<float>& block_max = ThreadScratch().block_max;
  block_max.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));

  RowSummary row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
  if (!row.finite) return {0, false};
  const bool want_logprobs = logprobs != nullptr && params.logprobs >= 0;
  if (slot.grammar) {
    slot.grammar->allowed = slot.grammar->matcher->Allowed(slot.grammar->mask);
    if (slot.grammar->allowed == TokenMatcher::Mask::kFailed) return {0, false};
  }
  std::vector<float> raw;
  if (ruled && (want_logprobs || slot.grammar)) raw.assign(logits, logits + vocab_size_);
  if (ruled) {
    ApplyRules(slot, logits);
    row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
    if (row.max == kMasked && slot.grammar) {  // bans, or min_tokens where only an end is left
      std::ranges::copy(raw, logits);
      ApplyGrammar(*slot.grammar, logits);
      row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
    }
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
  return {token, Remember(slot, token)};
}

// The inverse of the cumulative distribution, in the order of ids: first the block, then inside it.
TokenId Sampler::DrawUnfiltered(const SamplingParams& params, float draw, const float* logits, float max) const {
  Scratch& scratch = ThreadScratch();
  scratch.weights.resize(static_cast<size_t>(vocab_size_));
  scratch.block_sum.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
  ExpRow(isa_, logits, vocab_size_, max, 1.0f / params.temperature, params.min_p, scratch.weights.data(),
         scratch.block_sum.data());
  return Walk(scratch.weights, scratch.block_sum, draw);
}

// Few candidates are sorted, cut, and drawn from in the order of ids, like all others.
TokenId Sampler::DrawFiltered(const SamplingParams& params, float draw, const float* logits, float max,
                              std::span<const float> block_max) const {
  Scratch& scratch = ThreadScratch();
  const float inverse_temperature = 1.0f / params.temperature;
  const bool limited = params.top_k > 0 && params.top_k < vocab_size_;
  Best(logits, vocab_size_, block_max, limited ? params.top_k : std::min(kFewCandidates, vocab_size_), scratch.best);
  scratch.cumulative.clear();
  uint64_t sum = 0;
  for (const Candidate& candidate : scratch.best) {
    sum += Quanta(ExpNonPositive((candidate.logit - max) * inverse_temperature));
    scratch.cumulative.push_back(sum);
  }
  // With top_k, top_p is a share of the k best; alone, a share of all.
  uint64_t total = sum;
  if (!limited) {
    scratch.weights.resize(static_cast<size_t>(vocab_size_));
    scratch.block_sum.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
    total = ExpRow(isa_, logits, vocab_size_, max, inverse_temperature, 0, scratch.weights.data(),
                   scratch.block_sum.data());
  }
  const uint64_t wanted = NucleusQuanta(params.top_p, total);
  // The smallest set whose share reaches top_p; at least one token.
  if (params.top_p < 1.0f) {
    auto cut = std::ranges::lower_bound(scratch.cumulative, wanted);
    if (cut != scratch.cumulative.end()) {
      scratch.best.resize(static_cast<size_t>(cut - scratch.cumulative.begin()) + 1);
    } else if (!limited) {
      return DrawNucleus(params, draw, logits, max, wanted);
    }
  }
  std::ranges::sort(scratch.best, {}, &Candidate::token);
  sum = 0;
  for (size_t i = 0; i < scratch.best.size(); ++i) {
    float weight = ExpNonPositive((scratch.best[i].logit - max) * inverse_temperature);
    scratch.cumulative[i] = sum += weight >= params.min_p ? Quanta(weight) : 0;
  }
  scratch.cumulative.resize(scratch.best.size());
  auto at = std::ranges::upper_bound(scratch.cumulative, DrawTarget(draw, sum));
  return scratch.best[static_cast<size_t>(at - scratch.cumulative.begin())].token;
}

// top_p over a flat row, where a sort would cost milliseconds: tokens go into buckets by their logits (64 to an octave
// of weight), whole buckets are kept from the best down while they fit, and only the bucket on the border is sorted.
// Then one walk in the order of ids. REQUIRES: the thread's scratch has the row's weights.
TokenId Sampler::DrawNucleus(const SamplingParams& params, float draw, const float* logits, float max,
                             uint64_t wanted) const {
  constexpr uint16_t kBuckets = 64 * 48;  // down to 2^-48, past any draw's reach
  Scratch& scratch = ThreadScratch();
  std::vector<float>& weights = scratch.weights;
  std::vector<uint16_t>& buckets = scratch.buckets;
  buckets.resize(weights.size());
  const float buckets_a_logit = 64 * std::numbers::log2e_v<float> / params.temperature;
  for (size_t i = 0; i < weights.size(); ++i) {
    float bucket = (max - logits[i]) * buckets_a_logit;
    buckets[i] = static_cast<uint16_t>(static_cast<int32_t>(bucket < kBuckets - 1 ? bucket : kBuckets - 1));
  }
  scratch.bucket_sum.assign(kBuckets, 0);
  for (size_t i = 0; i < weights.size(); ++i) scratch.bucket_sum[buckets[i]] += Quanta(weights[i]);
  uint16_t border = 0;
  uint64_t sum = 0;
  while (border + 1 < kBuckets && sum + scratch.bucket_sum[border] < wanted) sum += scratch.bucket_sum[border++];
  scratch.best.clear();
  for (size_t i = 0; i < weights.size(); ++i)
    if (buckets[i] == border) scratch.best.push_back({logits[i], static_cast<TokenId>(i)});
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = buckets[i] > border ? 0 : weights[i];
  std::sort(scratch.best.begin(), scratch.best.end(), Before);
  for (const Candidate& candidate : scratch.best) {
    float& weight = weights[static_cast<size_t>(candidate.token)];
    if (sum >= wanted) weight = 0;
    sum += Quanta(weight);
  }
  if (params.min_p > 0) {
    sum = 0;
    for (float& weight : weights) {
      if (weight < params.min_p) weight = 0;
      sum += Quanta(weight);
    }
  }
  size_t i = 0;
  uint64_t target = DrawTarget(draw, sum);
  for (uint64_t passed = Quanta(weights[0]); passed <= target; passed += Quanta(weights[i])) ++i;
  return static_cast<TokenId>(i);
}

void Sampler::LogProbs(const float* logits, TokenId chosen, int32_t count, PositionLogProbs* out) const {
  std::vector<Candidate>& best = ThreadScratch().best;
  std::vector<float>& block_max = ThreadScratch().block_max;
  block_max.resize(static_cast<size_t>((vocab_size_ + kBlock - 1) / kBlock));
  RowSummary row = SummarizeRow(isa_, logits, vocab_size_, block_max.data());
  uint64_t total = ExpRow(isa_, logits, vocab_size_, row.max, 1.0f, 0, nullptr, nullptr);
  auto log_total = static_cast<float>(std::log(static_cast<double>(total) / static_cast<double>(kQuantaOfOne)));
  auto logprob = [&](float logit) { return (logit - row.max) - log_total; };
  out->chosen = logprob(logits[chosen]);
  out->count = std::min({count, PositionLogProbs::kAlternativesMax, vocab_size_});
  if (out->count == 0) return;
  Best(logits, vocab_size_, block_max, out->count, best);
  out->count = static_cast<int32_t>(best.size());
  for (size_t i = 0; i < best.size(); ++i) out->best[i] = {best[i].token, logprob(best[i].logit)};
}

}  // namespace ekiben
