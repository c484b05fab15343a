// Choosing tokens as sample/sampler.h does, to the bit: a CTA takes a row of logits through the rules, the filters and
// the draw. Nothing is sorted: a filter is a cut in the order of tokens (logit, then lower id), found by a histogram
// over the logits' range and an exact ranking inside the one bin where the cut falls; the draw is a prefix sum in the
// order of ids. Weights are integers (units of 2^-40), so sums do not depend on who adds what when.
// Cost: a pass over the row for its maximum and one for the draw; three more for each of top_k and top_p, and five for
// log-probabilities. A pass of 128,256 logits is 0.5 MB for one multiprocessor.
// Long on purpose: one algorithm read in order.
#include "ops/cuda_launch.cuh"

namespace ekiben::cuda {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32, kUnroll = 4;
constexpr int kBins = 2048, kListMax = 1024, kLevelsMax = 8;
constexpr float kMasked = -INFINITY;

struct Entry {
  float x;
  int id;
  unsigned long long measure;
};

// The last token that a filter keeps; the default keeps all.
struct Cut {
  float x = -INFINITY;
  int id = 0x7FFFFFFF;
};
__device__ __forceinline__ bool Ahead(float x, int id, float y, int other) {
  return x > y || (x == y && id < other);
}
__device__ __forceinline__ bool Keeps(const Cut& cut, float x, int id) {
  return x > cut.x || (x == cut.x && id <= cut.id);
}

struct Shared {
  unsigned long long bins[kBins];
  Entry list[kListMax];
  unsigned long long sums[kWarps];
  float tops[kWarps], bottoms[kWarps];
  int ids[kWarps];
  int list_count, flag, border, id;
  float x;
  unsigned long long before;
};

// logits[i] as the filters see it: penalties are applied on the way, everything else was written into the row.
struct RowView {
  const float* logits;
  const uint16_t* counts;  // null: no penalties
  float repetition, presence, frequency;
  int vocab;

  __device__ __forceinline__ float At(int i) const {
    float x = logits[i];
    if (counts == nullptr) return x;
    uint16_t seen = counts[i];
    if (seen == 0) return x;
    x = x > 0 ? __fdiv_rn(x, repetition) : __fmul_rn(x, repetition);
    int output = seen & 0x7FFF;
    if (output > 0) x = __fsub_rn(x, __fadd_rn(presence, __fmul_rn(frequency, static_cast<float>(output))));
    return x;
  }
  // f(i, At(i)) for every i of this thread; loads are issued in groups.
  template <class F>
  __device__ __forceinline__ void ForEach(int begin, int end, int first, int stride, F f) const {
    for (int i = begin + first; i < end; i += kUnroll * stride) {
      float x[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) x[k] = i + k * stride < end ? At(i + k * stride) : 0.0f;
#pragma unroll
      for (int k = 0; k < kUnroll; ++k)
        if (i + k * stride < end) f(i + k * stride, x[k]);
    }
  }
  template <class F>
  __device__ __forceinline__ void ForEach(F f) const {
    ForEach(0, vocab, threadIdx.x, kThreads, f);
  }
};

// sample/logit_scan.h's ExpNonPositive and Quanta, operation by operation.
__device__ __forceinline__ float ExpNonPositive(float x) {
  float clamped = x < -87.0f ? -87.0f : x;
  float n = __fsub_rn(__fadd_rn(__fmul_rn(clamped, 1.44269504088896341f), 12582912.0f), 12582912.0f);
  float r = __fsub_rn(__fsub_rn(clamped, __fmul_rn(n, 0.693359375f)), __fmul_rn(n, -2.12194440e-4f));
  float p = 1.9875691500e-4f;
  p = __fadd_rn(__fmul_rn(p, r), 1.3981999507e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 8.3334519073e-3f);
  p = __fadd_rn(__fmul_rn(p, r), 4.1665795894e-2f);
  p = __fadd_rn(__fmul_rn(p, r), 1.6666665459e-1f);
  p = __fadd_rn(__fmul_rn(p, r), 5.0000001201e-1f);
  p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
  float scaled = __fmul_rn(p, __int_as_float((static_cast<int>(n) + 127) << 23));
  return x < -87.0f ? 0.0f : scaled;
}
struct Weights {
  float max, inverse_temperature, min_p;
  __device__ __forceinline__ unsigned long long operator()(float x) const {
    float w = ExpNonPositive(__fmul_rn(__fsub_rn(x, max), inverse_temperature));
    return w >= min_p ? static_cast<unsigned long long>(__float2ll_rz(w * 0x1p40f)) : 0;
  }
};

struct Summary {
  float max, min;  // min: of what is not masked
  int argmax;
  bool finite;
};

__device__ Summary Summarize(const RowView& row, Shared& s) {
  float top = -INFINITY, bottom = INFINITY;
  int best = 0x7FFFFFFF;
  bool bad = false;
  row.ForEach([&](int i, float x) {
    bad = bad || !isfinite(x);
    if (x > top) top = x, best = i;  // ids of one thread ascend: the lowest stays
    if (x != kMasked) bottom = fminf(bottom, x);
  });
  for (int offset = 16; offset > 0; offset /= 2) {
    float x = __shfl_xor_sync(~0u, top, offset);
    int id = __shfl_xor_sync(~0u, best, offset);
    if (Ahead(x, id, top, best)) top = x, best = id;
    bottom = fminf(bottom, __shfl_xor_sync(~0u, bottom, offset));
  }
  __syncthreads();  // what was in the scratch has been read
  if (threadIdx.x % 32 == 0) {
    s.tops[threadIdx.x / 32] = top;
    s.ids[threadIdx.x / 32] = best;
    s.bottoms[threadIdx.x / 32] = bottom;
  }
  bad = __syncthreads_or(bad);
  for (int w = 0; w < kWarps; ++w) {
    if (Ahead(s.tops[w], s.ids[w], top, best)) top = s.tops[w], best = s.ids[w];
    bottom = fminf(bottom, s.bottoms[w]);
  }
  __syncthreads();
  return {top, bottom, best, !bad};
}

__device__ unsigned long long BlockSum(unsigned long long value, Shared& s) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  __syncthreads();
  if (threadIdx.x % 32 == 0) s.sums[threadIdx.x / 32] = value;
  __syncthreads();
  value = 0;
  for (int w = 0; w < kWarps; ++w) value += s.sums[w];
  __syncthreads();
  return value;
}

// What the threads before this one have, in the order of threads.
__device__ unsigned long long BlockPrefix(unsigned long long value, Shared& s) {
  unsigned long long sum = value;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int offset = 1; offset < 32; offset *= 2) {
    unsigned long long other = __shfl_up_sync(~0u, sum, offset);
    if (lane >= offset) sum += other;
  }
  __syncthreads();
  if (lane == 31) s.sums[warp] = sum;
  __syncthreads();
  unsigned long long before = 0;
  for (int w = 0; w < warp; ++w) before += s.sums[w];
  __syncthreads();
  return before + sum - value;
}

// The first id at which the running sum of measure(i, x), in the order of ids, passes target(sum of all).
// REQUIRES: target < that sum.
template <class Measure, class Target>
__device__ int Walk(const RowView& row, Shared& s, Measure measure, Target target_of) {
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int segment = (row.vocab + kWarps - 1) / kWarps;
  unsigned long long mine = 0;
  row.ForEach(warp * segment, min((warp + 1) * segment, row.vocab), lane, 32,
              [&](int i, float x) { mine += measure(i, x); });
  for (int offset = 16; offset > 0; offset /= 2) mine += __shfl_xor_sync(~0u, mine, offset);
  __syncthreads();
  if (lane == 0) s.sums[warp] = mine;
  __syncthreads();
  unsigned long long total = 0, before = 0;
  for (int w = 0; w < kWarps; ++w) total += s.sums[w];
  unsigned long long target = target_of(total);
  int w = 0;
  while (w + 1 < kWarps && before + s.sums[w] <= target) before += s.sums[w++];
  __syncthreads();
  // The segment, a few neighbouring ids a thread.
  int each = (segment + kThreads - 1) / kThreads;
  int begin = min(w * segment + static_cast<int>(threadIdx.x) * each, row.vocab);
  int end = min(min(begin + each, (w + 1) * segment), row.vocab);
  unsigned long long sum = 0;
  for (int i = begin; i < end; ++i) sum += measure(i, row.At(i));
  before += BlockPrefix(sum, s);
  if (before <= target && target < before + sum) {
    int i = begin;
    while ((before += measure(i, row.At(i))) <= target) ++i;
    s.id = i;
  }
  __syncthreads();
  int id = s.id;
  __syncthreads();
  return id;
}

// The token, in the order of tokens and among those that `within` keeps, at which the running sum of measure(x) reaches
// `wanted`; `within` when it never does. All kept logits that count are in [low, high].
template <class Measure>
__device__ Cut FindCut(const RowView& row, Shared& s, Cut within, float high, float low, unsigned long long wanted,
                       Measure measure) {
  unsigned long long before = 0;  // of everything above `high`
  for (int level = 0; level < kLevelsMax && low < high; ++level) {
    float scale = fminf(kBins / (high - low), 1e30f);
    auto bin_of = [=](float x) { return min(static_cast<int>((high - x) * scale), kBins - 1); };
    for (int b = threadIdx.x; b < kBins; b += kThreads) s.bins[b] = 0;
    __syncthreads();
    row.ForEach([&](int i, float x) {
      if (x > high || x < low || !Keeps(within, x, i)) return;
      unsigned long long m = measure(x);
      if (m > 0) atomicAdd(&s.bins[bin_of(x)], m);
    });
    __syncthreads();
    constexpr int kEach = kBins / kThreads;
    unsigned long long sum = 0;
    for (int k = 0; k < kEach; ++k) sum += s.bins[threadIdx.x * kEach + k];
    if (threadIdx.x == 0) s.border = -1, s.list_count = 0;
    unsigned long long at = before + BlockPrefix(sum, s);
    if (at < wanted && at + sum >= wanted) {
      int b = threadIdx.x * kEach;
      while (at + s.bins[b] < wanted) at += s.bins[b++];
      s.border = b;
      s.before = at;
    }
    __syncthreads();
    int border = s.border;
    if (border < 0) return within;
    before = s.before;
    float top = -INFINITY, bottom = INFINITY;
    row.ForEach([&](int i, float x) {
      if (x > high || x < low || bin_of(x) != border || !Keeps(within, x, i)) return;
      unsigned long long m = measure(x);
      if (m == 0) return;
      int place = atomicAdd(&s.list_count, 1);
      if (place < kListMax) s.list[place] = {x, i, m};
      top = fmaxf(top, x);
      bottom = fminf(bottom, x);
    });
    __syncthreads();
    int count = s.list_count;
    if (count <= kListMax) {
      if (static_cast<int>(threadIdx.x) < count) {
        Entry mine = s.list[threadIdx.x];
        unsigned long long ahead = before;
        for (int j = 0; j < count; ++j)
          if (Ahead(s.list[j].x, s.list[j].id, mine.x, mine.id)) ahead += s.list[j].measure;
        if (ahead < wanted && ahead + mine.measure >= wanted) {
          s.x = mine.x;
          s.id = mine.id;
        }
      }
      __syncthreads();
      Cut cut = {s.x, s.id};
      __syncthreads();
      return cut;
    }
    // Too many to rank: the bin's own range, finer.
    for (int offset = 16; offset > 0; offset /= 2) {
      top = fmaxf(top, __shfl_xor_sync(~0u, top, offset));
      bottom = fminf(bottom, __shfl_xor_sync(~0u, bottom, offset));
    }
    if (threadIdx.x % 32 == 0) {
      s.tops[threadIdx.x / 32] = top;
      s.bottoms[threadIdx.x / 32] = bottom;
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
      top = fmaxf(top, s.tops[w]);
      bottom = fminf(bottom, s.bottoms[w]);
    }
    high = top;
    low = bottom;
    __syncthreads();
  }
  // All equal: so many of them, by id.
  unsigned long long m = measure(high);
  if (m == 0) return within;
  unsigned long long count = (wanted - before + m - 1) / m;
  auto tie = [&](int i, float x) { return x <= high && x >= low && Keeps(within, x, i) ? 1ull : 0ull; };
  bool enough = true;
  int id = Walk(row, s, tie, [&](unsigned long long total) {
    enough = total >= count;
    return enough ? count - 1 : (total > 0 ? total - 1 : 0);
  });
  return enough ? Cut{high, id} : within;
}

__device__ void Philox(uint32_t (&counter)[4], uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    uint32_t high0 = __umulhi(0xD2511F53u, counter[0]), low0 = 0xD2511F53u * counter[0];
    uint32_t high1 = __umulhi(0xCD9E8D57u, counter[2]), low1 = 0xCD9E8D57u * counter[2];
    counter[0] = high1 ^ counter[1] ^ key0;
    counter[1] = low1;
    counter[2] = high0 ^ counter[3] ^ key1;
    counter[3] = low0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
}

__device__ int Draw(const RowView& row, Shared& s, const SlotSampling& p, const Summary& summary) {
  Weights all = {summary.max, p.inverse_temperature, 0.0f}, kept = {summary.max, p.inverse_temperature, p.min_p};
  Cut cut;
  bool limited = p.top_k > 0 && p.top_k < row.vocab;
  if (limited)
    cut = FindCut(row, s, cut, summary.max, summary.min, static_cast<unsigned long long>(p.top_k),
                  [](float) { return 1ull; });
  if (p.top_p < 1.0f) {
    unsigned long long sum = 0;
    row.ForEach([&](int i, float x) { sum += Keeps(cut, x, i) ? all(x) : 0; });
    sum = BlockSum(sum, s);
    auto wanted = __double2ull_rz(__dmul_rn(static_cast<double>(p.top_p), __ull2double_rn(sum)));
    cut = FindCut(row, s, cut, summary.max, summary.min, wanted > 0 ? wanted : 1, all);
  }
  uint32_t counter[4] = {static_cast<uint32_t>(p.generated), p.sequence_index, 0, 0};
  Philox(counter, static_cast<uint32_t>(p.seed), static_cast<uint32_t>(p.seed >> 32));
  unsigned long long draw = counter[0] >> 8;
  return Walk(
      row, s, [&](int i, float x) { return Keeps(cut, x, i) ? kept(x) : 0ull; },
      [&](unsigned long long total) { return (total >> 24) * draw + ((total & 0xFFFFFF) * draw >> 24); });
}

// The best `count` and the log of the sum, from raw logits.
__device__ float FillLogProbs(const RowView& raw, Shared& s, const Summary& summary, int count, TokenLogProbs* out) {
  Weights weights = {summary.max, 1.0f, 0.0f};
  unsigned long long sum = 0;
  raw.ForEach([&](int, float x) { sum += weights(x); });
  sum = BlockSum(sum, s);
  float log_total = static_cast<float>(log(__ull2double_rn(sum) * 0x1p-40));
  count = min(min(count, TokenLogProbs::kAlternativesMax), raw.vocab);
  if (threadIdx.x == 0) out->count = count;
  if (count == 0) return log_total;
  Cut cut = FindCut(raw, s, Cut{}, summary.max, summary.min, static_cast<unsigned long long>(count),
                    [](float) { return 1ull; });
  if (threadIdx.x == 0) s.list_count = 0;
  __syncthreads();
  raw.ForEach([&](int i, float x) {
    if (Keeps(cut, x, i)) s.list[atomicAdd(&s.list_count, 1)] = {x, i, 1};
  });
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < count) {
    Entry mine = s.list[threadIdx.x];
    int rank = 0;
    for (int j = 0; j < count; ++j) rank += Ahead(s.list[j].x, s.list[j].id, mine.x, mine.id);
    out->best[rank] = {mine.id, __fsub_rn(__fsub_rn(mine.x, summary.max), log_total)};
  }
  __syncthreads();
  return log_total;
}

// Thread t's rule of each kind: what it overwrites in the row and what stood there.
struct Overwritten {
  int token = -1;
  float was = 0;
  __device__ void Mask(float* logits) const {
    if (token >= 0) logits[token] = kMasked;
  }
  __device__ void Restore(float* logits) const {
    if (token >= 0) logits[token] = was;
  }
};

// True when word[0 .. length - 1) are the last tokens of the sequence.
__device__ bool EndsWith(const SlotSampling& p, const int32_t* tail, const int32_t* word, int length) {
  if (p.tail_count < length - 1) return false;
  for (int j = 0; j + 1 < length; ++j)
    if (tail[(p.tail_count - (length - 1) + j) % kTailTokens] != word[j]) return false;
  return true;
}

__global__ void __launch_bounds__(kThreads) SampleKernel(SamplingArguments a) {
  __shared__ Shared s;
  WaitUpstream();
  int row_index = a.rows[blockIdx.x], slot = a.slots[row_index], thread = threadIdx.x;
  const SlotSampling p = a.parameters[slot];
  float* logits = a.logits + static_cast<size_t>(row_index) * a.vocab_size;
  const int32_t* rules = a.rules + static_cast<size_t>(slot) * kRuleWords;
  int32_t* tail = a.tails + static_cast<size_t>(slot) * kTailTokens;
  uint16_t* counts = a.counts + static_cast<size_t>(slot) * a.counts_pitch;
  RowView raw = {logits, nullptr, 1, 0, 0, a.vocab_size};
  RowView ruled = {
      logits,      p.penalized ? counts : nullptr, p.repetition_penalty, p.presence_penalty, p.frequency_penalty,
      a.vocab_size};

  Summary summary = Summarize(raw, s);
  if (!summary.finite) {
    if (thread == 0) {
      a.results[row_index] = -1;
      a.last_tokens[slot] = 0;
    }
    return;
  }
  const float raw_max = summary.max;
  float log_total = 0;
  if (p.logprobs >= 0) log_total = FillLogProbs(raw, s, summary, p.logprobs, a.logprobs + row_index);

  Overwritten bias, stop, word;
  if (thread < p.bias_count) {
    bias.token = rules[2 * thread];
    bias.was = logits[bias.token];
    float by = __int_as_float(rules[2 * thread + 1]);
    logits[bias.token] = by <= -100.0f ? kMasked : __fadd_rn(bias.was, by);
  }
  __syncthreads();
  const int32_t* stops = rules + 2 * p.bias_count;
  if (p.generated < p.min_tokens && thread < p.stop_count) stop.token = stops[thread];
  if (thread < p.word_count) {
    const int32_t* at = rules + stops[p.stop_count + thread];
    if (EndsWith(p, tail, at + 1, at[0])) word.token = at[at[0]];
  }
  // Two rules may name one token: all have read it before one overwrites it.
  if (stop.token >= 0) stop.was = logits[stop.token];
  if (word.token >= 0) word.was = logits[word.token];
  __syncthreads();
  stop.Mask(logits);
  word.Mask(logits);
  __syncthreads();

  if (p.penalized || p.bias_count > 0 || p.word_count > 0 || p.generated < p.min_tokens) summary = Summarize(ruled, s);
  int token = summary.argmax;
  bool possible = summary.max != kMasked;
  if (possible && p.inverse_temperature > 0) token = Draw(ruled, s, p, summary);

  __syncthreads();
  stop.Restore(logits);
  word.Restore(logits);
  __syncthreads();
  bias.Restore(logits);
  __syncthreads();
  if (thread != 0) return;
  a.results[row_index] = possible ? token : -1;
  a.last_tokens[slot] = possible ? token : 0;
  if (!possible) return;
  if (p.logprobs >= 0) a.logprobs[row_index].chosen = __fsub_rn(__fsub_rn(logits[token], raw_max), log_total);
  SlotSampling& state = a.parameters[slot];
  state.generated = p.generated + 1;
  if (p.penalized && (counts[token] & 0x7FFF) != 0x7FFF) ++counts[token];
  if (p.word_count > 0) {
    tail[p.tail_count % kTailTokens] = token;
    state.tail_count = p.tail_count + 1;
  }
}

// counts: bit 15 for a token of the prompt, below it how often it was generated.
__global__ void CountTokensKernel(uint16_t* counts, const int32_t* tokens, int32_t prompt_tokens, int32_t all_tokens) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= all_tokens) return;
  int token = tokens[i], shift = token % 2 * 16;
  auto* word = reinterpret_cast<unsigned*>(counts) + token / 2;
  if (i < prompt_tokens) {
    atomicOr(word, 0x8000u << shift);
  } else {
    atomicAdd(word, 1u << shift);
  }
}

}  // namespace

void Sample(Queue& queue, const SamplingArguments& a, int32_t rows) {
  Queue serial{queue.stream, false, 0};
  Launch(serial, SampleKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, a);
  Note(queue, static_cast<cudaError_t>(serial.error));
}

void CountTokens(Queue& queue, uint16_t* counts, const int32_t* tokens, int32_t prompt_tokens, int32_t all_tokens) {
  if (all_tokens == 0) return;
  Queue serial{queue.stream, false, 0};
  Launch(serial, CountTokensKernel, dim3(static_cast<unsigned>((all_tokens + 255) / 256)), 256, 0, counts, tokens,
         prompt_tokens, all_tokens);
  Note(queue, static_cast<cudaError_t>(serial.error));
}

}  // namespace ekiben::cuda
