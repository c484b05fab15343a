#include "cli/stack.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <thread>

#include "backend/cuda_backend.h"
#include "backend/fake_backend.h"
#include "backend/warm_up.h"
#include "base/human.h"
#include "compile/cuda_profile.h"
#include "compile/profile.h"

namespace ekiben::cli {
namespace {

// MemAvailable of /proc/meminfo, in bytes; 1 GiB when it cannot be read.
uint64_t FreeMemoryBytes() {
  std::ifstream in("/proc/meminfo");
  std::string key;
  uint64_t kib = 0;
  while (in >> key >> kib) {
    if (key == "MemAvailable:") return kib << 10;
    in.ignore(64, '\n');
  }
  return uint64_t{1} << 30;
}

// Of the CPU's cache.
Result<DType> KvDType(const std::string& option, const BuildConfig& build) {
  if (option == "bf16") return DType::kBF16;
  if (option == "f32") return DType::kF32;
  if (option == "auto") return build.dtype == "f32" ? DType::kF32 : DType::kBF16;
  return Error(Code::kInvalid,
               fmt::format("kv_cache_dtype: '{}' is not one of auto, bf16, f32; fp8 is the CUDA backend's", option),
               "kv_cache_dtype");
}

double KvFraction(const StackOptions& options, const std::string& device) {
  return options.kv_cache_free_mem_fraction.value_or(DefaultsOf(device).kv_cache_free_mem_fraction) / options.models;
}

int32_t Threads(const StackOptions& options) {
  auto all = options.threads > 0 ? options.threads : static_cast<int32_t>(std::thread::hardware_concurrency());
  return std::max(1, all / options.models);
}

serve::EngineFacts FactsOf(const Engine& engine, const ExecutorConfig& executor) {
  serve::EngineFacts out;
  out.dtype = engine.build.dtype;
  out.architecture = engine.model.architecture;
  out.engine = engine.path.string();
  out.max_batch_size = executor.max_batch_size;
  out.max_num_tokens = executor.max_num_tokens;
  out.max_input_len = engine.build.max_input_len;
  out.max_seq_len = engine.build.max_seq_len;
  out.max_beam_width = engine.build.max_beam_width;
  out.vocab_size = engine.model.vocab_size;
  out.hidden_size = engine.model.hidden_size;
  out.tokens_per_block = engine.build.tokens_per_block;
  out.gather_context_logits = engine.build.gather_context_logits;
  out.gather_generation_logits = engine.build.gather_generation_logits;
  return out;
}

Result<int32_t> KvBlocks(const StackOptions& options, const Engine& engine, DType dtype, int32_t max_batch_size) {
  const double fraction = KvFraction(options, "cpu");
  if (!(fraction > 0 && fraction <= 0.95))
    return Error(Code::kInvalid, fmt::format("kv_cache_free_gpu_mem_fraction: {} is outside (0, 0.95]", fraction),
                 "kv_cache_free_gpu_mem_fraction");
  int64_t per_block = engine.build.tokens_per_block;
  auto bytes_per_block =
      static_cast<double>(CpuBackend::KvBytesPerBlock(engine.model, engine.build.tokens_per_block, dtype));
  auto blocks = static_cast<int64_t>(static_cast<double>(FreeMemoryBytes()) * fraction / bytes_per_block);
  // More than every slot at its full length is never used.
  blocks = std::min(blocks, int64_t{max_batch_size} * ((engine.build.max_seq_len + per_block - 1) / per_block));
  if (options.max_tokens_in_paged_kv_cache > 0)
    blocks = std::min(blocks, options.max_tokens_in_paged_kv_cache / per_block);
  return static_cast<int32_t>(std::min<int64_t>(blocks, INT32_MAX));
}

Result<Nanos> ItlBudget(const std::string& option, bool cuda) {
  if (option == "auto") return cuda ? ExecutorConfig::kItlAuto : Nanos(0);
  if (option == "off") return Nanos(0);
  double ms = 0;
  auto [end, error] = std::from_chars(option.data(), option.data() + option.size(), ms);
  if (error != std::errc() || end != option.data() + option.size() || !(ms > 0 && ms <= 1e6))
    return Error(Code::kInvalid,
                 fmt::format("itl_budget_ms: '{}' is not auto, off or milliseconds in (0, 1e6]", option),
                 "itl_budget_ms");
  return Nanos(static_cast<int64_t>(ms * 1e6));
}

// The engine on a GPU, in the sizes that the CPU backend would have; without tensors, random weights.
Result<CudaBackendParts> OpenCuda(const ModelConfig& model, const Engine& engine, const StackOptions& options,
                                  const ExecutorConfig& executor, uint64_t synth_seed) {
  const std::string& kv = options.kv_cache_dtype;
  if (kv != "auto" && kv != "bf16" && kv != "fp8")
    return Error(Code::kInvalid,
                 fmt::format("kv_cache_dtype: '{}' is not one of auto, bf16, fp8; f32 is the CPU's", kv),
                 "kv_cache_dtype");
  CudaBackendConfig config;
  config.fp8 = engine.build.dtype == "fp8";
  config.fp8_kv_cache = kv == "fp8";
  config.max_batch_size = executor.max_batch_size;
  config.max_num_tokens = executor.max_num_tokens;
  config.max_seq_len = engine.build.max_seq_len;
  config.tokens_per_block = engine.build.tokens_per_block;
  config.kv_cache_free_gpu_mem_fraction = KvFraction(options, "cuda");
  config.max_tokens_in_paged_kv_cache = options.max_tokens_in_paged_kv_cache;
  config.synth_seed = synth_seed;
  config.tune = TuneOptionsOf(engine.build);
  ASSIGN_OR_RETURN(config.plan, ReadCudaProfile(engine.profiles));
  return OpenCudaBackend(model, engine.tensors.empty() ? nullptr : &engine.tensors, config);
}

// The sizes of the real backend; ids from 256 on, so that tokens are mostly words.
FakeBackendOptions FakeOptions(const CpuBackendConfig& sizes, int32_t vocab_size) {
  FakeBackendOptions out;
  out.vocab_size = vocab_size;
  out.token_min = std::min(256, vocab_size - 1);
  out.max_batch_size = sizes.max_batch_size;
  out.max_num_tokens = sizes.max_num_tokens;
  out.max_seq_len = sizes.max_seq_len;
  out.tokens_per_block = sizes.tokens_per_block;
  out.blocks = sizes.kv_blocks;
  return out;
}

}  // namespace

Result<void> Stack::OpenText() {
  const Engine& e = engine_;
  if (e.tokenizer.tokens.empty())
    return Error(Code::kInvalid,
                 fmt::format("{}: the engine has no tokenizer, so it takes no text; build it again from a "
                             "checkpoint with one",
                             e.path.string()));
  ASSIGN_OR_RETURN(tokenizer_, text::Tokenizer::Create(e.tokenizer));
  if (e.tokenizer.chat_template.empty()) return {};
  auto parsed = text::ChatTemplate::Parse(e.tokenizer.chat_template);
  if (!parsed.ok()) return std::move(parsed).error().Within("chat template");
  chat_template_ = *std::move(parsed);
  return {};
}

Result<void> Stack::OpenBackend(const EngineSource& source, const StackOptions& options, const ModelConfig& model,
                                ExecutorConfig& executor) {
  const Engine& e = engine_;
  if (source.device == "cuda") {
    ASSIGN_OR_RETURN(CudaBackendParts parts, OpenCuda(model, e, options, executor, source.synth_seed));
    memory_ = std::move(parts.memory);
    backend_ = std::move(parts.backend);
    return {};
  }
  CpuBackendConfig config;
  config.threads = Threads(options);
  config.max_batch_size = executor.max_batch_size;
  config.max_num_tokens = executor.max_num_tokens;
  config.max_seq_len = e.build.max_seq_len;
  config.tokens_per_block = e.build.tokens_per_block;
  ASSIGN_OR_RETURN(DType kv_dtype, KvDType(options.kv_cache_dtype, e.build));
  ASSIGN_OR_RETURN(config.kv_blocks, KvBlocks(options, e, kv_dtype, executor.max_batch_size));
  config.kv_dtype = kv_dtype;
  if (source.device == "fake") {
    FakeBackendOptions fake = FakeOptions(config, e.model.vocab_size);
    fake.step_time = Nanos(static_cast<int64_t>(options.fake_step_ms * 1e6));
    fake.real_time = options.fake_step_ms > 0;
    backend_ = std::make_unique<FakeBackend>(fake);
    return {};
  }
  ASSIGN_OR_RETURN(model_, Model::Load(model, e.tensors, e.build.max_seq_len));
  ASSIGN_OR_RETURN(tuning_, ReadProfiles(e.profiles));
  config.tuning = &tuning_;
  ASSIGN_OR_RETURN(auto cpu, CpuBackend::Create(*model_, config, SystemClock::Get()));
  memory_ = cpu->memory();
  memory_.insert(memory_.begin(), {"weights", e.weights.bytes().size()});
  ASSIGN_OR_RETURN(executor.step_costs, WarmUp(*cpu));
  backend_ = std::move(cpu);
  return {};
}

Result<std::unique_ptr<Stack>> Stack::Open(const EngineSource& source, const StackOptions& options) {
  const Clock& clock = SystemClock::Get();
  if (source.device == "cuda") RETURN_IF_ERROR(CheckCudaDevice());  // before an engine is built for it
  ASSIGN_OR_RETURN(OpenedEngine opened, OpenEngineSource(source));
  if (options.weights_in_huge_pages && source.device == "cpu") HoldInHugePages(opened.engine);
  auto stack = std::unique_ptr<Stack>(new Stack(std::move(opened.engine)));
  const Engine& e = stack->engine_;
  stack->model_name_ = options.served_model_name.empty() ? opened.model_name : options.served_model_name;
  RETURN_IF_ERROR(stack->OpenText());
  ModelConfig model = e.model;
  int32_t window = options.executor.max_attention_window_size;
  if (window > 0 && (model.sliding_window == 0 || window < model.sliding_window)) model.sliding_window = window;
  ExecutorConfig executor = options.executor;
  ASSIGN_OR_RETURN(executor.itl_budget, ItlBudget(options.itl_budget_ms, source.device == "cuda"));
  // On a GPU a prompt of its own length costs a few milliseconds: who waits for a turn waits longer than it saves
  // others.
  const std::string& admission = options.context_admission_policy;
  executor.context_admission_policy = admission == "greedy" || (admission == "auto" && source.device == "cuda")
                                          ? ContextAdmissionPolicy::kGreedy
                                          : ContextAdmissionPolicy::kPaced;
  executor.step_timeout =
      Nanos(static_cast<int64_t>(options.step_timeout_s.value_or(source.device == "cuda" ? 60 : 0) * 1e9));
  executor.max_attention_window_size = model.sliding_window;  // blocks behind the window are given back
  if (executor.max_batch_size == 0) executor.max_batch_size = e.build.max_batch_size;
  if (executor.max_num_tokens == 0) executor.max_num_tokens = e.build.max_num_tokens;
  RETURN_IF_ERROR(stack->OpenBackend(source, options, model, executor));
  ASSIGN_OR_RETURN(stack->executor_, Executor::Create(*stack->backend_, executor, clock));
  serve::ServiceConfig service;
  service.model_name = stack->model_name_;
  service.preprocessing_instance_count = options.preprocessing_instance_count;
  service.postprocessing_instance_count = options.postprocessing_instance_count;
  service.max_queue_size = executor.max_queue_size;
  service.max_input_len = e.build.max_input_len;
  service.max_seq_len = e.build.max_seq_len;
  service.vocab_size = e.model.vocab_size;
  ASSIGN_OR_RETURN(stack->service_, serve::Service::Create(*stack->executor_, *stack->tokenizer_,
                                                           stack->chat_template(), clock, service));
  stack->facts_ = FactsOf(e, executor);
  stack->loaded_at_ = clock.WallNow();
  stack->executor_->Start();
  return stack;
}

Stack::~Stack() {
  if (executor_) executor_->Shutdown();
  service_.reset();
}

std::vector<std::string> Stack::Describe() const {
  const BackendInfo& info = backend_->info();
  std::vector<std::string> out;
  out.push_back(fmt::format("model {} ({}, {} layers, vocabulary {}), engine {}", model_name_,
                            engine_.model.architecture, engine_.model.num_hidden_layers, engine_.model.vocab_size,
                            engine_.path.string()));
  out.push_back(fmt::format("device {}", info.description));
  out.push_back(
      fmt::format("limits max_batch_size {}, max_num_tokens {}, max_seq_len {}, {} KV blocks of {} tokens = {} "
                  "tokens",
                  info.max_batch_size, info.max_num_tokens, info.max_seq_len, info.blocks, info.tokens_per_block,
                  HumanCount(static_cast<double>(info.blocks) * info.tokens_per_block)));
  std::string memory;
  for (const MemoryLine& line : memory_)
    memory += fmt::format("{}{} {}", memory.empty() ? "" : ", ", line.name, HumanBytes(line.bytes));
  if (!memory.empty()) out.push_back("memory " + memory);
  return out;
}

}  // namespace ekiben::cli
