#include "kserve/tracer.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

namespace ekiben::kserve {
namespace {

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}

Result<int64_t> Number(const Tracer::Settings& settings, const std::string& name, int64_t low) {
  const std::string& text = settings.at(name).front();
  int64_t value = 0;
  auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size() || value < low)
    return Invalid(name, fmt::format("'{}' is no whole number from {} on", text.substr(0, 100), low));
  return value;
}

json::array Timestamps(const StageTimes& times) {
  json::array out;
  auto add = [&](const char* name, Nanos at) { out.push_back(json::object{{"name", name}, {"ns", at.count()}}); };
  add("REQUEST_START", times.arrival);
  add("QUEUE_START", times.arrival);
  add("COMPUTE_START", times.taken);
  add("COMPUTE_INPUT_END", times.submitted);
  add("COMPUTE_OUTPUT_START", times.last_token);
  add("COMPUTE_END", times.end);
  add("REQUEST_END", times.end);
  return out;
}

}  // namespace

Result<Tracer::Settings> Tracer::Change(const Settings& changes) {
  std::lock_guard lock(mutex_);
  Settings wanted = settings_;
  const Settings defaults = Tracer().settings_;
  for (const auto& [name, values] : changes) {
    if (!wanted.contains(name)) return Invalid(name, "is no trace setting");
    if (values.size() > 8) return Invalid(name, "over 8 values");
    wanted[name] = values.empty() ? defaults.at(name) : values;
  }
  if (!changes.empty()) RETURN_IF_ERROR(Apply(wanted));
  settings_ = wanted;
  return wanted;
}

Result<void> Tracer::Apply(const Settings& wanted) {
  const std::vector<std::string>& levels = wanted.at("trace_level");
  for (const std::string& level : levels) {
    if (level == "TENSORS")
      return Error(Code::kUnsupported, "trace_level: TENSORS would write people's prompts; TIMESTAMPS is offered",
                   "trace_level");
    if (level != "OFF" && level != "TIMESTAMPS")
      return Invalid("trace_level", fmt::format("'{}' is not OFF or TIMESTAMPS", level.substr(0, 100)));
  }
  if (wanted.at("trace_mode").front() != "triton")
    return Error(Code::kUnsupported, "trace_mode: 'triton' is offered", "trace_mode");
  ASSIGN_OR_RETURN(int64_t rate, Number(wanted, "trace_rate", 1));
  ASSIGN_OR_RETURN(int64_t count, Number(wanted, "trace_count", -1));
  ASSIGN_OR_RETURN(int64_t frequency, Number(wanted, "log_frequency", 0));
  if (frequency != 0)
    return Error(Code::kUnsupported, "log_frequency: one file holds all traces; send 0", "log_frequency");
  bool on = std::find(levels.begin(), levels.end(), "TIMESTAMPS") != levels.end();
  const std::string& path = wanted.at("trace_file").front();
  if (on && path.empty()) return Invalid("trace_file", "empty; name a file for trace_level TIMESTAMPS");
  if (on && (file_ == nullptr || path != settings_.at("trace_file").front())) {
    std::unique_ptr<std::FILE, CloseFile> file(std::fopen(path.c_str(), "w"));
    if (file == nullptr) return Invalid("trace_file", fmt::format("'{}' cannot be written", path));
    file_ = std::move(file);
    written_ = 0;
  }
  if (!on) file_.reset();
  on_ = on;
  rate_ = rate;
  left_ = count;
  return {};
}

void Tracer::Record(const std::string& model, const std::string& request_id, const StageTimes& times) {
  std::lock_guard lock(mutex_);
  if (!on_ || left_ == 0 || seen_++ % static_cast<uint64_t>(rate_) != 0) return;
  if (left_ > 0) --left_;
  json::object head = {{"id", written_ + 1}, {"model_name", model}, {"model_version", 1}, {"request_id", request_id}};
  json::object body = {{"id", written_ + 1}, {"timestamps", Timestamps(times)}};
  std::string entry = written_ == 0 ? "[" : ",";
  entry += json::serialize(head) + "," + json::serialize(body) + "]";
  if (written_ > 0) std::fseek(file_.get(), -1, SEEK_CUR);  // over the array's end
  std::fwrite(entry.data(), 1, entry.size(), file_.get());
  std::fflush(file_.get());
  ++written_;
}

}  // namespace ekiben::kserve
