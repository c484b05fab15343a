#include "kserve/shared_memory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/arithmetic.h"

namespace ekiben::kserve {
namespace {

constexpr size_t kNameBytesMax = 255;

Error Invalid(const std::string& field, std::string message) {
  return Error(Code::kInvalid, std::move(message), field);
}

// The bytes of the object now, or -1. Only plain files have any: a key cannot lead to a device.
int64_t BytesOf(int fd) {
  struct stat facts {};
  if (::fstat(fd, &facts) != 0 || !S_ISREG(facts.st_mode)) return -1;
  return facts.st_size;
}

Result<void> CheckWords(const SharedMemory::Region& region) {
  if (region.name.empty() || region.name.size() > kNameBytesMax)
    return Invalid("name", fmt::format("shared memory region name: {} bytes, 1 to {} are wanted", region.name.size(),
                                       kNameBytesMax));
  // A slash first, as the key of shm_open has it, and no other: it stays in the machine's one folder.
  const std::string& key = region.key;
  bool one_slash = key.size() > 1 && key[0] == '/' && key.find('/', 1) == std::string::npos && key[1] != '.';
  if (!one_slash || key.size() > kNameBytesMax || key.find('\0') != std::string::npos)
    return Invalid("key", fmt::format("key of shared memory region '{}': a name of 1 to {} bytes behind one slash is "
                                      "wanted, such as /input",
                                      region.name, kNameBytesMax - 1));
  if (region.byte_size == 0)
    return Invalid("byte_size", fmt::format("byte_size of shared memory region '{}': must be over 0", region.name));
  return {};
}

Result<uint64_t> SizeOf(std::string_view what, const std::string& tensor, const std::string& name,
                        const ParameterValue& value) {
  const auto* whole = std::get_if<int64_t>(&value);
  const auto* unsigned_whole = std::get_if<uint64_t>(&value);
  if (unsigned_whole != nullptr) return *unsigned_whole;
  if (whole != nullptr && *whole >= 0) return static_cast<uint64_t>(*whole);
  return Invalid(name, fmt::format("{} '{}': {} wants a whole number from 0 on", what, tensor, name));
}

}  // namespace

Result<std::optional<RegionSpan>> RegionSpanOf(std::string_view what, const std::string& tensor,
                                               const Parameters& parameters) {
  auto region = parameters.find("shared_memory_region");
  if (region == parameters.end()) {
    for (const char* alone : {"shared_memory_byte_size", "shared_memory_offset"})
      if (parameters.contains(alone))
        return Invalid(alone, fmt::format("{} '{}': {} without shared_memory_region", what, tensor, alone));
    return std::optional<RegionSpan>();
  }
  RegionSpan out;
  const auto* name = std::get_if<std::string>(&region->second);
  if (name == nullptr)
    return Invalid("shared_memory_region", fmt::format("{} '{}': shared_memory_region wants a string", what, tensor));
  out.region = *name;
  auto size = parameters.find("shared_memory_byte_size"), offset = parameters.find("shared_memory_offset");
  if (size == parameters.end())
    return Invalid("shared_memory_byte_size",
                   fmt::format("{} '{}': 'shared_memory_byte_size' must be specified along with "
                               "'shared_memory_region'",
                               what, tensor));
  ASSIGN_OR_RETURN(out.byte_size, SizeOf(what, tensor, size->first, size->second));
  if (offset != parameters.end()) {
    ASSIGN_OR_RETURN(out.offset, SizeOf(what, tensor, offset->first, offset->second));
  }
  return std::optional<RegionSpan>(std::move(out));
}

struct SharedMemory::Opened {
  Opened(Region r, int f) : region(std::move(r)), fd(f) {}
  ~Opened() { ::close(fd); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;

  Error CutShort() const {
    return Error(Code::kInternal,
                 fmt::format("shared memory region '{}' has become shorter than it was registered; register it again",
                             region.name));
  }

  const Region region;
  const int fd;
};

SharedMemory::SharedMemory(std::string key_prefix) : key_prefix_(std::move(key_prefix)) {
  if (!key_prefix_.empty() && key_prefix_[0] != '/') key_prefix_.insert(0, "/");  // as every key
}

Result<void> SharedMemory::Register(const Region& region) {
  if (!offered())
    return Error(Code::kUnsupported,
                 "system shared memory is not offered; start with --shared_memory_prefix, or send the data");
  RETURN_IF_ERROR(CheckWords(region));
  if (!region.key.starts_with(key_prefix_))
    return Invalid("key", fmt::format("key '{}': only keys that start with '{}' may be registered "
                                      "(--shared_memory_prefix)",
                                      region.key, key_prefix_));
  int fd = ::shm_open(region.key.c_str(), O_RDWR, 0);
  if (fd < 0) return Invalid("key", fmt::format("Unable to open shared memory region: '{}'", region.key));
  auto opened = std::make_shared<const Opened>(region, fd);
  auto end = CheckedAdd(region.offset, region.byte_size);
  if (!end || std::cmp_greater(*end, std::max<int64_t>(BytesOf(fd), 0)))
    return Invalid("byte_size",
                   fmt::format("failed to register shared memory region '{}': offset {} and byte_size {} are beyond "
                               "the end of '{}'",
                               region.name, region.offset, region.byte_size, region.key));
  std::lock_guard lock(mutex_);
  if (regions_.contains(region.name))
    return Invalid("name", fmt::format("shared memory region '{}' already in manager", region.name));
  if (regions_.size() >= kRegionsMax)
    return Error(Code::kOverloaded,
                 fmt::format("{} shared memory regions are registered; unregister one", regions_.size()));
  regions_.emplace(region.name, std::move(opened));
  return {};
}

void SharedMemory::Unregister(const std::string& name) {
  std::lock_guard lock(mutex_);
  if (name.empty())
    regions_.clear();
  else
    regions_.erase(name);
}

Result<std::vector<SharedMemory::Region>> SharedMemory::Status(const std::string& name) const {
  std::lock_guard lock(mutex_);
  std::vector<Region> out;
  for (const auto& [own, opened] : regions_)
    if (name.empty() || own == name) out.push_back(opened->region);
  if (out.empty() && !name.empty())
    return Error(Code::kNotFound, fmt::format("Unable to find system shared memory region: '{}'", name.substr(0, 200)));
  return out;
}

Result<std::shared_ptr<const SharedMemory::Opened>> SharedMemory::Find(const RegionSpan& span) const {
  if (!offered())
    return Error(Code::kUnsupported,
                 "shared memory is not offered; start with --shared_memory_prefix, or send the data",
                 "shared_memory_region");
  std::shared_ptr<const Opened> found;
  {
    std::lock_guard lock(mutex_);
    auto at = regions_.find(span.region);
    if (at != regions_.end()) found = at->second;
  }
  if (found == nullptr)
    return Error(Code::kNotFound, fmt::format("Unable to find shared memory region: '{}'", span.region.substr(0, 200)),
                 "shared_memory_region");
  auto end = CheckedAdd(span.offset, span.byte_size);
  if (!end || *end > found->region.byte_size)
    return Invalid("shared_memory_byte_size",
                   fmt::format("Invalid offset + byte size for shared memory region: '{}': {} and {} of {} bytes",
                               span.region, span.offset, span.byte_size, found->region.byte_size));
  return found;
}

Result<void> SharedMemory::Check(const RegionSpan& span) const {
  ASSIGN_OR_RETURN(auto found, Find(span));
  return {};
}

Result<void> SharedMemory::Fill(std::vector<Tensor>& tensors) const {
  uint64_t left = kReadBytesMax;
  for (Tensor& tensor : tensors) {
    if (!tensor.region) continue;
    const RegionSpan& span = *tensor.region;
    ASSIGN_OR_RETURN(auto found, Find(span));
    if (span.byte_size > left)
      return Invalid(tensor.name, fmt::format("input '{}': over {} bytes of shared memory in one request", tensor.name,
                                              kReadBytesMax));
    left -= span.byte_size;
    tensor.data.resize(span.byte_size);
    // What a tensor holds fits one call: it is under 2 GiB, and tmpfs does not read half.
    auto at = static_cast<off_t>(found->region.offset + span.offset);
    if (!std::cmp_equal(::pread(found->fd, tensor.data.data(), span.byte_size, at), span.byte_size))
      return found->CutShort();
    tensor.region.reset();
  }
  return {};
}

Result<void> SharedMemory::Store(RegionSpan span, Tensor& tensor) const {
  ASSIGN_OR_RETURN(auto found, Find(span));
  const uint64_t bytes = tensor.data.size();
  if (bytes > span.byte_size)
    return Invalid("shared_memory_byte_size",
                   fmt::format("shared memory size specified with the request for output '{}' ({} bytes) should be at "
                               "least {} bytes to hold the results",
                               tensor.name, span.byte_size, bytes));
  uint64_t at = found->region.offset + span.offset;
  if (std::cmp_less(std::max<int64_t>(BytesOf(found->fd), 0), at + bytes)) return found->CutShort();
  for (uint64_t done = 0; done < bytes;) {
    ssize_t wrote = ::pwrite(found->fd, tensor.data.data() + done, bytes - done, static_cast<off_t>(at + done));
    if (wrote <= 0) return found->CutShort();
    done += static_cast<uint64_t>(wrote);
  }
  span.byte_size = bytes;
  tensor.region = std::move(span);
  tensor.data.clear();
  return {};
}

}  // namespace ekiben::kserve
