#include "device/cuda/cublaslt.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

namespace ekiben {
namespace {

constexpr size_t kWorkspaceBytes = size_t{64} << 20;
constexpr int kCandidatesMax = 8;
constexpr int kTimingRounds = 4;
// By name through the loader's path first, then where the toolkit puts it.
constexpr const char* kNames[] = {"libcublasLt.so.13", "/usr/local/cuda/lib64/libcublasLt.so.13",
                                  "/usr/local/cuda/lib/libcublasLt.so.13"};

Result<void> LtStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return {};
  return Error(Code::kUnavailable, fmt::format("cuBLASLt: {}: status {}", what, static_cast<int>(status)));
}

}  // namespace

// The entry points that are used, under their own names.
struct CublasLt::Library {
  void* module = nullptr;
// clang-format off: a list, one name a line
#define EKIBEN_LT_FUNCTIONS(X)       \
  X(cublasLtCreate)                  \
  X(cublasLtDestroy)                 \
  X(cublasLtGetVersion)              \
  X(cublasLtMatmul)                  \
  X(cublasLtMatmulAlgoCheck)         \
  X(cublasLtMatmulAlgoGetHeuristic)  \
  X(cublasLtMatmulDescCreate)        \
  X(cublasLtMatmulDescDestroy)       \
  X(cublasLtMatmulDescSetAttribute)  \
  X(cublasLtMatrixLayoutCreate)      \
  X(cublasLtMatrixLayoutDestroy)     \
  X(cublasLtMatmulPreferenceCreate)  \
  X(cublasLtMatmulPreferenceDestroy) \
  X(cublasLtMatmulPreferenceSetAttribute)
// clang-format on
#define X(name) decltype(&::name) name = nullptr;
  EKIBEN_LT_FUNCTIONS(X)
#undef X

  ~Library() {
    if (module != nullptr) dlclose(module);
  }

  Result<void> Open() {
    std::string why;
    for (const char* name : kNames) {
      module = dlopen(name, RTLD_NOW | RTLD_LOCAL);
      if (module != nullptr) break;
      if (why.empty()) why = dlerror();
    }
    if (module == nullptr)
      return Error(Code::kUnsupported,
                   fmt::format("the CUDA backend needs cuBLASLt 13: {}; install it, or name its folder in "
                               "LD_LIBRARY_PATH",
                               why),
                   "backend");
#define X(name)                                                  \
  name = reinterpret_cast<decltype(name)>(dlsym(module, #name)); \
  if (name == nullptr) return Error(Code::kUnsupported, "cuBLASLt has no " #name "; version 13 is needed", "backend");
    EKIBEN_LT_FUNCTIONS(X)
#undef X
    if (cublasLtGetVersion() / 10000 != CUBLAS_VER_MAJOR)
      return Error(Code::kUnsupported,
                   fmt::format("cuBLASLt {} found, {} is needed", cublasLtGetVersion(), CUBLAS_VER_MAJOR), "backend");
    return {};
  }
};

struct CublasLt::Plan {
  explicit Plan(const Library& functions) : lt(functions) {}
  ~Plan() {
    if (out != nullptr) lt.cublasLtMatrixLayoutDestroy(out);
    if (x != nullptr) lt.cublasLtMatrixLayoutDestroy(x);
    if (w != nullptr) lt.cublasLtMatrixLayoutDestroy(w);
    if (operation != nullptr) lt.cublasLtMatmulDescDestroy(operation);
  }
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  const Library& lt;
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulHeuristicResult_t candidates[kCandidatesMax];
  size_t count = 0;
};

CublasLt::CublasLt() : library_(std::make_unique<Library>()) {}

CublasLt::~CublasLt() {
  plans_.clear();
  if (handle_ != nullptr) library_->cublasLtDestroy(static_cast<cublasLtHandle_t>(handle_));
}

Result<std::unique_ptr<CublasLt>> CublasLt::Create() {
  auto out = std::unique_ptr<CublasLt>(new CublasLt());
  RETURN_IF_ERROR(out->library_->Open());
  cublasLtHandle_t handle = nullptr;
  RETURN_IF_ERROR(LtStatus(out->library_->cublasLtCreate(&handle), "create"));
  out->handle_ = handle;
  ASSIGN_OR_RETURN(out->workspace_, DeviceBuffer::Create(kWorkspaceBytes));
  return out;
}

Result<void> CublasLt::Describe(const LtShape& shape, Plan& plan) {
  const Library& lt = *library_;
  auto set = [&](cublasLtMatmulDescAttributes_t attribute, const auto& value) {
    return LtStatus(lt.cublasLtMatmulDescSetAttribute(plan.operation, attribute, &value, sizeof value), "attribute");
  };
  RETURN_IF_ERROR(LtStatus(lt.cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "operation"));
  RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T));
  if (shape.fp8) RETURN_IF_ERROR(set(CUBLASLT_MATMUL_DESC_FAST_ACCUM, int8_t{1}));
  auto n = static_cast<uint64_t>(shape.n), k = static_cast<uint64_t>(shape.k), m = static_cast<uint64_t>(shape.m);
  cudaDataType_t in = shape.fp8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF, out = shape.out_f32 ? CUDA_R_32F : CUDA_R_16BF;
  RETURN_IF_ERROR(LtStatus(lt.cublasLtMatrixLayoutCreate(&plan.w, in, k, n, shape.k), "layout of w"));
  RETURN_IF_ERROR(LtStatus(lt.cublasLtMatrixLayoutCreate(&plan.x, in, k, m, shape.k), "layout of x"));
  return LtStatus(lt.cublasLtMatrixLayoutCreate(&plan.out, out, n, m, shape.n), "layout of out");
}

std::string CublasLt::Version() const {
  return std::to_string(library_->cublasLtGetVersion());
}

// The library's candidates, the best by its own judgement first.
Result<void> CublasLt::Offer(const LtShape& shape, Plan& plan) {
  const Library& lt = *library_;
  cublasLtMatmulPreference_t preference = nullptr;
  RETURN_IF_ERROR(LtStatus(lt.cublasLtMatmulPreferenceCreate(&preference), "preference"));
  size_t bytes = kWorkspaceBytes;
  lt.cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes);
  int count = 0;
  cublasStatus_t status =
      lt.cublasLtMatmulAlgoGetHeuristic(static_cast<cublasLtHandle_t>(handle_), plan.operation, plan.w, plan.x,
                                        plan.out, plan.out, preference, kCandidatesMax, plan.candidates, &count);
  lt.cublasLtMatmulPreferenceDestroy(preference);
  RETURN_IF_ERROR(LtStatus(status, "candidates"));
  for (int i = 0; i < count; ++i)
    if (plan.candidates[i].state == CUBLAS_STATUS_SUCCESS) plan.candidates[plan.count++] = plan.candidates[i];
  if (plan.count > 0) return {};
  return Error(Code::kUnsupported, fmt::format("cuBLASLt has no candidate for {} x {} x {} in {}", shape.m, shape.n,
                                               shape.k, shape.fp8 ? "e4m3" : "bf16"));
}

Result<CublasLt::Plan*> CublasLt::Find(const LtShape& shape, const LtAlgorithm& algorithm) {
  auto found = plans_.find({shape, algorithm});
  if (found != plans_.end()) return found->second.get();
  const Library& lt = *library_;
  auto plan = std::make_unique<Plan>(lt);
  RETURN_IF_ERROR(Describe(shape, *plan));
  if (algorithm != LtAlgorithm{}) {
    static_assert(sizeof(cublasLtMatmulAlgo_t) == sizeof(LtAlgorithm));
    cublasLtMatmulHeuristicResult_t& wanted = plan->candidates[0];
    cublasLtMatmulAlgo_t words;
    std::memcpy(&words, algorithm.data(), sizeof words);
    cublasStatus_t status = lt.cublasLtMatmulAlgoCheck(static_cast<cublasLtHandle_t>(handle_), plan->operation, plan->w,
                                                       plan->x, plan->out, plan->out, &words, &wanted);
    if (status == CUBLAS_STATUS_SUCCESS && wanted.workspaceSize <= kWorkspaceBytes) {
      wanted.algo = words;
      plan->count = 1;
    }
  }
  if (plan->count == 0) RETURN_IF_ERROR(Offer(shape, *plan));
  return plans_.emplace(std::pair(shape, algorithm), std::move(plan)).first->second.get();
}

Result<void> CublasLt::Run(CUstream_st* stream, const Plan& plan, size_t candidate, const LtOperands& operands) {
  const float one = 1, zero = 0;
  return LtStatus(
      library_->cublasLtMatmul(static_cast<cublasLtHandle_t>(handle_), plan.operation, &one, operands.w, plan.w,
                               operands.x, plan.x, &zero, operands.out, plan.out, operands.out, plan.out,
                               &plan.candidates[candidate].algo, workspace_.data(), kWorkspaceBytes, stream),
      "product");
}

Result<std::vector<LtCandidate>> CublasLt::TimeCandidates(CudaStream& stream, const LtShape& shape,
                                                          std::span<const void* const> weights, LtOperands operands) {
  Plan plan(*library_);
  RETURN_IF_ERROR(Describe(shape, plan));
  RETURN_IF_ERROR(Offer(shape, plan));
  ASSIGN_OR_RETURN(CudaEvent begin, CudaEvent::Create());
  ASSIGN_OR_RETURN(CudaEvent end, CudaEvent::Create());
  std::vector<LtCandidate> out(plan.count);
  for (size_t i = 0; i < out.size(); ++i) {
    std::memcpy(out[i].algorithm.data(), &plan.candidates[i].algo, sizeof(LtAlgorithm));
    out[i].time = Nanos::max();
  }
  // Rounds over the candidates rather than one after the other: clocks move while they are timed. The first round warms
  // up.
  for (int round = 0; round < kTimingRounds; ++round) {
    for (size_t i = 0; i < plan.count; ++i) {
      RETURN_IF_ERROR(stream.Record(begin));
      for (const void* w : weights) {
        operands.w = w;
        RETURN_IF_ERROR(Run(stream.get(), plan, i, operands));
      }
      RETURN_IF_ERROR(stream.Record(end));
      RETURN_IF_ERROR(end.Wait());
      ASSIGN_OR_RETURN(Nanos time, end.Since(begin));
      if (round > 0) out[i].time = std::min(out[i].time, time / static_cast<int64_t>(weights.size()));
    }
  }
  return out;
}

Result<void> CublasLt::Multiply(CUstream_st* stream, const LtShape& shape, const LtOperands& operands,
                                const LtAlgorithm& algorithm) {
  ASSIGN_OR_RETURN(const Plan* plan, Find(shape, algorithm));
  return Run(stream, *plan, 0, operands);
}

}  // namespace ekiben
