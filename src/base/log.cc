#include "base/log.h"

#include <spdlog/async.h>
#include <spdlog/sinks/stdout_color_sinks.h>

namespace ekiben {

Result<void> StartLogging(const std::string& level) {
  spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off")
    return Error(Code::kInvalid,
                 fmt::format("--log_level: '{}' is not one of trace, debug, info, warning, error, off", level),
                 "log_level");
  constexpr size_t kLinesQueuedMax = 8192;
  spdlog::init_thread_pool(kLinesQueuedMax, 1);
  auto logger =
      std::make_shared<spdlog::async_logger>("ekiben", std::make_shared<spdlog::sinks::stderr_color_sink_mt>(),
                                             spdlog::thread_pool(), spdlog::async_overflow_policy::overrun_oldest);
  logger->set_pattern("%Y-%m-%dT%H:%M:%S.%e %^%l%$ %v");
  logger->set_level(parsed);
  spdlog::set_default_logger(std::move(logger));
  return {};
}

void StopLogging() {
  // Kept until the writer is joined: it may still be formatting the last line with what the logger owns.
  std::shared_ptr<spdlog::logger> logger = spdlog::default_logger();
  spdlog::shutdown();
}

uint64_t LogLinesDropped() {
  auto pool = spdlog::thread_pool();
  return pool ? pool->overrun_counter() : 0;
}

}  // namespace ekiben
