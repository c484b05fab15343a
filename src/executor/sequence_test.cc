#include "executor/sequence.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace ekiben {
namespace {

constexpr SequenceLimits kLimits{.max_seq_len = 32, .tokens_per_block = 4, .enable_kv_cache_reuse = true};

std::shared_ptr<Request> MakeRequest(uint64_t id, int32_t prompt_tokens, int32_t max_tokens) {
  auto request = std::make_shared<Request>();
  request->id = {id};
  request->prompt.assign(static_cast<size_t>(prompt_tokens), 7);
  request->max_tokens = max_tokens;
  return request;
}

TEST(Sequence, HasAllTheMemoryItWillNeed) {
  std::unique_ptr<RequestState> state = MakeRequestState(MakeRequest(1, 10, 100), nullptr, kLimits, {5});
  Sequence& sequence = state->sequences[0];
  EXPECT_EQ(sequence.generated_max, 22);    // max_seq_len ends it
  EXPECT_EQ(sequence.tokens_at_end(), 31);  // the last token is never fed
  const TokenId* tokens = sequence.tokens.data();
  const BlockKey* keys = sequence.keys.data();
  while (sequence.may_generate()) AppendToken(sequence, 3, kLimits.tokens_per_block);
  EXPECT_EQ(sequence.tokens.size(), 32u);
  EXPECT_EQ(sequence.keys.size(), 8u);
  EXPECT_EQ(sequence.tokens.data(), tokens);
  EXPECT_EQ(sequence.keys.data(), keys);
}

TEST(Sequence, KeysOfGeneratedBlocksEqualThoseOfTheSamePrompt) {
  std::unique_ptr<RequestState> grown = MakeRequestState(MakeRequest(1, 6, 10), nullptr, kLimits, {1});
  for (int i = 0; i < 4; ++i) AppendToken(grown->sequences[0], 7, kLimits.tokens_per_block);
  std::unique_ptr<RequestState> whole = MakeRequestState(MakeRequest(2, 10, 10), nullptr, kLimits, {2});
  EXPECT_EQ(grown->sequences[0].keys, whole->sequences[0].keys);
}

TEST(Sequence, SharesWithOthersOrOnlyWithItsSiblings) {
  SequenceLimits alone = kLimits;
  alone.enable_kv_cache_reuse = false;
  auto siblings = MakeRequest(1, 10, 5);
  siblings->n = 2;
  auto a = MakeRequestState(siblings, nullptr, alone, {1});
  auto b = MakeRequestState(MakeRequest(2, 10, 5), nullptr, alone, {3});
  EXPECT_EQ(a->sequences[0].keys, a->sequences[1].keys);
  EXPECT_TRUE(a->sequences[1].shares_blocks);
  EXPECT_FALSE(b->sequences[0].shares_blocks);
  EXPECT_FALSE(a->salt == PrefixSalt{});
  SequenceLimits windowed = kLimits;
  windowed.attention_window = 12;
  EXPECT_FALSE(MakeRequestState(MakeRequest(3, 10, 5), nullptr, windowed, {4})->sequences[0].shares_blocks);
  EXPECT_TRUE(MakeRequestState(MakeRequest(4, 10, 3), nullptr, windowed, {5})->sequences[0].shares_blocks);
}

TEST(Sequence, StartInOrderOfPriorityThenArrivalThenIndex) {
  IntrusiveList<Sequence, &Sequence::waiting_link> list;
  std::vector<std::unique_ptr<RequestState>> states;
  uint64_t order = 0;
  for (int32_t priority : {0, 5, 0, -1, 5}) {
    auto request = MakeRequest(order, 4, 4);
    request->priority = priority;
    request->n = 2;
    states.push_back(MakeRequestState(request, nullptr, kLimits, {order * 2}));
    states.back()->arrival_order = order++;
    list.InsertSorted(&states.back()->sequences[1], StartsBefore);
    list.InsertSorted(&states.back()->sequences[0], StartsBefore);
  }
  auto ids = [&] {
    std::vector<uint64_t> out;
    for (Sequence* at = list.first(); at != nullptr; at = decltype(list)::Next(at)) out.push_back(at->id.value);
    return out;
  };
  EXPECT_EQ(ids(), (std::vector<uint64_t>{2, 3, 8, 9, 0, 1, 4, 5, 6, 7}));
  Sequence* paused = &states[1]->sequences[1];
  list.Remove(paused);
  list.Remove(&states[3]->sequences[1]);
  list.Remove(&states[1]->sequences[0]);
  EXPECT_EQ(ids(), (std::vector<uint64_t>{8, 9, 0, 1, 4, 5, 6}));
  list.InsertSorted(paused, StartsBefore);
  EXPECT_EQ(ids(), (std::vector<uint64_t>{3, 8, 9, 0, 1, 4, 5, 6}));
  EXPECT_EQ(list.size(), 8u);
}

}  // namespace
}  // namespace ekiben
