#include "kserve/model_schema.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

namespace ekiben::kserve {
namespace {

constexpr DataType kBool = DataType::kBool, kInt32 = DataType::kInt32, kInt64 = DataType::kInt64,
                   kUint8 = DataType::kUint8, kUint64 = DataType::kUint64, kFp16 = DataType::kFp16,
                   kFp32 = DataType::kFp32, kBytes = DataType::kBytes;

constexpr std::string_view kNoEncoder = "the model has no encoder";
constexpr std::string_view kNoPromptTable = "prompt tables are not offered";
constexpr std::string_view kNoLora = "LoRA is not offered";
constexpr std::string_view kNoDraft = "draft models are not offered";
constexpr std::string_view kNoImages = "the model reads text only";
constexpr std::string_view kNoDisaggregation = "context and generation run in one engine here";
constexpr std::string_view kNoRetention = "blocks are kept by last use; ranges are not offered";
constexpr std::string_view kNoLookahead = "lookahead decoding is not offered";
constexpr std::string_view kNoTopPDecay = "top_p is constant here";

using Tensors = std::vector<TensorSchema>;

void Append(Tensors& to, const Tensors& more) {
  to.insert(to.end(), more.begin(), more.end());
}

// Sampling and what to return: the same names in every model that generates.
Tensors GenerationInputs() {
  return {{"end_id", kInt32, {1}},
          {"pad_id", kInt32, {1}},
          {"num_return_sequences", kInt32, {1}},
          {"beam_width", kInt32, {1}},
          {"temperature", kFp32, {1}},
          {"repetition_penalty", kFp32, {1}},
          {"presence_penalty", kFp32, {1}},
          {"frequency_penalty", kFp32, {1}},
          {"min_tokens", kInt32, {1}},
          {"min_length", kInt32, {1}},
          {"seed", kUint64, {1}},
          {"random_seed", kUint64, {1}},
          {"exclude_input_in_output", kBool, {1}},
          {"return_log_probs", kBool, {1}},
          {"return_context_logits", kBool, {1}},
          {"return_generation_logits", kBool, {1}},
          {"return_perf_metrics", kBool, {1}},
          {"prompt_embedding_table", kFp16, {-1, -1}, false, kNoPromptTable},
          {"prompt_vocab_size", kInt32, {1}, false, kNoPromptTable},
          {"lora_task_id", kUint64, {1}, false, kNoLora},
          {"lora_weights", kFp16, {-1, -1}, false, kNoLora},
          {"lora_config", kInt32, {-1, 3}, false, kNoLora},
          {"guided_decoding_guide_type", kBytes, {1}},
          {"guided_decoding_guide", kBytes, {1}}};
}

Tensors TextInputs() {
  Tensors out = {{"text_input", kBytes, {1}, true},
                 {"max_tokens", kInt32, {1}, true},
                 {"decoder_text_input", kBytes, {1}, false, kNoEncoder},
                 {"bad_words", kBytes, {-1}},
                 {"stop_words", kBytes, {-1}},
                 {"top_k", kInt32, {1}},
                 {"top_p", kFp32, {1}},
                 {"length_penalty", kFp32, {1}},
                 {"stream", kBool, {1}},
                 {"return_num_input_tokens", kBool, {1}},
                 {"return_num_output_tokens", kBool, {1}},
                 {"prompt_table_extra_id", kUint64, {1}, false, kNoPromptTable},
                 {"embedding_bias_words", kBytes, {-1}},
                 {"embedding_bias_weights", kFp32, {-1}}};
  Append(out, GenerationInputs());
  return out;
}

Tensors BlsInputs() {
  Tensors out = TextInputs();
  Append(out, {{"num_draft_tokens", kInt32, {1}, false, kNoDraft},
               {"use_draft_logits", kBool, {1}, false, kNoDraft},
               {"image_input", kFp16, {-1, 3, -1, -1}, false, kNoImages},
               {"image_bytes_input", kUint8, {-1, -1, -1, -1}, false, kNoImages},
               {"image_url_input", kBytes, {1}, false, kNoImages},
               {"video_bytes_input", kUint8, {-1, -1, -1, -1}, false, kNoImages}});
  return out;
}

Tensors TokenInputs() {
  Tensors out = {{"input_ids", kInt32, {-1}, true},
                 {"input_lengths", kInt32, {1}, true},
                 {"request_output_len", kInt32, {1}, true},
                 {"stop_words_list", kInt32, {2, -1}},
                 {"bad_words_list", kInt32, {2, -1}},
                 {"embedding_bias", kFp32, {-1}},
                 {"runtime_top_k", kInt32, {1}},
                 {"runtime_top_p", kFp32, {1}},
                 {"runtime_top_p_min", kFp32, {1}, false, kNoTopPDecay},
                 {"runtime_top_p_decay", kFp32, {1}, false, kNoTopPDecay},
                 {"runtime_top_p_reset_ids", kInt32, {1}, false, kNoTopPDecay},
                 {"len_penalty", kFp32, {1}},
                 {"early_stopping", kBool, {1}},
                 {"beam_search_diversity_rate", kFp32, {1}},
                 {"stop", kBool, {1}},
                 {"streaming", kBool, {1}}};
  Append(out, GenerationInputs());
  Append(out, {{"draft_input_ids", kInt32, {-1}, false, kNoDraft},
               {"draft_logits", kFp32, {-1, -1}, false, kNoDraft},
               {"draft_acceptance_threshold", kFp32, {1}, false, kNoDraft},
               {"decoder_input_ids", kInt32, {-1}, false, kNoEncoder},
               {"decoder_input_lengths", kInt32, {1}, false, kNoEncoder},
               {"encoder_input_features", kFp16, {-1, -1}, false, kNoEncoder},
               {"encoder_output_lengths", kInt32, {1}, false, kNoEncoder},
               {"cross_attention_mask", kBool, {-1, -1}, false, kNoEncoder},
               {"skip_cross_attn_blocks", kBool, {1}, false, kNoEncoder},
               {"mrope_rotary_cos_sin", kFp32, {-1}, false, kNoImages},
               {"mrope_position_deltas", kInt64, {1}, false, kNoImages},
               {"prompt_table_extra_ids", kUint64, {-1}, false, kNoPromptTable},
               {"context_phase_params", kUint8, {-1}, false, kNoDisaggregation},
               {"retention_token_range_starts", kInt32, {-1}, false, kNoRetention},
               {"retention_token_range_ends", kInt32, {-1}, false, kNoRetention},
               {"retention_token_range_priorities", kInt32, {-1}, false, kNoRetention},
               {"retention_token_range_durations_ms", kInt32, {-1}, false, kNoRetention},
               {"retention_decode_priority", kInt32, {1}, false, kNoRetention},
               {"retention_decode_duration_ms", kInt32, {1}, false, kNoRetention},
               {"lookahead_window_size", kInt32, {1}, false, kNoLookahead},
               {"lookahead_ngram_size", kInt32, {1}, false, kNoLookahead},
               {"lookahead_verification_set_size", kInt32, {1}, false, kNoLookahead}});
  return out;
}

Tensors GenerationOutputs() {
  return {{"cum_log_probs", kFp32, {-1}},
          {"output_log_probs", kFp32, {-1, -1}},
          {"context_logits", kFp32, {-1, -1}},
          {"generation_logits", kFp32, {-1, -1, -1}},
          {"batch_index", kInt32, {1}},
          {"sequence_index", kInt32, {1}},
          {"kv_cache_alloc_new_blocks", kInt32, {1}},
          {"kv_cache_reused_blocks", kInt32, {1}},
          {"kv_cache_alloc_total_blocks", kInt32, {1}},
          {"arrival_time_ns", kInt64, {1}},
          {"first_scheduled_time_ns", kInt64, {1}},
          {"first_token_time_ns", kInt64, {1}},
          {"last_token_time_ns", kInt64, {1}},
          {"acceptance_rate", kFp32, {1}},
          {"total_accepted_draft_tokens", kInt32, {1}},
          {"total_draft_tokens", kInt32, {1}}};
}

Tensors TextOutputs() {
  Tensors out = {{"text_output", kBytes, {-1}}, {"num_input_tokens", kInt32, {1}}, {"num_output_tokens", kInt32, {1}}};
  Append(out, GenerationOutputs());
  return out;
}

Tensors TokenOutputs() {
  Tensors out = {{"output_ids", kInt32, {-1, -1}}, {"sequence_length", kInt32, {-1}}};
  Append(out, GenerationOutputs());
  Append(out, {{"context_phase_params", kUint8, {-1}}});
  return out;
}

std::array<ModelSchema, kPartCount> MakeSchemas() {
  Tensors preprocessing_inputs = {{"QUERY", kBytes, {1}, true},
                                  {"REQUEST_OUTPUT_LEN", kInt32, {1}, true},
                                  {"DECODER_QUERY", kBytes, {1}, false, kNoEncoder},
                                  {"BAD_WORDS_DICT", kBytes, {-1}},
                                  {"STOP_WORDS_DICT", kBytes, {-1}},
                                  {"EMBEDDING_BIAS_WORDS", kBytes, {-1}},
                                  {"EMBEDDING_BIAS_WEIGHTS", kFp32, {-1}},
                                  {"END_ID", kInt32, {1}},
                                  {"PAD_ID", kInt32, {1}},
                                  {"PROMPT_TABLE_EXTRA_ID", kUint64, {1}, false, kNoPromptTable},
                                  {"IMAGE_BYTES", kUint8, {-1, -1, -1, -1}, false, kNoImages},
                                  {"IMAGE_URL", kBytes, {1}, false, kNoImages},
                                  {"IMAGES", kBytes, {-1}, false, kNoImages},
                                  {"VIDEO_BYTES", kUint8, {-1, -1, -1, -1}, false, kNoImages}};
  Tensors preprocessing_outputs = {{"INPUT_ID", kInt32, {-1}},         {"REQUEST_INPUT_LEN", kInt32, {1}},
                                   {"DECODER_INPUT_ID", kInt32, {-1}}, {"REQUEST_DECODER_INPUT_LEN", kInt32, {1}},
                                   {"BAD_WORDS_IDS", kInt32, {2, -1}}, {"STOP_WORDS_IDS", kInt32, {2, -1}},
                                   {"EMBEDDING_BIAS", kFp32, {-1}},    {"REQUEST_OUTPUT_LEN", kInt32, {-1}},
                                   {"OUT_END_ID", kInt32, {1}},        {"OUT_PAD_ID", kInt32, {1}}};
  Tensors postprocessing_inputs = {{"TOKENS_BATCH", kInt32, {-1, -1}, true}, {"SEQUENCE_LENGTH", kInt32, {-1}, true}};
  Tensors postprocessing_outputs = {{"OUTPUT", kBytes, {-1}}};
  // Log-probabilities passed through by the postprocessing model of v0.10.
  Append(postprocessing_inputs, {{"CUM_LOG_PROBS", kFp32, {-1}}, {"OUTPUT_LOG_PROBS", kFp32, {-1, -1}}});
  Append(postprocessing_outputs, {{"OUT_CUM_LOG_PROBS", kFp32, {-1}}, {"OUT_OUTPUT_LOG_PROBS", kFp32, {-1, -1}}});
  return {{{Part::kEnsemble, "ensemble", "ensemble", "", true, TextInputs(), TextOutputs()},
           {Part::kBls, "tensorrt_llm_bls", "", "python", true, BlsInputs(), TextOutputs()},
           {Part::kPreprocessing, "preprocessing", "", "python", false, std::move(preprocessing_inputs),
            std::move(preprocessing_outputs)},
           {Part::kTensorRtLlm, "tensorrt_llm", "", "tensorrtllm", true, TokenInputs(), TokenOutputs()},
           {Part::kPostprocessing, "postprocessing", "", "python", false, std::move(postprocessing_inputs),
            std::move(postprocessing_outputs)}}};
}

const TensorSchema* Find(const Tensors& tensors, std::string_view name) {
  auto found = std::find_if(tensors.begin(), tensors.end(), [&](const TensorSchema& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

json::array JsonOf(const Tensors& tensors, bool inputs) {
  json::array out;
  for (const TensorSchema& tensor : tensors) {
    std::string type = "TYPE_";
    type += tensor.type == kBytes ? "STRING" : DataTypeName(tensor.type);
    json::array dims;
    for (int64_t size : tensor.dims) dims.push_back(size);
    json::object one = {{"name", tensor.name}, {"data_type", type}, {"dims", dims}};
    if (inputs && !tensor.required) one["optional"] = true;
    out.push_back(std::move(one));
  }
  return out;
}

struct Wire {
  std::string_view from, to;  // tensor of the step, tensor of the ensemble
};

json::object Step(const std::string& model, std::initializer_list<Wire> inputs, std::initializer_list<Wire> outputs) {
  json::object input_map, output_map;
  for (const Wire& wire : inputs) input_map[wire.from] = wire.to;
  for (const Wire& wire : outputs) output_map[wire.from] = wire.to;
  return {{"model_name", model}, {"model_version", -1}, {"input_map", input_map}, {"output_map", output_map}};
}

json::object EnsembleSteps(const std::string& prefix) {
  return {{"step", json::array{Step(prefix + "preprocessing",
                                    {{"QUERY", "text_input"},
                                     {"REQUEST_OUTPUT_LEN", "max_tokens"},
                                     {"BAD_WORDS_DICT", "bad_words"},
                                     {"STOP_WORDS_DICT", "stop_words"},
                                     {"EMBEDDING_BIAS_WORDS", "embedding_bias_words"},
                                     {"EMBEDDING_BIAS_WEIGHTS", "embedding_bias_weights"},
                                     {"END_ID", "end_id"},
                                     {"PAD_ID", "pad_id"}},
                                    {{"INPUT_ID", "_INPUT_ID"},
                                     {"REQUEST_INPUT_LEN", "_REQUEST_INPUT_LEN"},
                                     {"REQUEST_OUTPUT_LEN", "_REQUEST_OUTPUT_LEN"},
                                     {"BAD_WORDS_IDS", "_BAD_WORDS_IDS"},
                                     {"STOP_WORDS_IDS", "_STOP_WORDS_IDS"},
                                     {"EMBEDDING_BIAS", "_EMBEDDING_BIAS"},
                                     {"OUT_END_ID", "_PREPROCESSOR_END_ID"},
                                     {"OUT_PAD_ID", "_PREPROCESSOR_PAD_ID"}}),
                               Step(prefix + "tensorrt_llm",
                                    {{"input_ids", "_INPUT_ID"},
                                     {"input_lengths", "_REQUEST_INPUT_LEN"},
                                     {"request_output_len", "_REQUEST_OUTPUT_LEN"},
                                     {"bad_words_list", "_BAD_WORDS_IDS"},
                                     {"stop_words_list", "_STOP_WORDS_IDS"},
                                     {"embedding_bias", "_EMBEDDING_BIAS"},
                                     {"end_id", "_PREPROCESSOR_END_ID"},
                                     {"pad_id", "_PREPROCESSOR_PAD_ID"},
                                     {"streaming", "stream"}},
                                    {{"output_ids", "_TOKENS_BATCH"},
                                     {"sequence_length", "_SEQUENCE_LENGTH"},
                                     {"cum_log_probs", "cum_log_probs"},
                                     {"output_log_probs", "output_log_probs"}}),
                               Step(prefix + "postprocessing",
                                    {{"TOKENS_BATCH", "_TOKENS_BATCH"}, {"SEQUENCE_LENGTH", "_SEQUENCE_LENGTH"}},
                                    {{"OUTPUT", "text_output"}})}}};
}

json::object Parameter(const std::string& value) {
  return {{"string_value", value}};
}

json::object ParametersOf(Part part, const serve::EngineFacts& facts, const ModelOptions& options) {
  auto yes = [](bool value) { return Parameter(value ? "true" : "false"); };
  switch (part) {
    case Part::kEnsemble: return {};
    case Part::kBls: return {{"accumulate_tokens", yes(options.accumulate_tokens)}};
    case Part::kPreprocessing:
    case Part::kPostprocessing: return {{"tokenizer_dir", Parameter(facts.engine)}};
    case Part::kTensorRtLlm:
      return {{"gpt_model_path", Parameter(facts.engine)},
              {"max_beam_width", Parameter(std::to_string(facts.max_beam_width))},
              {"exclude_input_in_output", yes(options.exclude_input_in_output)},
              {"tokens_per_block", Parameter(std::to_string(facts.tokens_per_block))},
              {"max_num_tokens", Parameter(std::to_string(facts.max_num_tokens))},
              {"max_seq_len", Parameter(std::to_string(facts.max_seq_len))},
              {"max_input_len", Parameter(std::to_string(facts.max_input_len))}};
  }
  return {};
}

}  // namespace

const TensorSchema* ModelSchema::Input(std::string_view tensor) const {
  return Find(inputs, tensor);
}
const TensorSchema* ModelSchema::Output(std::string_view tensor) const {
  return Find(outputs, tensor);
}

const ModelSchema& SchemaOf(Part part) {
  static const std::array<ModelSchema, kPartCount> kSchemas = MakeSchemas();
  return kSchemas[static_cast<size_t>(part)];
}

ModelMetadata MetadataOf(const ModelSchema& schema, const std::string& model_name) {
  ModelMetadata out;
  out.name = model_name;
  out.platform = schema.platform.empty() ? schema.backend : schema.platform;
  out.versions = {"1"};
  auto add = [](std::vector<TensorMetadata>& to, const Tensors& tensors, bool inputs) {
    for (const TensorSchema& tensor : tensors) {
      std::vector<int64_t> shape = {-1};  // the batch
      shape.insert(shape.end(), tensor.dims.begin(), tensor.dims.end());
      to.push_back({std::string(tensor.name), tensor.type, std::move(shape), inputs && !tensor.required});
    }
  };
  add(out.inputs, schema.inputs, true);
  add(out.outputs, schema.outputs, false);
  return out;
}

json::object ConfigOf(const ModelSchema& schema, const std::string& model_name, const std::string& prefix,
                      const serve::EngineFacts& facts, const ModelOptions& options) {
  json::object out = {{"name", model_name},
                      {"platform", schema.platform},
                      {"backend", schema.backend},
                      {"version_policy", json::object{{"latest", json::object{{"num_versions", 1}}}}},
                      {"max_batch_size", facts.max_batch_size},
                      {"input", JsonOf(schema.inputs, true)},
                      {"output", JsonOf(schema.outputs, false)},
                      {"parameters", ParametersOf(schema.part, facts, options)},
                      {"model_transaction_policy", json::object{{"decoupled", schema.decoupled}}}};
  if (schema.part == Part::kEnsemble) {
    out["ensemble_scheduling"] = EnsembleSteps(prefix);
    return out;
  }
  int32_t count = 1;
  if (schema.part == Part::kPreprocessing) count = options.preprocessing_instance_count;
  if (schema.part == Part::kPostprocessing) count = options.postprocessing_instance_count;
  out["instance_group"] =
      json::array{json::object{{"name", model_name + "_0"}, {"kind", "KIND_CPU"}, {"count", count}}};
  return out;
}

}  // namespace ekiben::kserve
