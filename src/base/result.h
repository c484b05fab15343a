// Value or Error, for failures that the outside world causes: a file, a request, a socket. A bug of ours is a
// CHECK (base/check.h), and "no capacity" is a field of a plan, so neither is an Error.
// Not std::expected: that needs C++23, where nvcc 13.0 stops at C++20. Names follow it for a later swap.
// Statement macros only: an expression macro leaked a sibling object inside brace initialisers on g++ and clang.
// Thread: plain values, as safe as T.
#pragma once
#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>

#include "base/check.h"

namespace ekiben {

// What a caller can do about it. api/ maps each code to one HTTP and one gRPC status, cli/ to an exit code.
enum class Code : uint8_t {
  kInvalid,      // the input is wrong: 400, exit 2
  kNotFound,     // no such model, file, route: 404, exit 2
  kUnsupported,  // well-formed but not offered here: 501 / 400, exit 2
  kOverloaded,   // a bounded queue is full: 429
  kCancelled,    // the client left or asked to stop: 499
  kDeadline,     // out of time: 504
  kUnavailable,  // draining, or the device is gone: 503
  kInternal,     // the world broke a promise that we cannot name better: 500, exit 1
};

std::string_view CodeName(Code code);

class [[nodiscard]] Error {
 public:
  Error(Code code, std::string message, std::string field = {})
      : code_(code), message_(std::move(message)), field_(std::move(field)) {}
  Code code() const { return code_; }
  // One line: what is wrong, the value, the limit, and what to do next.
  const std::string& message() const { return message_; }
  // The request parameter, option or file field at fault; empty when there is none.
  const std::string& field() const { return field_; }
  // The same error said from further up: "engine/config.json: <message>".
  Error Within(std::string_view where) && {
    message_ = std::string(where) + ": " + message_;
    return std::move(*this);
  }

 private:
  Code code_;
  std::string message_;
  std::string field_;
};

template <class T>
class [[nodiscard]] Result {
 public:
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-*): `return Error(...)`
  template <class U = T>
  requires(std::constructible_from<T, U> && !std::same_as<std::remove_cvref_t<U>, Result> &&
           !std::same_as<std::remove_cvref_t<U>, Error>) Result(U&& value)  // NOLINT(google-*,bugprone-*)
      : state_(std::in_place_index<0>, std::forward<U>(value)) {}

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& operator*() & {
    CHECK(ok(), "{}", error().message());
    return *std::get_if<0>(&state_);
  }
  const T& operator*() const& {
    CHECK(ok(), "{}", error().message());
    return *std::get_if<0>(&state_);
  }
  T&& operator*() && {
    CHECK(ok(), "{}", error().message());
    return std::move(*std::get_if<0>(&state_));
  }
  T* operator->() { return &**this; }
  const T* operator->() const { return &**this; }
  const Error& error() const& { return *std::get_if<1>(&state_); }
  Error&& error() && { return std::move(*std::get_if<1>(&state_)); }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::in_place_index<1>, std::move(error)) {}  // NOLINT(google-*): `return Error(...)`
  bool ok() const { return error_.index() == 0; }
  explicit operator bool() const { return ok(); }
  void operator*() const {}
  const Error& error() const& { return *std::get_if<1>(&error_); }
  Error&& error() && { return std::move(*std::get_if<1>(&error_)); }

 private:
  std::variant<std::monostate, Error> error_;
};

}  // namespace ekiben

#define RESULT_CAT_(a, b) a##b
#define RESULT_CAT(a, b) RESULT_CAT_(a, b)
#define ASSIGN_OR_RETURN_(tmp, lhs, ...) \
  auto tmp = (__VA_ARGS__);              \
  if (!tmp.ok()) [[unlikely]]            \
    return std::move(tmp).error();       \
  lhs = *std::move(tmp)
#define ASSIGN_OR_RETURN(lhs, ...) ASSIGN_OR_RETURN_(RESULT_CAT(result_, __COUNTER__), lhs, __VA_ARGS__)
#define RETURN_IF_ERROR(...)                            \
  do {                                                  \
    if (auto r_ = (__VA_ARGS__); !r_.ok()) [[unlikely]] \
      return std::move(r_).error();                     \
  } while (false)
