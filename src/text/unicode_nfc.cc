#include "text/unicode_nfc.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <limits>

#include "base/check.h"
#include "text/unicode.h"

namespace ekiben::text {

namespace {

constexpr size_t kChunk = size_t{1} << 16;  // bytes given to ICU at once, more only where nothing can be cut
constexpr size_t kMarksMax = 64;            // a longer run of marks is sorted before ICU's insertion sort sees it

const icu::Normalizer2& Nfc() {
  static const icu::Normalizer2* nfc = [] {
    UErrorCode status = U_ZERO_ERROR;
    const icu::Normalizer2* found = icu::Normalizer2::getNFCInstance(status);
    CHECK(U_SUCCESS(status), "ICU has no NFC data: {}", u_errorName(status));
    return found;
  }();
  return *nfc;
}

// ICU's check, too, sorts the marks of a run by insertion. Every character with a combining class is a mark.
bool HasLongRunOfMarks(std::string_view text) {
  size_t run = 0;
  for (size_t i = 0; i < text.size(); i += Utf8Length(static_cast<unsigned char>(text[i]))) {
    bool mark = static_cast<unsigned char>(text[i]) >= 0x80 && (CharTable::Get()[DecodeUtf8(&text[i])] & kMark);
    run = mark ? run + 1 : 0;
    if (run > kMarksMax) return true;
  }
  return false;
}

bool BoundaryAt(std::string_view text, size_t position) {
  return position == text.size() || Nfc().hasBoundaryBefore(static_cast<UChar32>(DecodeUtf8(text.data() + position)));
}

icu::StringPiece ToPiece(std::string_view text) {
  CHECK_LE(text.size(), static_cast<size_t>(std::numeric_limits<int32_t>::max()));
  return icu::StringPiece(text.data(), static_cast<int32_t>(text.size()));
}

// Canonical decomposition with each run of marks in canonical order, which is a stable sort by combining class.
std::string Decompose(std::string_view text) {
  struct Mark {
    char32_t code;
    uint8_t order;
  };
  std::string out;
  std::vector<Mark> marks;
  auto flush = [&] {
    std::stable_sort(marks.begin(), marks.end(), [](Mark a, Mark b) { return a.order < b.order; });
    for (Mark mark : marks) AppendUtf8(mark.code, out);
    marks.clear();
  };
  auto add = [&](UChar32 code) {
    uint8_t order = Nfc().getCombiningClass(code);
    if (order == 0) flush();
    marks.push_back({static_cast<char32_t>(code), order});
    if (order == 0) flush();
  };
  icu::UnicodeString parts;
  for (size_t i = 0; i < text.size(); i += Utf8Length(static_cast<unsigned char>(text[i]))) {
    auto code = static_cast<UChar32>(DecodeUtf8(text.data() + i));
    if (!Nfc().getDecomposition(code, parts)) {
      add(code);
      continue;
    }
    for (int32_t at = 0; at < parts.length(); at = parts.moveIndex32(at, 1)) add(parts.char32At(at));
  }
  flush();
  return out;
}

// `marks`: the longest run of characters in `text` that no boundary divides.
void AppendChunk(std::string_view text, size_t marks, std::string& out) {
  UErrorCode status = U_ZERO_ERROR;
  icu::StringByteSink<std::string> sink(&out);
  std::string sorted;
  if (marks > kMarksMax) text = sorted = Decompose(text);
  Nfc().normalizeUTF8(0, ToPiece(text), sink, nullptr, status);
  CHECK(U_SUCCESS(status), "ICU: {}", u_errorName(status));
}

}  // namespace

bool IsNfc(std::string_view text) {
  if (IsAscii(text)) return true;
  // Where ICU cannot be asked, AppendNfc is: it goes by chunks and sorts by itself.
  if (text.size() > kChunk * kChunk / 4 || HasLongRunOfMarks(text)) return false;
  UErrorCode status = U_ZERO_ERROR;
  bool yes = Nfc().isNormalizedUTF8(ToPiece(text), status);
  return U_SUCCESS(status) && yes;
}

void AppendNfc(std::string_view text, const std::vector<size_t>& cuts, std::string& out,
               std::vector<size_t>& out_cuts) {
  size_t before = out.size();
  size_t cut = 0;
  for (size_t begin = 0; begin < text.size();) {
    while (cuts[cut] <= begin) {
      out_cuts.push_back(out.size() - before);
      ++cut;
    }
    size_t stop = std::min(cuts[cut], begin + kChunk);
    size_t end = begin;
    size_t run = 0, longest = 0;
    do {
      end += Utf8Length(static_cast<unsigned char>(text[end]));
      bool boundary = BoundaryAt(text, end);
      run = boundary ? 0 : run + 1;
      longest = std::max(longest, run);
    } while (end < text.size() && (end < stop || run > 0));
    AppendChunk(text.substr(begin, end - begin), longest, out);
    begin = end;
  }
  for (; cut < cuts.size(); ++cut) out_cuts.push_back(out.size() - before);
}

}  // namespace ekiben::text
