// Log lines, over spdlog: asynchronous, and a blocked sink drops lines (counted) rather than blocking a thread.
// Prompts and generated text are never logged unless the user asked for it.
#pragma once
#include <spdlog/spdlog.h>

#include <cstdint>
#include <string>

#include "base/result.h"

namespace ekiben {

// Call once from main. `level`: trace, debug, info, warning, error, off. Lines go to stderr.
Result<void> StartLogging(const std::string& level);
// Flushes and joins the writer.
void StopLogging();
// What may change while the program runs, as Triton's logging settings name it: which kinds of line are written, and
// how their time looks. Verbose lines are our debug lines.
struct LogSettings {
  bool info = true, warning = true, error = true;
  uint32_t verbose_level = 0;      // > 0: debug lines too
  std::string format = "default";  // or "ISO8601", with the zone
};
LogSettings CurrentLogSettings();
Result<void> ChangeLogSettings(const LogSettings& settings);
// Lines that were dropped because the sink did not keep up.
uint64_t LogLinesDropped();

}  // namespace ekiben

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARNING(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
