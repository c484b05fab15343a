#include "kserve/text_stages.h"

#include <fmt/format.h>

#include <algorithm>

#include "kserve/generation_plan.h"
#include "serve/service.h"
#include "text/tokenizer.h"

namespace ekiben::kserve {
namespace {

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}

// Rows of different lengths as one int32 [batch, longest], filled with `pad`.
Tensor Padded(std::string name, const std::vector<TokenSequence>& rows, const std::vector<int32_t>& pads) {
  size_t longest = 0;
  for (const TokenSequence& row : rows) longest = std::max(longest, row.size());
  std::vector<int32_t> all;
  for (size_t i = 0; i < rows.size(); ++i) {
    all.insert(all.end(), rows[i].begin(), rows[i].end());
    all.resize((i + 1) * longest, pads[i]);
  }
  return Int32Tensor(std::move(name), {static_cast<int64_t>(rows.size()), static_cast<int64_t>(longest)}, all);
}

Tensor Scalars(std::string name, const std::vector<int32_t>& values) {
  return Int32Tensor(std::move(name), {static_cast<int64_t>(values.size()), 1}, values);
}

// int32 [batch, 2, longest]; a row without words is one pad and no end.
Result<Tensor> WordLists(std::string name, const Inputs& inputs, const std::string& dictionary,
                         const text::Tokenizer& tokenizer) {
  std::vector<std::vector<TokenSequence>> rows;
  size_t longest = 1;
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    ASSIGN_OR_RETURN(std::vector<std::string> words, WordsOf(inputs, dictionary, i));
    std::vector<TokenSequence> sequences;
    size_t length = 0;
    for (const std::string& word : words) {
      sequences.push_back(tokenizer.Encode(word, {.add_special = false, .parse_special = false}));
      length += sequences.back().size();
    }
    longest = std::max(longest, length);
    rows.push_back(std::move(sequences));
  }
  std::vector<int32_t> all;
  for (const auto& row : rows) {
    std::vector<int32_t> list = ListFromSequences(row, longest);
    all.insert(all.end(), list.begin(), list.end());
  }
  return Int32Tensor(std::move(name), {inputs.batch(), 2, static_cast<int64_t>(longest)}, all);
}

// float [batch, vocabulary], or [batch, 0] where no row has a word.
Result<Tensor> DenseBias(const Inputs& inputs, int32_t vocab_size, const text::Tokenizer& tokenizer) {
  auto width = inputs.Has("EMBEDDING_BIAS_WORDS") ? static_cast<size_t>(vocab_size) : 0;
  std::vector<float> all(width * static_cast<size_t>(inputs.batch()));
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    ASSIGN_OR_RETURN(auto biases, BiasOfWords(inputs, "EMBEDDING_BIAS_WORDS", "EMBEDDING_BIAS_WEIGHTS", i, tokenizer));
    for (auto [token, weight] : biases) all[static_cast<size_t>(i) * width + static_cast<size_t>(token)] += weight;
  }
  return Fp32Tensor("EMBEDDING_BIAS", {inputs.batch(), static_cast<int64_t>(width)}, all);
}

}  // namespace

Result<std::vector<Tensor>> Preprocess(const Inputs& inputs, serve::ServedModel& model) {
  const text::Tokenizer& tokenizer = model.service().tokenizer();
  const auto& ends = tokenizer.spec().end_ids;
  int32_t end_default = tokenizer.spec().eos >= 0 ? tokenizer.spec().eos : (ends.empty() ? -1 : ends.front());
  std::vector<TokenSequence> prompts;
  std::vector<int32_t> lengths, output_lengths, end_ids, pad_ids;
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    std::string text = inputs.Text("QUERY", i).value_or("");
    auto bytes_max = static_cast<size_t>(model.facts().max_input_len) * 512;  // as serve/preprocess bounds it
    if (text.size() > bytes_max)
      return Invalid("QUERY", fmt::format("{} bytes cannot fit max_input_len of {} tokens", text.size(),
                                          model.facts().max_input_len));
    serve::TextRequest request;
    request.input = std::move(text);
    ASSIGN_OR_RETURN(TokenSequence tokens, model.service().Tokenize(request));
    lengths.push_back(static_cast<int32_t>(tokens.size()));
    prompts.push_back(std::move(tokens));
    output_lengths.push_back(inputs.Int32("REQUEST_OUTPUT_LEN", i).value_or(0));
    end_ids.push_back(inputs.Int32("END_ID", i).value_or(end_default));
    pad_ids.push_back(inputs.Int32("PAD_ID", i).value_or(end_ids.back()));
  }
  std::vector<Tensor> out;
  out.push_back(Padded("INPUT_ID", prompts, pad_ids));
  out.push_back(Scalars("REQUEST_INPUT_LEN", lengths));
  out.push_back(Int32Tensor("DECODER_INPUT_ID", {inputs.batch(), 0}, {}));
  out.push_back(Scalars("REQUEST_DECODER_INPUT_LEN", std::vector<int32_t>(static_cast<size_t>(inputs.batch()), 0)));
  ASSIGN_OR_RETURN(Tensor bad_words, WordLists("BAD_WORDS_IDS", inputs, "BAD_WORDS_DICT", tokenizer));
  out.push_back(std::move(bad_words));
  ASSIGN_OR_RETURN(Tensor stop_words, WordLists("STOP_WORDS_IDS", inputs, "STOP_WORDS_DICT", tokenizer));
  out.push_back(std::move(stop_words));
  ASSIGN_OR_RETURN(Tensor bias, DenseBias(inputs, model.facts().vocab_size, tokenizer));
  out.push_back(std::move(bias));
  out.push_back(Scalars("REQUEST_OUTPUT_LEN", output_lengths));
  out.push_back(Scalars("OUT_END_ID", end_ids));
  out.push_back(Scalars("OUT_PAD_ID", pad_ids));
  return out;
}

Result<std::vector<Tensor>> Postprocess(const Inputs& inputs, serve::ServedModel& model) {
  const text::Tokenizer& tokenizer = model.service().tokenizer();
  std::vector<int64_t> shape = inputs.RowShape("TOKENS_BATCH");  // [beams, longest]
  std::vector<std::string> texts;
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    std::vector<int32_t> ids = inputs.Int32s("TOKENS_BATCH", i), lengths = inputs.Int32s("SEQUENCE_LENGTH", i);
    if (lengths.size() != static_cast<size_t>(shape[0]))
      return Invalid("SEQUENCE_LENGTH",
                     fmt::format("{} lengths for {} sequences of TOKENS_BATCH", lengths.size(), shape[0]));
    for (size_t beam = 0; beam < lengths.size(); ++beam) {
      if (lengths[beam] < 0 || lengths[beam] > shape[1])
        return Invalid("SEQUENCE_LENGTH", fmt::format("{} is outside [0, {}]", lengths[beam], shape[1]));
      auto first = ids.begin() + static_cast<ptrdiff_t>(beam) * shape[1];
      TokenSequence tokens(first, first + lengths[beam]);
      for (TokenId token : tokens)
        if (token < 0 || token >= tokenizer.vocab_size())
          return Invalid("TOKENS_BATCH", fmt::format("token id {} is outside [0, {})", token, tokenizer.vocab_size()));
      texts.push_back(tokenizer.Decode(tokens, {.skip_special = true}));
    }
  }
  std::vector<Tensor> out;
  out.push_back(BytesTensor("OUTPUT", {static_cast<int64_t>(texts.size())}, texts));
  struct {
    const char *from, *to;
  } const passed[] = {{"CUM_LOG_PROBS", "OUT_CUM_LOG_PROBS"}, {"OUTPUT_LOG_PROBS", "OUT_OUTPUT_LOG_PROBS"}};
  for (const auto& wire : passed) {
    if (!inputs.Has(wire.from)) continue;
    std::vector<int64_t> sizes = inputs.RowShape(wire.from);
    sizes.insert(sizes.begin(), inputs.batch());
    std::vector<float> values;
    for (int32_t i = 0; i < inputs.batch(); ++i) {
      std::vector<float> row = inputs.Fp32s(wire.from, i);
      values.insert(values.end(), row.begin(), row.end());
    }
    out.push_back(Fp32Tensor(wire.to, sizes, values));
  }
  return out;
}

}  // namespace ekiben::kserve
