// An object of POSIX shared memory for the life of a test.
#pragma once
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>

#include "base/check.h"

namespace ekiben::kserve::testing {

class SharedObject {
 public:
  // `suffix` behind /ekiben_test_PID_.
  SharedObject(const std::string& suffix, size_t bytes) : key_(Prefix() + suffix) {
    fd_ = ::shm_open(key_.c_str(), O_CREAT | O_RDWR | O_TRUNC, 0600);
    CHECK(fd_ >= 0, "shm_open {}", key_);
    Resize(bytes);
  }
  ~SharedObject() {
    ::close(fd_);
    ::shm_unlink(key_.c_str());
  }
  SharedObject(const SharedObject&) = delete;
  SharedObject& operator=(const SharedObject&) = delete;

  static std::string Prefix() { return "/ekiben_test_" + std::to_string(::getpid()) + "_"; }
  const std::string& key() const { return key_; }
  void Resize(size_t bytes) { CHECK_EQ(::ftruncate(fd_, static_cast<off_t>(bytes)), 0); }
  void Put(size_t offset, std::string_view bytes) {
    CHECK_EQ(::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
  }
  std::string Take(size_t offset, size_t bytes) const {
    std::string out(bytes, '?');
    CHECK_EQ(::pread(fd_, out.data(), bytes, static_cast<off_t>(offset)), static_cast<ssize_t>(bytes));
    return out;
  }

 private:
  const std::string key_;
  int fd_ = -1;
};

}  // namespace ekiben::kserve::testing
