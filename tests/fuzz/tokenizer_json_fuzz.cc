// tokenizer.json and the other tokenizer files as an attacker would write them; and, with a tiny vocabulary, any text
// through encode, decode and the detokenizer, which must agree.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"
#include "text/unicode.h"

namespace ekiben::text {
namespace {

// What holds for any tokenizer, however strange its file.
void Exercise(const Tokenizer& tokenizer, std::string_view text) {
  size_t cut = text.size() / 2;
  std::vector<int32_t> ids =
      tokenizer.EncodeSpans({{text.substr(0, cut), true}, {text.substr(cut), false}}, /*add_special=*/true);
  for (int32_t id : ids) CHECK(id >= 0 && id < tokenizer.vocab_size());
  std::string decoded = tokenizer.Decode(ids, {.skip_special = false});
  CHECK(IsValidUtf8(decoded));
  Detokenizer detokenizer(tokenizer, {.skip_special = false});
  std::string streamed;
  for (int32_t id : ids) {
    size_t before = streamed.size();
    CHECK(!detokenizer.Push(id, streamed));
    CHECK(IsValidUtf8(std::string_view(streamed).substr(before)));  // all of it at each token would be quadratic
  }
  detokenizer.Finish(streamed);
  CHECK(streamed == decoded);
}

TokenizerSpec TinySpec(PreTokenizer pre_tokenizer) {
  TokenizerSpec spec;
  spec.pre_tokenizer = pre_tokenizer;
  for (int byte = 0; byte < 256; ++byte) spec.tokens.emplace_back(1, static_cast<char>(byte));
  auto merge = [&](int32_t left, int32_t right) {
    spec.merges.push_back({left, right, static_cast<int32_t>(spec.tokens.size())});
    spec.tokens.push_back(spec.tokens[static_cast<size_t>(left)] + spec.tokens[static_cast<size_t>(right)]);
  };
  merge('a', 'b'), merge(' ', 256), merge(0xC3, 0xA9), merge('\n', '\n'), merge('a', 'a'), merge(260, 260);
  AddedToken end;
  end.id = static_cast<int32_t>(spec.tokens.size());
  end.content = "<|e|>";
  end.special = true;
  spec.added.push_back(end);
  return spec;
}

void RoundTrip(std::string_view text, uint8_t kind) {
  static const std::vector<std::unique_ptr<Tokenizer>> kTokenizers = [] {
    std::vector<std::unique_ptr<Tokenizer>> all;
    for (PreTokenizer pre : {PreTokenizer::kGpt2, PreTokenizer::kSmolLm, PreTokenizer::kLlama3, PreTokenizer::kQwen2,
                             PreTokenizer::kTekken, PreTokenizer::kDeepSeekV3, PreTokenizer::kGpt4o}) {
      auto tokenizer = Tokenizer::Create(TinySpec(pre));
      CHECK(tokenizer.ok());
      all.push_back(*std::move(tokenizer));
    }
    return all;
  }();
  const Tokenizer& tokenizer = *kTokenizers[kind % kTokenizers.size()];
  Exercise(tokenizer, text);
  // Byte-level tokens lose nothing.
  std::vector<int32_t> ids = tokenizer.Encode(text, {});
  CHECK(tokenizer.Decode(ids, {.skip_special = false}) == RepairUtf8(text));
}

}  // namespace
}  // namespace ekiben::text

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ekiben;
  using namespace ekiben::text;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  // Inputs that are JSON or a SentencePiece model go to the loaders as they are, so that real files are seeds; the
  // others begin with a byte that picks what reads the rest.
  auto load = [&](Result<TokenizerSpec> spec) {
    if (!spec.ok()) return;
    auto tokenizer = Tokenizer::Create(*std::move(spec));
    if (tokenizer.ok()) Exercise(**tokenizer, "Hello ab\u00e9\n\n 12 <s></s><|im_end|> \xF0\x9F\xA6\x99\xFFz");
  };
  if (input.starts_with('{')) {
    load(ParseTokenizerJson(input, "input"));
    load(ParseTekken(input, "input"));
    size_t split = input.find('\0');
    if (split != std::string_view::npos) load(ParseGpt2(input.substr(0, split), input.substr(split + 1), "input"));
  } else if (input.starts_with('\n')) {
    load(ParseSentencePiece(input, "input"));
  } else if (!input.empty() && input[0] == 't') {
    load(ParseTiktoken(input.substr(1), "input"));
  } else if (!input.empty()) {
    RoundTrip(input.substr(1), static_cast<uint8_t>(input[0]));
  }
  return 0;
}
