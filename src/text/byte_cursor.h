// The front of a file in memory, taken piece by piece. Taking more than is left gives nothing and sets bad(), and so
// does everything after it: a parser checks once, at its end.
#pragma once
#include <cstdint>
#include <string_view>

namespace ekiben::text {

class ByteCursor {
 public:
  explicit ByteCursor(std::string_view bytes) : left_(bytes) {}
  bool bad() const { return bad_; }
  void SetBad() { bad_ = true; }
  size_t left() const { return left_.size(); }

  std::string_view Take(uint64_t count) {
    if (bad_ || count > left_.size()) {
      bad_ = true;
      return {};
    }
    std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }

 private:
  std::string_view left_;
  bool bad_ = false;
};

}  // namespace ekiben::text
