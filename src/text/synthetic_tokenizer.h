// A tokenizer for models that have none: random weights in a published shape. Every id has a text, so that what such a
// model says streams like words:
//   0..255      one byte each
//   then        common English words, alone and after a space, so that random prompts have exact lengths
//   then        made-up words after a space (" bakedi"), as many as the vocabulary asks for
//   last three  <|endoftext|>, <|im_start|>, <|im_end|>
// There are no merges: a word that is not in the list is spelled in bytes. Its text is Hugging Face's tokenizer.json,
// and the specification comes from that text, through the one reader. Thread: pure functions. Errors: a vocabulary too
// small for the parts above.
#pragma once
#include <cstdint>
#include <string>

#include "base/result.h"
#include "text/tokenizer_spec.h"

namespace ekiben::text {

Result<std::string> SyntheticTokenizerJson(int32_t vocab_size);
// tokenizer_config.json beside it: the end token and a chat template (ChatML).
std::string SyntheticTokenizerConfigJson();
// What a folder with both files is read as.
Result<TokenizerSpec> SyntheticTokenizer(int32_t vocab_size);

}  // namespace ekiben::text
