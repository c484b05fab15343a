#include "base/log.h"

#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <array>
#include <atomic>
#include <mutex>

namespace ekiben {
namespace {

constexpr const char* kPattern = "%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v";
constexpr const char* kIso8601Pattern = "%Y-%m-%dT%H:%M:%S%z %^%l%$ %v";

std::mutex settings_mutex;
LogSettings current_settings;  // under settings_mutex

// Leaves out the kinds of line that are switched off one by one, which a level cannot say.
class SelectingSink final : public spdlog::sinks::stderr_color_sink_mt {
 public:
  void log(const spdlog::details::log_msg& line) override {
    if (!off_[static_cast<size_t>(line.level)].load(std::memory_order_relaxed))
      spdlog::sinks::stderr_color_sink_mt::log(line);
  }
  void Select(spdlog::level::level_enum level, bool on) {
    off_[static_cast<size_t>(level)].store(!on, std::memory_order_relaxed);
  }

 private:
  std::array<std::atomic<bool>, spdlog::level::n_levels> off_{};
};

}  // namespace

Result<void> StartLogging(const std::string& level) {
  spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off")
    return Error(Code::kInvalid,
                 fmt::format("--log_level: '{}' is not one of trace, debug, info, warning, error, off", level),
                 "log_level");
  constexpr size_t kLinesQueuedMax = 8192;
  spdlog::init_thread_pool(kLinesQueuedMax, 1);
  auto logger =
      std::make_shared<spdlog::async_logger>("ekiben", std::make_shared<SelectingSink>(), spdlog::thread_pool(),
                                             spdlog::async_overflow_policy::overrun_oldest);
  logger->set_pattern(kPattern);
  logger->set_level(parsed);
  {
    std::lock_guard lock(settings_mutex);
    current_settings = {.info = parsed <= spdlog::level::info,
                        .warning = parsed <= spdlog::level::warn,
                        .error = parsed <= spdlog::level::err,
                        .verbose_level = parsed <= spdlog::level::debug ? 1u : 0u};
  }
  spdlog::set_default_logger(std::move(logger));
  return {};
}

void StopLogging() {
  // Kept until the writer is joined: it may still be formatting the last line with what the logger owns.
  std::shared_ptr<spdlog::logger> logger = spdlog::default_logger();
  spdlog::shutdown();
}

LogSettings CurrentLogSettings() {
  std::lock_guard lock(settings_mutex);
  return current_settings;
}

Result<void> ChangeLogSettings(const LogSettings& settings) {
  if (settings.format != "default" && settings.format != "ISO8601")
    return Error(Code::kInvalid, fmt::format("log_format: '{}' is not default or ISO8601", settings.format),
                 "log_format");
  std::lock_guard lock(settings_mutex);
  auto logger = spdlog::default_logger();
  auto* sink = logger->sinks().empty() ? nullptr : dynamic_cast<SelectingSink*>(logger->sinks().front().get());
  if (sink == nullptr) return Error(Code::kUnavailable, "the log is not started");
  sink->Select(spdlog::level::info, settings.info);
  sink->Select(spdlog::level::warn, settings.warning);
  sink->Select(spdlog::level::err, settings.error);
  // What passes the sink's selection must pass the logger first.
  logger->set_level(settings.verbose_level > 0 ? spdlog::level::debug : spdlog::level::info);
  logger->set_pattern(settings.format == "ISO8601" ? kIso8601Pattern : kPattern);
  current_settings = settings;
  return {};
}

uint64_t LogLinesDropped() {
  auto pool = spdlog::thread_pool();
  return pool ? pool->overrun_counter() : 0;
}

}  // namespace ekiben
