// What the inputs of a generating model ask for, in serve's terms: one TextRequest a row of the batch, and what of the
// results the client wants to see.
//
// Defaults are TensorRT-LLM's: without top_k and top_p the best token is taken, the seed is 0.
// Thread: pure functions.
#pragma once
#include <string>
#include <vector>

#include "base/result.h"
#include "kserve/inputs.h"
#include "serve/model_registry.h"
#include "serve/service.h"

namespace ekiben::kserve {

using TokenSequence = std::vector<TokenId>;

struct GenerationPlan {
  struct Row {
    serve::TextRequest request;
    std::vector<TokenSequence> stop_sequences;  // of more than one token: matched on what comes out
    std::string echo;                           // goes before the text of an answer in one piece
    TokenSequence echo_tokens;                  // the same for output_ids
  };
  std::vector<Row> rows;
  int32_t n = 1;
  bool context_logits = false, generation_logits = false;
  bool stream = false, log_probs = false, perf_metrics = false, num_input_tokens = false, num_output_tokens = false;
};

struct PlanContext {
  const Parameters& parameters;  // of the request: priority, timeout
  const serve::EngineFacts& facts;
  const text::Tokenizer& tokenizer;
  bool exclude_input_in_output;  // where the request does not say
};

// ensemble and tensorrt_llm_bls.
Result<GenerationPlan> PlanFromText(const Inputs& inputs, const PlanContext& context);
// tensorrt_llm. Token ids are checked in preprocessing, as every request's.
Result<GenerationPlan> PlanFromTokens(const Inputs& inputs, const PlanContext& context);

// TensorRT-LLM's list of token sequences, int32 [2, n]: all ids in a row, then the end of each sequence, -1 after the
// last one.
Result<std::vector<TokenSequence>> SequencesFromList(const std::string& name, const std::vector<int32_t>& list);
std::vector<int32_t> ListFromSequences(const std::vector<TokenSequence>& sequences, size_t length);

// Words that are not empty; their number and size are limited.
Result<std::vector<std::string>> WordsOf(const Inputs& inputs, const std::string& name, int32_t row);
// The sum of a word's weight over its tokens, ascending by token.
Result<std::vector<std::pair<TokenId, float>>> BiasOfWords(const Inputs& inputs, const std::string& words,
                                                           const std::string& weights, int32_t row,
                                                           const text::Tokenizer& tokenizer);

}  // namespace ekiben::kserve
