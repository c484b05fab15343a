#include "text/detokenizer.h"

#include <algorithm>
#include <array>
#include <deque>

#include "base/check.h"
#include "text/unicode.h"

namespace ekiben::text {

namespace {

// All stop strings in one automaton (Aho-Corasick), so that a byte costs one step whatever their number.
class StopMatcher {
 public:
  explicit StopMatcher(const std::vector<std::string>& stops) {
    nodes_.emplace_back();
    for (size_t i = 0; i < stops.size(); ++i) Add(stops[i], static_cast<int>(i));
    LinkFailures();
  }
  bool empty() const { return nodes_.size() == 1; }
  uint32_t Step(uint32_t node, char byte) const { return nodes_[node].next[static_cast<unsigned char>(byte)]; }
  // The longest stop string that ends here; -1: none.
  int StopAt(uint32_t node) const { return nodes_[node].stop; }
  // Bytes behind us that may begin a stop string.
  size_t Depth(uint32_t node) const { return nodes_[node].depth; }

 private:
  struct Node {
    std::array<uint32_t, 256> next = {};
    uint32_t depth = 0;
    int stop = -1;
  };

  void Add(const std::string& stop, int index) {
    CHECK(!stop.empty());
    uint32_t node = 0;
    for (char c : stop) {
      uint32_t child = nodes_[node].next[static_cast<unsigned char>(c)];
      if (child == 0) {
        child = static_cast<uint32_t>(nodes_.size());
        nodes_[node].next[static_cast<unsigned char>(c)] = child;
        nodes_.emplace_back().depth = nodes_[node].depth + 1;
      }
      node = child;
    }
    if (nodes_[node].stop < 0) nodes_[node].stop = index;
  }

  // Breadth first: a missing edge goes where the longest proper suffix goes.
  void LinkFailures() {
    std::vector<uint32_t> failure(nodes_.size(), 0);
    std::deque<uint32_t> queue = {0};
    while (!queue.empty()) {
      uint32_t node = queue.front();
      queue.pop_front();
      for (size_t byte = 0; byte < 256; ++byte) {
        uint32_t& next = nodes_[node].next[byte];
        uint32_t fallback = node == 0 ? 0 : nodes_[failure[node]].next[byte];
        if (next == 0) {
          next = fallback;
          continue;
        }
        failure[next] = fallback;
        if (nodes_[next].stop < 0) nodes_[next].stop = nodes_[fallback].stop;
        queue.push_back(next);
      }
    }
  }

  std::vector<Node> nodes_;
};

}  // namespace

struct Detokenizer::State {
  State(const Tokenizer& of, Options with)
      : tokenizer(of),
        options(std::move(with)),
        stops(options.stop),
        repair(of.spec().model == Model::kSentencePieceBpe ? Utf8Repair::Unit::kByte
                                                           : Utf8Repair::Unit::kMaximalSubpart),
        strip_space(of.spec().strip_left_space) {}

  // Passes repaired text on, holding back what may begin a stop string. True: one has matched.
  bool Filter(std::string_view fresh, std::string& out);

  const Tokenizer& tokenizer;
  Options options;
  StopMatcher stops;
  Utf8Repair repair;
  bool strip_space;      // the next character of text, when a space, is dropped
  std::string repaired;  // working memory of Push
  std::string held;      // text that may begin a stop string; node is its depth
  uint32_t node = 0;
  int stop_index = -1;
};

bool Detokenizer::State::Filter(std::string_view fresh, std::string& out) {
  if (strip_space && !fresh.empty()) {
    strip_space = false;
    if (fresh[0] == ' ') fresh.remove_prefix(1);
  }
  if (stops.empty()) {
    out += fresh;
    return false;
  }
  size_t old = held.size();
  held += fresh;
  for (size_t i = old; i < held.size(); ++i) {
    node = stops.Step(node, held[i]);
    int stop = stops.StopAt(node);
    if (stop < 0) continue;
    stop_index = stop;
    size_t end = i + 1;
    out.append(held, 0, options.include_stop_text ? end : end - options.stop[static_cast<size_t>(stop)].size());
    held.clear();
    return true;
  }
  size_t sure = held.size() - stops.Depth(node);
  out.append(held, 0, sure);
  held.erase(0, sure);
  return false;
}

Detokenizer::Detokenizer(const Tokenizer& tokenizer, Options options)
    : state_(std::make_unique<State>(tokenizer, std::move(options))) {}
Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;
Detokenizer& Detokenizer::operator=(Detokenizer&&) noexcept = default;

bool Detokenizer::Push(int32_t token, std::string& out) {
  State& state = *state_;
  if (state.stop_index >= 0) return true;
  if (state.options.skip_special && state.tokenizer.IsSpecial(token)) return false;
  state.repaired.clear();
  state.repair.Feed(state.tokenizer.Bytes(token), state.repaired);
  return state.Filter(state.repaired, out);
}

void Detokenizer::Finish(std::string& out) {
  State& state = *state_;
  if (state.stop_index >= 0) return;
  state.repaired.clear();
  state.repair.Finish(state.repaired);
  if (state.Filter(state.repaired, out)) return;
  out += state.held;
  state.held.clear();
}

int Detokenizer::stop_index() const {
  return state_->stop_index;
}

}  // namespace ekiben::text
