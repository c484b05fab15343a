// System shared memory (Triton's extension): regions that clients on this machine made, and tensors that are read from
// them and written into them in the place of a message's bytes.
//
// Off unless a key prefix is given: whoever may register any key may read and change the memory of every process that
// runs under the server's user. Regions are the server's, not a client's: who may infer may name each of them.
// A region is read and written through its file descriptor and never mapped: its owner may shrink it at any moment,
// which is a short read here and would be SIGBUS in a mapping. Tensors are copied either way.
// Errors: worded as Triton's; kNotFound names the region that was asked for, never another. Thread: any.
#pragma once
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "kserve/inference.h"
#include "kserve/tensor.h"

namespace ekiben::kserve {

class SharedMemory {
 public:
  // Of the object `key`, the bytes from `offset` on.
  struct Region {
    std::string name, key;
    uint64_t offset = 0, byte_size = 0;
  };
  static constexpr size_t kRegionsMax = 256;
  static constexpr uint64_t kReadBytesMax = uint64_t{64} << 20;  // of one request

  // Keys must start with it; empty: nothing may be registered.
  explicit SharedMemory(std::string key_prefix);

  bool offered() const { return !key_prefix_.empty(); }
  Result<void> Register(const Region& region);
  // Empty: all. One that is not there is fine, as Triton has it. What reads or writes it at that moment ends well.
  void Unregister(const std::string& name);
  // Empty: all.
  Result<std::vector<Region>> Status(const std::string& name) const;

  // The bytes of the tensors that name a region, in their place. `tensors` together at most kReadBytesMax.
  Result<void> Fill(std::vector<Tensor>& tensors) const;
  // That `span` lies in a region.
  Result<void> Check(const RegionSpan& span) const;
  // Moves a tensor's bytes into `span`, whose byte_size becomes what was written.
  Result<void> Store(RegionSpan span, Tensor& tensor) const;

 private:
  struct Opened;
  Result<std::shared_ptr<const Opened>> Find(const RegionSpan& span) const;

  std::string key_prefix_;
  mutable std::mutex mutex_;
  std::map<std::string, std::shared_ptr<const Opened>> regions_;
};

}  // namespace ekiben::kserve
