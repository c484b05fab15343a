// The ops of a step on a CUDA device. Host declarations without CUDA headers, clean in C++17, because nvcc and g++ both
// read them.
//
// Every function queues its kernels on `queue.stream` and returns at once. The first failing launch is kept in
// queue.error (a cudaError_t, 0 is success); the caller checks it once a step. With queue.dependent a kernel may start
// before the one upstream has finished (programmatic dependent launch): each waits before it touches what others write.
//
// Shapes: [rows, columns] row-major and contiguous unless a stride says otherwise; bf16 as its 16 bits, e4m3 as its 8.
// The residual stream and logits are f32, what a linear reads is bf16 or e4m3 with a factor a row, what it writes bf16,
// all sums f32. Columns are multiples of 8, pointers are 16-byte aligned. Counts that change inside a captured graph
// are read from device memory where said so. Determinism: a row's result depends on that row and on the shapes only;
// sums run in an order fixed by shapes. Thread: one.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>

struct CUstream_st;

namespace ekiben::cuda {

using Bf16 = uint16_t;
using Fp8 = uint8_t;  // e4m3: 1 sign, 4 exponent, 3 fraction bits, largest 448

// Rows that a linear reads or that its weights are: bf16, or e4m3 codes (then `bf16` is null) with the factor of each
// row that gives back its values. A row's largest magnitude becomes the code 448.
struct Rows {
  Bf16* bf16 = nullptr;
  Fp8* fp8 = nullptr;
  float* scales = nullptr;
};

// What the bf16 output of an e4m3 linear still lacks: value = stored * columns[c] * tokens[t]. The op that reads it
// multiplies, so no linear has a pass of its own for it, and cuBLASLt's fastest mode serves. Nulls: nothing is missing.
struct Factors {
  const float *columns = nullptr, *tokens = nullptr;
};

struct Queue {
  CUstream_st* stream = nullptr;
  bool dependent = true;
  int error = 0;
  // The kernel upstream is a library's, which lets nothing start before it has ended: an ordinary launch then begins
  // sooner than a dependent one. Set by who queued it, for one launch.
  bool serial_next = false;
};

// --- Rows and elements (elementwise.cu) ---

// x[t] = table[id], where id is source[t] or, when that is negative, last_tokens[-1 - source[t]]: a token that the step
// before sampled.
void EmbeddingLookup(Queue& queue, float* x, const Bf16* table, const int32_t* source, const int32_t* last_tokens,
                     int32_t tokens, int32_t columns);
// residual += delta (when delta is not null); y = residual / rms(residual) * weight.
// REQUIRES: columns <= 16384.
void AddRmsNorm(Queue& queue, const Rows& y, float* residual, const Bf16* delta, const Factors& factors,
                const float* weight, float eps, int32_t tokens, int32_t columns);
// y = silu(gate) * up; a row of gate_up is its gate values, then its up values. REQUIRES: columns <= 131072 for e4m3.
void SwiGlu(Queue& queue, const Rows& y, const Bf16* gate_up, const Factors& factors, int32_t tokens, int32_t columns);
// y = y * factors + bias, for linears that have one.
void AddBias(Queue& queue, Bf16* y, const Factors& factors, const float* bias, int32_t tokens, int32_t columns);
// x as e4m3. REQUIRES: columns <= kQuantizeColumnsMax.
inline constexpr int32_t kQuantizeColumnsMax = 32768;
void Quantize(Queue& queue, const Rows& y, const Bf16* x, int32_t rows, int32_t columns);
// y[i] = x[rows[i]] for both pairs: what goes on after the last layer's attention.
void GatherRows(Queue& queue, float* y, const float* x, int32_t columns, Bf16* y2, const Bf16* x2, int32_t columns2,
                const int32_t* rows, int32_t count);

// --- The paged cache (elementwise.cu writes it, paged_attention.cu, context_attention.cu and decode_attention.cu read
// it) ---

// A layer's keys are [blocks][kv_heads][tokens_per_block][head_stride], its values the same, each in a pool of its own
// for all layers. head_stride is head_dim rounded up to a size that the kernels have; the padding stays zero.
// Elements are bf16, or e4m3 of the value over `key_scale` or `value_scale`.
struct KvLayout {
  void *keys = nullptr, *values = nullptr;  // of layer 0
  bool fp8 = false;
  float key_scale = 1, value_scale = 1;
  int32_t layers = 0, blocks = 0, kv_heads = 0, tokens_per_block = 0;  // tokens_per_block: a power of two >= 16
  int32_t head_dim = 0, head_stride = 0;
  const int32_t* tables = nullptr;  // [slots][table_pitch] block ids
  int32_t table_pitch = 0;

  size_t layer_elements() const {
    return static_cast<size_t>(blocks) * static_cast<size_t>(kv_heads) * static_cast<size_t>(tokens_per_block) *
           static_cast<size_t>(head_stride);
  }
  size_t element_bytes() const { return fp8 ? 1 : 2; }
  size_t layer_bytes() const { return layer_elements() * element_bytes(); }
};
// 32, 64, 96, 128 or 256; 0 when the kernels have none that holds head_dim.
int32_t HeadStride(int32_t head_dim);

// Rotates queries and keys of qkv by their positions (ops/rope.h's formula and table); queries stay in place as bf16
// values, keys and values go to the cache. slots[t] and positions[t] say where; a negative slot writes nothing.
struct RopeTableView {
  const float* table = nullptr;  // [positions][cos of head_dim, then signed sin of head_dim]
  bool interleaved = false;
};
void RopeAndStoreKv(Queue& queue, Bf16* qkv, const Factors& factors, const RopeTableView& rope, int32_t query_heads,
                    const int32_t* slots, const int32_t* positions, int32_t tokens, const KvLayout& kv, int32_t layer);

// tables[edits[i].first] = edits[i].second for i < *count; one launch before a step.
struct TableEdit {
  int32_t index = 0;  // slot * table_pitch + entry
  int32_t block = 0;
};
void ApplyTableEdits(Queue& queue, int32_t* tables, const TableEdit* edits, const int32_t* count);
// The first `tokens` tokens of every layer of block `source` into `target`.
void CopyBlock(Queue& queue, const KvLayout& kv, int32_t source, int32_t target, int32_t tokens);

// --- Attention ---

// A part of one KV head's work, in device memory: up to 64 packed queries (token * group + head in the group, from
// `first` on) of one sequence against keys. A generation item takes the `chunk`-th piece of `split` keys of one token,
// the last one all that is left (at most 1.5 splits). A context item of ClusterAttention has up to 128 packed queries
// of kContextCluster / chunks KV heads, from kv_head on as far as there are, with their keys cut in `chunks` parts.
struct AttentionItem {
  int32_t token = 0;  // packed index of the row's first token
  int32_t slot = 0;   // whose block table
  int32_t kv_head = 0;
  int32_t first = 0;              // context: first packed query
  int32_t position = 0;           // of the row's first token
  int32_t tokens = 0;             // of the row in this step
  int32_t chunk = 0, chunks = 0;  // generation; ClusterAttention: chunks only
};

// What attention reads and writes besides the cache.
struct AttentionArguments {
  const Bf16* q = nullptr;                            // [tokens][q_stride], queries first in a row
  Bf16* out = nullptr;                                // [tokens][query_heads * head_dim]
  int32_t q_stride = 0, query_heads = 0, window = 0;  // window 0: none
  const AttentionItem* items = nullptr;
  const int32_t* item_count = nullptr;  // in device memory
  int32_t items_max = 0;                // at most so many, which can be read: the grid
  int32_t split = 0;                    // generation: keys of a chunk, a multiple of 64, at most 1,344
  // Scratch of generation, by slot: AttentionScratch says how much. `arrived` is zero between launches.
  float* partial = nullptr;
  float* partial_ml = nullptr;
  uint32_t* arrived = nullptr;
  int32_t chunks_max = 0;
};
struct AttentionScratchSize {
  size_t partial_floats = 0, partial_ml_floats = 0, counters = 0;
};
AttentionScratchSize AttentionScratch(int32_t slots, int32_t query_heads, int32_t kv_heads, int32_t head_stride,
                                      int32_t chunks_max);

inline constexpr int32_t kQueryTile = 64;          // packed queries of a context item
inline constexpr int32_t kClusterQueryTile = 128;  // of one of ClusterAttention
inline constexpr int32_t kContextCluster = 2;      // CTAs that share a context item there
inline constexpr int32_t kAttentionGroupMax = 16;  // query heads of a KV head
// Any head size and group; each row sees its own sequence up to its own position. REQUIRES: group <= 16.
void ContextAttention(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer);
void GenerationAttention(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer);

// Context for head_dim 128, blocks of 64 tokens and no window, on warpgroup tensor instructions. Prepared once for a
// cache; its items are made for it (cuda_attention_items.h).
class ClusterAttention {
 public:
  static bool Serves(const KvLayout& kv, int32_t window);
  ClusterAttention();
  ~ClusterAttention();
  ClusterAttention(const ClusterAttention&) = delete;
  ClusterAttention& operator=(const ClusterAttention&) = delete;
  int Prepare(const KvLayout& kv);  // a cudaError_t
  int32_t clusters() const;         // that work at once, each on every clusters()-th item
  void Run(Queue& queue, const AttentionArguments& a, const KvLayout& kv, int32_t layer);

 private:
  struct Maps;
  std::unique_ptr<Maps> maps_;
};

// Generation for head_dim 128 with four query heads a KV head, blocks of 64 tokens and no window: keys and values by
// the bulk copy engine, rope and the cache's write of the own token included. Prepared once for a cache.
class DecodeAttention {
 public:
  static bool Serves(const KvLayout& kv, int32_t query_heads, int32_t window);
  DecodeAttention();
  ~DecodeAttention();
  DecodeAttention(const DecodeAttention&) = delete;
  DecodeAttention& operator=(const DecodeAttention&) = delete;
  int Prepare(const KvLayout& kv);  // a cudaError_t
  // Takes qkv as its linear left it (a.q: queries, keys, values of a row): what RopeAndStoreKv does for a context, this
  // does for the items' own tokens. early: block tables and what the cache holds of earlier steps may be read while the
  // kernels upstream run. True only behind an earlier Run of the same step: a CTA of it fills a multiprocessor, so that
  // when one of this Run starts, one of that has left, which had waited for the kernel that edits the tables.
  void Run(Queue& queue, const AttentionArguments& a, const Factors& factors, const RopeTableView& rope,
           const KvLayout& kv, int32_t layer, bool early);

 private:
  struct Maps;
  std::unique_ptr<Maps> maps_;  // CUtensorMap is the driver's type
};

// --- Linear (skinny_linear.cu) ---

// out[m][n] = x[m][k] * w[n][k]^T for few tokens: the weights pass through once. Sums do not depend on m. In e4m3 the
// output is the product of the codes, which lacks its Factors. REQUIRES: 1 <= m <= kSkinnyTokensMax, n % 8 == 0, k % 8
// == 0 (16 in e4m3); x and w of one type.
inline constexpr int32_t kSkinnyTokensMax = 64;
class SkinnyLinear {
 public:
  SkinnyLinear();
  ~SkinnyLinear();
  SkinnyLinear(const SkinnyLinear&) = delete;
  SkinnyLinear& operator=(const SkinnyLinear&) = delete;
  int Prepare(const Rows& w, int32_t n, int32_t k);  // a cudaError_t
  void Run(Queue& queue, const Rows& x, int32_t m, void* out, bool out_f32) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// --- Greedy choice (elementwise.cu) ---

// For each sampled row: the token with the highest logit, the lowest id among equals, into result[row] and
// last_tokens[slots[row]] (a negative slot: result only); -1 in `result` when the row has a NaN or infinity.
// best: [rows] scratch, zero between launches.
void ArgMax(Queue& queue, int32_t* result, int32_t* last_tokens, const float* logits, const int32_t* slots,
            int32_t rows, int32_t vocab_size, unsigned long long* best);

// --- Sampling (sampling.cu): what sample/sampler.h chooses, to the bit ---

inline constexpr int32_t kRuleWords = 4096;  // of a slot's lists
inline constexpr int32_t kTailTokens = 64;   // that bad words may look back on

// What a slot's sequence asks for, and its state. Written when a slot is bound, then by the device.
struct SlotSampling {
  uint64_t seed = 0;
  uint32_t sequence_index = 0;
  float inverse_temperature = 0;  // 0: greedy
  int32_t top_k = 0;
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  int32_t penalized = 0;   // counts are kept
  int32_t logprobs = -1;   // alternatives; -1: no log-probabilities
  int32_t min_tokens = 0;  // until then stop tokens are masked
  // Its lists, in the order of its rule words: pairs of a token and the bits of its bias, each token once; stop tokens;
  // for each bad word the offset of its length, which its tokens follow.
  int32_t bias_count = 0, stop_count = 0, word_count = 0;
  int32_t generated = 0;   // tokens so far: the position of the draw
  int32_t tail_count = 0;  // tokens of prompt and output; the last are in the slot's tail
};
// request/request.h's PositionLogProbs.
struct TokenLogProbs {
  static constexpr int kAlternativesMax = 20;
  float chosen;
  int32_t count;
  struct {
    int32_t token;
    float logprob;
  } best[kAlternativesMax];
};
struct SamplingArguments {
  float* logits = nullptr;         // [outputs][vocab_size]; written and restored
  const int32_t* rows = nullptr;   // the outputs to sample
  const int32_t* slots = nullptr;  // [outputs]
  int32_t vocab_size = 0;
  SlotSampling* parameters = nullptr;  // [slots]
  const int32_t* rules = nullptr;      // [slots][kRuleWords]
  int32_t* tails = nullptr;            // [slots][kTailTokens], a ring
  uint16_t* counts = nullptr;          // [slots][counts_pitch], see CountTokens
  size_t counts_pitch = 0;
  int32_t *results = nullptr, *last_tokens = nullptr;  // as ArgMax's
  TokenLogProbs* logprobs = nullptr;                   // [outputs]
};
void Sample(Queue& queue, const SamplingArguments& a, int32_t rows);
// Adds to a cleared row of counts: the tokens of a prompt, then generated ones.
void CountTokens(Queue& queue, uint16_t* counts, const int32_t* tokens, int32_t prompt_tokens, int32_t all_tokens);

// --- What the device can do (read_limit.cu) ---

// Reads `bytes` (a multiple of 16) and adds all their 32-bit words to *sum.
void ReadAll(Queue& queue, uint32_t* sum, const void* data, size_t bytes);

// --- Weights at start (elementwise.cu) ---

// The packing kBF16 of ops/linear.h (groups of 16 rows, columns in pairs) as plain rows.
void UnpackBf16(Queue& queue, Bf16* rows_out, const Bf16* packed, int64_t rows, int64_t columns);
// Normal values with this deviation, a function of (seed, index).
void FillNormal(Queue& queue, Bf16* out, int64_t count, uint64_t seed, float deviation);
void FillConstant(Queue& queue, float* out, int64_t count, float value);

}  // namespace ekiben::cuda
