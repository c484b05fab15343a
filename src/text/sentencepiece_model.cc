// SentencePiece's .model (the ModelProto message): the few fields that encoding needs, read from the wire format with
// every length proven against what is left.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <optional>

#include "text/byte_cursor.h"
#include "text/sentencepiece.h"
#include "text/tokenizer_files.h"

namespace ekiben::text {

namespace {

// The wire format: a sequence of (field number, value), values a varint, 4 or 8 bytes, or a counted string.
class WireReader {
 public:
  explicit WireReader(std::string_view in) : cursor_(in) {}
  // Advances to the next field; false at the end or where the bytes are damaged (bad()).
  bool Next() {
    if (cursor_.left() == 0 || bad()) return false;
    uint64_t key = Varint();
    number_ = key >> 3;
    type_ = key & 7;
    switch (type_) {
      case 0: value_ = Varint(); break;
      case 1: bytes_ = cursor_.Take(8); break;
      case 2: bytes_ = cursor_.Take(Varint()); break;
      case 5: bytes_ = cursor_.Take(4); break;
      default: cursor_.SetBad();
    }
    if (number_ == 0) cursor_.SetBad();
    return !bad();
  }
  bool bad() const { return cursor_.bad(); }
  bool Is(uint64_t number, uint64_t type) const { return number_ == number && type_ == type; }
  uint64_t value() const { return value_; }
  std::string_view bytes() const { return bytes_; }

 private:
  uint64_t Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      std::string_view next = cursor_.Take(1);
      if (next.empty()) return 0;
      auto byte = static_cast<unsigned char>(next[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    cursor_.SetBad();
    return 0;
  }
  ByteCursor cursor_;
  uint64_t number_ = 0, type_ = 0, value_ = 0;
  std::string_view bytes_;
};

enum PieceType : uint64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct Trainer {
  uint64_t model_type = 1;
  bool byte_fallback = false;
  bool whitespace_as_suffix = false;
  int32_t unk = 0, bos = 1, eos = 2, pad = -1;
};
struct Normalizer {
  bool has_charsmap = false;
  bool add_dummy_prefix = true, remove_extra_whitespaces = true, escape_whitespaces = true;
};

Error Bad(std::string_view what) {
  return Error(Code::kInvalid, std::string(what));
}

Result<void> ReadPiece(std::string_view bytes, TokenizerSpec& spec) {
  std::string_view text;
  float score = 0;
  uint64_t type = kNormal;
  WireReader reader(bytes);
  while (reader.Next()) {
    if (reader.Is(1, 2)) text = reader.bytes();
    if (reader.Is(2, 5)) std::memcpy(&score, reader.bytes().data(), sizeof(score));
    if (reader.Is(3, 0)) type = reader.value();
  }
  size_t id = spec.tokens.size();
  if (reader.bad() || text.size() > TokenizerFileLimits().token_bytes_max || std::isnan(score)) {
    return Bad(fmt::format("piece {} is damaged", id));
  }
  if (id > static_cast<size_t>(TokenizerFileLimits().id_max)) return Bad("too many pieces");
  spec.tokens.emplace_back(text);
  spec.scores.push_back(score);
  spec.is_byte_token.push_back(type == kByte);
  if (type == kControl || type == kUnknown || type == kUserDefined) {
    AddedToken& token = spec.added.emplace_back();
    token.id = static_cast<int32_t>(id);
    token.content = text;
    token.special = type != kUserDefined;
    token.normalized = type == kUserDefined;
  }
  return {};
}

Trainer ReadTrainer(WireReader reader) {
  Trainer trainer;
  while (reader.Next()) {
    auto id = static_cast<int32_t>(reader.value());
    if (reader.Is(3, 0)) trainer.model_type = reader.value();
    if (reader.Is(24, 0)) trainer.whitespace_as_suffix = reader.value() != 0;
    if (reader.Is(35, 0)) trainer.byte_fallback = reader.value() != 0;
    if (reader.Is(40, 0)) trainer.unk = id;
    if (reader.Is(41, 0)) trainer.bos = id;
    if (reader.Is(42, 0)) trainer.eos = id;
    if (reader.Is(43, 0)) trainer.pad = id;
  }
  return trainer;
}

Normalizer ReadNormalizer(WireReader reader) {
  Normalizer normalizer;
  while (reader.Next()) {
    if (reader.Is(2, 2)) normalizer.has_charsmap = !reader.bytes().empty();
    if (reader.Is(3, 0)) normalizer.add_dummy_prefix = reader.value() != 0;
    if (reader.Is(4, 0)) normalizer.remove_extra_whitespaces = reader.value() != 0;
    if (reader.Is(5, 0)) normalizer.escape_whitespaces = reader.value() != 0;
  }
  return normalizer;
}

Result<TokenizerSpec> Read(std::string_view proto) {
  TokenizerSpec spec;
  spec.model = Model::kSentencePieceBpe;
  spec.pre_tokenizer = PreTokenizer::kNone;
  Trainer trainer;
  Normalizer normalizer;
  WireReader reader(proto);
  while (reader.Next()) {
    if (reader.Is(1, 2)) RETURN_IF_ERROR(ReadPiece(reader.bytes(), spec));
    if (reader.Is(2, 2)) trainer = ReadTrainer(WireReader(reader.bytes()));
    if (reader.Is(3, 2)) normalizer = ReadNormalizer(WireReader(reader.bytes()));
  }
  if (reader.bad())
    return Bad(fmt::format("not a SentencePiece model, or damaged behind piece {}", spec.tokens.size()));
  if (spec.tokens.empty()) return Bad("a SentencePiece model without pieces");
  if (trainer.model_type != 2) {
    return Error(Code::kUnsupported,
                 fmt::format("SentencePiece model_type {}: only BPE (2) is supported", trainer.model_type));
  }
  if (normalizer.has_charsmap || normalizer.remove_extra_whitespaces || !normalizer.escape_whitespaces ||
      trainer.whitespace_as_suffix) {
    return Error(Code::kUnsupported, "SentencePiece normalizer: only identity with escaped whitespace is supported");
  }
  auto in_range = [&](int32_t id) { return id >= 0 && static_cast<size_t>(id) < spec.tokens.size() ? id : -1; };
  spec.unk = in_range(trainer.unk);
  spec.bos = in_range(trainer.bos);
  spec.eos = in_range(trainer.eos);
  spec.pad = in_range(trainer.pad);
  spec.byte_fallback = trainer.byte_fallback;
  spec.fuse_unk = true;
  spec.add_prefix_space = normalizer.add_dummy_prefix;
  spec.prefix_space_first_only = false;
  spec.strip_left_space = normalizer.add_dummy_prefix;
  spec.add_bos = spec.bos >= 0;
  FindEndIds(spec);
  return spec;
}

}  // namespace

Result<TokenizerSpec> ParseSentencePiece(std::string_view proto, std::string_view source) {
  auto spec = Read(proto);
  if (!spec.ok()) return std::move(spec).error().Within(source);
  return spec;
}

}  // namespace ekiben::text
