// About 500 common English words: one token each, with a space before it, in most vocabularies. What random prompts are
// made of (load/prompts.h) and what a made-up vocabulary must know (text/synthetic_tokenizer.h).
// Thread: any; the list is made once.
#pragma once
#include <string_view>
#include <vector>

namespace ekiben::text {

const std::vector<std::string_view>& EnglishWords();

}  // namespace ekiben::text
