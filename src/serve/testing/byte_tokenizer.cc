#include "serve/testing/byte_tokenizer.h"

namespace ekiben::serve::testing {

ByteTokenizer::ByteTokenizer() {
  for (int i = 0; i < 256; ++i) spec_.tokens.emplace_back(1, static_cast<char>(i));
  for (const char* text : {"<end>", "<begin>", "<user>", "<assistant>"}) {
    auto id = static_cast<int32_t>(spec_.tokens.size());
    spec_.tokens.emplace_back(text);
    spec_.added.push_back({id, text, /*special=*/true});
  }
  spec_.bos = kBegin;
  spec_.eos = kEnd;
  spec_.end_ids = {kEnd};
}

std::vector<int32_t> ByteTokenizer::Encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> out;
  while (!text.empty()) {
    int32_t special = -1;
    for (const auto& added : spec_.added)
      if (options.parse_special && text.starts_with(added.content)) special = added.id;
    out.push_back(special >= 0 ? special : static_cast<unsigned char>(text[0]));
    text.remove_prefix(special >= 0 ? Bytes(special).size() : 1);
  }
  return out;
}

std::vector<int32_t> ByteTokenizer::EncodeSpans(const std::vector<Span>& spans, bool) const {
  std::vector<int32_t> out;
  for (const Span& span : spans) {
    auto tokens = Encode(span.text, {.add_special = false, .parse_special = span.trusted});
    out.insert(out.end(), tokens.begin(), tokens.end());
  }
  return out;
}

std::string ByteTokenizer::Decode(const std::vector<int32_t>& tokens, const DecodeOptions& options) const {
  std::string out;
  for (int32_t token : tokens)
    if (!(options.skip_special && IsSpecial(token))) out.append(Bytes(token));
  return out;
}

std::string_view ByteTokenizer::Bytes(int32_t token) const {
  return token >= 0 && token < kVocabulary ? std::string_view(spec_.tokens[static_cast<size_t>(token)])
                                           : std::string_view();
}

int32_t ByteTokenizer::TokenOf(std::string_view text) const {
  for (size_t i = 0; i < spec_.tokens.size(); ++i)
    if (spec_.tokens[i] == text) return static_cast<int32_t>(i);
  return -1;
}

const char* ByteChatTemplate() {
  return "{% for message in messages %}{% if message['role'] == 'user' %}<user>{{ message['content'] }}{% elif "
         "message['role'] == 'assistant' %}<assistant>{{ message['content'] }}{% endif %}{% endfor %}{% if "
         "add_generation_prompt %}<assistant>{% endif %}";
}

}  // namespace ekiben::serve::testing
