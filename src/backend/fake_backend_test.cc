#include "backend/fake_backend.h"

#include <gtest/gtest.h>

#include <array>

namespace ekiben {
namespace {

using std::chrono::milliseconds;

constexpr SlotId kSlot{2};
constexpr SequenceId kSequence{9};

class FakeBackendTest : public testing::Test {
 protected:
  FakeBackendTest() {
    options_.tokens_per_block = 4;
    options_.blocks = 8;
    options_.max_seq_len = 32;
    options_.max_batch_size = 4;
    options_.max_num_tokens = 16;
    options_.abort_on_violation = false;
    options_.fake_clock = &clock_;
    options_.step_time = milliseconds(2);
    options_.step_time_per_token = milliseconds(1);
    request_.prompt = {5, 6, 7, 8, 9, 10};
    request_.sampling.seed = 3;
    request_.max_tokens = 20;
  }
  void Make() {
    backend_ = std::make_unique<FakeBackend>(options_);
    backend_->BindSlot({.slot = kSlot, .sequence = kSequence, .request = &request_});
  }
  void PlanContext() {
    plan_.Clear();
    plan_.AddTableEdit(kSlot, 0, {6});
    plan_.AddTableEdit(kSlot, 1, {1});
    plan_.AddContextRow(kSequence, kSlot, 0, request_.prompt, OutputKind::kSample);
  }
  StepResult Run() {
    Result<Ticket> ticket = backend_->Launch(plan_);
    EXPECT_TRUE(ticket.ok()) << ticket.error().message();
    Result<StepResult> result = backend_->Finish(*ticket);
    EXPECT_TRUE(result.ok());
    return *result;
  }
  // What Launch says of plan_.
  std::string Refusal() {
    Result<Ticket> ticket = backend_->Launch(plan_);
    EXPECT_FALSE(ticket.ok());
    return ticket.ok() ? "" : ticket.error().message();
  }

  FakeClock clock_;
  FakeBackendOptions options_;
  Request request_;
  std::unique_ptr<FakeBackend> backend_;
  StepPlan plan_{{.rows = 4, .tokens = 16, .table_edits = 16, .copies = 4}};
};

TEST_F(FakeBackendTest, ContextThenGenerationFollowTheOracle) {
  Make();
  PlanContext();
  std::vector<TokenId> tokens = request_.prompt;
  for (int32_t i = 0; i < 6; ++i) {
    StepResult result = Run();
    ASSERT_EQ(result.rows.size(), 1u);
    ASSERT_EQ(result.rows[0].token_count, 1);
    EXPECT_EQ(result.rows[0].tokens[0], FakeNextToken(options_, request_, 0, i, tokens)) << i;
    tokens.push_back(result.rows[0].tokens[0]);
    plan_.Clear();
    if (tokens.size() == 9) plan_.AddTableEdit(kSlot, 2, {3});
    plan_.AddGenerationRow(kSequence, kSlot, static_cast<int32_t>(tokens.size()) - 1, OutputKind::kSample);
  }
}

TEST_F(FakeBackendTest, WrongBlockChangesTheToken) {
  Make();
  PlanContext();
  StepResult first = Run();
  std::vector<TokenId> tokens = request_.prompt;
  tokens.push_back(first.rows[0].tokens[0]);
  plan_.Clear();
  plan_.AddTableEdit(kSlot, 0, {7});  // never written
  plan_.AddGenerationRow(kSequence, kSlot, 6, OutputKind::kSample);
  EXPECT_NE(Run().rows[0].tokens[0], FakeNextToken(options_, request_, 0, 1, tokens));
}

TEST_F(FakeBackendTest, CopiesComeBeforeTheRows) {
  Make();
  PlanContext();
  Run();
  backend_->BindSlot({.slot = {0}, .sequence = {10}, .request = &request_});
  plan_.Clear();
  plan_.AddTableEdit({0}, 0, {6});
  plan_.AddTableEdit({0}, 1, {2});
  plan_.AddCopy({1}, {2}, 1);
  plan_.AddContextRow({10}, {0}, 5, std::span(request_.prompt).subspan(5), OutputKind::kSample);
  EXPECT_EQ(Run().rows[0].tokens[0], FakeNextToken(options_, request_, 0, 0, request_.prompt));
}

TEST_F(FakeBackendTest, TimePassesOnTheClock) {
  Make();
  PlanContext();
  EXPECT_EQ(Run().device_time, milliseconds(8));
  EXPECT_EQ(clock_.Now(), milliseconds(8));
}

TEST_F(FakeBackendTest, TwoTicketsOverlapAndFinishInOrder) {
  options_.tickets_max = 2;
  Make();
  PlanContext();
  Ticket first = *backend_->Launch(plan_);
  plan_.Clear();
  plan_.AddGenerationRow(kSequence, kSlot, 6, OutputKind::kSample);
  Ticket second = *backend_->Launch(plan_);
  TokenId token = (*backend_->Finish(first)).rows[0].tokens[0];
  EXPECT_EQ(clock_.Now(), milliseconds(8));
  std::vector<TokenId> tokens = request_.prompt;
  tokens.push_back(token);
  EXPECT_EQ((*backend_->Finish(second)).rows[0].tokens[0], FakeNextToken(options_, request_, 0, 1, tokens));
  EXPECT_EQ(clock_.Now(), milliseconds(11));
}

TEST_F(FakeBackendTest, BlockTakenWhileAStepInFlightNamesItIsAViolation) {
  options_.tickets_max = 2;
  Make();
  PlanContext();
  ASSERT_TRUE(backend_->Launch(plan_).ok());
  backend_->BindSlot({.slot = {0}, .sequence = {10}, .request = &request_});
  plan_.Clear();
  plan_.AddTableEdit({0}, 0, {1});
  std::array<TokenId, 2> chunk = {1, 2};
  plan_.AddContextRow({10}, {0}, 0, chunk, OutputKind::kNone);
  EXPECT_NE(Refusal().find("after every ticket"), std::string::npos);
}

TEST_F(FakeBackendTest, SlotBoundWhileAStepInFlightNamesItIsAViolation) {
  options_.tickets_max = 2;
  Make();
  PlanContext();
  ASSERT_TRUE(backend_->Launch(plan_).ok());
  backend_->BindSlot({.slot = kSlot, .sequence = {10}, .request = &request_});
  ASSERT_EQ(backend_->violations().size(), 1u);
}

TEST_F(FakeBackendTest, RefusesUnsetEntriesStrangersAndTooManyTokens) {
  Make();
  PlanContext();
  plan_.Clear();
  plan_.AddTableEdit(kSlot, 0, {6});
  plan_.AddContextRow(kSequence, kSlot, 0, request_.prompt, OutputKind::kSample);
  EXPECT_NE(Refusal().find("table entries set"), std::string::npos);
  plan_.Clear();
  plan_.AddGenerationRow({77}, kSlot, 6, OutputKind::kSample);
  EXPECT_NE(Refusal().find("the slot's sequence"), std::string::npos);
  options_.tokens_limit = 5;
  Make();
  PlanContext();
  EXPECT_NE(Refusal().find("token budget"), std::string::npos);
}

TEST_F(FakeBackendTest, FaultsComeWhenTold) {
  options_.launch_fails_at = 1;
  Make();
  PlanContext();
  Run();
  EXPECT_FALSE(backend_->Launch(plan_).ok());
  options_.launch_fails_at = -1;
  options_.finish_fails_at = 0;
  Make();
  PlanContext();
  Ticket ticket = *backend_->Launch(plan_);
  EXPECT_FALSE(backend_->Finish(ticket).ok());
  options_.finish_fails_at = -1;
  options_.not_finite = [](const Request&, int32_t, int32_t draw) { return draw == 0; };
  Make();
  PlanContext();
  EXPECT_FALSE(Run().rows[0].finite);
}

TEST_F(FakeBackendTest, MinTokensMasksStopTokensAndGreedyIgnoresTheSeed) {
  TokenId first = FakeNextToken(options_, request_, 0, 0, request_.prompt);
  request_.stop_tokens = {first};
  EXPECT_EQ(FakeNextToken(options_, request_, 0, 0, request_.prompt), first);
  request_.sampling.min_tokens = 1;
  EXPECT_NE(FakeNextToken(options_, request_, 0, 0, request_.prompt), first);
  Request other = request_;
  other.sampling.seed = 99;
  EXPECT_NE(FakeNextToken(options_, request_, 0, 5, request_.prompt),
            FakeNextToken(options_, other, 0, 5, other.prompt));
  request_.sampling.temperature = other.sampling.temperature = 0;
  EXPECT_EQ(FakeNextToken(options_, request_, 0, 5, request_.prompt),
            FakeNextToken(options_, other, 0, 5, other.prompt));
}

}  // namespace
}  // namespace ekiben
