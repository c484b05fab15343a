#include "text/tokenizer_spec.h"

#include <fmt/format.h>

#include <bit>
#include <cstring>
#include <type_traits>

#include "base/mapped_file.h"
#include "text/byte_cursor.h"

namespace ekiben::text {

namespace {

static_assert(std::endian::native == std::endian::little, "the file is little-endian and read in place");

constexpr char kMagic[8] = {'E', 'K', 'I', 'T', 'O', 'K', '\r', '\n'};
constexpr uint32_t kVersion = 1;
constexpr size_t kFileBytesMax = size_t{1} << 30;

class Writer {
 public:
  template <class T>
  void Number(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    out_.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  void Flag(bool value) { Number(uint8_t{value}); }
  void Text(std::string_view text) {
    Number(uint64_t{text.size()});
    out_.append(text);
  }
  template <class T>
  void Array(const std::vector<T>& values) {
    static_assert(std::has_unique_object_representations_v<T> || std::is_floating_point_v<T>);
    Number(uint64_t{values.size()});
    out_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
  }
  // Lengths first, then all bytes: a reader walks 128k tokens without chasing.
  void Texts(const std::vector<std::string>& texts) {
    Number(uint64_t{texts.size()});
    for (const std::string& text : texts) Number(static_cast<uint32_t>(text.size()));
    for (const std::string& text : texts) out_.append(text);
  }
  const std::string& out() const { return out_; }

 private:
  std::string out_;
};

// Past the end everything reads as zero or empty, and bad() says so.
class Reader : public ByteCursor {
 public:
  using ByteCursor::ByteCursor;

  template <class T>
  T Number() {
    T value{};
    std::string_view bytes = Take(sizeof(T));
    if (!bad()) std::memcpy(&value, bytes.data(), sizeof(T));
    return value;
  }
  bool Flag() {
    uint8_t value = Number<uint8_t>();
    if (value > 1) SetBad();
    return value == 1;
  }
  std::string Text() { return std::string(Take(Number<uint64_t>())); }
  template <class T>
  std::vector<T> Array() {
    uint64_t count = Number<uint64_t>();
    if (bad() || count > left() / sizeof(T)) {
      SetBad();
      return {};
    }
    std::vector<T> values(count);
    std::string_view bytes = Take(count * sizeof(T));
    if (count > 0) std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
  }
  std::vector<std::string> Texts() {
    std::vector<uint32_t> sizes = Array<uint32_t>();
    std::vector<std::string> texts(sizes.size());
    for (size_t i = 0; i < sizes.size() && !bad(); ++i) texts[i] = Take(sizes[i]);
    return texts;
  }
  template <class Enum>
  Enum Choice(Enum last) {
    uint8_t value = Number<uint8_t>();
    if (value > static_cast<uint8_t>(last)) SetBad();
    return bad() ? Enum{} : static_cast<Enum>(value);
  }
};

void WriteAdded(const std::vector<AddedToken>& added, Writer& writer) {
  writer.Number(uint64_t{added.size()});
  for (const AddedToken& token : added) {
    writer.Number(token.id);
    writer.Text(token.content);
    for (bool flag : {token.special, token.normalized, token.lstrip, token.rstrip, token.single_word}) {
      writer.Flag(flag);
    }
  }
}

std::vector<AddedToken> ReadAdded(Reader& reader) {
  std::vector<AddedToken> added;
  for (uint64_t left = reader.Number<uint64_t>(); left > 0 && !reader.bad(); --left) {
    AddedToken& token = added.emplace_back();
    token.id = reader.Number<int32_t>();
    token.content = reader.Text();
    for (bool* flag : {&token.special, &token.normalized, &token.lstrip, &token.rstrip, &token.single_word}) {
      *flag = reader.Flag();
    }
  }
  return added;
}

}  // namespace

Result<void> WriteTokenizerSpec(const TokenizerSpec& spec, const std::string& path) {
  Writer writer;
  for (char c : kMagic) writer.Number(c);
  writer.Number(kVersion);
  writer.Number(spec.model);
  writer.Number(spec.pre_tokenizer);
  writer.Number(uint64_t{spec.patterns.size()});
  for (const SplitPattern& pattern : spec.patterns) {
    writer.Text(pattern.regex);
    writer.Number(pattern.behavior);
    writer.Flag(pattern.invert);
  }
  writer.Texts(spec.tokens);
  writer.Array(spec.is_byte_token);
  writer.Array(spec.scores);
  writer.Array(spec.merges);
  for (bool flag :
       {spec.nfc, spec.ignore_merges, spec.byte_fallback, spec.fuse_unk, spec.add_prefix_space,
        spec.prefix_space_first_only, spec.prefix_space_if_absent, spec.strip_left_space, spec.add_bos, spec.add_eos}) {
    writer.Flag(flag);
  }
  WriteAdded(spec.added, writer);
  for (int32_t id : {spec.bos, spec.eos, spec.unk, spec.pad}) writer.Number(id);
  writer.Array(spec.end_ids);
  writer.Text(spec.chat_template);
  return WriteFileAtomic(path, writer.out());
}

Result<TokenizerSpec> ReadTokenizerSpec(const std::string& path) {
  ASSIGN_OR_RETURN(MappedFile file, MappedFile::Open(path));
  if (file.bytes().size() > kFileBytesMax) {
    return Error(Code::kInvalid, fmt::format("{}: {} bytes; a tokenizer file has at most {}", path, file.bytes().size(),
                                             kFileBytesMax));
  }
  std::string_view bytes(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  if (bytes.substr(0, sizeof(kMagic)) != std::string_view(kMagic, sizeof(kMagic))) {
    return Error(Code::kInvalid, fmt::format("{}: not an ekiben tokenizer file; build the engine again", path));
  }
  Reader reader(bytes.substr(sizeof(kMagic)));
  if (uint32_t version = reader.Number<uint32_t>(); version != kVersion) {
    return Error(Code::kUnsupported, fmt::format("{}: tokenizer file version {}, this program reads {}; build the "
                                                 "engine again",
                                                 path, version, kVersion));
  }
  TokenizerSpec spec;
  spec.model = reader.Choice(Model::kSentencePieceBpe);
  spec.pre_tokenizer = reader.Choice(PreTokenizer::kPatterns);
  for (uint64_t left = reader.Number<uint64_t>(); left > 0 && !reader.bad(); --left) {
    SplitPattern& pattern = spec.patterns.emplace_back();
    pattern.regex = reader.Text();
    pattern.behavior = reader.Choice(SplitPattern::Behavior::kContiguous);
    pattern.invert = reader.Flag();
  }
  spec.tokens = reader.Texts();
  spec.is_byte_token = reader.Array<uint8_t>();
  spec.scores = reader.Array<float>();
  spec.merges = reader.Array<TokenizerSpec::Merge>();
  for (bool* flag : {&spec.nfc, &spec.ignore_merges, &spec.byte_fallback, &spec.fuse_unk, &spec.add_prefix_space,
                     &spec.prefix_space_first_only, &spec.prefix_space_if_absent, &spec.strip_left_space, &spec.add_bos,
                     &spec.add_eos}) {
    *flag = reader.Flag();
  }
  spec.added = ReadAdded(reader);
  for (int32_t* id : {&spec.bos, &spec.eos, &spec.unk, &spec.pad}) *id = reader.Number<int32_t>();
  spec.end_ids = reader.Array<int32_t>();
  spec.chat_template = reader.Text();
  if (reader.bad() || reader.left() != 0) {
    return Error(Code::kInvalid,
                 fmt::format("{}: damaged tokenizer file ({} bytes); build the engine again", path, bytes.size()));
  }
  return spec;
}

}  // namespace ekiben::text
