// The CUDA forward against Hugging Face's float32 logits (tests/golden), in one chunk, in odd chunks mixed with
// generation, and against itself. Skipped without a device. SmolLM2 needs EKIBEN_TEST_MODEL.
#include "model/cuda_llama.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "model/cuda_forward_runner.h"
#include "model/fp8_rounding.h"
#include "model/golden_files_for_test.h"
#include "model/logit_compare.h"
#include "model/packed_model_for_test.h"
#include "text/tokenizer.h"

namespace ekiben {
namespace {

constexpr int32_t kMaxSeqLen = 512, kSlots = 4;

using Sequence = CudaForwardRunner::Sequence;
using Feed = CudaForwardRunner::Feed;

// The runner whose steps must succeed.
class Runner {
 public:
  Runner(std::unique_ptr<CudaLlama> model, int32_t tokens_per_block, bool fp8_kv = false) {
    auto created = CudaForwardRunner::Create(
        std::move(model),
        {.tokens_per_block = tokens_per_block, .max_seq_len = kMaxSeqLen, .slots = kSlots, .fp8_kv_cache = fp8_kv});
    EXPECT_TRUE(created.ok()) << created.error().message();
    runner_ = *std::move(created);
  }
  void Step(const std::vector<Feed>& feeds) {
    auto done = runner_->Step(feeds);
    ASSERT_TRUE(done.ok()) << done.error().message();
  }
  void PointTableAt(int32_t slot, int32_t entry, int32_t other_entry) {
    auto done = runner_->PointTableAt(slot, entry, other_entry);
    ASSERT_TRUE(done.ok()) << done.error().message();
  }
  void RotateFurther(int32_t tokens) { runner_->RotateFurther(tokens); }

 private:
  std::unique_ptr<CudaForwardRunner> runner_;
};

// What is rounded to e4m3.
struct Form {
  const char* name;
  CudaPrecision precision;
  bool cache = false;
};
constexpr Form kBf16{"bf16", {}}, kFp8{"fp8, cache bf16", {.fp8_linears = true}},
    kFp8Cache{"fp8, cache fp8", {.fp8_linears = true}, true};

// What a build for dtype fp8 does, by this text.
void RoundForFp8(const Checkpoint& checkpoint, const std::vector<int32_t>& token_ids, PackedModel& packed) {
  ThreadPool pool(2);
  Fp8Rounding rounding(checkpoint.config, token_ids, pool);
  auto rules = PackRules(checkpoint.config);
  ASSERT_TRUE(rules.ok());
  ASSERT_EQ(rules->size(), packed.buffers.size());
  for (size_t i = 0; i < rules->size(); ++i) {
    EngineTensor& tensor = packed.tensors.at((*rules)[i].name);
    const std::span<std::byte> bytes(packed.buffers[i].data(), packed.buffers[i].size());
    tensor.keeps_bf16 = Fp8Rounding::KeepsBf16(checkpoint.config, tensor.name);
    rounding.Pass(tensor, bytes);
    rounding.Round(tensor, bytes);
  }
}

std::unique_ptr<CudaLlama> LoadModel(const Checkpoint& checkpoint, const Form& form = kBf16,
                                     const std::vector<int32_t>& token_ids = {}) {
  auto packed = PackModel(checkpoint, Packing::kBF16, Packing::kBF16, kMaxSeqLen);
  EXPECT_TRUE(packed.ok()) << packed.error().message();
  if (form.precision.fp8_linears) RoundForFp8(checkpoint, token_ids, *packed);
  auto model =
      CudaLlama::Load(checkpoint.config, packed->tensors, {kMaxSeqLen, kMaxSeqLen, kMaxSeqLen}, form.precision);
  EXPECT_TRUE(model.ok()) << model.error().message();
  return model.ok() ? *std::move(model) : nullptr;
}

// Each file in one chunk.
GoldenComparison CompareWhole(const std::vector<GoldenFile>& files, Runner& runner) {
  GoldenComparison out;
  for (const GoldenFile& golden : files) {
    Sequence s{.token_ids = golden.token_ids};
    runner.Step({{&s, static_cast<int32_t>(golden.token_ids.size())}});
    out.Add(golden, s.logits);
  }
  return out;
}

// Three files at once: chunks of odd sizes and single tokens side by side in every step.
GoldenComparison CompareMixed(const std::vector<GoldenFile>& files, Runner& runner) {
  GoldenComparison out;
  for (size_t first = 0; first + 3 <= files.size(); first += 3) {
    std::vector<Sequence> sequences;
    for (size_t i = 0; i < 3; ++i)
      sequences.push_back({.slot = static_cast<int32_t>(i), .token_ids = files[first + i].token_ids});
    for (int step = 0;; ++step) {
      std::vector<Feed> feeds;
      for (size_t i = 0; i < 3; ++i) {
        Sequence& s = sequences[i];
        constexpr int32_t kSizes[] = {1, 13, 1, 37, 2, 1, 70};
        int32_t size = kSizes[(static_cast<size_t>(step) * 3 + i * 2) % 7];
        size = std::min(size, static_cast<int32_t>(std::ssize(s.token_ids)) - s.done);
        if (size > 0) feeds.push_back({&s, size});
      }
      if (feeds.empty()) break;
      runner.Step(feeds);
    }
    for (size_t i = 0; i < 3; ++i) out.Add(files[first + i], sequences[i].logits);
  }
  return out;
}

class CudaGolden : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
  }
};

TEST_P(CudaGolden, TinyModelsStayCloseToFloat32InOneChunkAndInAnyMix) {
  auto checkpoint = OpenCheckpoint(std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / GetParam());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().message();
  auto files = GoldenFilesOf(EKIBEN_SOURCE_DIR, GetParam());
  ASSERT_EQ(files.size(), 3u);
  struct {
    Form form;
    int32_t tokens_per_block;
    double bound;
  } runs[] = {{kBf16, 16, 5e-3}, {kBf16, 64, 5e-3}, {kFp8, 16, 5e-2}, {kFp8Cache, 64, 5e-2}};
  for (const auto& run : runs) {
    auto model = LoadModel(*checkpoint, run.form, files[0].token_ids);
    ASSERT_NE(model, nullptr);
    Runner runner(std::move(model), run.tokens_per_block, run.form.cache);
    GoldenComparison whole = CompareWhole(files, runner), mixed = CompareMixed(files, runner);
    std::cout << GetParam() << ", " << run.form.name << ", blocks of " << run.tokens_per_block
              << ", whole: " << whole.comparison.Describe() << "\nmixed: " << mixed.comparison.Describe() << "\ngreedy "
              << whole.greedy_equal << ", " << mixed.greedy_equal << " of " << whole.greedy_total << "\n";
    // Random weights give flat, unstable distributions; the CPU's bf16 path is held to the same bound.
    EXPECT_LT(whole.comparison.mean_kl(), run.bound);
    EXPECT_LT(mixed.comparison.mean_kl(), run.bound);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, CudaGolden,
                         ::testing::Values("tiny_qwen2", "tiny_mistral", "tiny_llama3", "tiny_yarn", "tiny_linear"));

class CudaSmolLm2 : public ::testing::Test {
 protected:
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
    if (device->emulated) GTEST_SKIP() << "SmolLM2 takes many minutes on the emulated device";
    checkpoint_ = OpenSmolLm2();
    if (checkpoint_ == nullptr) GTEST_SKIP() << "EKIBEN_TEST_MODEL does not name SmolLM2's GGUF file";
    ASSERT_FALSE(HasFailure());
    files_ = GoldenFilesOf(EKIBEN_SOURCE_DIR, "smollm2");
  }
  std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<GoldenFile> files_;
};

TEST_F(CudaSmolLm2, LogitsStayWithinAThousandthOfANat) {
  auto model = LoadModel(*checkpoint_);
  ASSERT_NE(model, nullptr);
  Runner runner(std::move(model), 64);
  GoldenComparison whole = CompareWhole(files_, runner), mixed = CompareMixed(files_, runner);
  std::cout << "smollm2 whole: " << whole.comparison.Describe() << "\nmixed: " << mixed.comparison.Describe()
            << "\ngreedy " << whole.greedy_equal << " of " << whole.greedy_total << ", mixed " << mixed.greedy_equal
            << " of " << mixed.greedy_total << "; the reference's gap at the first difference is at most "
            << std::max(whole.tie_max, mixed.tie_max) << "\n";
  EXPECT_LT(whole.comparison.mean_kl(), 1e-3);
  EXPECT_LT(mixed.comparison.mean_kl(), 1e-3);
  // Greedy texts part only where two tokens are as near as bf16 rounds logits of this size.
  EXPECT_LT(std::max(whole.tie_max, mixed.tie_max), 0.25);
}

// Perplexity of tests/golden/perplexity.txt in windows of kMaxSeqLen tokens.
double Perplexity(const text::Tokenizer& tokenizer, Runner& runner) {
  std::ifstream in(std::filesystem::path(EKIBEN_SOURCE_DIR) / "tests" / "golden" / "perplexity.txt");
  std::stringstream text;
  text << in.rdbuf();
  std::vector<int32_t> ids = tokenizer.Encode(text.str(), {});
  EXPECT_GT(ids.size(), 500u);
  double sum = 0;
  int64_t count = 0;
  for (size_t begin = 0; begin + 1 < ids.size(); begin += kMaxSeqLen) {
    auto end = std::min(ids.size(), begin + kMaxSeqLen);
    Sequence s{.token_ids = {ids.begin() + static_cast<int64_t>(begin), ids.begin() + static_cast<int64_t>(end)}};
    runner.Step({{&s, static_cast<int32_t>(end - begin)}});
    size_t vocab = s.logits.size() / (end - begin);
    for (size_t i = 0; begin + i + 1 < end; ++i, ++count) {
      auto row = std::span(s.logits).subspan(i * vocab, vocab);
      double top = *std::max_element(row.begin(), row.end()), total = 0;
      for (float x : row) total += std::exp(x - top);
      sum += top + std::log(total) - row[static_cast<size_t>(ids[begin + i + 1])];
    }
  }
  return std::exp(sum / static_cast<double>(count));
}

// What rounding to e4m3 costs, part by part; the bounds of fp8 are the project's.
TEST_F(CudaSmolLm2, Fp8StaysClose) {
  auto tokenizer = text::Tokenizer::Create(checkpoint_->tokenizer);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.error().message();
  auto ids = Fp8Rounding::TextIds(*checkpoint_);
  ASSERT_TRUE(ids.ok()) << ids.error().message();
  const struct {
    Form form;
    double kl, perplexity;  // bounds: mean KL, times the perplexity in bf16
  } runs[] = {
      {kBf16, 1e-3, 1.0}, {{"bf16, cache fp8", {}, true}, 2e-2, 1.02}, {kFp8, 2e-2, 1.02}, {kFp8Cache, 4e-2, 1.05}};
  double reference = 0;
  for (const auto& run : runs) {
    auto model = LoadModel(*checkpoint_, run.form, *ids);
    ASSERT_NE(model, nullptr);
    Runner runner(std::move(model), 64, run.form.cache);
    GoldenComparison whole = CompareWhole(files_, runner);
    double perplexity = Perplexity(**tokenizer, runner);
    if (reference == 0) reference = perplexity;
    std::cout << "smollm2, " << run.form.name << ": perplexity " << perplexity << " (" << perplexity / reference
              << " times bf16's); " << whole.comparison.Describe() << "\n"
              << std::flush;
    EXPECT_LT(whole.comparison.mean_kl(), run.kl);
    EXPECT_LE(perplexity / reference, run.perplexity);
  }
}

// Two layers as wide as Llama-3-8B's: every kernel in the shapes that it is measured in, against the CPU in float32.
class CudaWide : public ::testing::Test {
 protected:
  static constexpr int32_t kChunk = 100;  // at once, then one at a time
  void SetUp() override {
    auto device = OpenCudaDevice();
    if (!device.ok()) GTEST_SKIP() << device.error().message();
    // On a CPU an eighth of it, with weights that make activations and scores as large as the whole width does.
    const int32_t part = device->emulated ? 8 : 1;
    deviation_ = 0.02f * std::sqrt(static_cast<float>(part));
    config_.architecture = "llama";
    config_.vocab_size = 1024;
    config_.hidden_size = 4096 / part;
    config_.intermediate_size = 14336 / part;
    config_.num_hidden_layers = 2;
    config_.num_attention_heads = part == 1 ? 32 : 8;
    config_.num_key_value_heads = part == 1 ? 8 : 2;
    config_.head_dim = 128;
    config_.rope_theta = 500000;
    config_.max_position_embeddings = kMaxSeqLen;
    for (int32_t i = 0; i < (part == 1 ? 128 : 108); ++i) tokens_.push_back((i * 131 + 7) % config_.vocab_size);
  }

  // Normal, nearly; made once, as bf16, so that both packings hold the same values.
  const std::vector<uint16_t>& Values(const PackRule& rule) {
    std::vector<uint16_t>& values = values_[rule.name];
    if (!values.empty()) return values;
    values.resize(static_cast<size_t>(rule.rows * rule.columns));
    for (uint16_t& v : values) {
      random_ ^= random_ << 13;
      random_ ^= random_ >> 7;
      random_ ^= random_ << 17;
      // Four uniform parts of one draw.
      float sum = 0;
      for (int part = 0; part < 4; ++part)
        sum += static_cast<float>((random_ >> (16 * part)) & 0xFFFF) * 0x1p-16f - 0.5f;
      v = F32ToBF16(sum * std::sqrt(3.0f) * deviation_);
    }
    return values;
  }

  PackedModel Pack(Packing packing, bool swap_key_heads) {
    PackedModel out;
    auto rules = PackRules(config_);
    EXPECT_TRUE(rules.ok());
    for (const PackRule& rule : *rules) {
      EngineTensor tensor{.name = rule.name, .kind = rule.kind, .rows = rule.rows, .columns = rule.columns};
      if (rule.kind == PackRule::Kind::kLinear) {
        std::vector<uint16_t> values = Values(rule);
        if (swap_key_heads && rule.name == "layers.1.qkv") {
          auto row = [&](int64_t r) { return values.begin() + r * rule.columns; };
          const int64_t keys = int64_t{config_.num_attention_heads} * config_.head_dim;
          std::swap_ranges(row(keys), row(keys + 128), row(keys + 128));
        }
        tensor.packing = packing;
        Buffer& buffer = out.buffers.emplace_back(PackedBytes(packing, rule.rows, rule.columns));
        LinearSource source{DType::kBF16, reinterpret_cast<const std::byte*>(values.data()), rule.rows};
        auto done = PackLinear(packing, rule.columns, {&source, 1}, std::span(buffer.data(), buffer.size()));
        EXPECT_TRUE(done.ok()) << done.error().message();
      } else {
        Buffer& buffer = out.buffers.emplace_back(static_cast<size_t>(rule.rows * rule.columns) * sizeof(float));
        bool norm = rule.kind == PackRule::Kind::kVector;
        for (int64_t i = 0; i < rule.rows * rule.columns; ++i)
          buffer.as<float>()[i] = norm ? 1.0f : BF16ToF32(Values(rule)[static_cast<size_t>(i)]);
      }
      tensor.data = out.buffers.back().data();
      tensor.bytes = out.buffers.back().size();
      out.tensors[rule.name] = tensor;
    }
    return out;
  }

  std::vector<float> Reference() {
    PackedModel packed = Pack(Packing::kF32, false);
    auto model = Model::Load(config_, packed.tensors, kMaxSeqLen);
    EXPECT_TRUE(model.ok());
    ForwardRunner runner(**model, BestIsa(), 8, DType::kF32, 32, 16, kMaxSeqLen);
    ForwardRunner::Sequence sequence{.token_ids = tokens_};
    runner.Step({{&sequence, static_cast<int32_t>(tokens_.size())}});
    return sequence.logits;
  }

  std::unique_ptr<Runner> Device(const Form& form, bool swap_key_heads) {
    PackedModel packed = Pack(Packing::kBF16, swap_key_heads);
    auto model = CudaLlama::Load(config_, packed.tensors, {kMaxSeqLen, kMaxSeqLen, kMaxSeqLen}, form.precision);
    EXPECT_TRUE(model.ok()) << model.error().message();
    return std::make_unique<Runner>(*std::move(model), 64, form.cache);
  }

  // A chunk, then token by token; `plant` runs between the two.
  template <class Plant>
  std::vector<float> Run(Runner& runner, int32_t slot, Plant plant) {
    Sequence s{.slot = slot, .token_ids = tokens_};
    runner.Step({{&s, kChunk}});
    plant();
    while (s.done < std::ssize(tokens_)) runner.Step({{&s, 1}});
    return s.logits;
  }

  // Of the generated tokens' logits: ||device - cpu|| / ||cpu||.
  double RelativeError(const std::vector<float>& reference, const std::vector<float>& logits) const {
    double difference = 0, norm = 0;
    for (size_t i = static_cast<size_t>(kChunk * config_.vocab_size); i < reference.size(); ++i) {
      difference += std::pow(logits[i] - reference[i], 2);
      norm += std::pow(reference[i], 2);
    }
    return std::sqrt(difference / norm);
  }

  ModelConfig config_;
  float deviation_ = 0;
  std::vector<int32_t> tokens_;
  std::map<std::string, std::vector<uint16_t>> values_;  // by tensor
  uint64_t random_ = 88172645463325252ull;

  // Three errors that must show: each takes the logits `shows` times as far from float32 as rounding does.
  void AgreesAndPlantedErrorsDoNot(const Form& form, double bound, double kl_bound, double shows) {
    std::vector<float> reference = Reference();
    std::unique_ptr<Runner> runner = Device(form, false);
    std::vector<float> right = Run(*runner, 1, [] {});
    LogitComparison comparison;
    auto vocab = static_cast<size_t>(config_.vocab_size);
    for (size_t at = 0; at < reference.size(); at += vocab)
      comparison.Add(std::span(reference).subspan(at, vocab), std::span(right).subspan(at, vocab));
    double error = RelativeError(reference, right);
    std::cout << "two layers of 8B width, " << form.name << ": relative error " << error << "; "
              << comparison.Describe() << "\n";
    EXPECT_LT(error, bound);
    EXPECT_LT(comparison.mean_kl(), kl_bound);
    // Of all tokens alike it would change nothing: rotations meet as differences.
    double rope = RelativeError(reference, Run(*runner, 2, [&] { runner->RotateFurther(1); }));
    runner->RotateFurther(0);
    double block = RelativeError(reference, Run(*runner, 3, [&] { runner->PointTableAt(3, 1, 0); }));
    double heads = RelativeError(reference, Run(*Device(form, true), 1, [] {}));
    std::cout << "planted: generated tokens rotated one further " << rope << ", a wrong block " << block
              << ", swapped key heads " << heads << "\n";
    EXPECT_GT(rope, shows * error);
    EXPECT_GT(block, shows * error);
    EXPECT_GT(heads, shows * error);
  }
};

// About twenty roundings to bf16 (2e-3 each) one after the other, some of them amplified by SwiGLU's product.
TEST_F(CudaWide, AgreesWithFloat32AndPlantedErrorsDoNot) {
  AgreesAndPlantedErrorsDoNot(kBf16, 2e-2, 1e-3, 2);
}

// Roundings to e4m3 are 2.6e-2 each, of weights and of inputs, and amplified as those to bf16 are: 15 times bf16's
// error.
TEST_F(CudaWide, InFp8TooAgreesWithFloat32AndPlantedErrorsDoNot) {
  AgreesAndPlantedErrorsDoNot(kFp8Cache, 0.25, 5e-2, 1.15);
}

// The shape whose attention goes by bulk copies: the same tokens in one chunk and one at a time.
TEST(CudaSynthetic, GenerationByBulkCopiesAgreesWithContext) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 1024;
  config.hidden_size = 1024;
  config.intermediate_size = 2048;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 2;
  config.head_dim = 128;
  config.max_position_embeddings = kMaxSeqLen;
  const int32_t count = device->emulated ? 20 : 200;
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < count; ++i) tokens.push_back((i * 131 + 7) % 1024);
  struct {
    Form form;
    int32_t tokens_per_block;
    double bound;
  } runs[] = {{kBf16, 64, 1e-2}, {kBf16, 32, 1e-2}, {kFp8Cache, 64, 1e-1}, {kFp8Cache, 32, 1e-1}};
  for (const auto& [form, tokens_per_block, bound] : runs) {
    auto model = CudaLlama::Synthesize(config, 11, {kMaxSeqLen, kMaxSeqLen, kMaxSeqLen}, form.precision);
    ASSERT_TRUE(model.ok()) << model.error().message();
    Runner runner(*std::move(model), tokens_per_block, form.cache);
    Sequence whole{.slot = 1, .token_ids = tokens}, single{.slot = 2, .token_ids = tokens};
    runner.Step({{&whole, count}});
    for (int i = 0; i < count; ++i) runner.Step({{&single, 1}});
    double difference = 0, norm = 0;
    for (size_t i = 0; i < whole.logits.size(); ++i) {
      difference += std::pow(whole.logits[i] - single.logits[i], 2);
      norm += std::pow(whole.logits[i], 2);
    }
    double relative = std::sqrt(difference / norm);
    std::cout << form.name << ", blocks of " << tokens_per_block << ": relative difference " << relative << "\n";
    EXPECT_LT(relative, bound);
    EXPECT_GT(norm, 0);
  }
}

TEST(CudaSynthetic, WeightsTakeWhatWasSaidBefore) {
  auto device = OpenCudaDevice();
  if (!device.ok()) GTEST_SKIP() << device.error().message();
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 1000;
  config.hidden_size = 64;
  config.intermediate_size = 200;  // not a multiple of 16: `down` stays bf16
  config.num_hidden_layers = 3;
  config.num_attention_heads = 4;
  config.num_key_value_heads = 2;
  config.head_dim = 32;
  config.attention_bias = true;
  config.max_position_embeddings = kMaxSeqLen;
  for (bool fp8 : {false, true}) {
    const CudaPrecision precision{.fp8_linears = fp8};
    auto model = CudaLlama::Synthesize(config, 1, {kMaxSeqLen, 16, 16}, precision);
    ASSERT_TRUE(model.ok()) << model.error().message();
    EXPECT_EQ((*model)->weight_bytes(), CudaLlama::WeightBytes(config, precision, nullptr));
  }
}

}  // namespace
}  // namespace ekiben
