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

BorderCutter::BorderCutter(const std::vector<std::string>& tokens, const std::vector<bool>& mergeable, bool everywhere)
    : everywhere_(everywhere) {
  for (int before = 0; before < 256; ++before) {
    for (int after = 0x80; after < 0xC0; ++after) joins_.set(Pair(static_cast<char>(before), static_cast<char>(after)));
  }
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!mergeable[id]) continue;
    for (size_t i = 1; i < tokens[id].size(); ++i) joins_.set(Pair(tokens[id][i - 1], tokens[id][i]));
  }
}

}  // namespace ekiben::text
