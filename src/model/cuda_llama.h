// The Llama family's forward on a CUDA device: the order of llama.cc's calls, over the ops of ops/cuda_ops.h.
//
// Weights are bf16 rows: a linear of an engine in the packing bf16 is copied as it is and unpacked on the device, the
// embedding is converted; or all of them are made on the device from a seed, for measuring shapes whose checkpoint is
// not at hand. With fp8 the rows are then rounded to e4m3 with a factor each (an output channel), and a linear's input
// is e4m3 with a factor a token, made by the op that computes it; a linear whose sizes are no multiples of 16, or that
// its engine keeps (model/fp8_rounding.h), stays bf16. Other activations are bf16, the residual stream and logits f32.
// Forward queues kernels and returns; what it is given are device addresses. It allocates nothing, so it can be
// captured into a graph as soon as the same shape has run once (cuBLASLt finds its plan in the first).
// Errors: Load and Synthesize say what does not fit; Forward answers only what cuBLASLt or a launch refused, which is a
// device fault. Thread: one.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "device/cuda/cublaslt.h"
#include "device/cuda/cuda_device.h"
#include "model/cuda_linear_plan.h"
#include "model/model.h"
#include "ops/cuda_attention_items.h"
#include "ops/cuda_ops.h"

namespace ekiben {

struct CudaModelLimits {
  int32_t max_seq_len = 0;
  int32_t tokens_max = 0;   // of one step
  int32_t outputs_max = 0;  // rows of logits computed at once
};

struct CudaPrecision {
  bool fp8_linears = false;  // of the layers; lm_head stays bf16
};

// One step, in device memory. Rows of any kind are packed: token t is position[t] of slot[t]'s sequence.
struct CudaBatch {
  int32_t tokens = 0;
  const int32_t* source = nullptr;  // [tokens] ids, or -1 - slot: that slot's last token
  const int32_t* last_tokens = nullptr;
  const int32_t* positions = nullptr;  // [tokens]
  const int32_t* slots = nullptr;      // [tokens]; -1: padding, or a generated token where generation_stores_keys()
  int32_t outputs = 0;
  const int32_t* output_tokens = nullptr;  // [outputs] ascending; null: every token, in order
  const cuda::AttentionItem *context_items = nullptr, *generation_items = nullptr;
  const int32_t *context_item_count = nullptr, *generation_item_count = nullptr;
  int32_t context_items_max = 0, generation_items_max = 0;  // 0: none of the kind
  // The first and the last layer (of an engine that mixes types also the second) stand for all: loads the kernels that
  // a step of this size needs.
  bool ends_only = false;
};

// The ops of a step, in the order in which a layer meets them.
enum class CudaOp : uint8_t {
  kEmbedding,
  kNorm,  // with the residual's sum before it; of the layers
  kQkv,
  kRope,  // and the cache's write
  kContextAttention,
  kGenerationAttention,
  kQuantize,  // attention's output, for o in e4m3
  kO,
  kGateUp,
  kSwiGlu,
  kDown,
  kFinalNorm,
  kHead,
};

// A linear as it runs for some number of tokens.
struct CudaLinearForm {
  int32_t out_features = 0, in_features = 0;
  bool fp8 = false;
  std::string kernel;  // "own", "cuBLASLt 2": the third of its candidates
};

// Scratch that generation attention shares between layers, sized by the backend's slots.
struct CudaAttentionScratch {
  DeviceBuffer partial, partial_ml, arrived;
  int32_t split = 0, chunks_max = 0;

  static Result<CudaAttentionScratch> Create(const ModelConfig& config, int32_t slots, int32_t max_seq_len);
};

class CudaLlama {
 public:
  static Result<std::unique_ptr<CudaLlama>> Load(const ModelConfig& config, const EngineTensors& tensors,
                                                 const CudaModelLimits& limits, const CudaPrecision& precision = {});
  static Result<std::unique_ptr<CudaLlama>> Synthesize(const ModelConfig& config, uint64_t seed,
                                                       const CudaModelLimits& limits,
                                                       const CudaPrecision& precision = {});

  // What the weights of such a model take of the device's memory; weight_bytes() when it is loaded.
  // `tensors`: the engine's, which may keep linears in bf16; null: weights made on the device.
  static size_t WeightBytes(const ModelConfig& config, const CudaPrecision& precision, const EngineTensors* tensors);

  // Everything up to the final norm of the rows that need logits.
  Result<void> Forward(cuda::Queue& queue, const CudaBatch& batch, const cuda::KvLayout& kv,
                       const CudaAttentionScratch& scratch);
  // logits f32 [count, vocab_size] of outputs [first, first + count) of the last Forward. REQUIRES: count <=
  // outputs_max, first a multiple of 128.
  Result<void> Head(cuda::Queue& queue, int32_t first, int32_t count, float* logits);

  // How linears run, chosen by time on this device for the buckets within [tokens_min, tokens_max]; `done` after each
  // of them. Counts without a bucket run as kOwn says. Before the first capture: it waits. (cuda_llama_tune.cc)
  Result<void> Tune(const CudaTuneOptions& options, int32_t tokens_min, int32_t tokens_max,
                    const std::function<void(const CudaLinearBucket&)>& done);
  // Takes a plan that was made before; false, and nothing is taken, where it was made on another device, by another
  // version of the library or for other types.
  bool Use(const CudaLinearPlan& plan);
  // What a start does: Use, or else, as far as there is time, Tune up to `tokens_max`; own kernels stay where they
  // reach. True: used.
  Result<bool> UseOrTune(const std::optional<CudaLinearPlan>& plan, const CudaTuneOptions& options, int32_t tokens_max);
  const CudaLinearPlan& plan() const { return plan_; }
  // Where Tune has a bucket, as far as `tokens_max`: as many as steps have sizes, few enough to be timed in seconds.
  static std::vector<int32_t> TuneBuckets(int32_t tokens_max);
  // What the linear `op` of the first layer, or the head, runs for this many tokens. REQUIRES: a linear.
  CudaLinearForm FormOf(CudaOp op, int32_t tokens) const;
  // Forward and Head queue this op alone from now on, with what its buffers hold; nullopt: all. For timing one by one.
  void Only(std::optional<CudaOp> op) { only_ = op; }
  // A planted error, for tests that must notice it: from now on a token is rotated as if it stood `tokens` further, and
  // stored where it stands.
  void RotateFurther(int32_t tokens) { rotated_further_ = tokens; }
  // Once, when the cache's addresses are known.
  Result<void> BindCache(const cuda::KvLayout& kv);
  // Generation attention writes its tokens' keys and values itself. Known once the cache is bound.
  bool generation_stores_keys() const { return decode_attention_serves_; }
  // What attention items are made for. REQUIRES: BindCache.
  cuda::AttentionItemShape item_shape(const CudaAttentionScratch& scratch) const;
  const ModelConfig& config() const { return config_; }
  const CudaModelLimits& limits() const { return limits_; }
  size_t weight_bytes() const { return weight_bytes_; }
  size_t activation_bytes() const { return activation_bytes_; }

 private:
  struct Linear {
    CudaOp op = CudaOp::kHead;
    int32_t out_features = 0, in_features = 0;
    bool fp8 = false;
    DeviceBuffer weights, scales, bias;
    std::unique_ptr<cuda::SkinnyLinear> skinny;  // null when the shape does not suit it

    cuda::Rows rows() const { return View(fp8, weights.data(), scales); }
  };
  // What a linear reads: bf16, or e4m3 with the scales.
  struct Input {
    DeviceBuffer values, scales;

    cuda::Rows rows(bool fp8) const { return View(fp8, values.data(), scales); }
  };
  struct Layer {
    DeviceBuffer attention_norm, mlp_norm;
    Linear qkv, o, gate_up, down;
  };
  // What a kind of linear reads and writes.
  struct LinearPlace {
    Linear Layer::*linear;
    const DeviceBuffer *x, *out;
  };
  using Ways = std::array<CudaLinearWay, kCudaLinearNames.size()>;
  class Loader;
  class Tuner;

  CudaLlama(const ModelConfig& config, const CudaModelLimits& limits, const CudaPrecision& precision)
      : config_(config), limits_(limits), precision_(precision) {}
  static cuda::Rows View(bool fp8, std::byte* values, const DeviceBuffer& scales) {
    if (!fp8) return {.bf16 = reinterpret_cast<cuda::Bf16*>(values)};
    return {.fp8 = reinterpret_cast<cuda::Fp8*>(values), .scales = scales.as<float>()};
  }
  static CudaLinearKind KindOf(CudaOp op) {
    switch (op) {
      case CudaOp::kQkv: return CudaLinearKind::kQkv;
      case CudaOp::kO: return CudaLinearKind::kO;
      case CudaOp::kGateUp: return CudaLinearKind::kGateUp;
      case CudaOp::kDown: return CudaLinearKind::kDown;
      default: return CudaLinearKind::kHead;
    }
  }
  // The own kernel reaches so far.
  static bool RunsOwn(const Linear& w, int32_t tokens) {
    return w.skinny != nullptr && tokens <= cuda::kSkinnyTokensMax;
  }
  bool Runs(CudaOp op) const { return !only_ || *only_ == op; }
  Result<void> Allocate();
  Result<void> UploadRope();
  // What linears are measured on: an engine in fp8 may keep some of the first and the last layer's in bf16.
  const Layer& usual_layer() const { return layers_[layers_.size() / 2]; }
  bool HasUsualType(const Linear& w) const;
  CudaLinearWay WayOf(const Linear& w, int32_t tokens) const;
  Result<void> Product(cuda::Queue& queue, const Linear& w, const CudaLinearWay& way, const cuda::Rows& x,
                       int32_t tokens, void* out, bool out_f32);
  // What the output still lacks; nothing in bf16, with a bias or in f32.
  Result<cuda::Factors> Multiply(cuda::Queue& queue, const Linear& w, const cuda::Rows& x, int32_t tokens, void* out,
                                 bool out_f32);
  // Rope, the cache's write and attention, of qkv that lacks `qkv`.
  void Attend(cuda::Queue& queue, const CudaBatch& batch, const cuda::Factors& qkv, const cuda::KvLayout& kv,
              const CudaAttentionScratch& scratch, int32_t layer);
  // Both leave what is to be added to the residual in delta_ and say in `delta` what it lacks; Mlp first adds what was
  // there.
  Result<void> Output(cuda::Queue& queue, const Linear& o, const cuda::Bf16* attention, int32_t tokens,
                      cuda::Factors& delta);
  Result<void> Mlp(cuda::Queue& queue, const Layer& layer, float* x, int32_t tokens, cuda::Factors& delta);

  ModelConfig config_;
  CudaModelLimits limits_;
  CudaPrecision precision_;
  std::unique_ptr<CublasLt> cublaslt_;
  DeviceBuffer embedding_, final_norm_, rope_;
  Linear lm_head_;
  std::vector<Layer> layers_;
  CudaLinearPlan plan_;
  cuda::DecodeAttention decode_attention_;
  cuda::ClusterAttention cluster_attention_;
  std::optional<CudaOp> only_;
  int32_t rotated_further_ = 0;
  bool decode_attention_serves_ = false, cluster_attention_serves_ = false;
  size_t weight_bytes_ = 0, activation_bytes_ = 0;
  // [tokens_max, ...]: residual (and its rows that go on), qkv, attention (and its rows), delta, gate_up; normed input,
  // attention in e4m3, mlp.
  DeviceBuffer x_, x_kept_, qkv_, attention_, attention_kept_, delta_, gate_up_;
  Input h_, attention_codes_, mlp_;
};

}  // namespace ekiben
