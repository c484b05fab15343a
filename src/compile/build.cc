#include <unistd.h>

#include <boost/json.hpp>
#include <cstring>
#include <system_error>

#include "base/json.h"
#include "compile/engine.h"
#include "compile/engine_file.h"
#include "compile/engine_fingerprint.h"
#include "compile/profile.h"
#include "device/buffer.h"
#include "device/cpu_features.h"

namespace ekiben {
namespace {

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

Result<void> AddLinear(EngineFileWriter& writer, const PackRule& rule, const std::string& dtype,
                       const std::vector<const CheckpointTensor*>& sources) {
  std::vector<LinearSource> pieces;
  for (const CheckpointTensor* source : sources) pieces.push_back({source->dtype, source->data, source->shape[0]});
  EngineTensor tensor{.name = rule.name, .kind = rule.kind, .rows = rule.rows, .columns = rule.columns};
  tensor.packing = PackingFor(dtype, sources.front()->dtype, rule);
  Buffer packed(PackedBytes(tensor.packing, rule.rows, rule.columns));
  auto result = PackLinear(tensor.packing, rule.columns, pieces, std::span(packed.data(), packed.size()));
  if (!result.ok()) return std::move(result).error().Within(rule.name);
  tensor.data = packed.data();
  tensor.bytes = packed.size();
  return writer.Add(tensor);
}

Result<void> AddVector(EngineFileWriter& writer, const PackRule& rule,
                       const std::vector<const CheckpointTensor*>& sources) {
  std::vector<float> values(static_cast<size_t>(rule.rows));
  size_t at = 0;
  for (const CheckpointTensor* source : sources) {
    Dequantize(source->dtype, source->data, source->shape[0], values.data() + at);
    at += static_cast<size_t>(source->shape[0]);
  }
  return writer.Add({.name = rule.name,
                     .kind = rule.kind,
                     .dtype = DType::kF32,
                     .rows = rule.rows,
                     .columns = 1,
                     .data = reinterpret_cast<const std::byte*>(values.data()),
                     .bytes = values.size() * sizeof(float)});
}

// Rows are looked up one at a time, so the file's own type stays, unless no gather body reads it: then f32.
Result<void> AddEmbedding(EngineFileWriter& writer, const PackRule& rule, const CheckpointTensor& source) {
  EngineTensor tensor{.name = rule.name,
                      .kind = rule.kind,
                      .dtype = source.dtype,
                      .rows = rule.rows,
                      .columns = rule.columns,
                      .data = source.data,
                      .bytes = source.bytes};
  switch (source.dtype) {
    case DType::kF32:
    case DType::kF16:
    case DType::kBF16:
    case DType::kQ8_0: return writer.Add(tensor);
    default: break;
  }
  const DTypeInfo& info = InfoOf(source.dtype);
  auto row_bytes = static_cast<size_t>(rule.columns / info.block_elements * info.block_bytes);
  std::vector<float> values(static_cast<size_t>(rule.rows * rule.columns));
  for (int64_t row = 0; row < rule.rows; ++row)
    Dequantize(source.dtype, source.data + static_cast<size_t>(row) * row_bytes, rule.columns,
               values.data() + row * rule.columns);
  tensor.dtype = DType::kF32;
  tensor.data = reinterpret_cast<const std::byte*>(values.data());
  tensor.bytes = values.size() * sizeof(float);
  return writer.Add(tensor);
}

Result<std::string> PackAll(const Checkpoint& checkpoint, const BuildConfig& build, const std::filesystem::path& file,
                            const ProgressFunction& progress) {
  ASSIGN_OR_RETURN(std::vector<PackRule> rules, PackRules(checkpoint.config));
  ASSIGN_OR_RETURN(auto writer, EngineFileWriter::Create(file));
  int64_t done = 0;
  for (const PackRule& rule : rules) {
    progress({"pack", done++, static_cast<int64_t>(rules.size())});
    ASSIGN_OR_RETURN(auto sources, Sources(checkpoint, rule));
    switch (rule.kind) {
      case PackRule::Kind::kLinear: RETURN_IF_ERROR(AddLinear(*writer, rule, build.dtype, sources)); break;
      case PackRule::Kind::kVector: RETURN_IF_ERROR(AddVector(*writer, rule, sources)); break;
      case PackRule::Kind::kEmbedding: RETURN_IF_ERROR(AddEmbedding(*writer, rule, *sources.front())); break;
    }
  }
  progress({"pack", done, done});
  return writer->Finish();
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
  if (!checkpoint.has_tokenizer && !checkpoint.tokenizer_error.empty())
    return Error(Code::kUnsupported, fmt::format("{}: its tokenizer cannot be used: {}", checkpoint.path.string(),
                                                 checkpoint.tokenizer_error));
  RETURN_IF_ERROR(MayReplace(out));
  std::filesystem::path folder = out;
  folder += fmt::format(".tmp.{}", ::getpid());
  std::error_code code;
  std::filesystem::create_directories(folder, code);
  if (code)
    return Error(Code::kInvalid, fmt::format("output: {}: cannot create: {}", out.string(), code.message()), "output");
  auto write_all = [&]() -> Result<void> {
    ASSIGN_OR_RETURN(std::string header_sha256, PackAll(checkpoint, build, folder / "rank0.engine", progress));
    if (checkpoint.has_tokenizer)
      RETURN_IF_ERROR(text::WriteTokenizerSpec(checkpoint.tokenizer, (folder / "tokenizer.bin").string()));
    ASSIGN_OR_RETURN(MappedFile weights, MappedFile::Open(folder / "rank0.engine"));
    ASSIGN_OR_RETURN(EngineTensors tensors, ReadEngineFile(weights, header_sha256, Verify::kHeader));
    json::object profiles;  // the CUDA backend chooses when it starts
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
    config["rank0_header_sha256"] = header_sha256;
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
