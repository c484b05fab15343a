// Records every kernel and copy that a CUDA program runs, graphs' kernels too, through CUPTI: a shared library that the
// driver loads by itself.
//
//   g++ -O2 -shared -fPIC -I$CUDA/include kernel_trace.cc -o kernel_trace.so -L$CUDA/lib64 -lcupti
//   CUDA_INJECTION64_PATH=$PWD/kernel_trace.so KERNEL_TRACE=trace.csv PROGRAM...
//
// Writes lines "start_ns,end_ns,name" at exit, the last KERNEL_TRACE_MAX (400,000) of them, in order of their start.
// tables of it: step_timeline.py. Tracing costs a launch about a microsecond on the host; times are the device's own.
#include <cupti.h>
#include <cxxabi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

struct Span {
  uint64_t start, end;
  const std::string* name;
};

std::mutex mutex;
std::deque<Span> spans;
std::unordered_map<std::string, std::string> names;  // mangled to short
size_t spans_max = 400000;
uint64_t lost = 0;

// Of "void space::Kernel<1, 2>(int)": Kernel<1, 2>.
std::string Short(const char* mangled) {
  int status = 0;
  char* text = abi::__cxa_demangle(mangled, nullptr, nullptr, &status);
  std::string name = status == 0 && text != nullptr ? text : mangled;
  std::free(text);
  size_t begin = 0, depth = 0, end = name.size();
  for (size_t i = 0; i < name.size(); ++i) {
    char c = name[i];
    if (c == '<') ++depth;
    if (c == '>') --depth;
    if (depth > 0) continue;
    if (c == '(' && name.compare(i, 11, "(anonymous ") != 0) {
      end = i;
      break;
    }
    if (c == ' ' || c == ':') begin = i + 1;
  }
  std::string out = name.substr(begin, end - begin);
  std::replace(out.begin(), out.end(), ',', ';');
  return out;
}

void Keep(uint64_t start, uint64_t end, const char* name) {
  auto found = names.find(name);
  if (found == names.end()) found = names.emplace(name, Short(name)).first;
  spans.push_back({start, end, &found->second});
  if (spans.size() > spans_max) spans.pop_front();
}

void CUPTIAPI BufferWanted(uint8_t** buffer, size_t* size, size_t* records_max) {
  *size = size_t{8} << 20;
  *buffer = static_cast<uint8_t*>(std::aligned_alloc(64, *size));
  *records_max = 0;
}

void CUPTIAPI BufferDone(CUcontext, uint32_t, uint8_t* buffer, size_t, size_t valid) {
  std::lock_guard lock(mutex);
  CUpti_Activity* record = nullptr;
  while (valid > 0 && cuptiActivityGetNextRecord(buffer, valid, &record) == CUPTI_SUCCESS) {
    if (record->kind == CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL) {
      auto* kernel = reinterpret_cast<CUpti_ActivityKernel10*>(record);
      Keep(kernel->start, kernel->end, kernel->name);
    } else if (record->kind == CUPTI_ACTIVITY_KIND_MEMCPY) {
      auto* copy = reinterpret_cast<CUpti_ActivityMemcpy6*>(record);
      Keep(copy->start, copy->end, copy->copyKind == CUPTI_ACTIVITY_MEMCPY_KIND_HTOD ? "copy in" : "copy out");
    }
  }
  size_t dropped = 0;
  if (cuptiActivityGetNumDroppedRecords(nullptr, 0, &dropped) == CUPTI_SUCCESS) lost += dropped;
  std::free(buffer);
}

void Write() {
  cuptiActivityFlushAll(CUPTI_ACTIVITY_FLAG_FLUSH_FORCED);
  std::lock_guard lock(mutex);
  const char* path = std::getenv("KERNEL_TRACE");
  FILE* out = std::fopen(path == nullptr ? "trace.csv" : path, "w");
  if (out == nullptr) return;
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.start < b.start; });
  const uint64_t zero = spans.empty() ? 0 : spans.front().start;
  for (const Span& s : spans)
    std::fprintf(out, "%llu,%llu,%s\n", static_cast<unsigned long long>(s.start - zero),
                 static_cast<unsigned long long>(s.end - zero), s.name->c_str());
  std::fclose(out);
  if (lost > 0) std::fprintf(stderr, "kernel_trace: %llu records lost\n", static_cast<unsigned long long>(lost));
}

}  // namespace

// The driver calls it before the program's first CUDA call.
extern "C" int InitializeInjection() {
  if (const char* most = std::getenv("KERNEL_TRACE_MAX")) spans_max = std::strtoull(most, nullptr, 10);
  cuptiActivityRegisterCallbacks(BufferWanted, BufferDone);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL);
  cuptiActivityEnable(CUPTI_ACTIVITY_KIND_MEMCPY);
  std::atexit(Write);
  return 1;
}
