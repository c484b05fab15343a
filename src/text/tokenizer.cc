#include "text/tokenizer.h"

#include <fmt/format.h>

#include <mutex>
#include <optional>
#include <unordered_map>

#include "text/bpe.h"
#include "text/pre_tokenizer.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_added.h"
#include "text/unicode.h"
#include "text/unicode_nfc.h"

namespace ekiben::text {

namespace {

constexpr size_t kVocabularyMax = size_t{1} << 22;
constexpr size_t kIdleScratchMax = 64;

// Part of the text on its way through the stages.
struct Piece {
  std::string_view text;
  TrustMap trust;
  bool first;  // starts where the whole text does
};

class BpeTokenizer final : public Tokenizer {
 public:
  static Result<std::unique_ptr<Tokenizer>> Build(TokenizerSpec spec);

  std::vector<int32_t> Encode(std::string_view text, const EncodeOptions& options) const override {
    return EncodeSpans({{text, options.parse_special}}, options.add_special);
  }
  std::vector<int32_t> EncodeSpans(const std::vector<Span>& spans, bool add_special) const override;
  std::string Decode(const std::vector<int32_t>& tokens, const DecodeOptions& options) const override;

  std::string_view Bytes(int32_t token) const override {
    if (token < 0 || token >= vocab_size()) return {};
    return spoken_.empty() ? bpe_->vocabulary().Bytes(token) : spoken_[static_cast<size_t>(token)];
  }
  bool IsSpecial(int32_t token) const override {
    return token >= 0 && token < vocab_size() && is_special_[static_cast<size_t>(token)];
  }
  int32_t TokenOf(std::string_view text) const override {
    auto added = added_ids_.find(std::string(text));
    return added != added_ids_.end() ? added->second : bpe_->vocabulary().Find(text);
  }
  const TokenizerSpec& spec() const override { return spec_; }
  int32_t vocab_size() const override { return static_cast<int32_t>(spec_.tokens.size()); }

 private:
  BpeTokenizer(TokenizerSpec spec, WordCutter cutter) : spec_(std::move(spec)), cutter_(std::move(cutter)) {}
  void SetAdded();
  void SetSpoken();

  // True: `out` and `runs` hold the normalised text; false: the text is normal as it is.
  bool Normalize(const Piece& piece, std::string& out, std::vector<TrustRun>& runs) const;
  void AppendPrefix(std::string_view text, bool first, std::string& out) const;
  // Calls plain(Piece) and token(id) in order of the text.
  template <class OnPlain, class OnToken>
  static void Separate(const AddedTokenMatcher& matcher, const Piece& piece, OnPlain&& plain, OnToken&& token);
  void EncodePiece(const Piece& piece, BpeScratch& scratch, std::vector<int32_t>& out) const;
  void EncodePlain(std::string_view text, BpeScratch& scratch, std::vector<int32_t>& out) const;

  // Working memory is lent to one call at a time and kept for the next, with the word cache in it.
  std::unique_ptr<BpeScratch> TakeScratch() const;
  void ReturnScratch(std::unique_ptr<BpeScratch> scratch) const;

  TokenizerSpec spec_;
  WordCutter cutter_;
  BorderCutter border_cutter_;
  std::unique_ptr<BpeModel> bpe_;
  std::vector<bool> is_special_;
  std::unordered_map<std::string, int32_t> added_ids_;
  AddedTokenMatcher raw_, normalized_;  // for the text before and after normalising
  std::vector<std::string> spoken_;     // SentencePiece: tokens as text; empty: the vocabulary's bytes are
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<BpeScratch>> idle_;
};

Result<void> CheckSpec(TokenizerSpec& spec) {
  auto bad = [](std::string message) { return Error(Code::kInvalid, "tokenizer: " + std::move(message)); };
  if (spec.tokens.empty() || spec.tokens.size() > kVocabularyMax) {
    return bad(fmt::format("{} tokens; 1 to {} are supported", spec.tokens.size(), kVocabularyMax));
  }
  for (const AddedToken& token : spec.added) {
    if (token.id < 0 || static_cast<size_t>(token.id) >= kVocabularyMax) {
      return bad(fmt::format("added token '{}' has id {}; 0 to {} are supported", token.content, token.id,
                             kVocabularyMax - 1));
    }
    auto id = static_cast<size_t>(token.id);
    if (id >= spec.tokens.size()) spec.tokens.resize(id + 1);
    if (spec.tokens[id].empty()) spec.tokens[id] = token.content;
  }
  size_t count = spec.tokens.size();
  if (!spec.is_byte_token.empty()) spec.is_byte_token.resize(count);
  if (!spec.scores.empty()) spec.scores.resize(count);
  for (auto [name, id] : {std::pair("bos", spec.bos), {"eos", spec.eos}, {"unk", spec.unk}, {"pad", spec.pad}}) {
    if (id < -1 || id >= static_cast<int64_t>(count)) {
      return bad(fmt::format("{} id {} is outside the vocabulary of {}", name, id, count));
    }
  }
  if (spec.add_bos && spec.bos < 0) return bad("add_bos without a bos id");
  if (spec.add_eos && spec.eos < 0) return bad("add_eos without an eos id");
  return {};
}

Result<std::unique_ptr<Tokenizer>> BpeTokenizer::Build(TokenizerSpec spec) {
  RETURN_IF_ERROR(CheckSpec(spec));
  ASSIGN_OR_RETURN(WordCutter cutter, WordCutter::Create(spec.pre_tokenizer, spec.patterns));
  std::unique_ptr<BpeTokenizer> tokenizer(new BpeTokenizer(std::move(spec), std::move(cutter)));
  ASSIGN_OR_RETURN(tokenizer->bpe_, BpeModel::Create(tokenizer->spec_));
  if (tokenizer->spec_.model == Model::kSentencePieceBpe) {
    const TokenizerSpec& own = tokenizer->spec_;
    bool no_unknown = own.byte_fallback && tokenizer->bpe_->HasAllBytes();
    tokenizer->border_cutter_ = BorderCutter(own.tokens, tokenizer->bpe_->mergeable(), no_unknown);
    tokenizer->SetSpoken();
  }
  tokenizer->SetAdded();
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

void BpeTokenizer::SetAdded() {
  is_special_.assign(spec_.tokens.size(), false);
  static const std::vector<TrustRun> kTrusted = {{~size_t{0}, true}};
  // Hugging Face's Prepend puts its mark before an added token's own text too; SentencePiece does not.
  bool with_prefix = spec_.scores.empty() && !spec_.prefix_space_first_only;
  for (const AddedToken& token : spec_.added) {
    if (token.special) is_special_[static_cast<size_t>(token.id)] = true;
    added_ids_.emplace(token.content, token.id);
    std::string content;
    std::vector<TrustRun> runs;
    bool changed = token.normalized && IsValidUtf8(token.content) &&
                   Normalize({token.content, TrustMap(kTrusted), false}, content, runs);
    if (changed && !with_prefix && spec_.add_prefix_space && !spec_.prefix_space_first_only) {
      content.erase(0, kSpaceMark.size());
    }
    (token.normalized ? normalized_ : raw_).Add(&token, changed ? content : token.content);
  }
  raw_.Finish();
  normalized_.Finish();
}

void BpeTokenizer::SetSpoken() {
  spoken_.reserve(spec_.tokens.size());
  for (size_t id = 0; id < spec_.tokens.size(); ++id) {
    bool is_byte = id < spec_.is_byte_token.size() && spec_.is_byte_token[id];
    int byte = is_byte ? ByteTokenValue(spec_.tokens[id]) : -1;
    spoken_.push_back(byte >= 0 ? std::string(1, static_cast<char>(byte)) : SpaceUnmarked(spec_.tokens[id]));
  }
}

std::unique_ptr<BpeScratch> BpeTokenizer::TakeScratch() const {
  {
    std::lock_guard lock(mutex_);
    if (!idle_.empty()) {
      std::unique_ptr<BpeScratch> scratch = std::move(idle_.back());
      idle_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<BpeScratch>();
}

void BpeTokenizer::ReturnScratch(std::unique_ptr<BpeScratch> scratch) const {
  std::lock_guard lock(mutex_);
  if (idle_.size() < kIdleScratchMax) idle_.push_back(std::move(scratch));
}

template <class OnPlain, class OnToken>
void BpeTokenizer::Separate(const AddedTokenMatcher& matcher, const Piece& piece, OnPlain&& plain, OnToken&& token) {
  size_t done = 0;
  auto emit = [&](size_t end) {
    if (end > done) plain(Piece{piece.text.substr(done, end - done), piece.trust.From(done), piece.first && done == 0});
  };
  AddedTokenMatcher::Match match;
  while (matcher.Find(piece.text, done, piece.trust, match)) {
    emit(match.begin);
    token(match.token->id);
    done = match.end;
  }
  emit(piece.text.size());
}

void BpeTokenizer::AppendPrefix(std::string_view text, bool first, std::string& out) const {
  if (!spec_.add_prefix_space || text.empty() || (!first && spec_.prefix_space_first_only)) return;
  bool sentencepiece = spec_.model == Model::kSentencePieceBpe;
  bool present = text.starts_with(' ') || (sentencepiece && text.starts_with(kSpaceMark));
  if (present && (spec_.prefix_space_if_absent || !sentencepiece)) return;
  out += sentencepiece ? kSpaceMark : " ";
}

bool BpeTokenizer::Normalize(const Piece& piece, std::string& out, std::vector<TrustRun>& runs) const {
  bool nfc = spec_.nfc && !IsNfc(piece.text);
  bool sentencepiece = spec_.model == Model::kSentencePieceBpe;
  if (!nfc && !sentencepiece && !spec_.add_prefix_space) return false;

  std::string_view text = piece.text;
  runs = piece.trust.Runs(text.size());
  std::string composed;
  if (nfc) {  // a character joined across a cut falls to the earlier run
    std::vector<size_t> cuts, out_cuts;
    for (const TrustRun& run : runs) cuts.push_back(run.end);
    AppendNfc(text, cuts, composed, out_cuts);
    std::vector<TrustRun> moved;
    for (size_t i = 0; i < runs.size(); ++i) {
      moved.push_back({out_cuts[i], runs[i].trusted});
    }
    runs.swap(moved);
    text = composed;
  }
  AppendPrefix(text, piece.first, out);
  size_t begin = 0;
  for (TrustRun& run : runs) {
    std::string_view part = text.substr(begin, run.end - begin);
    begin = run.end;
    if (sentencepiece) {
      AppendSpaceMarked(part, out);
    } else {
      out += part;
    }
    run.end = out.size();
  }
  return true;
}

void BpeTokenizer::EncodePlain(std::string_view text, BpeScratch& scratch, std::vector<int32_t>& out) const {
  auto word = [&](std::string_view bytes) { bpe_->Encode(bytes, scratch, out); };
  if (spec_.model == Model::kSentencePieceBpe && spec_.pre_tokenizer == PreTokenizer::kNone) {
    border_cutter_.ForEachWord(text, word);
  } else {
    cutter_.ForEachWord(text, word);
  }
}

void BpeTokenizer::EncodePiece(const Piece& piece, BpeScratch& scratch, std::vector<int32_t>& out) const {
  std::string text;
  std::vector<TrustRun> runs;
  bool changed = Normalize(piece, text, runs);
  Piece normal = changed ? Piece{text, TrustMap(runs), piece.first} : piece;
  auto plain = [&](const Piece& part) { EncodePlain(part.text, scratch, out); };
  auto token = [&](int32_t id) { out.push_back(id); };
  Separate(normalized_, normal, plain, token);
}

std::vector<int32_t> BpeTokenizer::EncodeSpans(const std::vector<Span>& spans, bool add_special) const {
  std::string joined;
  std::vector<TrustRun> runs;
  size_t total = 0;
  for (const Span& span : spans) total += span.text.size();
  auto append = [&](std::string_view text, bool trusted) {
    joined += text;
    runs.push_back({joined.size(), trusted});
  };
  std::string_view text;
  if (spans.size() == 1 && IsValidUtf8(spans[0].text)) {
    text = spans[0].text;
    runs.push_back({text.size(), spans[0].trusted});
  } else {
    joined.reserve(total);
    for (const Span& span : spans) append(span.text, span.trusted);
    if (!IsValidUtf8(joined)) {
      joined.clear();
      runs.clear();
      for (const Span& span : spans) append(RepairUtf8(span.text), span.trusted);
    }
    text = joined;
  }

  std::vector<int32_t> out;
  out.reserve(total / 4 + 8);
  if (add_special && spec_.add_bos) out.push_back(spec_.bos);
  if (!text.empty()) {
    std::unique_ptr<BpeScratch> scratch = TakeScratch();
    auto plain = [&](const Piece& piece) { EncodePiece(piece, *scratch, out); };
    auto token = [&](int32_t id) { out.push_back(id); };
    Separate(raw_, {text, TrustMap(runs), true}, plain, token);
    ReturnScratch(std::move(scratch));
  }
  if (add_special && spec_.add_eos) out.push_back(spec_.eos);
  return out;
}

std::string BpeTokenizer::Decode(const std::vector<int32_t>& tokens, const DecodeOptions& options) const {
  std::string out;
  Utf8Repair repair(spec_.model == Model::kSentencePieceBpe ? Utf8Repair::Unit::kByte
                                                            : Utf8Repair::Unit::kMaximalSubpart);
  for (int32_t token : tokens) {
    if (options.skip_special && IsSpecial(token)) continue;
    repair.Feed(Bytes(token), out);
  }
  repair.Finish(out);
  if (spec_.strip_left_space && out.starts_with(' ')) out.erase(0, 1);
  return out;
}

}  // namespace

Result<std::unique_ptr<Tokenizer>> Tokenizer::Create(TokenizerSpec spec) {
  return BpeTokenizer::Build(std::move(spec));
}

}  // namespace ekiben::text
