#include "compile/engine_file.h"

#include <boost/json.hpp>
#include <cstring>
#include <fstream>
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

class Writer final : public EngineFileWriter {
 public:
  Writer(std::filesystem::path path, std::ofstream scratch)
      : path_(std::move(path)), scratch_path_(Scratch(path_)), scratch_(std::move(scratch)) {}
  ~Writer() override {
    std::error_code ignored;
    std::filesystem::remove(scratch_path_, ignored);
  }
  static std::filesystem::path Scratch(std::filesystem::path path) { return path += ".data"; }

  Result<void> Add(const EngineTensor& tensor) override {
    Append(nullptr, RoundUp(offset_, kEngineAlignment) - offset_);
    json::object entry;
    entry["name"] = tensor.name;
    entry["kind"] = KindName(tensor.kind);
    if (tensor.kind == PackRule::Kind::kLinear) {
      entry["packing"] = Name(tensor.packing);
    } else {
      entry["dtype"] = Name(tensor.dtype);
    }
    entry["rows"] = tensor.rows;
    entry["columns"] = tensor.columns;
    entry["offset"] = offset_;
    entry["bytes"] = tensor.bytes;
    tensors_.push_back(std::move(entry));
    Append(tensor.data, tensor.bytes);
    if (!scratch_) return Error(Code::kInternal, fmt::format("{}: write failed: disk full?", scratch_path_.string()));
    return {};
  }

  Result<std::string> Finish() override {
    if (in_chunk_ > 0) digests_.emplace_back(Hex(hash_.Finish()));
    scratch_.close();
    json::object header;
    header["tensors"] = std::move(tensors_);
    header["chunk_bytes"] = kEngineChunkBytes;
    header["data_bytes"] = offset_;
    header["chunks_sha256"] = std::move(digests_);
    std::string text = json::serialize(header);
    std::ofstream out(path_, std::ios::binary | std::ios::trunc);
    uint64_t length = text.size();
    out.write(kMagic.data(), kMagic.size());
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out.write(text.data(), static_cast<std::streamsize>(text.size()));
    size_t at = kPrefixBytes + text.size();
    std::string padding(RoundUp(at, kEngineAlignment) - at, '\0');
    out.write(padding.data(), static_cast<std::streamsize>(padding.size()));
    std::ifstream data(scratch_path_, std::ios::binary);
    if (offset_ > 0) out << data.rdbuf();
    out.flush();
    if (!out || !data) return Error(Code::kInternal, fmt::format("{}: write failed: disk full?", path_.string()));
    return Hex(Sha256Of(std::as_bytes(std::span(text))));
  }

 private:
  // `data` null: zeros. Hashes chunk by chunk on the way.
  void Append(const std::byte* data, size_t bytes) {
    static const std::vector<std::byte> kZeros(kEngineAlignment);
    while (bytes > 0) {
      size_t take = std::min(bytes, kEngineChunkBytes - in_chunk_);
      const std::byte* from = data;
      if (data == nullptr) {
        take = std::min(take, kZeros.size());
        from = kZeros.data();
      }
      hash_.Update(std::span(from, take));
      scratch_.write(reinterpret_cast<const char*>(from), static_cast<std::streamsize>(take));
      if (data != nullptr) data += take;
      bytes -= take;
      offset_ += take;
      in_chunk_ += take;
      if (in_chunk_ == kEngineChunkBytes) {
        digests_.emplace_back(Hex(hash_.Finish()));
        hash_ = Sha256();
        in_chunk_ = 0;
      }
    }
  }

  std::filesystem::path path_, scratch_path_;
  std::ofstream scratch_;
  json::array tensors_, digests_;
  Sha256 hash_;
  size_t offset_ = 0, in_chunk_ = 0;
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

Result<std::unique_ptr<EngineFileWriter>> EngineFileWriter::Create(const std::filesystem::path& path) {
  std::ofstream scratch(Writer::Scratch(path), std::ios::binary | std::ios::trunc);
  if (!scratch)
    return Error(Code::kInternal, fmt::format("{}: cannot create: {}", path.string(), std::strerror(errno)));
  return std::unique_ptr<EngineFileWriter>(std::make_unique<Writer>(path, std::move(scratch)));
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
