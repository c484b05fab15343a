#include "backend/fake_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "base/arithmetic.h"
#include "base/check.h"
#include "base/philox.h"

namespace ekiben {
namespace {

constexpr TokenId kUnwritten = -1;

// One multiply a token: a walk of a 1,000-token prefix costs about a microsecond.
constexpr uint64_t Mix(uint64_t state, uint64_t value) {
  state = (state ^ value) * 0x9E3779B97F4A7C15u;
  return state ^ (state >> 29);
}

// The "model": a running hash of the tokens that attention sees.
class PrefixHash {
 public:
  explicit PrefixHash(uint64_t model_seed) : state_(Mix(model_seed, 0x6b76)) {}
  void Add(TokenId token) { state_ = Mix(state_, static_cast<uint32_t>(token) + 1); }
  uint64_t value() const { return state_; }

 private:
  uint64_t state_;
};

int32_t WindowStart(int32_t window, int32_t position) {
  return window <= 0 ? 0 : std::max(0, position - window + 1);
}

bool IsStopToken(const Request& request, TokenId token) {
  return std::ranges::find(request.stop_tokens, token) != request.stop_tokens.end();
}

// The "sampler": the same draw for the same (seed, sequence index, position), whatever the batch.
TokenId Sample(const FakeBackendOptions& options, const Request& request, int32_t sequence_index, int32_t draw_position,
               uint64_t prefix) {
  uint64_t draw = 0;
  if (!request.sampling.greedy()) {
    auto key =
        PhiloxKey{static_cast<uint32_t>(request.sampling.seed), static_cast<uint32_t>(request.sampling.seed >> 32)};
    PhiloxCounter out =
        Philox4x32({static_cast<uint32_t>(draw_position), static_cast<uint32_t>(sequence_index), 0, 0}, key);
    draw = uint64_t{out[0]} << 32 | out[1];
  }
  auto range = static_cast<uint64_t>(options.vocab_size - options.token_min);
  auto token = options.token_min + static_cast<TokenId>(Mix(Mix(prefix, draw), 0x746f6b) % range);
  bool ends_masked = draw_position < request.sampling.min_tokens;
  for (uint64_t tried = 0; ends_masked && IsStopToken(request, token) && tried < range; ++tried) {
    token = token + 1 < options.vocab_size ? token + 1 : options.token_min;
  }
  return token;
}

// `token`, or the next one after it that the grammar allows.
TokenId Constrain(TokenMatcher& matcher, TokenId token, int32_t vocab_size) {
  std::vector<int32_t> bits(static_cast<size_t>(TokenMaskWords(vocab_size)));
  if (matcher.Allowed(bits) == TokenMatcher::Mask::kSome)
    for (int32_t tried = 0; !IsAllowed(bits, token) && tried < vocab_size; ++tried) token = (token + 1) % vocab_size;
  matcher.Accept(token);
  return token;
}

PositionLogProbs FakeLogProbs(uint64_t prefix, TokenId chosen, int32_t alternatives, int32_t vocab_size) {
  PositionLogProbs out;
  out.chosen = -0.5f - static_cast<float>(Mix(prefix, static_cast<uint32_t>(chosen)) % 1000) * 0.001f;
  out.count = std::clamp(alternatives, 0, PositionLogProbs::kAlternativesMax);
  for (int32_t i = 0; i < out.count; ++i) {
    TokenId token = i == 0 ? chosen : (chosen + i) % vocab_size;
    out.best[i] = {token, out.chosen - static_cast<float>(i)};
  }
  return out;
}

}  // namespace

TokenId FakeNextToken(const FakeBackendOptions& options, const Request& request, int32_t sequence_index,
                      int32_t draw_position, std::span<const TokenId> tokens) {
  PrefixHash prefix(options.model_seed);
  auto last = static_cast<int32_t>(tokens.size()) - 1;
  for (int32_t i = WindowStart(options.attention_window, last); i <= last; ++i) {
    prefix.Add(tokens[static_cast<size_t>(i)]);
  }
  return Sample(options, request, sequence_index, draw_position, prefix.value());
}

struct FakeBackend::Slot {
  const Request* request = nullptr;
  SequenceId sequence{};
  int32_t sequence_index = 0;
  int32_t drawn = 0;  // tokens generated
  TokenId last_token = kUnwritten;
  std::vector<BlockId> table;
  int32_t length = 0;                     // tokens written since the binding, as the host plans them
  std::unique_ptr<TokenMatcher> matcher;  // with a grammar
};

struct FakeBackend::Flight {
  StepPlan plan;
  Nanos ends{};
  bool used = false;
};

FakeBackend::FakeBackend(FakeBackendOptions options) : options_(std::move(options)) {
  const FakeBackendOptions& o = options_;
  CHECK(o.tickets_max == 1 || o.tickets_max == 2, "{}", o.tickets_max);
  info_ = {.name = "fake",
           .description = fmt::format("fake: {} blocks of {} tokens, no model", o.blocks, o.tokens_per_block),
           .vocab_size = o.vocab_size,
           .max_batch_size = o.max_batch_size,
           .max_num_tokens = o.max_num_tokens,
           .max_seq_len = o.max_seq_len,
           .tokens_per_block = o.tokens_per_block,
           .blocks = o.blocks,
           .tickets_max = o.tickets_max,
           .kv_bytes_per_token = sizeof(TokenId)};
  if (o.knows_step_costs) {
    for (int32_t tokens : {1, o.max_num_tokens + 1})
      info_.step_costs.push_back({tokens, o.step_time + o.step_time_per_token * tokens});
    for (int32_t tokens = o.context_tile; o.tile_nanos_a_key > 0 && tokens <= o.max_num_tokens;
         tokens += o.context_tile)
      info_.attention_costs.chunks.push_back({tokens, o.tile_nanos_a_key * tokens / o.context_tile});
  }
  auto rows = static_cast<size_t>(o.max_batch_size);
  kv_.assign(static_cast<size_t>(o.blocks) * static_cast<size_t>(o.tokens_per_block), kUnwritten);
  slots_.resize(rows);
  auto table_size = static_cast<size_t>(o.max_seq_len / o.tokens_per_block + 1);
  for (Slot& slot : slots_) slot.table.assign(table_size, BlockId{-1});
  written_.reserve(static_cast<size_t>(o.max_num_tokens + o.max_batch_size));
  results_.reserve(rows);
  sampled_.resize(rows);
  logprobs_.resize(rows);
}

FakeBackend::~FakeBackend() = default;

void FakeBackend::Violation(std::string what) {
  CHECK(!options_.abort_on_violation, "{}", what);
  violations_.push_back(std::move(what));
}

void FakeBackend::BindSlot(const SlotBinding& binding) {
  auto index = static_cast<size_t>(binding.slot.value);
  if (index >= slots_.size()) return Violation(fmt::format("slot in range: {} of {}", binding.slot, slots_.size()));
  for (const Flight& flight : flights_) {
    if (!flight.used) continue;
    for (const PlanRow& row : flight.plan.rows()) {
      if (row.slot == binding.slot) Violation(fmt::format("slot {} bound while a step in flight names it", row.slot));
    }
  }
  Slot& slot = slots_[index];
  slot.request = binding.request;
  slot.sequence = binding.sequence;
  slot.sequence_index = binding.sequence_index;
  slot.drawn = static_cast<int32_t>(binding.generated.size());
  slot.matcher.reset();
  if (slot.request->constraint != nullptr) slot.matcher = slot.request->constraint->NewMatcher();
  for (TokenId token : binding.generated)
    if (slot.matcher) slot.matcher->Accept(token);
  slot.last_token = kUnwritten;
  slot.length = 0;
  std::ranges::fill(slot.table, BlockId{-1});
}

bool FakeBackend::NamedInFlight(BlockId block, SlotId by_other_than) const {
  for (const Flight& flight : flights_) {
    if (!flight.used) continue;
    for (const PlanRow& row : flight.plan.rows()) {
      if (row.slot == by_other_than) continue;
      const Slot& slot = slots_[static_cast<size_t>(row.slot.value)];
      int32_t first = WindowStart(options_.attention_window, row.position) / options_.tokens_per_block;
      int32_t last = (row.position + row.token_count - 1) / options_.tokens_per_block;
      for (int32_t i = first; i <= last; ++i) {
        if (slot.table[static_cast<size_t>(i)] == block) return true;
      }
    }
  }
  return false;
}

// Before the plan's own edits are applied.
void FakeBackend::CheckPlan(const StepPlan& plan) {
  int32_t limit = options_.tokens_limit > 0 ? options_.tokens_limit : options_.max_num_tokens;
  if (plan.empty()) Violation("a plan has rows");
  if (plan.token_count() > limit) {
    Violation(fmt::format("token budget never exceeded: {} of {}", plan.token_count(), limit));
  }
  if (static_cast<int32_t>(plan.rows().size()) > options_.max_batch_size) {
    Violation(fmt::format("batch budget never exceeded: {} rows", plan.rows().size()));
  }
  for (const BlockTableEdit& edit : plan.table_edits()) {
    bool in_range = edit.slot.value >= 0 && edit.slot.value < options_.max_batch_size && edit.block.value >= 0 &&
                    edit.block.value < options_.blocks && edit.index >= 0 &&
                    static_cast<size_t>(edit.index) < slots_[0].table.size();
    if (!in_range) {
      Violation(fmt::format("block table edit in range: slot {} entry {} block {}", edit.slot, edit.index, edit.block));
    }
  }
}

void FakeBackend::CheckRow(const StepPlan& plan, const PlanRow& row) {
  auto index = static_cast<size_t>(row.slot.value);
  if (index >= slots_.size()) return Violation(fmt::format("row names a slot in range: {}", row.slot));
  Slot& slot = slots_[index];
  if (slot.sequence != row.sequence || slot.request == nullptr) {
    return Violation(fmt::format("row names the slot's sequence: {} bound, {} planned", slot.sequence, row.sequence));
  }
  auto same_slot = [&](const PlanRow& other) { return other.slot == row.slot; };
  if (std::ranges::count_if(plan.rows(), same_slot) != 1) Violation(fmt::format("no row twice: slot {}", row.slot));
  int32_t end = row.position + row.token_count;
  if (row.position < 0 || row.token_count < 1 || end > options_.max_seq_len) {
    return Violation(fmt::format("positions within max_seq_len: [{}, {})", row.position, end));
  }
  if (row.token_offset < 0 && row.position != slot.length) {
    Violation(fmt::format("generation continues its sequence: at {} of {}", row.position, slot.length));
  }
  slot.length = end;
  for (int32_t i = WindowStart(options_.attention_window, row.position) / options_.tokens_per_block;
       i <= (end - 1) / options_.tokens_per_block; ++i) {
    BlockId block = slot.table[static_cast<size_t>(i)];
    if (block.value < 0) {
      Violation(fmt::format("table entries set: slot {} entry {}", row.slot, i));
      return;
    }
    if (i < row.position / options_.tokens_per_block) continue;
    if (std::ranges::find(written_, block) != written_.end()) {
      Violation(fmt::format("a block is written by one row: block {}", block));
    }
    written_.push_back(block);
    if (NamedInFlight(block, row.slot)) {
      Violation(fmt::format("a block returns after every ticket that names it: block {}", block));
    }
  }
}

void FakeBackend::ApplyEdits(const StepPlan& plan) {
  for (const BlockTableEdit& edit : plan.table_edits()) {
    if (static_cast<size_t>(edit.slot.value) >= slots_.size()) continue;
    std::vector<BlockId>& table = slots_[static_cast<size_t>(edit.slot.value)].table;
    if (static_cast<size_t>(edit.index) < table.size()) table[static_cast<size_t>(edit.index)] = edit.block;
  }
}

Result<Ticket> FakeBackend::Launch(const StepPlan& plan) {
  if (launches_++ == options_.launch_fails_at) return Error(Code::kInternal, "fake device fault at launch");
  if (flights_.empty()) {
    flights_.reserve(static_cast<size_t>(options_.tickets_max));
    for (int32_t i = 0; i < options_.tickets_max; ++i) flights_.push_back({StepPlan(plan.capacity())});
  }
  Flight& flight = flights_[next_ticket_ % flights_.size()];
  if (flight.used) Violation(fmt::format("at most {} tickets in flight", options_.tickets_max));
  size_t violations_before = violations_.size();
  CheckPlan(plan);
  // A slot's entries only ever grow under one binding, so edits may be applied ahead of the steps in flight.
  ApplyEdits(plan);
  written_.clear();
  for (const PlanRow& row : plan.rows()) CheckRow(plan, row);
  if (violations_.size() != violations_before) return Error(Code::kInternal, violations_.back());
  flight.plan.CopyFrom(plan);
  flight.used = true;
  const Clock& clock = options_.fake_clock != nullptr ? static_cast<const Clock&>(*options_.fake_clock)
                                                      : static_cast<const Clock&>(SystemClock::Get());
  Nanos begins = clock.Now();
  for (const Flight& other : flights_) {
    if (other.used && &other != &flight) begins = std::max(begins, other.ends);
  }
  flight.ends = begins + TimeOf(plan);
  return Ticket{next_ticket_++};
}

Nanos FakeBackend::TimeOf(const StepPlan& plan) const {
  double attention = 0;
  for (const PlanRow& row : plan.rows()) {
    if (row.token_offset < 0) continue;
    attention += options_.tile_nanos_a_key * CeilDiv(row.token_count, options_.context_tile) *
                 (row.position + (row.token_count + 1) / 2.0);
  }
  return options_.step_time + options_.step_time_per_token * plan.token_count() +
         Nanos(static_cast<int64_t>(attention));
}

void FakeBackend::WaitUntil(Nanos end) {
  if (options_.fake_clock != nullptr) {
    Nanos now = options_.fake_clock->Now();
    if (now < end) options_.fake_clock->Advance(end - now);
  } else if (options_.real_time) {
    std::this_thread::sleep_until(std::chrono::steady_clock::time_point(end));
  }
}

TokenId* FakeBackend::Cell(const Slot& slot, int32_t position) {
  BlockId block = slot.table[static_cast<size_t>(position / options_.tokens_per_block)];
  return &kv_[static_cast<size_t>(block.value) * static_cast<size_t>(options_.tokens_per_block) +
              static_cast<size_t>(position % options_.tokens_per_block)];
}

// What attention at `position` sees, block by block through the table.
uint64_t FakeBackend::PrefixAt(const Slot& slot, int32_t position) {
  PrefixHash prefix(options_.model_seed);
  for (int32_t p = WindowStart(options_.attention_window, position); p <= position; ++p) prefix.Add(*Cell(slot, p));
  return prefix.value();
}

void FakeBackend::RunRow(const StepPlan& plan, const PlanRow& row, RowResult& result, size_t row_index) {
  Slot& slot = slots_[static_cast<size_t>(row.slot.value)];
  result = {.sequence = row.sequence, .slot = row.slot};
  if (slot.sequence != row.sequence) return;
  bool context = row.token_offset >= 0;
  const Request& request = *slot.request;
  int32_t end = row.position + row.token_count;
  int32_t alternatives = std::max(request.sampling.logprobs, 0);
  size_t prompt_begin = prompt_logprobs_.size();
  for (int32_t i = 0; i < row.token_count; ++i) {
    *Cell(slot, row.position + i) =
        context ? plan.tokens()[static_cast<size_t>(row.token_offset + i)] : slot.last_token;
  }
  if (row.output == OutputKind::kNone) return;
  uint64_t prefix = PrefixAt(slot, end - 1);
  for (int32_t p = row.position; row.output == OutputKind::kAllLogits && p < end; ++p) {
    auto next = static_cast<size_t>(p) + 1;
    if (next >= request.prompt.size()) break;
    prompt_logprobs_.push_back(
        FakeLogProbs(PrefixAt(slot, p), request.prompt[next], alternatives, options_.vocab_size));
  }
  result.prompt_logprobs = {prompt_logprobs_.data() + prompt_begin, prompt_logprobs_.size() - prompt_begin};
  if (static_cast<size_t>(end) < request.prompt.size()) return;  // a chunk scored, nothing to sample yet
  result.finite = !options_.not_finite || !options_.not_finite(request, slot.sequence_index, slot.drawn);
  slot.last_token = Sample(options_, request, slot.sequence_index, slot.drawn++, prefix);
  if (slot.matcher) slot.last_token = Constrain(*slot.matcher, slot.last_token, options_.vocab_size);
  sampled_[row_index] = slot.last_token;
  result.token_count = 1;
  result.tokens = {&sampled_[row_index], 1};
  if (request.sampling.logprobs >= 0) {
    logprobs_[row_index] = FakeLogProbs(prefix, slot.last_token, alternatives, options_.vocab_size);
    result.logprobs = &logprobs_[row_index];
  }
}

Result<StepResult> FakeBackend::Finish(Ticket ticket) {
  if (ticket.value != next_finish_) Violation(fmt::format("tickets finish in order: {}", ticket.value));
  ++next_finish_;
  if (finishes_ == options_.finish_hangs_at)
    while (!options_.hang_ends->load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (finishes_++ == options_.finish_fails_at) return Error(Code::kInternal, "fake device fault at finish");
  Flight& flight = flights_[ticket.value % flights_.size()];
  CHECK(flight.used, "ticket {} is not in flight", ticket.value);
  auto stride = static_cast<size_t>(options_.tokens_per_block);
  for (const BlockCopy& copy : flight.plan.copies()) {
    auto* source = kv_.data() + static_cast<size_t>(copy.source.value) * stride;
    std::copy_n(source, copy.token_count, kv_.data() + static_cast<size_t>(copy.target.value) * stride);
  }
  results_.resize(flight.plan.rows().size());
  prompt_logprobs_.clear();
  size_t scored = 0;
  for (const PlanRow& row : flight.plan.rows()) {
    scored += row.output == OutputKind::kAllLogits ? static_cast<size_t>(row.token_count) : 0;
  }
  prompt_logprobs_.reserve(scored);  // rows keep spans into it
  for (size_t i = 0; i < results_.size(); ++i) RunRow(flight.plan, flight.plan.rows()[i], results_[i], i);
  WaitUntil(flight.ends);
  flight.used = false;
  return StepResult{.ticket = ticket,
                    .rows = results_,
                    .device_time = TimeOf(flight.plan),
                    .tokens_padded = RoundUp(flight.plan.token_count(), options_.pads_to) - flight.plan.token_count()};
}

}  // namespace ekiben
