#include "load/recorder.h"

#include <algorithm>

namespace ekiben::load {

void Recorder::CountError(std::string kind, std::string_view message) {
  ++failed_all;
  ++errors[kind];
  if (error_messages.size() >= kMessagesMax) return;
  std::string line = std::move(kind) + ": " + std::string(message.substr(0, 200));
  if (std::find(error_messages.begin(), error_messages.end(), line) == error_messages.end()) {
    error_messages.push_back(std::move(line));
  }
}

void Recorder::Merge(const Recorder& other) {
  ttft.Merge(other.ttft);
  itl_token.Merge(other.itl_token);
  itl_chunk.Merge(other.itl_chunk);
  tpot.Merge(other.tpot);
  e2e.Merge(other.e2e);
  connect.Merge(other.connect);
  send_lag.Merge(other.send_lag);
  read_lag.Merge(other.read_lag);
  output_tokens += other.output_tokens;
  prompt_tokens += other.prompt_tokens;
  started += other.started;
  completed += other.completed;
  completed_all += other.completed_all;
  failed_all += other.failed_all;
  chunks += other.chunks;
  chunks_multi += other.chunks_multi;
  chunks_counted += other.chunks_counted;
  output_mismatches += other.output_mismatches;
  prompt_mismatches += other.prompt_mismatches;
  unchecked += other.unchecked;
  cut_off += other.cut_off;
  cut_off_waiting += other.cut_off_waiting;
  oldest_waiting = std::max(oldest_waiting, other.oldest_waiting);
  reconnects += other.reconnects;
  for (const auto& [kind, count] : other.errors) errors[kind] += count;
  for (const std::string& message : other.error_messages) {
    bool known = std::find(error_messages.begin(), error_messages.end(), message) != error_messages.end();
    if (!known && error_messages.size() < kMessagesMax) error_messages.push_back(message);
  }
  tokens_by_second.resize(std::max(tokens_by_second.size(), other.tokens_by_second.size()));
  for (size_t i = 0; i < other.tokens_by_second.size(); ++i) tokens_by_second[i] += other.tokens_by_second[i];
  busy += other.busy;
  busy_share_max = std::max(busy_share_max, other.busy_share_max);
}

void Interval::Merge(const Interval& other) {
  ttft.Merge(other.ttft);
  itl_chunk.Merge(other.itl_chunk);
  output_tokens += other.output_tokens;
  completed += other.completed;
  failed += other.failed;
}

}  // namespace ekiben::load
