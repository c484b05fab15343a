#include "load/service_transport.h"

#include <condition_variable>
#include <mutex>
#include <string>
#include <utility>

#include "base/check.h"

namespace ekiben::load {
namespace {

serve::TextRequest RequestOf(Api api, std::string_view text) {
  serve::TextRequest request;
  if (api == Api::kCompletions) {
    request.input = std::string(text);
    return request;
  }
  json::array messages;
  messages.push_back(json::object{{"role", "user"}, {"content", text}});
  request.input = serve::ChatInput{{{"messages", std::move(messages)}, {"add_generation_prompt", true}}};
  return request;
}

}  // namespace

// What the sinks have heard, waiting for Poll.
struct ServiceTransport::Mailbox {
  struct Letter {
    StreamEvent event;
    uint64_t generation = 0;
    std::string message;  // of a failure
  };
  std::mutex mutex;
  std::condition_variable arrived;
  std::vector<Letter> letters;  // guarded by mutex
  std::vector<Letter> taken;    // Poll's own; swapped, so that both keep their storage

  void Put(Letter letter) {
    bool first;
    {
      std::lock_guard lock(mutex);
      first = letters.empty();
      letters.push_back(std::move(letter));
    }
    if (first) arrived.notify_one();
  }
};

class ServiceTransport::Sink final : public serve::TextSink {
 public:
  Sink(std::shared_ptr<Mailbox> mailbox, int32_t user, uint64_t generation, const Clock& clock)
      : mailbox_(std::move(mailbox)), user_(user), generation_(generation), clock_(clock) {}

  void OnPrompt(const serve::PromptInfo& info) override { prompt_tokens_ = info.prompt_tokens; }

  void OnText(const serve::TextEvent& text) override {
    Nanos now = clock_.Now();
    tokens_ += text.tokens_new;
    if (text.tokens_new > 0 || !text.text.empty()) {
      StreamEvent event = EventOf(StreamEvent::Kind::kChunk, now);
      event.output_tokens_total = tokens_;
      event.prompt_tokens = prompt_tokens_;
      event.text_bytes = static_cast<int32_t>(text.text.size());
      mailbox_->Put({event, generation_, {}});
    }
    if (text.reason == FinishReason::kNone) return;
    bool complete = text.reason == FinishReason::kEndToken || text.reason == FinishReason::kStopText ||
                    text.reason == FinishReason::kLength;
    if (complete) {
      mailbox_->Put({EventOf(StreamEvent::Kind::kEnd, now), generation_, {}});
    } else {
      Fail(Failure::kStream, fmt::format("finished by {}", FinishReasonName(text.reason)), now);
    }
  }

  void OnError(const Error& error) override {
    Fail(Failure::kStream, fmt::format("{}: {}", CodeName(error.code()), error.message()), clock_.Now());
  }

  void Fail(Failure failure, std::string message, Nanos now) {
    StreamEvent event = EventOf(StreamEvent::Kind::kFailed, now);
    event.failure = failure;
    mailbox_->Put({event, generation_, std::move(message)});
  }

  StreamEvent EventOf(StreamEvent::Kind kind, Nanos when) const {
    StreamEvent event;
    event.kind = kind;
    event.user = user_;
    event.when = when;
    return event;
  }

 private:
  std::shared_ptr<Mailbox> mailbox_;
  int32_t user_;
  uint64_t generation_;
  const Clock& clock_;
  int32_t tokens_ = 0, prompt_tokens_ = -1;
};

ServiceTransport::ServiceTransport(serve::Service& service, const RequestShape& shape, int32_t users,
                                   const Clock& clock)
    : service_(service),
      shape_(shape),
      clock_(clock),
      users_(static_cast<size_t>(users)),
      mailbox_(std::make_shared<Mailbox>()) {}

ServiceTransport::~ServiceTransport() {
  for (size_t i = 0; i < users_.size(); ++i) Abort(static_cast<int32_t>(i));
}

serve::TextRequest ServiceTransport::BuildRequest(const Prompt& prompt) const {
  serve::TextRequest request = RequestOf(shape_.api, prompt.text);
  if (prompt.messages != nullptr) {
    request.input = serve::ChatInput{{{"messages", *prompt.messages}, {"add_generation_prompt", true}}};
  }
  request.max_tokens = prompt.max_tokens;
  request.ignore_eos = shape_.ignore_eos;
  if (shape_.ignore_eos) request.sampling.min_tokens = prompt.max_tokens;
  request.sampling.temperature = static_cast<float>(shape_.temperature);
  return request;
}

void ServiceTransport::Send(int32_t index, const Prompt& prompt, StreamEventSink& sink) {
  User& user = users_[static_cast<size_t>(index)];
  CHECK(!user.busy);
  user.busy = true;
  uint64_t generation = ++user.generation;
  auto text_sink = std::make_shared<Sink>(mailbox_, index, generation, clock_);
  serve::TextRequest request = BuildRequest(prompt);
  sink.OnEvent(text_sink->EventOf(StreamEvent::Kind::kSent, clock_.Now()));
  auto id = service_.Submit(std::move(request), text_sink);
  user.submitted = id.ok();
  if (id.ok()) {
    user.id = *id;
  } else {
    text_sink->OnError(id.error());
  }
}

void ServiceTransport::Abort(int32_t index) {
  User& user = users_[static_cast<size_t>(index)];
  if (!user.busy) return;
  user.busy = false;
  ++user.generation;
  if (user.submitted) service_.Cancel(user.id);
}

void ServiceTransport::Poll(Nanos until, StreamEventSink& sink) {
  Mailbox& box = *mailbox_;
  box.taken.clear();
  {
    std::unique_lock lock(box.mutex);
    Nanos wait = std::max(until - clock_.Now(), Nanos(0));
    box.arrived.wait_for(lock, wait, [&] { return !box.letters.empty(); });
    box.taken.swap(box.letters);
  }
  for (Mailbox::Letter& letter : box.taken) {
    User& user = users_[static_cast<size_t>(letter.event.user)];
    if (!user.busy || letter.generation != user.generation) continue;
    bool last = letter.event.kind == StreamEvent::Kind::kEnd || letter.event.kind == StreamEvent::Kind::kFailed;
    if (last) user.busy = false;
    letter.event.message = letter.message;
    sink.OnEvent(letter.event);
  }
}

Result<int32_t> CountPromptTokens(const serve::Service& service, Api api, std::string_view text) {
  ASSIGN_OR_RETURN(auto tokens, service.Tokenize(RequestOf(api, text)));
  return static_cast<int32_t>(tokens.size());
}

}  // namespace ekiben::load
