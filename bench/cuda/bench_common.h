// What every CUDA bench program here shares: call checking, device buffers, random fills, graph-replay timing, rows of JSON.
//
// Time is microseconds, bytes are bytes. A program exits with 1 on the first CUDA error and on a failed check: a number from a
// kernel that computed the wrong thing is never printed. Single-threaded, one device, one stream.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <vector>

#define CUDA_OK(call)                                                                                        \
  do {                                                                                                       \
    cudaError_t status_ = (call);                                                                            \
    if (status_ != cudaSuccess) {                                                                            \
      std::fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(status_));       \
      std::exit(1);                                                                                          \
    }                                                                                                        \
  } while (0)

namespace bench {

// Measured on this kind of machine (docs/gpu.md, Limits): what shares are shares of.
constexpr double kReadLimit = 3.11e12;       // bytes/s, read-only reduction over 2 GiB
constexpr double kBf16Limit = 778e12;        // FLOP/s, 8192 cubed
constexpr double kFp8Limit = 1440e12;        // FLOP/s, 8192 cubed
constexpr size_t kRotateBytes = 400u << 20;  // weights rotate through at least this much: 8 x the 50 MB L2

struct LinearShape {
  const char* name;
  int n;
  int k;
};
constexpr LinearShape kLlama8b[] = {
    {"qkv", 6144, 4096}, {"o", 4096, 4096}, {"gate_up", 28672, 4096}, {"down", 4096, 14336}, {"lm_head", 128256, 4096}};

// Device memory of one element type, freed at the end of its scope.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) { CUDA_OK(cudaMalloc(&data_, std::max<size_t>(count, 1) * sizeof(T))); }
  Buffer(Buffer&& other) noexcept : data_(other.data_), count_(other.count_) { other.data_ = nullptr; }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { cudaFree(data_); }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void FillBytes(int value) { CUDA_OK(cudaMemset(data_, value, count_ * sizeof(T))); }
  void Upload(const std::vector<T>& host) {
    CUDA_OK(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Download(size_t offset, size_t count) const {
    std::vector<T> host(count);
    CUDA_OK(cudaMemcpy(host.data(), data_ + offset, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
  }
  std::vector<T> Download() const { return Download(0, count_); }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

__device__ inline uint32_t Hash(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>(x >> 32);
}

__device__ inline float Normal(uint64_t seed, uint64_t i) {
  float u = (Hash(seed * 0x100000001B3ull + 2 * i) + 1.0f) * 2.3283064e-10f;
  float v = Hash(seed * 0x100000001B3ull + 2 * i + 1) * 2.3283064e-10f;
  return sqrtf(-2.0f * __logf(fminf(u, 1.0f))) * __cosf(6.2831853f * v);
}

template <typename T>
__global__ void FillNormalKernel(T* out, size_t count, uint64_t seed, float deviation) {
  size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += stride) {
    out[i] = T(Normal(seed, i) * deviation);
  }
}

template <typename T>
void FillNormal(T* out, size_t count, uint64_t seed, float deviation) {
  FillNormalKernel<T><<<1056, 256>>>(out, count, seed, deviation);
  CUDA_OK(cudaGetLastError());
}

template <typename T>
__global__ void CountNanKernel(const T* data, size_t count, unsigned long long* result) {
  size_t stride = static_cast<size_t>(gridDim.x) * blockDim.x;
  unsigned long long mine = 0;
  for (size_t i = blockIdx.x * static_cast<size_t>(blockDim.x) + threadIdx.x; i < count; i += stride) {
    mine += isnan(static_cast<float>(data[i])) ? 1 : 0;
  }
  if (mine != 0) atomicAdd(result, mine);
}

// Outputs are poisoned with 0xFF bytes, which are NaN in bf16, fp32 and e4m3: what is still NaN was never written.
template <typename T>
unsigned long long CountNan(const T* data, size_t count) {
  Buffer<unsigned long long> result(1);
  result.FillBytes(0);
  CountNanKernel<T><<<528, 256>>>(data, count, result.data());
  CUDA_OK(cudaGetLastError());
  return result.Download()[0];
}

// ||out - ref|| / ||ref||; NaN in `out` gives NaN, which no tolerance accepts.
inline double RelativeError(const std::vector<double>& out, const std::vector<double>& ref) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < ref.size(); ++i) {
    difference += (out[i] - ref[i]) * (out[i] - ref[i]);
    norm += ref[i] * ref[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

inline void Require(bool ok, const char* format, ...) {
  if (ok) return;
  va_list arguments;
  va_start(arguments, format);
  std::fprintf(stderr, "CHECK FAILED: ");
  std::vfprintf(stderr, format, arguments);
  std::fprintf(stderr, "\n");
  va_end(arguments);
  std::exit(1);
}

// Captures `body(stream, i)` for i < nodes into one graph and returns the median time of one body in microseconds.
inline double TimeGraph(int nodes, int replays, const std::function<void(cudaStream_t, int)>& body) {
  cudaStream_t stream;
  CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  cudaGraph_t graph;
  CUDA_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < nodes; ++i) body(stream, i);
  CUDA_OK(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t exec;
  CUDA_OK(cudaGraphInstantiate(&exec, graph, 0));
  cudaEvent_t begin, end;
  CUDA_OK(cudaEventCreate(&begin));
  CUDA_OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int replay = -1; replay < replays; ++replay) {
    CUDA_OK(cudaEventRecord(begin, stream));
    CUDA_OK(cudaGraphLaunch(exec, stream));
    CUDA_OK(cudaEventRecord(end, stream));
    CUDA_OK(cudaEventSynchronize(end));
    float milliseconds = 0;
    CUDA_OK(cudaEventElapsedTime(&milliseconds, begin, end));
    if (replay >= 0) times.push_back(milliseconds);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  double median = times[times.size() / 2] * 1e3 / nodes;
  CUDA_OK(cudaEventDestroy(begin));
  CUDA_OK(cudaEventDestroy(end));
  CUDA_OK(cudaGraphExecDestroy(exec));
  CUDA_OK(cudaGraphDestroy(graph));
  CUDA_OK(cudaStreamDestroy(stream));
  return median;
}

// How many bodies one graph holds so that a replay lasts about `budget_us`, between 4 and 48.
inline int NodesFor(double estimate_us, double budget_us) {
  return static_cast<int>(std::min(48.0, std::max(4.0, budget_us / estimate_us)));
}

// The JSON file of one program: the machine, the command, and flat rows.
class Json {
 public:
  Json(const std::string& path, const std::string& command) : path_(path), command_(command) {}
  void Row(const char* format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    rows_.push_back(line);
  }
  void Write() const {
    std::FILE* file = std::fopen(path_.c_str(), "w");
    Require(file != nullptr, "cannot write %s", path_.c_str());
    cudaDeviceProp device;
    CUDA_OK(cudaGetDeviceProperties(&device, 0));
    int driver = 0, runtime = 0;
    CUDA_OK(cudaDriverGetVersion(&driver));
    CUDA_OK(cudaRuntimeGetVersion(&runtime));
    std::fprintf(file, "{\"machine\": \"%s, %d SMs, L2 %d MB\", \"cuda_driver\": %d, \"cuda_runtime\": %d,\n", device.name,
                 device.multiProcessorCount, device.l2CacheSize >> 20, driver, runtime);
    std::fprintf(file, " \"command\": \"%s\", \"read_limit_bytes_per_s\": %.4g,\n \"rows\": [\n", command_.c_str(), kReadLimit);
    for (size_t i = 0; i < rows_.size(); ++i) {
      std::fprintf(file, "  {%s}%s\n", rows_[i].c_str(), i + 1 < rows_.size() ? "," : "");
    }
    std::fprintf(file, " ]}\n");
    std::fclose(file);
  }

 private:
  std::string path_;
  std::string command_;
  std::vector<std::string> rows_;
};

inline std::string CommandLine(int argc, char** argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) line += (i > 0 ? " " : "") + std::string(argv[i]);
  return line;
}

inline double Decode(__nv_bfloat16 x) { return static_cast<float>(x); }
inline double Decode(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
inline double Decode(float x) { return x; }

// out[m][n] against an fp64 dot product on the CPU, at `samples` random places. Returns the relative error over them.
template <typename T>
double SampledGemmError(const Buffer<T>& w, const Buffer<T>& x, const Buffer<__nv_bfloat16>& out, int m, int n, int k,
                        double scale, int samples, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> got, want;
  for (int s = 0; s < samples; ++s) {
    size_t row = s == 0 ? n - 1 : random() % n;
    size_t token = s < 2 ? m - 1 : random() % m;
    std::vector<T> w_row = w.Download(row * k, k);
    std::vector<T> x_row = x.Download(token * k, k);
    double sum = 0;
    for (int i = 0; i < k; ++i) sum += Decode(w_row[i]) * Decode(x_row[i]);
    want.push_back(sum * scale);
    got.push_back(Decode(out.Download(token * n + row, 1)[0]));
  }
  return RelativeError(got, want);
}

}  // namespace bench
