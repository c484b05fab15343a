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
// Lines that were dropped because the sink did not keep up.
uint64_t LogLinesDropped();

}  // namespace ekiben

#define LOG_DEBUG(...) SPDLOG_DEBUG(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARNING(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
