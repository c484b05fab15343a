#include <algorithm>

#include "base/arithmetic.h"
#include "executor/loop.h"

namespace ekiben {

int32_t ExecutorLoop::BlocksFor(int32_t tokens) const {
  return CeilDiv(tokens, limits_.tokens_per_block);
}

// New blocks until the end of a sequence whose table has `blocks_have` entries, `blocks_own` of them held outside the
// tree. Behind an attention window blocks come back while others are taken, so the need has a ceiling.
int32_t ExecutorLoop::BlocksToEnd(const Sequence& sequence, int32_t blocks_have, int32_t blocks_own) const {
  int32_t all = std::max(0, BlocksFor(sequence.tokens_at_end()) - blocks_have);
  if (limits_.attention_window == 0) return all;
  return std::min(all, std::max(0, window_blocks_max_ - blocks_own));
}

// An idle executor may wait a moment for company, so that requests that come together share their first step.
bool ExecutorLoop::WaitingForCompany(Nanos now) {
  bool idle = running_.empty() && in_flight_ == 0 && !waiting_.empty();
  idle = idle && paused_ == 0 && !waiting_.first()->owner->started;  // these have waited
  bool wanted = config_.max_queue_delay_microseconds > 0 && !draining_.load(std::memory_order_relaxed);
  if (!idle || !wanted) {
    company_until_.reset();
    return false;
  }
  if (!company_until_) company_until_ = now + std::chrono::microseconds(config_.max_queue_delay_microseconds);
  if (now >= *company_until_ || waiting_.size() >= static_cast<size_t>(config_.max_batch_size)) return false;
  return true;
}

// Of the next step: by what generates now, and by who has waited longest for a first token.
ContextAllowance ExecutorLoop::Allowance() const {
  if (config_.itl_budget == Nanos(0) || !costs_.known()) return {};
  auto rows = std::ranges::count_if(views_, [](const SequenceView& v) { return v.generation && v.tokens_left > 0; });
  const Sequence* oldest = waiting_.first();
  for (const Sequence* sequence : viewed_) {
    if (sequence->phase != Phase::kContext) continue;
    if (oldest == nullptr || sequence->owner->request->arrival < oldest->owner->request->arrival) oldest = sequence;
  }
  OldestContext context;
  if (oldest != nullptr) {
    auto tokens = static_cast<int32_t>(oldest->tokens.size());
    context = {now_ - oldest->owner->request->arrival, oldest->cached, tokens - oldest->cached, tokens};
  }
  Nanos bound = config_.itl_budget == ExecutorConfig::kItlAuto ? Nanos(0) : config_.itl_budget;
  return AllowanceFor(costs_, static_cast<int32_t>(rows), bound, context);
}

void ExecutorLoop::Plan() {
  FillRunningViews();
  StepLimits limits{
      .max_batch_size = config_.max_batch_size,
      .max_num_tokens = config_.max_num_tokens + Planted(PlantedBug::kBudgetOffByOne),
      .tokens_per_block = limits_.tokens_per_block,
      .blocks_available = cache_.available(),
      .slots_free = static_cast<int32_t>(free_slots_.size()),
      .entries_max = plan_.capacity().table_edits - BlocksFor(config_.max_num_tokens) - 2 * config_.max_batch_size,
      .context = Allowance(),
      .long_starts_max = config_.context_admission_policy == ContextAdmissionPolicy::kPaced
                             ? pace_.StartsMax(waiting_.size())
                             : INT32_MAX,
      .any_running = !running_.empty(),
      .may_pause = false,
      .capacity = config_.batch_scheduler_policy,
      .batching = config_.batching_strategy,
      .chunking = config_.context_chunking_policy,
      .enable_chunked_context = config_.enable_chunked_context};
  next_waiting_ = waiting_.first();
  pulled_.clear();
  step_nanos_max_ = limits.context.nanos_max;
  PlanStep(views_, *this, limits, decision_);
  // Blocks may be on their way back with a step in flight: it finishes first, and only then is anything paused.
  if (!decision_.short_of_blocks || in_flight_ > 0) return;
  for (size_t i = 0; i < views_.size(); ++i) views_[i].blocks_if_paused = cache_.BlocksOfItsOwn(viewed_[i]->slot);
  limits.may_pause = true;
  PlanStep(views_, *this, limits, decision_);
}

void ExecutorLoop::FillRunningViews() {
  views_.clear();
  viewed_.clear();
  for (Sequence* sequence : running_) {
    views_.push_back(ViewOf(*sequence));
    viewed_.push_back(sequence);
  }
}

SequenceView ExecutorLoop::ViewOf(Sequence& sequence) const {
  const BlockTable& table = cache_.table(sequence.slot);
  SequenceView view{.generation = sequence.phase == Phase::kGeneration, .tokens_cached = sequence.cached};
  view.blocks_to_end = BlocksToEnd(sequence, table.length, cache_.BlocksOutsideTree(sequence.slot));
  if (view.generation) {
    bool next = sequence.may_generate();
    view.tokens_left = next ? 1 : 0;
    view.blocks_context = view.blocks_next = next ? std::max(0, BlocksFor(sequence.cached + 1) - table.length) : 0;
  } else {
    auto known = static_cast<int32_t>(sequence.tokens.size());
    view.tokens_left = known - sequence.cached;
    int32_t chunk_end = std::min(known, sequence.cached + config_.max_num_tokens);
    view.blocks_next = std::max(0, BlocksFor(chunk_end) - table.length);
    view.blocks_context = std::min(std::max(0, BlocksFor(known) - table.length), view.blocks_to_end);
    view.blocks_context = std::max(view.blocks_context, view.blocks_next);
  }
  if (sequence.computed < sequence.prompt_tokens - 1) {
    // One whose siblings wait for it: the prompt is computed once.
    if (sequence.owner->request->n > 1) view.group = sequence.owner->arrival_order + 1;
    if (table.shares) view.block_keys = sequence.keys;
    view.blocks_computed = sequence.computed / limits_.tokens_per_block;
  }
  return view;
}

const SequenceView* ExecutorLoop::Next() {
  if (next_waiting_ == nullptr || pulled_.size() == pulled_.capacity()) return nullptr;
  Sequence* sequence = next_waiting_;
  next_waiting_ = decltype(waiting_)::Next(sequence);
  pulled_.push_back(sequence);
  waiting_view_ = ViewOfWaiting(*sequence);
  return &waiting_view_;
}

SequenceView ExecutorLoop::ViewOfWaiting(Sequence& sequence) {
  int32_t idle = 0;
  sequence.start = FindStart(sequence, idle);
  auto known = static_cast<int32_t>(sequence.tokens.size());
  SequenceView view{.tokens_left = known - sequence.start.tokens, .tokens_cached = sequence.start.tokens};
  view.blocks_to_end = BlocksToEnd(sequence, sequence.start.blocks, 0) + idle;
  view.blocks_context = std::min(std::max(0, BlocksFor(known) - sequence.start.blocks) + idle, view.blocks_to_end);
  view.entries_reused = sequence.start.blocks;
  bool from_sibling = sequence.start.share_from.value >= 0;
  if (!sequence.keys.empty() && !from_sibling) view.block_keys = sequence.keys;
  view.blocks_computed = sequence.start.blocks;
  if (sequence.owner->request->n > 1 && !from_sibling) view.group = sequence.owner->arrival_order + 1;
  return view;
}

// A sibling whose whole prompt is in its table, computed or about to be by a step in flight.
const Sequence* ExecutorLoop::PromptHolder(const Sequence& sequence) const {
  const RequestState& state = *sequence.owner;
  for (int32_t i = 0; i < state.request->n; ++i) {
    const Sequence& sibling = state.sequences[static_cast<size_t>(i)];
    if (&sibling == &sequence || sibling.slot.value < 0 || sibling.cached < sibling.prompt_tokens) continue;
    int32_t first_needed = 0;
    if (limits_.attention_window > 0) first_needed = std::max(0, sequence.prompt_tokens - limits_.attention_window);
    auto first = static_cast<size_t>(first_needed / limits_.tokens_per_block);
    std::span<const BlockId> needed = cache_.table(sibling.slot).blocks();
    needed = needed.first(static_cast<size_t>(BlocksFor(sequence.prompt_tokens)));
    if (std::ranges::find(needed.subspan(first), kNoBlock) == needed.end()) return &sibling;
  }
  return nullptr;
}

// The most of its tokens that the sequence finds in the cache; at least one is always left to compute, because its
// logits are wanted. `blocks_idle`: how many evictable blocks it would hold.
StartingPoint ExecutorLoop::FindStart(Sequence& sequence, int32_t& blocks_idle) {
  StartingPoint start;
  const RequestState& state = *sequence.owner;
  bool wants_every_logit = WantsEveryLogit(sequence);
  bool wants_every_state = state.request->pooling == Pooling::kMean;
  if (wants_every_logit || wants_every_state ||
      (sequence.keys.empty() && state.request->n == 1 && !config_.enable_kv_cache_reuse)) {
    return start;
  }
  int32_t tokens_per_block = limits_.tokens_per_block;
  auto known = static_cast<int32_t>(sequence.tokens.size());
  PrefixMatch match = cache_.tree().Match(state.salt, sequence.tokens, sequence.keys, known - 1, matched_);
  start.blocks = match.blocks;
  start.partial_source = match.partial_source;
  start.partial_tokens = match.partial_tokens;
  start.tokens = match.blocks * tokens_per_block + match.partial_tokens;
  blocks_idle = match.blocks_idle;
  const Sequence* holder = PromptHolder(sequence);
  int32_t shared = sequence.prompt_tokens - 1;
  if (holder == nullptr || shared < start.tokens) return start;
  blocks_idle = 0;
  start = {.tokens = shared, .blocks = shared / tokens_per_block, .share_from = holder->slot};
  start.partial_tokens = shared % tokens_per_block;
  if (start.partial_tokens > 0)
    start.partial_source = cache_.table(holder->slot).blocks()[static_cast<size_t>(start.blocks)];
  return start;
}

Sequence& ExecutorLoop::SequenceOf(const StepDecision::Context& context) const {
  auto index = static_cast<size_t>(context.index);
  return *(context.admitted ? pulled_[index] : viewed_[index]);
}

// Does what PlanStep decided: the only place where sequences start, pause and take blocks.
void ExecutorLoop::Act() {
  plan_.Clear();
  Flight& flight = NextFlight();
  flight.rows.clear();
  flight.number = ++launches_;
  flight.context = {};
  PauseSequences();
  for (const auto& context : decision_.contexts) {
    if (context.admitted) StartSequence(SequenceOf(context));
  }
  TakeTailBlocks();
  for (const auto& context : decision_.contexts) {
    if (context.token_count > 0) AddContextRow(SequenceOf(context), context.token_count);
  }
  flight.context_rows = flight.rows.size();
  flight.nanos_max = step_nanos_max_;
  for (int32_t index : decision_.generations) AddGenerationRow(*viewed_[static_cast<size_t>(index)]);
}

void ExecutorLoop::PauseSequences() {
  for (int32_t index : decision_.paused) {
    Sequence& sequence = *viewed_[static_cast<size_t>(index)];
    BlockId last = cache_.table(sequence.slot).length > 0 ? cache_.table(sequence.slot).blocks().back() : kNoBlock;
    cache_.Retire(sequence.slot, nullptr);
    if (Planted(PlantedBug::kDoubleFree) && last != kNoBlock) cache_.Drop(last);
    by_slot_[static_cast<size_t>(sequence.slot.value)] = nullptr;
    free_slots_.push_back(sequence.slot);
    sequence.slot = {-1};
    sequence.phase = Phase::kWaiting;
    sequence.cached = sequence.computed = 0;
    sequence.paused = true;
    ++paused_;
    waiting_.InsertSorted(&sequence, StartsBefore);
    counters_.preemptions.fetch_add(1, std::memory_order_relaxed);
  }
  if (!decision_.paused.empty()) std::erase_if(running_, [](const Sequence* s) { return s->slot.value < 0; });
}

void ExecutorLoop::StartSequence(Sequence& sequence) {
  RequestState& state = *sequence.owner;
  waiting_.Remove(&sequence);
  if (!std::exchange(state.started, true)) LeaveQueue(*state.request);
  if (std::exchange(sequence.paused, false)) --paused_;
  if (sequence.scheduled == Nanos(0)) sequence.scheduled = now_;
  sequence.slot = free_slots_.back();
  free_slots_.pop_back();
  auto slot = static_cast<size_t>(sequence.slot.value);
  by_slot_[slot] = &sequence;
  running_.push_back(&sequence);
  sequence.phase = Phase::kContext;
  const StartingPoint& start = sequence.start;
  sequence.cached = sequence.computed = start.tokens;
  if (!sequence.reuse_reported) sequence.prompt_tokens_reused = std::min(start.tokens, sequence.prompt_tokens);
  std::span<const TokenId> tokens = sequence.tokens;
  backend_.BindSlot({.slot = sequence.slot,
                     .sequence = sequence.id,
                     .sequence_index = sequence.index,
                     .request = state.request.get(),
                     .generated = tokens.subspan(static_cast<size_t>(sequence.prompt_tokens))});
  bound_requests_[slot] = state.request;
  if (start.share_from.value >= 0) {
    cache_.Share(start.share_from, sequence.slot, start.blocks, sequence.shares_blocks);
  } else {
    // The same lookup as for the view; nothing was evicted since.
    PrefixMatch match = {};
    if (start.blocks > 0)
      match = cache_.tree().Match(state.salt, sequence.tokens, sequence.keys, start.tokens, matched_);
    CHECK_EQ(match.blocks, start.blocks);
    cache_.Attach(sequence.slot, std::span(matched_).first(static_cast<size_t>(match.blocks)), sequence.shares_blocks);
  }
  std::span<const BlockId> blocks = cache_.table(sequence.slot).blocks();
  for (size_t i = 0; i < blocks.size(); ++i) {
    if (blocks[i] != kNoBlock) plan_.AddTableEdit(sequence.slot, static_cast<int32_t>(i), blocks[i]);
  }
  counters_.prefix_tokens_queried.fetch_add(sequence.tokens.size(), std::memory_order_relaxed);
  counters_.prefix_tokens_reused.fetch_add(static_cast<uint64_t>(start.tokens), std::memory_order_relaxed);
}

int32_t ExecutorLoop::NewBlocksPlanned() const {
  int32_t blocks = 0;
  auto add = [&](const Sequence& s, int32_t count) {
    blocks += std::max(0, BlocksFor(s.cached + count) - cache_.table(s.slot).length);
  };
  for (const auto& context : decision_.contexts) add(SequenceOf(context), context.token_count);
  for (int32_t index : decision_.generations) add(*viewed_[static_cast<size_t>(index)], 1);
  return blocks;
}

// Blocks of which a starting sequence uses only the front. A copy keeps the source alive for the step; where that one
// block more is not to be had, the source itself is taken out of the tree and written on.
void ExecutorLoop::TakeTailBlocks() {
  int32_t spare = cache_.available() - NewBlocksPlanned();
  BlockLease& lease = NextFlight().lease;
  for (const auto& context : decision_.contexts) {
    if (!context.admitted) continue;
    Sequence& sequence = SequenceOf(context);
    StartingPoint& start = sequence.start;
    if (start.partial_tokens == 0) continue;
    if (!cache_.Idle(start.partial_source) || spare > 0) {
      spare -= cache_.Idle(start.partial_source);
      cache_.Acquire(start.partial_source);
      lease.Hold(start.partial_source);
    } else {
      BlockId taken = cache_.AppendFromTree(sequence.slot, std::exchange(start.partial_source, kNoBlock));
      plan_.AddTableEdit(sequence.slot, start.blocks, taken);
    }
  }
  for (const auto& context : decision_.contexts) {
    if (!context.admitted) continue;
    Sequence& sequence = SequenceOf(context);
    const StartingPoint& start = sequence.start;
    if (start.partial_tokens == 0 || start.partial_source == kNoBlock) continue;
    BlockId target = cache_.Append(sequence.slot);
    plan_.AddTableEdit(sequence.slot, start.blocks, target);
    plan_.AddCopy(start.partial_source, target, start.partial_tokens);
  }
}

void ExecutorLoop::AppendBlocks(Sequence& sequence, int32_t tokens_end) {
  for (int32_t i = cache_.table(sequence.slot).length; i < BlocksFor(tokens_end); ++i) {
    plan_.AddTableEdit(sequence.slot, i, cache_.Append(sequence.slot));
  }
}

void ExecutorLoop::AddContextRow(Sequence& sequence, int32_t token_count) {
  const RequestState& state = *sequence.owner;
  int32_t position = sequence.cached, end = position + token_count;
  bool last_chunk = end == static_cast<int32_t>(sequence.tokens.size());
  bool samples = last_chunk && sequence.generated_max > 0;
  bool wants_every_logit = WantsEveryLogit(sequence);
  OutputKind output = samples ? OutputKind::kSample : OutputKind::kNone;
  if (wants_every_logit) output = OutputKind::kAllLogits;
  Pooling pooling = state.request->pooling;
  if (pooling == Pooling::kMean || (pooling == Pooling::kLast && last_chunk)) output = OutputKind::kPooledHidden;
  AppendBlocks(sequence, end);
  std::span<const TokenId> tokens = sequence.tokens;
  plan_.AddContextRow(sequence.id, sequence.slot, position,
                      tokens.subspan(static_cast<size_t>(position), static_cast<size_t>(token_count)), output);
  Flight& flight = NextFlight();
  flight.rows.push_back({sequence.slot, sequence.id, position, token_count, samples});
  flight.context = costs_.With(flight.context, position, token_count);
  sequence.cached = end;
  sequence.samples_in_flight += samples;
  sequence.last_ticket = flight.number;
  if (last_chunk) sequence.phase = Phase::kGeneration;
}

void ExecutorLoop::AddGenerationRow(Sequence& sequence) {
  int32_t position = sequence.cached;
  AppendBlocks(sequence, position + 1);
  plan_.AddGenerationRow(sequence.id, sequence.slot, position, OutputKind::kSample);
  Flight& flight = NextFlight();
  flight.rows.push_back({sequence.slot, sequence.id, position, 1, true});
  ++sequence.cached;
  ++sequence.samples_in_flight;
  sequence.last_ticket = flight.number;
}

ExecutorLoop::Outcome ExecutorLoop::Launch() {
  Nanos begin = clock_.Now();
  calls_.Enter(begin);
  Result<Ticket> ticket = backend_.Launch(plan_);
  if (!calls_.Leave()) return Outcome::kTakenOver;
  in_launch_ = clock_.Now() - begin;
  in_backend_ += in_launch_;
  if (!ticket.ok()) {
    ReturnFlight(NextFlight());
    DeviceFault(ticket.error());
    return Outcome::kFault;
  }
  NextFlight().ticket = *ticket;
  pace_.Count(std::ranges::any_of(decision_.contexts,
                                  [&](const auto& context) { return context.token_count > limits_.tokens_per_block; }));
  ++in_flight_;
  return Outcome::kWorked;
}

}  // namespace ekiben
