#include "text/sentencepiece.h"

namespace ekiben::text {

void AppendSpaceMarked(std::string_view text, std::string& out) {
  while (true) {
    size_t space = text.find(' ');
    out += text.substr(0, space);
    if (space == std::string_view::npos) return;
    out += kSpaceMark;
    text.remove_prefix(space + 1);
  }
}

std::string SpaceUnmarked(std::string_view token) {
  std::string out;
  while (true) {
    size_t mark = token.find(kSpaceMark);
    out += token.substr(0, mark);
    if (mark == std::string_view::npos) return out;
    out += ' ';
    token.remove_prefix(mark + kSpaceMark.size());
  }
}

SpaceMarkCutter::SpaceMarkCutter(const std::vector<std::string>& tokens, const std::vector<bool>& mergeable) {
  for (size_t id = 0; id < tokens.size(); ++id) {
    std::string_view token = tokens[id];
    if (!mergeable[id] || token.empty()) continue;
    for (size_t i = token.find(kSpaceMark, 1); i < token.size(); i = token.find(kSpaceMark, i + 1)) {
      joins_after_.set(static_cast<unsigned char>(token[i - 1]));
    }
  }
}

}  // namespace ekiben::text
