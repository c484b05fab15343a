// The device's sampler against sample/sampler.h: the same tokens from the same logits, over every rule and filter, rows
// of many shapes and sequences that remember what was chosen.
#include "backend/cuda_sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>

#include "backend/sampling_cases_for_test.h"
#include "sample/sampler.h"

namespace ekiben {
namespace {

class Rows {
 public:
  Rows(int32_t count, int32_t vocab) : count_(count), vocab_(vocab) {}
  bool Open() {
    auto device = OpenCudaDevice();
    if (!device.ok()) return false;
    stream_ = *CudaStream::Create();
    queue_.stream = stream_.get();
    size_t rows = static_cast<size_t>(count_);
    logits_ = *DeviceBuffer::Create(rows * static_cast<size_t>(vocab_) * sizeof(float));
    ints_ = *DeviceBuffer::Create(4 * rows * sizeof(int32_t));
    logprobs_ = *DeviceBuffer::Create(rows * sizeof(PositionLogProbs));
    sampling = *CudaSampling::Create(stream_, count_, vocab_, 512);
    std::vector<int32_t> ids(rows);
    for (size_t i = 0; i < rows; ++i) ids[i] = static_cast<int32_t>(i);
    EXPECT_TRUE(stream_.Copy(ints_.data(), ids.data(), rows * 4).ok());
    EXPECT_TRUE(stream_.Copy(ints_.as<int32_t>() + count_, ids.data(), rows * 4).ok());
    return stream_.Wait().ok();
  }
  void Bind(int32_t slot, const Request& request, int32_t index) {
    auto bound = sampling.Bind(stream_, queue_, {slot}, request, index, {});
    EXPECT_TRUE(bound.ok()) << bound.error().message();
  }
  // Row i belongs to slot i.
  void Sample(const std::vector<float>& logits) {
    EXPECT_TRUE(stream_.Copy(logits_.data(), logits.data(), logits.size() * sizeof(float)).ok());
    auto* ints = ints_.as<int32_t>();
    sampling.Run(queue_,
                 {.logits = logits_.as<float>(),
                  .rows = ints,
                  .slots = ints + count_,
                  .results = ints + 2 * count_,
                  .last_tokens = ints + 3 * count_,
                  .logprobs = logprobs_.as<cuda::TokenLogProbs>()},
                 count_);
    tokens.resize(static_cast<size_t>(count_));
    last_tokens.resize(static_cast<size_t>(count_));
    logprobs.resize(static_cast<size_t>(count_));
    after.resize(logits.size());
    EXPECT_TRUE(stream_.Copy(tokens.data(), ints + 2 * count_, tokens.size() * 4).ok());
    EXPECT_TRUE(stream_.Copy(last_tokens.data(), ints + 3 * count_, tokens.size() * 4).ok());
    EXPECT_TRUE(stream_.Copy(logprobs.data(), logprobs_.data(), logprobs.size() * sizeof(PositionLogProbs)).ok());
    EXPECT_TRUE(stream_.Copy(after.data(), logits_.data(), after.size() * sizeof(float)).ok());
    ASSERT_TRUE(stream_.Wait().ok());
    ASSERT_EQ(queue_.error, 0);
  }

  CudaSampling sampling;
  std::vector<int32_t> tokens, last_tokens;
  std::vector<PositionLogProbs> logprobs;
  std::vector<float> after;

 private:
  int32_t count_, vocab_;
  CudaStream stream_;
  cuda::Queue queue_;
  DeviceBuffer logits_, ints_, logprobs_;
};

TEST(CudaSamplingOnDevice, ChoosesWhatTheHostsSamplerChooses) {
#ifdef EKIBEN_EMULATED
  constexpr int32_t kRows = 84, kSteps = 2;
  const std::vector<int32_t> vocabularies = {37, 1000};
#else
  constexpr int32_t kRows = 84, kSteps = 8;
  const std::vector<int32_t> vocabularies = {37, 1000, 49152, 128256};
#endif
  int64_t drawn = 0, masked = 0;
  for (int32_t vocab : vocabularies) {
    Rows rows(kRows, vocab);
    if (!rows.Open()) GTEST_SKIP() << "no device";
    Sampler sampler(kRows, vocab, BestIsa());
    std::mt19937 random(static_cast<uint32_t>(vocab));
    std::vector<Request> requests;
    for (int32_t i = 0; i < kRows; ++i) requests.push_back(RandomRequest(i, vocab, random));
    for (int32_t i = 0; i < kRows; ++i) {
      Request& request = requests[static_cast<size_t>(i)];
      ASSERT_TRUE(DeviceSamples(request)) << i;
      rows.Bind(i, request, i % 3);
      sampler.Bind({i}, request, i % 3, {});
    }
    for (int32_t step = 0; step < kSteps; ++step) {
      std::vector<float> all;
      for (int32_t i = 0; i < kRows; ++i) {
        auto row = RowOfLogits(vocab, i + step, static_cast<uint32_t>(step * 1000 + i));
        all.insert(all.end(), row.begin(), row.end());
      }
      rows.Sample(all);
      EXPECT_TRUE(std::equal(all.begin(), all.end(), rows.after.begin())) << "the logits are as they were";
      for (int32_t i = 0; i < kRows; ++i) {
        auto index = static_cast<size_t>(i);
        auto* row = all.data() + index * static_cast<size_t>(vocab);
        std::vector<float> copy(row, row + vocab);
        PositionLogProbs logprobs;
        const SamplingParams& s = requests[index].sampling;
        Sampler::Choice choice = sampler.Sample({i}, copy.data(), s.logprobs >= 0 ? &logprobs : nullptr);
        ASSERT_EQ(rows.tokens[index], choice.finite ? choice.token : -1)
            << "vocabulary " << vocab << ", step " << step << ", row " << i << ": temperature " << s.temperature
            << ", top_k " << s.top_k << ", top_p " << s.top_p << ", min_p " << s.min_p;
        EXPECT_EQ(rows.last_tokens[index], choice.finite ? choice.token : 0);
        if (s.logprobs >= 0 && choice.finite) ExpectSameLogProbs(rows.logprobs[index], logprobs);
        drawn += choice.finite;
        masked += !choice.finite;
      }
    }
  }
  std::cout << drawn << " tokens equal, " << masked << " rows with every token masked\n";
}

TEST(CudaSamplingOnDevice, ARowThatIsNotFiniteFailsAloneAndIsForgotten) {
  constexpr int32_t kVocab = 5000;
  Rows rows(3, kVocab);
  if (!rows.Open()) GTEST_SKIP() << "no device";
  std::vector<Request> requests(3, Plain(1));
  requests[1].sampling.frequency_penalty = 1;
  Sampler sampler(3, kVocab, BestIsa());
  for (int32_t i = 0; i < 3; ++i) {
    rows.Bind(i, requests[static_cast<size_t>(i)], 0);
    sampler.Bind({i}, requests[static_cast<size_t>(i)], 0, {});
  }
  for (int step = 0; step < 4; ++step) {
    std::vector<float> all;
    for (uint32_t i = 0; i < 3; ++i) {
      auto row = RowOfLogits(kVocab, 0, 50 + i);
      all.insert(all.end(), row.begin(), row.end());
    }
    if (step == 1) all[kVocab + 4321] = std::numeric_limits<float>::quiet_NaN();
    if (step == 2) all[kVocab + 7] = std::numeric_limits<float>::infinity();
    rows.Sample(all);
    for (int32_t i = 0; i < 3; ++i) {
      std::vector<float> row(all.begin() + i * kVocab, all.begin() + (i + 1) * kVocab);
      Sampler::Choice choice = sampler.Sample({i}, row.data(), nullptr);
      EXPECT_EQ(choice.finite, i != 1 || step % 3 == 0);
      EXPECT_EQ(rows.tokens[static_cast<size_t>(i)], choice.finite ? choice.token : -1) << step << " " << i;
    }
  }
}

}  // namespace
}  // namespace ekiben
