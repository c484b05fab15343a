#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <system_error>
#include <thread>

#include "base/json.h"
#include "compile/engine.h"
#include "compile/engine_file.h"
#include "compile/engine_fingerprint.h"
#include "compile/profile.h"
#include "device/buffer.h"
#include "device/cpu_features.h"
#include "device/thread_pool.h"
#include "model/fp8_rounding.h"

namespace ekiben {
namespace {

constexpr int64_t kRowsATime = 64;  // of an embedding that is widened

// What `auto` means: block formats keep their bits where a packing has them, floats keep 16 bits. fp8 is what a GPU
// makes of bf16 rows while it loads them.
Packing PackingFor(const std::string& dtype, DType source, const PackRule& rule) {
  const bool automatic = dtype == "auto";
  Packing wanted = Packing::kInt8;
  if (dtype == "f32") {
    wanted = Packing::kF32;
  } else if (dtype == "bf16" || dtype == "fp8" || (automatic && !IsBlocked(source))) {
    wanted = Packing::kBF16;
  } else if (dtype == "int4" || (automatic && IsLossless(Packing::kInt4Block32, source))) {
    wanted = Packing::kInt4Block32;
  }
  if (rule.keep_precision && wanted == Packing::kInt4Block32) wanted = Packing::kInt8;
  return wanted;
}

Result<std::vector<const CheckpointTensor*>> Sources(const Checkpoint& checkpoint, const PackRule& rule) {
  std::vector<const CheckpointTensor*> out;
  int64_t rows = 0;
  for (const std::string& name : rule.sources) {
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, checkpoint.Tensor(name));
    int64_t columns = rule.kind == PackRule::Kind::kVector ? 1 : rule.columns;
    bool fits = !tensor->shape.empty() &&
                (tensor->shape.size() == 1 ? columns == 1 : tensor->shape.size() == 2 && tensor->shape[1] == columns);
    if (!fits)
      return Error(Code::kInvalid,
                   fmt::format("{}: tensor {} has shape [{}], the model's config needs [*, {}]",
                               checkpoint.path.string(), name, fmt::join(tensor->shape, ", "), columns));
    rows += tensor->shape[0];
    out.push_back(tensor);
  }
  if (rows != rule.rows)
    return Error(Code::kInvalid,
                 fmt::format("{}: {} has {} rows in all, the model's config needs {}", checkpoint.path.string(),
                             fmt::join(rule.sources, " + "), rows, rule.rows));
  return out;
}

// A rule with the tensors that it takes and what it makes of them.
struct Piece {
  PackRule rule;
  std::vector<const CheckpointTensor*> sources;
  EngineTensor tensor;  // without data
};

Result<Piece> PieceOf(const Checkpoint& checkpoint, PackRule rule, const std::string& dtype) {
  ASSIGN_OR_RETURN(std::vector<const CheckpointTensor*> sources, Sources(checkpoint, rule));
  EngineTensor tensor{.name = rule.name, .kind = rule.kind, .rows = rule.rows, .columns = rule.columns};
  const DType source = sources.front()->dtype;
  switch (rule.kind) {
    case PackRule::Kind::kLinear:
      tensor.keeps_bf16 = dtype == "fp8" && Fp8Rounding::KeepsBf16(checkpoint.config, rule.name);
      tensor.packing = PackingFor(dtype, source, rule);
      tensor.bytes = PackedBytes(tensor.packing, rule.rows, rule.columns);
      break;
    case PackRule::Kind::kVector: tensor.bytes = static_cast<size_t>(rule.rows) * sizeof(float); break;
    case PackRule::Kind::kEmbedding:
      // Rows are looked up one at a time, so the file's own type stays, unless no gather body reads it: then f32.
      if (source == DType::kF32 || source == DType::kF16 || source == DType::kBF16 || source == DType::kQ8_0) {
        tensor.dtype = source;
        tensor.bytes = sources.front()->bytes;
      } else {
        tensor.bytes = static_cast<size_t>(rule.rows * rule.columns) * sizeof(float);
      }
      break;
  }
  return Piece{std::move(rule), std::move(sources), std::move(tensor)};
}

// A tensor is shown to `fp8` (null: another dtype) before it is written.
Result<void> AddLinear(EngineFileWriter& writer, const Piece& piece, ThreadPool& pool, Fp8Rounding* fp8) {
  std::vector<LinearSource> sources;
  for (const CheckpointTensor* source : piece.sources)
    sources.push_back({source->dtype, source->data, source->shape[0]});
  Buffer packed(piece.tensor.bytes);
  std::span<std::byte> bytes(packed.data(), packed.size());
  auto result = PackLinear(piece.tensor.packing, piece.rule.columns, sources, bytes, &pool);
  if (!result.ok()) return std::move(result).error().Within(piece.rule.name);
  if (fp8 != nullptr) {
    fp8->Pass(piece.tensor, bytes);
    fp8->Round(piece.tensor, bytes);
  }
  return writer.Add(bytes);
}

Result<void> AddVector(EngineFileWriter& writer, const Piece& piece, Fp8Rounding* fp8) {
  std::vector<float> values(static_cast<size_t>(piece.rule.rows));
  size_t at = 0;
  for (const CheckpointTensor* source : piece.sources) {
    Dequantize(source->dtype, source->data, source->shape[0], values.data() + at);
    at += static_cast<size_t>(source->shape[0]);
  }
  if (fp8 != nullptr) fp8->Pass(piece.tensor, std::as_bytes(std::span(values)));
  return writer.Add(std::as_bytes(std::span(values)));
}

Result<void> AddEmbedding(EngineFileWriter& writer, const Piece& piece, ThreadPool& pool, Fp8Rounding* fp8) {
  const CheckpointTensor& source = *piece.sources.front();
  if (piece.tensor.dtype == source.dtype) {
    if (fp8 != nullptr) fp8->Pass(piece.tensor, std::span(source.data, source.bytes));
    return writer.Add(std::span(source.data, source.bytes));
  }
  const DTypeInfo& info = InfoOf(source.dtype);
  const int64_t columns = piece.rule.columns;
  auto row_bytes = static_cast<size_t>(columns / info.block_elements * info.block_bytes);
  std::vector<float> values(static_cast<size_t>(piece.rule.rows * columns));
  pool.ParallelFor(piece.rule.rows, kRowsATime, [&](int64_t first, int64_t last, int) {
    for (int64_t row = first; row < last; ++row)
      Dequantize(source.dtype, source.data + static_cast<size_t>(row) * row_bytes, columns,
                 values.data() + row * columns);
  });
  if (fp8 != nullptr) fp8->Pass(piece.tensor, std::as_bytes(std::span(values)));
  return writer.Add(std::as_bytes(std::span(values)));
}

json::object Describe(const Fp8Rounding& fp8, const ModelConfig& config) {
  json::object kept;
  for (const auto& [linear, why] : Fp8Rounding::Kept(config)) kept[linear] = why;
  json::object out{{"calibration_tokens", fp8.tokens()},
                   {"linears_rounded", fp8.linears_rounded()},
                   {"keeps_bf16", std::move(kept)}};
  if (fp8.tokens() == 0) out["note"] = "no tokenizer, so no text to round by: the GPU takes the nearest e4m3 values";
  return out;
}

struct PackedFile {
  std::string header_sha256;
  json::object fp8;  // for config.json; empty for another dtype
};

Result<PackedFile> PackAll(const Checkpoint& checkpoint, const BuildConfig& build, const std::filesystem::path& file,
                           const ProgressFunction& progress) {
  ASSIGN_OR_RETURN(std::vector<PackRule> rules, PackRules(checkpoint.config));
  std::vector<Piece> pieces;
  std::vector<EngineTensor> tensors;
  for (PackRule& rule : rules) {
    ASSIGN_OR_RETURN(Piece piece, PieceOf(checkpoint, std::move(rule), build.dtype));
    tensors.push_back(piece.tensor);
    pieces.push_back(std::move(piece));
  }
  ThreadPool pool(static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  ASSIGN_OR_RETURN(auto writer, EngineFileWriter::Create(file, std::move(tensors), pool));
  std::unique_ptr<Fp8Rounding> fp8;
  if (build.dtype == "fp8") {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, Fp8Rounding::TextIds(checkpoint));
    fp8 = std::make_unique<Fp8Rounding>(checkpoint.config, std::move(ids), pool);
  }
  int64_t done = 0;
  for (const Piece& piece : pieces) {
    progress({"pack", done++, std::ssize(pieces)});
    switch (piece.rule.kind) {
      case PackRule::Kind::kLinear: RETURN_IF_ERROR(AddLinear(*writer, piece, pool, fp8.get())); break;
      case PackRule::Kind::kVector: RETURN_IF_ERROR(AddVector(*writer, piece, fp8.get())); break;
      case PackRule::Kind::kEmbedding: RETURN_IF_ERROR(AddEmbedding(*writer, piece, pool, fp8.get())); break;
    }
  }
  progress({"pack", done, done});
  PackedFile out;
  ASSIGN_OR_RETURN(out.header_sha256, writer->Finish());
  if (fp8 != nullptr) out.fp8 = Describe(*fp8, checkpoint.config);
  return out;
}

Result<void> MayReplace(const std::filesystem::path& out) {
  if (!std::filesystem::exists(out) || std::filesystem::exists(out / "config.json")) return {};
  return Error(Code::kInvalid,
               fmt::format("output: {} exists and is not an engine; choose another folder", out.string()), "output");
}

// Renames `from` to `to`, replacing an engine that was there.
Result<void> MoveIntoPlace(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code code;
  std::filesystem::path old = to;
  old += fmt::format(".old.{}", ::getpid());
  if (std::filesystem::exists(to)) {
    RETURN_IF_ERROR(MayReplace(to));  // again: the build took a while
    std::filesystem::rename(to, old, code);
    if (code) return Error(Code::kInternal, fmt::format("{}: cannot move away: {}", to.string(), code.message()));
  }
  std::filesystem::rename(from, to, code);
  if (code) return Error(Code::kInternal, fmt::format("{}: cannot create: {}", to.string(), code.message()));
  std::filesystem::remove_all(old, code);
  return {};
}

}  // namespace

std::string EngineFingerprint(const Checkpoint& checkpoint, const BuildConfig& build) {
  Sha256 hash;
  hash.Update(fmt::format("ekiben engine {} {} ", kEngineVersion, Name(BestIsa())));
  if (build.dtype == "fp8") hash.Update(fmt::format("fp8 {} ", kFp8RoundingVersion));
  hash.Update(checkpoint.fingerprint);
  hash.Update(json::serialize(ToJson(build)));
  return Hex(hash.Finish());
}

Result<BuildConfig> ResolveBuildConfig(BuildConfig build, const ModelConfig& model) {
  RETURN_IF_ERROR(Validate(build, model));
  if (build.multiple_profiles && build.opt_num_tokens != 0)
    return Error(Code::kInvalid,
                 fmt::format("opt_num_tokens: {} has no effect while multiple_profiles times every bucket of token "
                             "counts; leave it out, or add --multiple_profiles disable",
                             build.opt_num_tokens),
                 "opt_num_tokens");
  if (build.device == "cuda") {
    if (build.dtype == "auto") build.dtype = "bf16";  // what the GPU reads
  } else {
    build.gemm_plugin = "disable";  // what auto comes to on a device without a GEMM library
  }
  if (build.tokens_per_block == 0) build.tokens_per_block = DefaultsOf(build.device).tokens_per_block;
  if (build.max_seq_len == 0) build.max_seq_len = model.max_position_embeddings;
  if (build.max_input_len == 0) build.max_input_len = build.max_seq_len - 1;
  if (!build.multiple_profiles && build.opt_num_tokens == 0)
    build.opt_num_tokens = std::min(build.max_batch_size, build.max_num_tokens);
  return build;
}

Result<void> BuildEngine(const Checkpoint& checkpoint, const BuildConfig& requested, const std::filesystem::path& out,
                         const ProgressFunction& progress) {
  ASSIGN_OR_RETURN(BuildConfig build, ResolveBuildConfig(requested, checkpoint.config));
  RETURN_IF_ERROR(MayReplace(out));
  std::filesystem::path folder = out;
  folder += fmt::format(".tmp.{}", ::getpid());
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code)
    return Error(Code::kInvalid, fmt::format("output: {}: cannot create: {}", out.string(), code.message()), "output");
  auto write_all = [&]() -> Result<void> {
    ASSIGN_OR_RETURN(PackedFile packed, PackAll(checkpoint, build, folder / "rank0.engine", progress));
    if (checkpoint.has_tokenizer)
      RETURN_IF_ERROR(text::WriteTokenizerSpec(checkpoint.tokenizer, (folder / "tokenizer.bin").string()));
    ASSIGN_OR_RETURN(MappedFile weights, MappedFile::Open(folder / "rank0.engine"));
    ASSIGN_OR_RETURN(EngineTensors tensors, ReadEngineFile(weights, packed.header_sha256, Verify::kHeader));
    json::object profiles;  // one for CUDA is written over it, where there is a GPU: ProfileCudaEngine
    if (build.device == "cpu") {
      ASSIGN_OR_RETURN(profiles, ProfileLinears(tensors, build, progress));
    }
    RETURN_IF_ERROR(WriteFileAtomic(folder / "profiles.json", json::serialize(profiles)));
    json::object config;
    config["version"] = kEngineVersion;
    config["pretrained_config"] = ToJson(checkpoint.config);
    config["build_config"] = ToJson(build);
    config["fingerprint"] = EngineFingerprint(checkpoint, requested);
    config["checkpoint"] = {
        {"path", checkpoint.path.string()}, {"format", checkpoint.format}, {"fingerprint", checkpoint.fingerprint}};
    config["rank0_header_sha256"] = packed.header_sha256;
    if (!packed.fp8.empty()) config["fp8"] = std::move(packed.fp8);
    config["built_on"] = DescribeCpu();
    progress({"write", 1, 1});
    return WriteFileAtomic(folder / "config.json", json::serialize(config));
  };
  Result<void> result = write_all();
  if (result.ok()) result = MoveIntoPlace(folder, out);
  std::filesystem::remove_all(folder, code);
  return result;
}

}  // namespace ekiben
