#include "load/stream_chunk.h"

#include <charconv>

namespace ekiben::load {
namespace {

// Where in the chunk the scanner stands; members of anything else are skipped.
enum class Place { kRoot, kUsage, kChoices, kChoice, kDelta, kError, kElsewhere };

class Scanner {
 public:
  Scanner(std::string_view json, StreamChunk& out) : at_(json.data()), end_(json.data() + json.size()), out_(out) {}

  bool ScanDocument() {
    SkipSpace();
    if (at_ == end_ || *at_ != '{') return false;
    if (!ScanObject(Place::kRoot, 0)) return false;
    SkipSpace();
    return at_ == end_;
  }

 private:
  // Deeper than any chunk of these APIs (log-probs nest 5); a hostile server must not grow the stack.
  static constexpr int kDepthMax = 32;

  void SkipSpace() {
    while (at_ != end_ && (*at_ == ' ' || *at_ == '\t' || *at_ == '\n' || *at_ == '\r')) ++at_;
  }
  bool Eat(char c) {
    SkipSpace();
    if (at_ == end_ || *at_ != c) return false;
    ++at_;
    return true;
  }

  // Bytes between the quotes, escapes left as they are.
  bool ScanString(std::string_view& out) {
    if (!Eat('"')) return false;
    const char* begin = at_;
    while (at_ != end_) {
      if (*at_ == '"') {
        out = {begin, static_cast<size_t>(at_ - begin)};
        ++at_;
        return true;
      }
      if (*at_ == '\\' && ++at_ == end_) return false;
      ++at_;
    }
    return false;
  }

  bool ScanObject(Place place, int depth) {
    if (depth > kDepthMax || !Eat('{')) return false;
    if (Eat('}')) return true;
    do {
      std::string_view key;
      if (!ScanString(key) || !Eat(':') || !ScanValue(place, key, depth)) return false;
    } while (Eat(','));
    return Eat('}');
  }

  bool ScanArray(Place place, int depth) {
    if (depth > kDepthMax || !Eat('[')) return false;
    if (Eat(']')) return true;
    do {
      if (!ScanValue(place, {}, depth)) return false;
    } while (Eat(','));
    return Eat(']');
  }

  bool ScanValue(Place place, std::string_view key, int depth) {
    SkipSpace();
    if (at_ == end_) return false;
    if (place == Place::kRoot && key == "error" && *at_ != 'n') out_.error = true;
    if (*at_ == '{') return ScanObject(ObjectAt(place, key), depth + 1);
    if (*at_ == '[') {
      return ScanArray(place == Place::kRoot && key == "choices" ? Place::kChoices : Place::kElsewhere, depth + 1);
    }
    if (*at_ == '"') {
      std::string_view text;
      if (!ScanString(text)) return false;
      OnString(place, key, text);
      return true;
    }
    return ScanWord(place, key);
  }

  static Place ObjectAt(Place place, std::string_view key) {
    switch (place) {
      case Place::kRoot: return key == "usage" ? Place::kUsage : key == "error" ? Place::kError : Place::kElsewhere;
      case Place::kChoices: return Place::kChoice;
      case Place::kChoice: return key == "delta" ? Place::kDelta : Place::kElsewhere;
      default: return Place::kElsewhere;
    }
  }

  void OnString(Place place, std::string_view key, std::string_view text) {
    bool generated = (place == Place::kChoice && key == "text") ||
                     (place == Place::kDelta && (key == "content" || key == "reasoning" || key == "reasoning_content"));
    if (generated) {
      out_.text_bytes += static_cast<int32_t>(text.size());
      out_.text_escaped = text;
    } else if (place == Place::kChoice && key == "finish_reason") {
      out_.finished = true;
    } else if ((place == Place::kError && key == "message") || (place == Place::kRoot && key == "error")) {
      out_.error_text = text;
    }
  }

  // A number, true, false or null.
  bool ScanWord(Place place, std::string_view key) {
    const char* begin = at_;
    while (at_ != end_ && (std::string_view("+-.").find(*at_) != std::string_view::npos ||
                           (*at_ >= '0' && *at_ <= '9') || (*at_ >= 'a' && *at_ <= 'z') || *at_ == 'E')) {
      ++at_;
    }
    if (at_ == begin) return false;
    if (place == Place::kUsage && (key == "completion_tokens" || key == "prompt_tokens")) {
      int32_t value = -1;
      auto [rest, error] = std::from_chars(begin, at_, value);
      if (error == std::errc() && rest == at_ && value >= 0) {
        (key == "prompt_tokens" ? out_.prompt_tokens : out_.output_tokens) = value;
      }
    }
    return true;
  }

  const char* at_;
  const char* end_;
  StreamChunk& out_;
};

}  // namespace

StreamChunk ScanStreamChunk(std::string_view json) {
  StreamChunk chunk;
  chunk.valid = Scanner(json, chunk).ScanDocument();
  return chunk;
}

}  // namespace ekiben::load
