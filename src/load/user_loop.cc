#include "load/user_loop.h"

#include <algorithm>
#include <ctime>

#include "base/check.h"

namespace ekiben::load {
namespace {

constexpr Nanos kBackoff = std::chrono::milliseconds(100);
constexpr Nanos kOverdueEvery = std::chrono::milliseconds(250);
constexpr Nanos kTick = std::chrono::milliseconds(100);  // the longest wait, so that stop and the clock are seen

Nanos ThreadCpu() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return std::chrono::seconds(t.tv_sec) + Nanos(t.tv_nsec);
}

}  // namespace

UserLoop::UserLoop(const LoopPlan& plan, const PromptSource& prompts, Transport& transport, const Clock& clock,
                   const std::atomic<bool>& stop)
    : plan_(plan), prompts_(prompts), transport_(transport), clock_(clock), stop_(stop) {
  users_.resize(static_cast<size_t>(UsersOf(plan_)));
  Nanos ramp = plan_.window_begin - plan_.start;
  for (size_t i = 0; i < users_.size(); ++i) {
    auto index = plan_.first_user + static_cast<int32_t>(i) * plan_.step;
    due_.push({plan_.start + RampStart(index, plan_.users_total, ramp), static_cast<int32_t>(i)});
  }
  recorder_.tokens_by_second.resize(static_cast<size_t>(Seconds(plan_.window_end - plan_.window_begin)) + 1);
}

void UserLoop::Run() {
  while (true) {
    Nanos now = clock_.Now();
    WatchCpu(now);
    if (now >= plan_.window_end || stop_.load(std::memory_order_relaxed)) break;
    if (requests_ >= plan_.requests_max && in_flight() == 0) break;
    while (!due_.empty() && due_.top().when <= now && requests_ < plan_.requests_max) {
      Due next = due_.top();
      due_.pop();
      Ask(next.user, next.when);
    }
    if (now >= next_overdue_check_) FailOverdue(now);
    Nanos until = std::min(now + kTick, plan_.window_end);
    if (!due_.empty() && requests_ < plan_.requests_max) until = std::min(until, due_.top().when);
    transport_.Poll(until, *this);
  }
  CutOff(clock_.Now());
}

void UserLoop::WatchCpu(Nanos now) {
  if (!cpu_begun_ && now >= plan_.window_begin) {
    cpu_begun_ = true;
    cpu_begin_ = ThreadCpu();
    cpu_begin_when_ = now;
  }
}

void UserLoop::Ask(int32_t index, Nanos due) {
  User& user = users_[static_cast<size_t>(index)];
  if (user.number == 0) users_active_.fetch_add(1, std::memory_order_relaxed);
  auto name = static_cast<uint32_t>(plan_.first_user + index * plan_.step);
  Prompt prompt = prompts_.Fill(plan_.level, name, user.number, scratch_);
  Nanos now = clock_.Now();
  user = {.busy = true,
          .number = user.number + 1,
          .asked = now,
          .sent = now,
          .tokens_wanted = prompt.max_tokens,
          .prompt_tokens_wanted = prompt.tokens};
  ++requests_;
  in_flight_.fetch_add(1, std::memory_order_relaxed);
  if (InWindow(now)) {
    ++recorder_.started;
    recorder_.send_lag.Record((now - due).count());
  }
  transport_.Send(index, prompt, *this);
}

void UserLoop::OnReadLag(Nanos lag) {
  if (InWindow(clock_.Now())) recorder_.read_lag.Record(lag.count());
}

void UserLoop::OnEvent(const StreamEvent& event) {
  User& user = users_[static_cast<size_t>(event.user)];
  CHECK(user.busy, "an event of user {} that asked nothing", event.user);
  switch (event.kind) {
    case StreamEvent::Kind::kSent: user.sent = event.when; break;
    case StreamEvent::Kind::kChunk: OnChunk(user, event); break;
    case StreamEvent::Kind::kEnd: OnEnd(user, event); break;
    case StreamEvent::Kind::kFailed: OnFailed(user, event); break;
  }
}

void UserLoop::OnChunk(User& user, const StreamEvent& event) {
  if (event.prompt_tokens >= 0) user.prompt_tokens = event.prompt_tokens;
  if (event.output_tokens_total < 0) {
    if (event.text_bytes > 0) {
      user.guessed = true;
      OnTokens(user, 1, false, event.when);
    }
    return;
  }
  user.said_totals = true;
  int32_t count = event.output_tokens_total - user.tokens;
  if (!user.guessed) {
    if (count > 0) OnTokens(user, count, true, event.when);
    return;
  }
  // A server that says its total only at the end: the total corrects the guess of one token a chunk, and is no chunk
  // of its own unless it carries text.
  if (event.text_bytes > 0) {
    OnTokens(user, 1, false, event.when);
    --count;
  }
  user.tokens += count;
  CountTokens(count, event.when);
}

void UserLoop::OnTokens(User& user, int32_t count, bool counted, Nanos when) {
  bool in_window = InWindow(when);
  if (in_window) {
    ++recorder_.chunks;
    recorder_.chunks_multi += count > 1;
    recorder_.chunks_counted += counted;
  }
  std::lock_guard lock(interval_mutex_);
  if (user.tokens == 0) {
    int64_t wait = (when - user.sent).count();
    user.first = when;
    interval_.ttft.Record(wait);
    if (in_window) recorder_.ttft.Record(wait);
    user.first_in_window = in_window;
  } else {
    int64_t gap = (when - user.last).count();
    interval_.itl_chunk.Record(gap);
    if (in_window) {
      recorder_.itl_chunk.Record(gap);
      for (int32_t i = 0; i < count; ++i) recorder_.itl_token.Record(gap / count);
    }
  }
  user.last = when;
  user.tokens += count;
  interval_.output_tokens += count;
  if (!in_window) return;
  recorder_.output_tokens += count;
  recorder_.tokens_by_second[static_cast<size_t>(Seconds(when - plan_.window_begin))] += static_cast<uint32_t>(count);
}

// A correction of the guess; moves no latency.
void UserLoop::CountTokens(int32_t count, Nanos when) {
  if (InWindow(when)) recorder_.output_tokens += count;
  std::lock_guard lock(interval_mutex_);
  interval_.output_tokens += count;
}

// The request is over. Its prompt was worked on in the window if its first token fell there; some servers tell the
// prompt's length only at the end.
void UserLoop::Settle(User& user) {
  user.busy = false;
  in_flight_.fetch_sub(1, std::memory_order_relaxed);
  if (user.first_in_window && user.prompt_tokens > 0) recorder_.prompt_tokens += user.prompt_tokens;
}

void UserLoop::OnEnd(User& user, const StreamEvent& event) {
  Settle(user);
  ++recorder_.completed_all;
  if (!user.said_totals) {
    ++recorder_.unchecked;
  } else {
    recorder_.output_mismatches += plan_.check_output && user.tokens != user.tokens_wanted;
    recorder_.prompt_mismatches +=
        prompts_.exact() && user.prompt_tokens >= 0 && user.prompt_tokens != user.prompt_tokens_wanted;
  }
  if (InWindow(event.when)) {
    ++recorder_.completed;
    if (user.tokens > 0) recorder_.e2e.Record((user.last - user.sent).count());
    if (user.tokens > 1) recorder_.tpot.Record((user.last - user.first).count() / (user.tokens - 1));
  }
  {
    std::lock_guard lock(interval_mutex_);
    ++interval_.completed;
  }
  due_.push({event.when + plan_.think, event.user});
}

void UserLoop::OnFailed(User& user, const StreamEvent& event) {
  Settle(user);
  std::string kind = event.failure == Failure::kStatus ? fmt::format("status {}", event.status)
                                                       : std::string(FailureName(event.failure));
  recorder_.CountError(std::move(kind), event.message);
  {
    std::lock_guard lock(interval_mutex_);
    ++interval_.failed;
  }
  due_.push({event.when + std::max(kBackoff, plan_.think), event.user});
}

void UserLoop::FailOverdue(Nanos now) {
  next_overdue_check_ = now + kOverdueEvery;
  for (size_t i = 0; i < users_.size(); ++i) {
    if (!users_[i].busy || now - users_[i].asked < plan_.timeout) continue;
    auto index = static_cast<int32_t>(i);
    transport_.Abort(index);
    std::string message = fmt::format("no end within {:.0f} s", Seconds(plan_.timeout));
    StreamEvent event;
    event.kind = StreamEvent::Kind::kFailed;
    event.user = index;
    event.when = now;
    event.failure = Failure::kTimeout;
    event.message = message;
    OnEvent(event);
  }
}

void UserLoop::CutOff(Nanos now) {
  if (cpu_begun_ && now > cpu_begin_when_) {
    recorder_.busy = ThreadCpu() - cpu_begin_;
    recorder_.busy_share_max = Seconds(recorder_.busy) / Seconds(now - cpu_begin_when_);
  }
  for (size_t i = 0; i < users_.size(); ++i) {
    User& user = users_[i];
    if (!user.busy) continue;
    Settle(user);
    ++recorder_.cut_off;
    if (user.tokens == 0) {
      ++recorder_.cut_off_waiting;
      recorder_.oldest_waiting = std::max(recorder_.oldest_waiting, now - user.sent);
    }
    transport_.Abort(static_cast<int32_t>(i));
  }
}

Interval UserLoop::TakeInterval() {
  std::lock_guard lock(interval_mutex_);
  Interval out = interval_;
  interval_ = Interval();
  return out;
}

}  // namespace ekiben::load
