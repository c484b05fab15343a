#include "compile/engine_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

#include "base/arithmetic.h"
#include "base/json.h"
#include "compile/engine.h"

namespace ekiben {
namespace {

constexpr std::string_view kMagic = "EKIBENG1";
constexpr size_t kPrefixBytes = 16;
constexpr size_t kHeaderBytesMax = size_t{256} << 20;

std::string_view KindName(PackRule::Kind kind) {
  switch (kind) {
    case PackRule::Kind::kLinear: return "linear";
    case PackRule::Kind::kVector: return "vector";
    case PackRule::Kind::kEmbedding: return "embedding";
  }
  return "";
}

Result<PackRule::Kind> KindOf(std::string_view name) {
  for (auto kind : {PackRule::Kind::kLinear, PackRule::Kind::kVector, PackRule::Kind::kEmbedding})
    if (KindName(kind) == name) return kind;
  return Error(Code::kUnsupported, fmt::format("tensor kind '{}' is unknown to this version", name), "kind");
}

Result<DType> DTypeOf(std::string_view name) {
  for (int i = 0; i <= static_cast<int>(DType::kQ6_K); ++i)
    if (Name(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  return Error(Code::kUnsupported, fmt::format("dtype '{}' is unknown to this version", name), "dtype");
}

json::object Describe(const EngineTensor& tensor, size_t offset) {
  json::object entry{{"name", tensor.name}, {"kind", KindName(tensor.kind)}};
  if (tensor.kind == PackRule::Kind::kLinear) {
    entry["packing"] = Name(tensor.packing);
    if (tensor.keeps_bf16) entry["keeps_bf16"] = true;
  } else {
    entry["dtype"] = Name(tensor.dtype);
  }
  entry["rows"] = tensor.rows;
  entry["columns"] = tensor.columns;
  entry["offset"] = offset;
  entry["bytes"] = tensor.bytes;
  return entry;
}

class Writer final : public EngineFileWriter {
 public:
  Writer(std::filesystem::path path, int file, std::vector<EngineTensor> tensors, ThreadPool& pool)
      : path_(std::move(path)), file_(file), tensors_(std::move(tensors)), pool_(pool) {
    json::array entries;
    size_t end = 0;
    for (const EngineTensor& tensor : tensors_) {
      offsets_.push_back(RoundUp(end, kEngineAlignment));
      end = offsets_.back() + tensor.bytes;
      entries.push_back(Describe(tensor, offsets_.back()));
    }
    header_["tensors"] = std::move(entries);
    header_["chunk_bytes"] = kEngineChunkBytes;
    header_["data_bytes"] = end;
    // Digests are all of one length, so the header's is known before they are.
    digests_.resize(CeilDiv(end, kEngineChunkBytes), std::string(2 * sizeof(Digest), '0'));
    data_begin_ = RoundUp(kPrefixBytes + HeaderText().size(), kEngineAlignment);
  }
  ~Writer() override { ::close(file_); }

  Result<void> Add(std::span<const std::byte> data) override {
    CHECK_LT(next_, tensors_.size());
    CHECK_EQ(data.size(), tensors_[next_].bytes);
    const size_t offset = offsets_[next_++];
    Hash(std::vector<std::byte>(offset - hashed_));  // the zeros between
    // Pieces end where chunks do: each is hashed and written by one thread.
    std::vector<std::span<const std::byte>> pieces;
    for (size_t at = 0; at < data.size(); at += pieces.back().size()) {
      size_t room = kEngineChunkBytes - (offset + at) % kEngineChunkBytes;
      pieces.push_back(data.subspan(at, std::min(room, data.size() - at)));
    }
    std::vector<int> errors(pieces.size(), 0);
    Sha256 last;
    pool_.ParallelFor(std::ssize(pieces), 1, [&](int64_t i, int64_t, int) {
      auto piece = static_cast<size_t>(i);
      errors[piece] =
          Write(pieces[piece], data_begin_ + offset + static_cast<size_t>(pieces[piece].data() - data.data()));
      if (piece == 0) {
        Hash(pieces[0]);
      } else if (pieces[piece].size() == kEngineChunkBytes) {
        digests_[ChunkOf(offset, data, pieces[piece])] = Hex(Sha256Of(pieces[piece]));
      } else {
        last.Update(pieces[piece]);
      }
    });
    if (pieces.size() > 1) {
      hashed_ = offset + data.size();
      hash_ = std::move(last);
    }
    for (int error : errors)
      if (error != 0) return Failed(error);
    return {};
  }

  Result<std::string> Finish() override {
    CHECK_EQ(next_, tensors_.size());
    if (hashed_ % kEngineChunkBytes != 0) digests_.back() = Hex(hash_.Finish());
    std::string text = HeaderText();
    CHECK_EQ(RoundUp(kPrefixBytes + text.size(), kEngineAlignment), data_begin_);
    uint64_t length = text.size();
    std::string begin(kMagic);
    begin.append(reinterpret_cast<const char*>(&length), sizeof length);
    begin += text;
    begin.resize(data_begin_);
    if (int error = Write(std::as_bytes(std::span(begin)), 0); error != 0) return Failed(error);
    return Hex(Sha256Of(std::as_bytes(std::span(text))));
  }

 private:
  static size_t ChunkOf(size_t offset, std::span<const std::byte> data, std::span<const std::byte> piece) {
    return (offset + static_cast<size_t>(piece.data() - data.data())) / kEngineChunkBytes;
  }
  std::string HeaderText() {
    header_["chunks_sha256"] = json::array(digests_.begin(), digests_.end());
    return json::serialize(header_);
  }
  // Goes on with the chunk that `hash_` is in; at most to its end.
  void Hash(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      size_t take = std::min(bytes.size(), kEngineChunkBytes - hashed_ % kEngineChunkBytes);
      hash_.Update(bytes.first(take));
      bytes = bytes.subspan(take);
      hashed_ += take;
      if (hashed_ % kEngineChunkBytes != 0) continue;
      digests_[hashed_ / kEngineChunkBytes - 1] = Hex(hash_.Finish());
      hash_ = Sha256();
    }
  }
  // An errno, or 0.
  int Write(std::span<const std::byte> bytes, size_t at) const {
    while (!bytes.empty()) {
      ssize_t n = ::pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(at));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return n < 0 ? errno : EIO;
      bytes = bytes.subspan(static_cast<size_t>(n));
      at += static_cast<size_t>(n);
    }
    return 0;
  }
  Error Failed(int error) const {
    return Error(Code::kInternal, fmt::format("{}: write failed: {}", path_.string(), std::strerror(error)));
  }

  std::filesystem::path path_;
  int file_;
  std::vector<EngineTensor> tensors_;
  ThreadPool& pool_;
  std::vector<size_t> offsets_;
  json::object header_;
  std::vector<std::string> digests_;
  Sha256 hash_;  // of the chunk that byte hashed_ is in, up to there
  size_t data_begin_ = 0, next_ = 0, hashed_ = 0;
};

// Compares every chunk with its digest, on all cores: SHA-256 runs at about 2 GB/s a core, reading is the limit.
Result<void> VerifyChunks(const MappedFile& file, std::span<const std::byte> data, const json::array& digests) {
  std::vector<char> wrong(digests.size(), 0);
  size_t workers = std::min<size_t>(std::max(1u, std::thread::hardware_concurrency()), digests.size());
  std::vector<std::jthread> threads;
  for (size_t worker = 0; worker < workers; ++worker)
    threads.emplace_back([&, worker] {
      for (size_t chunk = worker; chunk < digests.size(); chunk += workers) {
        size_t begin = chunk * kEngineChunkBytes;
        auto bytes = data.subspan(begin, std::min(kEngineChunkBytes, data.size() - begin));
        wrong[chunk] = Hex(Sha256Of(bytes)) != digests[chunk].get_string();
      }
    });
  threads.clear();
  for (size_t chunk = 0; chunk < wrong.size(); ++chunk)
    if (wrong[chunk])
      return Error(
          Code::kInvalid,
          fmt::format("{}: the 16 MiB from byte {} of its data do not match their SHA-256: the file is damaged; "
                      "run `ekiben build` again",
                      file.path().string(), chunk * kEngineChunkBytes));
  return {};
}

Result<EngineTensor> ReadTensor(const json::object& entry, std::span<const std::byte> data) {
  EngineTensor tensor;
  constexpr int64_t kAny = INT64_MAX;
  ASSIGN_OR_RETURN(auto name, GetString(entry, "name"));
  ASSIGN_OR_RETURN(auto kind, GetString(entry, "kind"));
  ASSIGN_OR_RETURN(auto rows, GetInt(entry, "rows", 1, int64_t{1} << 32));
  ASSIGN_OR_RETURN(auto columns, GetInt(entry, "columns", 1, int64_t{1} << 32));
  ASSIGN_OR_RETURN(auto offset, GetInt(entry, "offset", 0, kAny));
  ASSIGN_OR_RETURN(auto bytes, GetInt(entry, "bytes", 1, kAny));
  if (!name || !kind || !rows || !columns || !offset || !bytes)
    return Error(Code::kInvalid, "a tensor entry lacks name, kind, rows, columns, offset or bytes");
  tensor.name = *name;
  ASSIGN_OR_RETURN(tensor.kind, KindOf(*kind));
  tensor.rows = *rows;
  tensor.columns = *columns;
  tensor.bytes = static_cast<size_t>(*bytes);
  auto begin = static_cast<size_t>(*offset);
  if (begin % kEngineAlignment != 0 || begin > data.size() || tensor.bytes > data.size() - begin)
    return Error(Code::kInvalid, fmt::format("tensor {}: offset {} + {} bytes do not fit in {} bytes of data",
                                             tensor.name, begin, tensor.bytes, data.size()));
  tensor.data = data.data() + begin;
  size_t wanted = 0;
  if (tensor.kind == PackRule::Kind::kLinear) {
    ASSIGN_OR_RETURN(auto packing, GetString(entry, "packing"));
    ASSIGN_OR_RETURN(tensor.packing, PackingNamed(packing.value_or("")));
    ASSIGN_OR_RETURN(auto keeps_bf16, GetBool(entry, "keeps_bf16"));
    tensor.keeps_bf16 = keeps_bf16.value_or(false);
    wanted = PackedBytes(tensor.packing, tensor.rows, tensor.columns);
  } else {
    ASSIGN_OR_RETURN(auto dtype, GetString(entry, "dtype"));
    ASSIGN_OR_RETURN(tensor.dtype, DTypeOf(dtype.value_or("")));
    const DTypeInfo& info = InfoOf(tensor.dtype);
    if (tensor.columns % info.block_elements != 0 && tensor.kind == PackRule::Kind::kEmbedding)
      return Error(Code::kInvalid, fmt::format("tensor {}: {} columns are no multiple of the {} of {}", tensor.name,
                                               tensor.columns, info.block_elements, info.name));
    auto blocks = CheckedMul<int64_t>(tensor.rows, CeilDiv<int64_t>(tensor.columns, info.block_elements));
    auto total = blocks ? CheckedMul<int64_t>(*blocks, info.block_bytes) : std::nullopt;
    if (!total) return Error(Code::kInvalid, fmt::format("tensor {}: its size overflows", tensor.name));
    wanted = static_cast<size_t>(*total);
  }
  if (wanted != tensor.bytes)
    return Error(Code::kInvalid, fmt::format("tensor {}: {} bytes are stored, its shape and type need {}", tensor.name,
                                             tensor.bytes, wanted));
  return tensor;
}

}  // namespace

Result<Packing> PackingNamed(std::string_view name) {
  for (auto packing : {Packing::kF32, Packing::kBF16, Packing::kInt8, Packing::kInt4Block32})
    if (Name(packing) == name) return packing;
  return Error(Code::kUnsupported,
               fmt::format("packing '{}' is unknown to this version of ekiben; run `ekiben build` again", name),
               "packing");
}

Result<std::unique_ptr<EngineFileWriter>> EngineFileWriter::Create(const std::filesystem::path& path,
                                                                   std::vector<EngineTensor> tensors,
                                                                   ThreadPool& pool) {
  int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0)
    return Error(Code::kInternal, fmt::format("{}: cannot create: {}", path.string(), std::strerror(errno)));
  return std::unique_ptr<EngineFileWriter>(std::make_unique<Writer>(path, file, std::move(tensors), pool));
}

Result<EngineTensors> ReadEngineFile(const MappedFile& file, const std::string& header_sha256, Verify verify) {
  auto fail = [&](std::string_view what) {
    return Error(Code::kInvalid, fmt::format("{}: {}; run `ekiben build` again", file.path().string(), what));
  };
  std::span<const std::byte> bytes = file.bytes();
  if (bytes.size() < kPrefixBytes || std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return fail("not an engine of this format (magic at byte 0)");
  uint64_t length;
  std::memcpy(&length, bytes.data() + 8, sizeof length);
  if (length > kHeaderBytesMax || length > bytes.size() - kPrefixBytes)
    return fail(fmt::format("header length {} at byte 8 does not fit in the file of {} bytes", length, bytes.size()));
  std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kPrefixBytes, length);
  if (Hex(Sha256Of(std::as_bytes(std::span(text)))) != header_sha256)
    return fail("the header does not match the SHA-256 in config.json: the file is damaged or of another build");
  ASSIGN_OR_RETURN(json::value parsed, ParseJson(text, {.depth_max = 8, .bytes_max = kHeaderBytesMax}));
  if (!parsed.is_object()) return fail("the header is not a JSON object");
  const json::object& header = parsed.get_object();
  ASSIGN_OR_RETURN(auto data_bytes, GetInt(header, "data_bytes", 0, INT64_MAX));
  ASSIGN_OR_RETURN(const json::array* tensors, GetArray(header, "tensors"));
  ASSIGN_OR_RETURN(const json::array* digests, GetArray(header, "chunks_sha256"));
  if (!data_bytes || tensors == nullptr || digests == nullptr) return fail("the header lacks a field");
  size_t data_begin = RoundUp(kPrefixBytes + static_cast<size_t>(length), kEngineAlignment);
  auto data_size = static_cast<size_t>(*data_bytes);
  if (data_begin > bytes.size() || bytes.size() - data_begin != data_size)
    return fail(fmt::format("{} bytes follow the header, it says {}: the file is cut short or has grown",
                            bytes.size() - std::min(data_begin, bytes.size()), data_size));
  std::span<const std::byte> data = bytes.subspan(data_begin);
  if (digests->size() != CeilDiv(data.size(), kEngineChunkBytes)) return fail("the number of chunk digests is wrong");
  for (const json::value& digest : *digests)
    if (!digest.is_string()) return fail("a chunk digest is not a string");
  if (verify == Verify::kAll) RETURN_IF_ERROR(VerifyChunks(file, data, *digests));

  EngineTensors out;
  for (const json::value& entry : *tensors) {
    if (!entry.is_object()) return fail("a tensor entry is not an object");
    auto tensor = ReadTensor(entry.get_object(), data);
    if (!tensor.ok()) return std::move(tensor).error().Within(file.path().string());
    std::string name = tensor->name;
    if (!out.emplace(name, *std::move(tensor)).second) return fail(fmt::format("tensor {} occurs twice", name));
  }
  return out;
}

}  // namespace ekiben
