#include "schedule/plan_step.h"

#include <algorithm>

#include "base/check.h"

namespace ekiben {
namespace {

// One call of PlanStep: what is left of each budget while the stages spend it.
class Planner {
 public:
  Planner(std::span<const SequenceView> running, const StepLimits& limits, StepDecision& out)
      : running_(running),
        limits_(limits),
        out_(out),
        kept_(static_cast<int32_t>(running.size())),
        tokens_left_(limits.max_num_tokens),
        rows_left_(limits.max_batch_size) {}

  // Capacity of what runs already. False: short of blocks.
  bool KeepRunning();
  void TakeGenerations();
  void TakeRunningContexts();
  void Admit(WaitingViews& waiting);
  void ShareOutEqually();

 private:
  bool no_evict() const { return limits_.capacity == CapacityPolicy::kGuaranteedNoEvict; }
  bool static_batch() const { return limits_.batching == BatchingStrategy::kV1; }
  bool equal_progress() const {
    return limits_.enable_chunked_context && limits_.chunking == ChunkingPolicy::kEqualProgress;
  }
  // Chunks end at block borders, unless a step is too small to care.
  int32_t unit() const { return limits_.max_num_tokens >= 2 * limits_.tokens_per_block ? limits_.tokens_per_block : 1; }
  int32_t Chunk(const SequenceView& view, int32_t tokens_max) const;
  int32_t ContextLeft(const SequenceView& view) const;
  void Spend(const SequenceView& view, int32_t tokens);
  int32_t FirstShare(const SequenceView& view) const;
  int32_t BlocksToGrow() const;
  bool IsBeingComputed(const SequenceView& view) const;

  const std::span<const SequenceView> running_;
  const StepLimits& limits_;
  StepDecision& out_;
  int32_t kept_;                   // running_[0, kept_) go on
  int32_t blocks_to_promise_ = 0;  // for sequences that start now
  int32_t tokens_left_, rows_left_;
  ContextWork context_;  // planned
};

bool Planner::KeepRunning() {
  int32_t available = limits_.blocks_available;
  int32_t next = 0;
  for (int32_t i = 0; i < kept_; ++i) {
    next += running_[static_cast<size_t>(i)].blocks_next;
    while (next > available) {
      if (!limits_.may_pause) return false;
      // Under kGuaranteedNoEvict the promise was kept block by block, so this cannot be.
      CHECK(!no_evict(), "{} blocks promised, {} available", next, available);
      const SequenceView& last = running_[static_cast<size_t>(--kept_)];
      CHECK(kept_ > 0, "a single sequence needs {} blocks of {}", next, available);
      out_.paused.push_back(kept_);
      available += last.blocks_if_paused;
      if (kept_ == i) next -= last.blocks_next;
    }
  }
  blocks_to_promise_ = available;
  for (const SequenceView& view : running_.first(static_cast<size_t>(kept_))) {
    blocks_to_promise_ -= no_evict() ? view.blocks_to_end : view.blocks_context;
  }
  return true;
}

void Planner::TakeGenerations() {
  for (int32_t i = 0; i < kept_ && tokens_left_ > 0 && rows_left_ > 0; ++i) {
    const SequenceView& view = running_[static_cast<size_t>(i)];
    if (!view.generation || view.tokens_left == 0) continue;
    out_.generations.push_back(i);
    --tokens_left_;
    --rows_left_;
  }
}

// How much of its context a sequence feeds when `tokens_max` are left: all, or up to a block border, or nothing.
int32_t Planner::Chunk(const SequenceView& view, int32_t tokens_max) const {
  int32_t take = std::min(view.tokens_left, tokens_max);
  if (take == view.tokens_left) return take;
  // Without chunking a context fits whole or waits. One that no step could hold (a paused sequence with all that it
  // had generated) is cut all the same.
  if (!limits_.enable_chunked_context && view.tokens_left <= limits_.max_num_tokens) return 0;
  int32_t end = view.tokens_cached + take;
  int32_t aligned = end - end % unit() - view.tokens_cached;
  if (aligned > 0) return aligned;
  bool step_is_empty = out_.generations.empty() && out_.contexts.empty();
  return step_is_empty ? take : 0;
}

// The most that this row may take now: of the step's tokens, and of its time. The first row of context has at least a
// block, and all it wants where a prompt is not to be cut: a bound on time delays, it never starves.
int32_t Planner::ContextLeft(const SequenceView& view) const {
  int32_t wanted = std::min(tokens_left_, view.tokens_left);
  auto rows = static_cast<int32_t>(out_.generations.size());
  int32_t in_time = limits_.context.TokensAt(view.tokens_cached, wanted, rows, context_);
  if (out_.contexts.empty())
    in_time = std::max(in_time, limits_.enable_chunked_context ? std::min(unit(), tokens_left_) : wanted);
  return in_time == wanted ? tokens_left_ : std::min(in_time, tokens_left_);
}

void Planner::Spend(const SequenceView& view, int32_t tokens) {
  tokens_left_ -= tokens;
  if (limits_.context.costs != nullptr) context_ = limits_.context.costs->With(context_, view.tokens_cached, tokens);
}

// kMaxUtilization: a block for everyone who runs. Without, whoever starts takes the last free block, is the first to be
// paused a few steps later, and its context is computed over and over.
int32_t Planner::BlocksToGrow() const {
  auto admitted = std::ranges::count_if(out_.contexts, &StepDecision::Context::admitted);
  return kept_ + static_cast<int32_t>(admitted);
}

int32_t Planner::FirstShare(const SequenceView& view) const {
  return std::min(view.tokens_left, unit() - view.tokens_cached % unit());
}

void Planner::TakeRunningContexts() {
  bool stopped = false;
  for (int32_t i = 0; i < kept_; ++i) {
    const SequenceView& view = running_[static_cast<size_t>(i)];
    if (view.generation) continue;
    out_.context_views.push_back(view);
    if (stopped || rows_left_ == 0) continue;
    int32_t left = ContextLeft(view);
    int32_t take = Chunk(view, equal_progress() ? std::min(left, FirstShare(view)) : left);
    stopped = take == 0;
    if (stopped) continue;
    out_.contexts.push_back({false, i, take});
    Spend(view, take);
    --rows_left_;
  }
  if (stopped) tokens_left_ = 0;  // who waits does not overtake who runs
}

bool Planner::IsBeingComputed(const SequenceView& view) const {
  auto next = static_cast<size_t>(view.tokens_cached / limits_.tokens_per_block);
  return std::ranges::any_of(out_.being_computed, [&](const SequenceView& other) {
    if (other.group == view.group && view.group != 0) return true;
    return next < view.block_keys.size() && next < other.block_keys.size() &&
           static_cast<size_t>(other.blocks_computed) <= next && other.block_keys[next] == view.block_keys[next];
  });
}

void Planner::Admit(WaitingViews& waiting) {
  if (static_batch() && limits_.any_running) return;
  if (!out_.paused.empty()) return;  // what was just paused would come straight back
  for (const SequenceView& view : running_.first(static_cast<size_t>(kept_))) {
    if (!view.block_keys.empty() || view.group != 0) out_.being_computed.push_back(view);
  }
  int32_t slots = limits_.slots_free, entries = limits_.entries_max;
  int32_t long_starts = static_batch() ? INT32_MAX : limits_.long_starts_max;
  if (out_.generations.empty() && out_.contexts.empty()) long_starts = std::max(long_starts, 1);  // never an idle step
  for (int32_t index = 0; slots > 0 && rows_left_ > 0 && (tokens_left_ > 0 || static_batch()); ++index) {
    const SequenceView* view = waiting.Next();
    if (view == nullptr) return;
    if (IsBeingComputed(*view)) continue;
    bool is_long = view->tokens_left > limits_.tokens_per_block;
    if (is_long && long_starts == 0) return;
    int32_t need = no_evict() ? view->blocks_to_end : view->blocks_context + BlocksToGrow();
    if (need > blocks_to_promise_ || view->entries_reused > entries) return;
    int32_t left = ContextLeft(*view);
    int32_t take = Chunk(*view, equal_progress() ? std::min(left, FirstShare(*view)) : left);
    if (take == 0 && !static_batch()) return;
    if (take == 0) tokens_left_ = 0;
    blocks_to_promise_ -= no_evict() ? need : view->blocks_context;
    entries -= view->entries_reused;
    Spend(*view, take);
    --slots;
    long_starts -= is_long;
    --rows_left_;
    out_.context_views.push_back(*view);
    out_.being_computed.push_back(*view);
    out_.contexts.push_back({true, index, take});
  }
}

// kEqualProgress: every context has its first unit; the rest of the budget goes round, a unit each.
void Planner::ShareOutEqually() {
  size_t first_admitted = out_.context_views.size();
  for (const auto& context : out_.contexts) first_admitted -= context.admitted;
  bool grew = true;
  while (grew && tokens_left_ > 0) {
    grew = false;
    size_t admitted = 0, running = 0;
    for (auto& context : out_.contexts) {
      // context_views lists the running contexts in their order, then the admitted ones in theirs; planned running
      // contexts are a prefix of the former.
      const SequenceView& view = out_.context_views[context.admitted ? first_admitted + admitted++ : running++];
      int32_t more = std::min({view.tokens_left - context.token_count, unit(), tokens_left_});
      if (more == 0 || context.token_count == 0) continue;
      SequenceView rest = view;
      rest.tokens_cached += context.token_count;
      rest.tokens_left = more;
      more = std::min(more, ContextLeft(rest));
      if (more == 0) continue;
      if (more < unit() && context.token_count + more < view.tokens_left) continue;  // would leave the block border
      context.token_count += more;
      Spend(rest, more);
      grew = true;
    }
  }
}

}  // namespace

int32_t ContextPace::StartsMax(size_t waiting) const {
  if (waiting <= 1) return last_had_context_ && share_ < kOne / 2 ? 0 : 1;
  return static_cast<int32_t>(std::min<size_t>((waiting + 1) / 2, INT32_MAX));
}

void ContextPace::Count(bool had_context) {
  last_had_context_ = had_context;
  share_ += ((had_context ? kOne : 0) - share_) / 10;
}

StepDecision::StepDecision(int32_t rows_max) {
  auto rows = static_cast<size_t>(rows_max);
  generations.reserve(rows);
  contexts.reserve(rows);
  paused.reserve(rows);
  context_views.reserve(rows);
  being_computed.reserve(rows);
}

void StepDecision::Clear() {
  generations.clear();
  contexts.clear();
  paused.clear();
  context_views.clear();
  being_computed.clear();
  short_of_blocks = false;
}

bool StepDecision::has_rows() const {
  return !generations.empty() ||
         std::ranges::any_of(contexts, [](const Context& context) { return context.token_count > 0; });
}

void PlanStep(std::span<const SequenceView> running, WaitingViews& waiting, const StepLimits& limits,
              StepDecision& decision) {
  decision.Clear();
  Planner planner(running, limits, decision);
  decision.short_of_blocks = !planner.KeepRunning();
  if (decision.short_of_blocks) return;
  planner.TakeGenerations();
  planner.TakeRunningContexts();
  planner.Admit(waiting);
  if (limits.enable_chunked_context && limits.chunking == ChunkingPolicy::kEqualProgress) planner.ShareOutEqually();
}

}  // namespace ekiben
