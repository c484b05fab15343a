// CHECK: a bug of ours. Always on; prints file, line, the condition and both values, then aborts, because to stop
// is better than to run wrong. What the outside world can cause is a Result (base/result.h), never a CHECK.
// DCHECK: the same in debug and sanitizer builds only, for conditions too hot to test in release.
#pragma once
#include <fmt/format.h>

#include <string>

namespace ekiben::internal {
[[noreturn]] void CheckFailed(const char* file, int line, const char* condition, const std::string& message);
}  // namespace ekiben::internal

#define CHECK(condition, ...)                                                                         \
  do {                                                                                                \
    if (!(condition)) [[unlikely]]                                                                    \
      ::ekiben::internal::CheckFailed(__FILE__, __LINE__, #condition, ::fmt::format("" __VA_ARGS__)); \
  } while (false)

#define CHECK_OP_(a, op, b)                                                           \
  do {                                                                                \
    auto&& check_a_ = (a);                                                            \
    auto&& check_b_ = (b);                                                            \
    if (!(check_a_ op check_b_)) [[unlikely]]                                         \
      ::ekiben::internal::CheckFailed(__FILE__, __LINE__, #a " " #op " " #b,          \
                                      ::fmt::format("{} vs {}", check_a_, check_b_)); \
  } while (false)
#define CHECK_EQ(a, b) CHECK_OP_(a, ==, b)
#define CHECK_NE(a, b) CHECK_OP_(a, !=, b)
#define CHECK_LE(a, b) CHECK_OP_(a, <=, b)
#define CHECK_LT(a, b) CHECK_OP_(a, <, b)
#define CHECK_GE(a, b) CHECK_OP_(a, >=, b)
#define CHECK_GT(a, b) CHECK_OP_(a, >, b)

#ifdef NDEBUG
#define DCHECK(condition, ...) \
  do {                         \
  } while (false && (condition))
#else
#define DCHECK(condition, ...) CHECK(condition, ##__VA_ARGS__)
#endif
