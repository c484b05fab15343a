// What one load thread measured at one level; the threads' recorders are merged when the level ends.
//
// Definitions (docs/benchmarking.md repeats them for the reader of a report):
//   window    [ramp end, end]. A sample counts when the event that completes it lies inside the window.
//   TTFT      request fully sent -> first chunk that carries a sampled token; a role-only chunk carries none.
//   ITL       gap between two chunks that carry tokens. Per chunk: the gap. Per token: a chunk of k tokens counts
//             k times gap / k.
//   TPOT      (last token - first token) / (tokens - 1), one number a request.
//   e2e       request fully sent -> last chunk that carries a token.
//   tokens    differences of usage.completion_tokens where the server sends them with each chunk; else one a chunk with
//             text, corrected by the final usage.
// Thread: one writer.
#pragma once
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/histogram.h"
#include "load/transport.h"

namespace ekiben::load {

struct Recorder {
  Histogram ttft, itl_token, itl_chunk, tpot, e2e;        // nanoseconds
  Histogram connect, send_lag, read_lag;                  // nanoseconds; the client's own share
  int64_t output_tokens = 0, prompt_tokens = 0;           // in the window
  uint64_t started = 0, completed = 0;                    // in the window
  uint64_t completed_all = 0, failed_all = 0;             // over the whole level, ramp included
  uint64_t chunks = 0, chunks_multi = 0;                  // in the window, with tokens; of them with more than one
  uint64_t chunks_counted = 0;                            // in the window, whose token count the server said
  uint64_t output_mismatches = 0, prompt_mismatches = 0;  // whole level; completed with another length than asked
  uint64_t unchecked = 0;                                 // whole level; completed without a usage to check
  uint64_t cut_off = 0, cut_off_waiting = 0;              // in flight at the end; of them without a first token
  Nanos oldest_waiting{};                                 // the longest wait among cut_off_waiting
  uint64_t reconnects = 0;
  std::map<std::string, uint64_t> errors;   // by kind, whole level
  std::vector<std::string> error_messages;  // the first few distinct ones
  std::vector<uint32_t> tokens_by_second;   // of the window
  Nanos busy{};                             // CPU time of this thread in the window
  double busy_share_max = 0;                // of one thread; after Merge: the busiest's

  static constexpr size_t kMessagesMax = 8;
  void CountError(std::string kind, std::string_view message);
  void Merge(const Recorder& other);
};

// What happened since the last look, for the line printed every few seconds.
struct Interval {
  Histogram ttft, itl_chunk;
  int64_t output_tokens = 0;
  uint64_t completed = 0, failed = 0;
  void Merge(const Interval& other);
};

}  // namespace ekiben::load
