#include "package/protobuf_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace ekiben {
namespace {

class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  // Fields until `close`; '\0': to the end of the text.
  Result<std::vector<TextField>> Fields(char close, int depth) {
    if (depth > kTextDepthMax) return Wrong(fmt::format("messages nest deeper than {}", kTextDepthMax));
    std::vector<TextField> out;
    while (true) {
      Skip();
      if (at_ == text_.size() || text_[at_] == close) {
        if ((at_ == text_.size()) != (close == '\0')) return Wrong(fmt::format("'{}' is missing", close));
        if (close != '\0') ++at_;
        return out;
      }
      std::string name = Word();
      if (name.empty()) return Wrong(fmt::format("a field's name is wanted, not '{}'", text_[at_]));
      bool colon = Take(':');
      RETURN_IF_ERROR(Values(name, colon, depth, out));
      if (!Take(',')) Take(';');
    }
  }

 private:
  Error Wrong(std::string_view what) const {
    auto line = 1 + std::count(text_.begin(), text_.begin() + static_cast<std::ptrdiff_t>(at_), '\n');
    return Error(Code::kInvalid, fmt::format("line {}: {}", line, what));
  }
  // Blanks and comments.
  void Skip() {
    while (at_ < text_.size()) {
      if (text_[at_] == '#') {
        at_ = std::min(text_.find('\n', at_), text_.size());
      } else if (std::isspace(static_cast<unsigned char>(text_[at_])) != 0) {
        ++at_;
      } else {
        return;
      }
    }
  }
  bool Take(char c) {
    Skip();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  std::string Word() {
    size_t from = at_;
    while (at_ < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[at_])) != 0 ||
                                  std::string_view("_.+-").find(text_[at_]) != std::string_view::npos))
      ++at_;
    return std::string(text_.substr(from, at_ - from));
  }
  Result<void> Values(const std::string& name, bool colon, int depth, std::vector<TextField>& out) {
    if (!Take('[')) return Value(name, colon, depth, out);
    if (Take(']')) return {};
    do {
      RETURN_IF_ERROR(Value(name, colon, depth, out));
    } while (Take(','));
    return Take(']') ? Result<void>() : Wrong("']' is missing");
  }
  Result<void> Value(const std::string& name, bool colon, int depth, std::vector<TextField>& out) {
    TextField field{name, "", {}};
    if (bool brace = Take('{'); brace || Take('<')) {
      ASSIGN_OR_RETURN(field.fields, Fields(brace ? '}' : '>', depth + 1));
      out.push_back(std::move(field));
      return {};
    }
    if (!colon) return Wrong(fmt::format("{}: ':' or a message is wanted", name));
    Skip();
    if (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) {
      while (at_ < text_.size() && (text_[at_] == '"' || text_[at_] == '\'')) {
        RETURN_IF_ERROR(String(field.value));
        Skip();
      }
    } else if ((field.value = Word()).empty()) {
      return Wrong(fmt::format("{}: a value is wanted", name));
    }
    out.push_back(std::move(field));
    return {};
  }
  Result<void> String(std::string& out) {
    const char quote = text_[at_++];
    for (; at_ < text_.size() && text_[at_] != '\n'; ++at_) {
      char c = text_[at_];
      if (c == quote) {
        ++at_;
        return {};
      }
      if (c == '\\') {
        if (++at_ == text_.size()) break;
        static constexpr std::string_view kFrom = "ntr\\'\"?/", kTo = "\n\t\r\\'\"?/";
        size_t index = kFrom.find(text_[at_]);
        if (index == std::string_view::npos) return Wrong("an escape that is not one of \\n \\t \\r \\\\ \\' \\\"");
        c = kTo[index];
      }
      out.push_back(c);
    }
    return Wrong("a string does not end on its line");
  }

  const std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

Result<std::vector<TextField>> ParseProtobufText(std::string_view text) {
  if (text.size() > kTextBytesMax)
    return Error(Code::kInvalid, fmt::format("{} bytes, the limit is {}", text.size(), kTextBytesMax));
  return Reader(text).Fields('\0', 0);
}

std::string TextValue(const std::vector<TextField>& fields, std::string_view name) {
  auto found = std::find_if(fields.rbegin(), fields.rend(), [&](const TextField& f) { return f.name == name; });
  return found == fields.rend() ? std::string() : found->value;
}

}  // namespace ekiben
