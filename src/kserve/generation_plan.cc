#include "kserve/generation_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "text/tokenizer.h"

namespace ekiben::kserve {
namespace {

constexpr size_t kWordsMax = 256, kWordBytesMax = 1024;
constexpr int32_t kSequencesMax = 128;
constexpr int32_t kPriorityLevels = 1 << 20;
// Longer than any request: what is over it would leave the clock's range.
constexpr uint64_t kTimeoutMicrosMax = uint64_t{365} * 24 * 3600 * 1'000'000;

Error Invalid(const std::string& field, const std::string& message) {
  return Error(Code::kInvalid, field + ": " + message, field);
}

// A flag of the whole batch.
Result<bool> Agreed(const Inputs& inputs, const char* name) {
  bool first = inputs.Bool(name, 0).value_or(false);
  for (int32_t row = 1; row < inputs.batch(); ++row)
    if (inputs.Bool(name, row).value_or(false) != first) return Invalid(name, "must be equal in all rows of a batch");
  return first;
}

Result<std::optional<uint64_t>> UnsignedParameter(const Parameters& parameters, const char* name) {
  auto found = parameters.find(name);
  if (found == parameters.end()) return std::optional<uint64_t>();
  if (const auto* value = std::get_if<uint64_t>(&found->second)) return std::optional<uint64_t>(*value);
  const auto* value = std::get_if<int64_t>(&found->second);
  if (value == nullptr || *value < 0) return Invalid(name, "a whole number from 0 on is wanted");
  return std::optional<uint64_t>(static_cast<uint64_t>(*value));
}

// Triton: 1 is the most urgent; 0, or none, is the default, here the least.
Result<void> AddSchedule(const Parameters& parameters, serve::TextRequest& request) {
  ASSIGN_OR_RETURN(auto priority, UnsignedParameter(parameters, "priority"));
  if (priority && *priority > 0)
    request.priority = kPriorityLevels - static_cast<int32_t>(std::min<uint64_t>(*priority, kPriorityLevels - 1));
  ASSIGN_OR_RETURN(auto timeout, UnsignedParameter(parameters, "timeout"));
  if (timeout && *timeout > 0)
    request.timeout = std::chrono::microseconds(static_cast<int64_t>(std::min(*timeout, kTimeoutMicrosMax)));
  return {};
}

struct SamplingNames {
  const char *top_k, *top_p;
};

void AddSampling(const Inputs& inputs, int32_t row, const SamplingNames& names, SamplingParams& out) {
  float top_p = inputs.Fp32(names.top_p, row).value_or(0);
  out.top_k = inputs.Int32(names.top_k, row).value_or(0);
  if (top_p > 0)
    out.top_p = top_p;
  else if (out.top_k == 0)
    out.top_k = 1;
  out.temperature = inputs.Fp32("temperature", row).value_or(1);
  out.repetition_penalty = inputs.Fp32("repetition_penalty", row).value_or(1);
  out.presence_penalty = inputs.Fp32("presence_penalty", row).value_or(0);
  out.frequency_penalty = inputs.Fp32("frequency_penalty", row).value_or(0);
  out.seed = inputs.Uint64(inputs.Has("seed") ? "seed" : "random_seed", row).value_or(0);
  out.min_tokens = inputs.Int32(inputs.Has("min_tokens") ? "min_tokens" : "min_length", row).value_or(0);
}

Result<void> AddEnd(const Inputs& inputs, int32_t row, serve::TextRequest& out) {
  auto end_id = inputs.Int32("end_id", row);
  if (!end_id) return {};
  out.ignore_eos = true;  // the one given takes the place of the model's own
  if (*end_id >= 0) out.stop_token_ids.push_back(*end_id);
  return {};
}

struct GuideName {
  std::string_view name;
  text::GrammarSpec::Kind kind;
};
// TensorRT-LLM's words.
constexpr GuideName kGuides[] = {{"json", text::GrammarSpec::Kind::kJsonObject},
                                 {"json_schema", text::GrammarSpec::Kind::kJsonSchema},
                                 {"regex", text::GrammarSpec::Kind::kRegex},
                                 {"ebnf_grammar", text::GrammarSpec::Kind::kEbnf}};

// A guided text ends where the grammar does, with an end token of the model's own.
Result<void> AddGuide(const Inputs& inputs, int32_t row, const text::Tokenizer& tokenizer, serve::TextRequest& out) {
  constexpr const char *kType = "guided_decoding_guide_type", *kGuide = "guided_decoding_guide";
  std::string type = inputs.Text(kType, row).value_or(""), guide = inputs.Text(kGuide, row).value_or("");
  if (type.empty() && guide.empty()) return {};
  if (type == "structural_tag")
    return Error(Code::kUnsupported, fmt::format("{}: structural_tag is not offered; use ebnf_grammar", kType), kType);
  const auto* known = std::ranges::find(kGuides, type, &GuideName::name);
  if (known == std::end(kGuides))
    return Invalid(kType,
                   fmt::format("'{}' is not one of json, json_schema, regex, ebnf_grammar", type.substr(0, 100)));
  if (guide.empty() && known->kind != text::GrammarSpec::Kind::kJsonObject)
    return Invalid(kGuide, fmt::format("a guide of type {} is wanted", type));
  const auto& ends = tokenizer.spec().end_ids;
  int32_t end_id = inputs.Int32("end_id", row).value_or(-1);
  if (end_id >= 0 && std::ranges::find(ends, end_id) == ends.end())
    return Invalid("end_id",
                   fmt::format("{} is no end token of the model, which a guided text ends with; leave it out", end_id));
  out.ignore_eos = false;
  out.grammar = text::GrammarSpec{known->kind, std::move(guide), {}, kGuide};
  return {};
}

Result<void> CheckPad(const Inputs& inputs, int32_t row, int32_t vocab_size) {
  int32_t pad = inputs.Int32("pad_id", row).value_or(0);
  if (pad < vocab_size) return {};
  return Invalid("pad_id", fmt::format("token id {} is outside [0, {})", pad, vocab_size));
}

Result<void> AddLogits(const Inputs& inputs, const serve::EngineFacts& facts, GenerationPlan& plan) {
  struct {
    const char *input, *option;
    bool gathered;
    bool& wanted;
  } const kinds[] = {
      {"return_context_logits", "gather_context_logits", facts.gather_context_logits, plan.context_logits},
      {"return_generation_logits", "gather_generation_logits", facts.gather_generation_logits, plan.generation_logits}};
  for (const auto& kind : kinds) {
    ASSIGN_OR_RETURN(kind.wanted, Agreed(inputs, kind.input));
    if (kind.wanted && !kind.gathered)
      return Error(Code::kUnsupported,
                   fmt::format("{}: the engine was built without {}; leave it out", kind.input, kind.option),
                   kind.input);
    if (kind.wanted && inputs.batch() > 1)
      return Error(Code::kUnsupported,
                   fmt::format("{}: a batch of {}; send one prompt a request", kind.input, inputs.batch()), kind.input);
  }
  return {};
}

Result<void> AddCommon(const Inputs& inputs, const PlanContext& context, GenerationPlan& plan) {
  int32_t beams = 1;
  for (int32_t row = 0; row < inputs.batch(); ++row)
    beams = std::max(beams, inputs.Int32("beam_width", row).value_or(1));
  if (beams > context.facts.max_beam_width)
    return Error(Code::kUnsupported,
                 fmt::format("beam_width: {} is over the engine's max_beam_width of {}; send 1", beams,
                             context.facts.max_beam_width),
                 "beam_width");
  plan.n = inputs.Int32("num_return_sequences", 0).value_or(1);
  for (int32_t row = 1; row < inputs.batch(); ++row)
    if (inputs.Int32("num_return_sequences", row).value_or(1) != plan.n)
      return Invalid("num_return_sequences", "must be equal in all rows of a batch");
  if (plan.n < 1 || plan.n > kSequencesMax)
    return Invalid("num_return_sequences", fmt::format("{} is outside [1, {}]", plan.n, kSequencesMax));
  RETURN_IF_ERROR(AddLogits(inputs, context.facts, plan));
  ASSIGN_OR_RETURN(plan.log_probs, Agreed(inputs, "return_log_probs"));
  ASSIGN_OR_RETURN(plan.perf_metrics, Agreed(inputs, "return_perf_metrics"));
  return {};
}

Result<void> AddRowCommon(const Inputs& inputs, int32_t row, const PlanContext& context, const SamplingNames& names,
                          const GenerationPlan& plan, serve::TextRequest& out) {
  out.n = plan.n;
  out.context_logits = plan.context_logits;
  out.generation_logits = plan.generation_logits;
  AddSampling(inputs, row, names, out.sampling);
  if (plan.log_probs) out.sampling.logprobs = 0;
  RETURN_IF_ERROR(AddEnd(inputs, row, out));
  RETURN_IF_ERROR(AddGuide(inputs, row, context.tokenizer, out));
  RETURN_IF_ERROR(CheckPad(inputs, row, context.facts.vocab_size));
  if (out.max_tokens.value_or(1) < 1) return Invalid("max_tokens", fmt::format("{} is less than 1", *out.max_tokens));
  return AddSchedule(context.parameters, out);
}

bool Echoes(const Inputs& inputs, int32_t row, const PlanContext& context, const GenerationPlan& plan) {
  return !plan.stream && !inputs.Bool("exclude_input_in_output", row).value_or(context.exclude_input_in_output);
}

Result<void> AddDenseBias(const Inputs& inputs, int32_t row, const serve::EngineFacts& facts, SamplingParams& out) {
  if (!inputs.Has("embedding_bias")) return {};
  std::vector<float> bias = inputs.Fp32s("embedding_bias", row);
  if (!bias.empty() && bias.size() != static_cast<size_t>(facts.vocab_size))
    return Invalid("embedding_bias",
                   fmt::format("{} elements where the vocabulary has {}", bias.size(), facts.vocab_size));
  for (size_t id = 0; id < bias.size(); ++id)
    if (bias[id] != 0) out.logit_bias.emplace_back(static_cast<TokenId>(id), bias[id]);
  return {};
}

}  // namespace

Result<std::vector<std::string>> WordsOf(const Inputs& inputs, const std::string& name, int32_t row) {
  std::vector<std::string> out = inputs.Texts(name, row);
  std::erase(out, "");
  if (out.size() > kWordsMax) return Invalid(name, fmt::format("{} words, the limit is {}", out.size(), kWordsMax));
  for (const std::string& word : out)
    if (word.size() > kWordBytesMax)
      return Invalid(name, fmt::format("a word of {} bytes, the limit is {}", word.size(), kWordBytesMax));
  return out;
}

Result<std::vector<std::pair<TokenId, float>>> BiasOfWords(const Inputs& inputs, const std::string& words,
                                                           const std::string& weights, int32_t row,
                                                           const text::Tokenizer& tokenizer) {
  std::vector<std::string> texts = inputs.Texts(words, row);
  std::vector<float> values = inputs.Fp32s(weights, row);
  if (texts.size() != values.size())
    return Invalid(weights, fmt::format("{} weights for {} words of {}", values.size(), texts.size(), words));
  RETURN_IF_ERROR(WordsOf(inputs, words, row));
  std::map<TokenId, float> sums;
  for (size_t i = 0; i < texts.size(); ++i)
    for (TokenId token : tokenizer.Encode(texts[i], {.add_special = false, .parse_special = false}))
      sums[token] += values[i];
  return std::vector<std::pair<TokenId, float>>(sums.begin(), sums.end());
}

Result<std::vector<TokenSequence>> SequencesFromList(const std::string& name, const std::vector<int32_t>& list) {
  std::vector<TokenSequence> out;
  size_t length = list.size() / 2;
  size_t begin = 0;
  for (size_t i = 0; i < length && list[length + i] >= 0; ++i) {
    auto end = static_cast<size_t>(list[length + i]);
    if (end < begin || end > length)
      return Invalid(name, fmt::format("end {} of sequence {} is outside [{}, {}]", end, i, begin, length));
    if (end > begin)
      out.emplace_back(list.begin() + static_cast<ptrdiff_t>(begin), list.begin() + static_cast<ptrdiff_t>(end));
    begin = end;
    if (out.size() > kWordsMax) return Invalid(name, fmt::format("over {} sequences", kWordsMax));
  }
  return out;
}

std::vector<int32_t> ListFromSequences(const std::vector<TokenSequence>& sequences, size_t length) {
  std::vector<int32_t> out(length, 0);
  out.resize(2 * length, -1);
  size_t end = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    CHECK_LE(end + sequences[i].size(), length);
    std::copy(sequences[i].begin(), sequences[i].end(), out.begin() + static_cast<ptrdiff_t>(end));
    end += sequences[i].size();
    out[length + i] = static_cast<int32_t>(end);
  }
  return out;
}

Result<GenerationPlan> PlanFromText(const Inputs& inputs, const PlanContext& context) {
  GenerationPlan plan;
  RETURN_IF_ERROR(AddCommon(inputs, context, plan));
  ASSIGN_OR_RETURN(plan.stream, Agreed(inputs, "stream"));
  ASSIGN_OR_RETURN(plan.num_input_tokens, Agreed(inputs, "return_num_input_tokens"));
  ASSIGN_OR_RETURN(plan.num_output_tokens, Agreed(inputs, "return_num_output_tokens"));
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    GenerationPlan::Row row;
    std::string text = inputs.Text("text_input", i).value_or("");
    if (Echoes(inputs, i, context, plan)) row.echo = text;
    row.request.input = std::move(text);
    row.request.max_tokens = inputs.Int32("max_tokens", i).value_or(0);
    RETURN_IF_ERROR(AddRowCommon(inputs, i, context, {"top_k", "top_p"}, plan, row.request));
    ASSIGN_OR_RETURN(row.request.stop, WordsOf(inputs, "stop_words", i));
    ASSIGN_OR_RETURN(row.request.bad_words, WordsOf(inputs, "bad_words", i));
    ASSIGN_OR_RETURN(row.request.sampling.logit_bias,
                     BiasOfWords(inputs, "embedding_bias_words", "embedding_bias_weights", i, context.tokenizer));
    plan.rows.push_back(std::move(row));
  }
  return plan;
}

Result<GenerationPlan> PlanFromTokens(const Inputs& inputs, const PlanContext& context) {
  GenerationPlan plan;
  RETURN_IF_ERROR(AddCommon(inputs, context, plan));
  ASSIGN_OR_RETURN(plan.stream, Agreed(inputs, "streaming"));
  for (int32_t i = 0; i < inputs.batch(); ++i) {
    GenerationPlan::Row row;
    serve::TextRequest& request = row.request;
    TokenSequence ids = inputs.Int32s("input_ids", i);
    int32_t length = inputs.Int32("input_lengths", i).value_or(0);
    if (length < 1 || static_cast<size_t>(length) > ids.size())
      return Invalid("input_lengths", fmt::format("{} is outside [1, {}], the size of input_ids", length, ids.size()));
    ids.resize(static_cast<size_t>(length));
    if (Echoes(inputs, i, context, plan)) row.echo_tokens = ids;
    request.input = std::move(ids);
    request.want_token_ids = true;
    request.max_tokens = inputs.Int32("request_output_len", i).value_or(0);
    RETURN_IF_ERROR(AddRowCommon(inputs, i, context, {"runtime_top_k", "runtime_top_p"}, plan, request));
    if (!inputs.Has("end_id") && !request.grammar)
      request.ignore_eos = true;  // the ensemble's preprocessing is what knows the model's
    ASSIGN_OR_RETURN(row.stop_sequences, SequencesFromList("stop_words_list", inputs.Int32s("stop_words_list", i)));
    ASSIGN_OR_RETURN(request.sampling.bad_words,
                     SequencesFromList("bad_words_list", inputs.Int32s("bad_words_list", i)));
    RETURN_IF_ERROR(AddDenseBias(inputs, i, context.facts, request.sampling));
    plan.rows.push_back(std::move(row));
  }
  return plan;
}

}  // namespace ekiben::kserve
