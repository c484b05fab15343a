#include "compile/cuda_profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <charconv>

namespace ekiben {
namespace {

constexpr double kUsMax = 1e9;
constexpr size_t kWordDigits = 16;

std::string Variant(const CudaLinearWay& way) {
  return way.own ? "own" : fmt::format("cublaslt {}", way.candidate);
}

std::string WordsText(const std::array<uint64_t, 8>& words) {
  std::string out;
  for (uint64_t word : words) out += fmt::format("{:016x}", word);
  return out;
}

Result<std::array<uint64_t, 8>> ReadWords(const std::string& text) {
  std::array<uint64_t, 8> out{};
  bool good = text.size() == out.size() * kWordDigits;
  for (size_t i = 0; good && i < out.size(); ++i) {
    const char *begin = text.data() + i * kWordDigits, *end = begin + kWordDigits;
    auto [stop, error] = std::from_chars(begin, end, out[i], 16);
    good = error == std::errc() && stop == end;
  }
  if (good) return out;
  return Error(Code::kInvalid,
               fmt::format("profiles.json: algorithm: '{}' is not {} hexadecimal digits; run `ekiben build` again",
                           text.substr(0, 2 * kWordDigits), out.size() * kWordDigits),
               "algorithm");
}

json::object ToJson(const CudaLinearWay& way) {
  json::object out{{"variant", Variant(way)}}, others;
  double us = way.own ? way.us_own : way.us;
  if (us > 0) out["us"] = us;
  if (way.own && way.us > 0) others["cublaslt best"] = way.us;
  if (!way.own) out["algorithm"] = WordsText(way.algorithm);
  if (way.us_first > 0 && (way.own || way.candidate != 0)) others["cublaslt 0"] = way.us_first;
  if (!way.own && way.us_own > 0) others["own"] = way.us_own;
  out["us_of_others"] = std::move(others);
  return out;
}

Error Refuse(std::string_view field, std::string_view value) {
  return Error(Code::kInvalid, fmt::format("profiles.json: {}: '{}' cannot be; run `ekiben build` again", field, value),
               std::string(field));
}

Result<double> Number(const json::object& object, std::string_view key) {
  ASSIGN_OR_RETURN(auto value, GetNumber(object, key, 0, kUsMax));
  return value.value_or(0);
}

Result<CudaLinearWay> ReadWay(const json::object& choice) {
  CudaLinearWay way;
  ASSIGN_OR_RETURN(auto variant, GetString(choice, "variant"));
  std::string text = variant.value_or("");
  constexpr std::string_view kLibrary = "cublaslt ";
  way.own = text == "own";
  if (!way.own) {
    if (!text.starts_with(kLibrary)) return Refuse("variant", text);
    auto [stop, error] = std::from_chars(text.data() + kLibrary.size(), text.data() + text.size(), way.candidate);
    if (error != std::errc() || stop != text.data() + text.size()) return Refuse("variant", text);
    ASSIGN_OR_RETURN(auto words, GetString(choice, "algorithm"));
    ASSIGN_OR_RETURN(way.algorithm, ReadWords(words.value_or("")));
  }
  ASSIGN_OR_RETURN(double us, Number(choice, "us"));
  (way.own ? way.us_own : way.us) = us;
  ASSIGN_OR_RETURN(const json::object* others, GetObject(choice, "us_of_others"));
  if (others == nullptr) return way;
  ASSIGN_OR_RETURN(way.us_first, Number(*others, "cublaslt 0"));
  if (way.own) {
    ASSIGN_OR_RETURN(way.us, Number(*others, "cublaslt best"));
  } else {
    ASSIGN_OR_RETURN(way.us_own, Number(*others, "own"));
    if (way.candidate == 0) way.us_first = way.us;
  }
  return way;
}

// Reads "bucket" and "tokens" of a chain into the plan's next bucket.
Result<void> ReadBucket(const json::object& chain, CudaLinearPlan& plan) {
  CudaLinearBucket bucket{.first = 1};
  const json::value* first = chain.if_contains("bucket");
  plan.for_all = first != nullptr && first->is_string() && first->get_string() == "all";
  if (!plan.for_all) {
    ASSIGN_OR_RETURN(auto value, GetInt(chain, "bucket", 1, INT32_MAX));
    bucket.first = static_cast<int32_t>(value.value_or(0));
  }
  ASSIGN_OR_RETURN(auto tokens, GetInt(chain, "tokens", 1, INT32_MAX));
  bucket.tokens = static_cast<int32_t>(tokens.value_or(0));
  bool follows = plan.buckets.empty() || bucket.first > plan.buckets.back().tokens;
  if (bucket.first < 1 || bucket.tokens < bucket.first || !follows)
    return Refuse("chains", fmt::format("{} to {} tokens", bucket.first, bucket.tokens));
  ASSIGN_OR_RETURN(bucket.us_a_layer, Number(chain, "us_a_layer"));
  ASSIGN_OR_RETURN(bucket.us_unmeasured, Number(chain, "us_unmeasured"));
  plan.buckets.push_back(bucket);
  return {};
}

Result<void> ReadLinear(const json::object& linear, CudaLinearPlan& plan, size_t& kinds) {
  ASSIGN_OR_RETURN(auto name, GetString(linear, "linear"));
  auto kind = static_cast<size_t>(std::ranges::find(kCudaLinearNames, name.value_or("")) - kCudaLinearNames.begin());
  ASSIGN_OR_RETURN(const json::array* choices, GetArray(linear, "choices"));
  if (kind != kinds++ || choices == nullptr || choices->size() != plan.buckets.size())
    return Refuse("linears", name.value_or(""));
  for (size_t i = 0; i < choices->size(); ++i) {
    if (!(*choices)[i].is_object()) return Refuse("choices", "no object");
    ASSIGN_OR_RETURN(plan.buckets[i].ways[kind], ReadWay((*choices)[i].get_object()));
  }
  return {};
}

}  // namespace

CudaTuneOptions TuneOptionsOf(const BuildConfig& build) {
  CudaTuneOptions out{.multiple_profiles = build.multiple_profiles, .opt_num_tokens = build.opt_num_tokens};
  if (build.gemm_plugin == "disable") out.gemm = GemmPlugin::kOwn;
  if (build.gemm_plugin == "bfloat16" || build.gemm_plugin == "fp8") out.gemm = GemmPlugin::kLibrary;
  return out;
}

json::object ToJson(const CudaLinearPlan& plan) {
  auto bucket_of = [&](const CudaLinearBucket& bucket) {
    return plan.for_all ? json::value("all") : json::value(bucket.first);
  };
  json::array linears, chains;
  for (size_t kind = 0; kind < kCudaLinearNames.size(); ++kind) {
    json::array choices;
    for (const CudaLinearBucket& bucket : plan.buckets) {
      json::object choice{{"bucket", bucket_of(bucket)}, {"tokens", bucket.tokens}};
      for (auto& field : ToJson(bucket.ways[kind])) choice.insert(field);
      choices.push_back(std::move(choice));
    }
    linears.push_back({{"linear", kCudaLinearNames[kind]}, {"choices", std::move(choices)}});
  }
  for (const CudaLinearBucket& bucket : plan.buckets)
    chains.push_back({{"bucket", bucket_of(bucket)},
                      {"tokens", bucket.tokens},
                      {"us_a_layer", bucket.us_a_layer},
                      {"us_unmeasured", bucket.us_unmeasured}});
  return {{"device", plan.device},
          {"library", plan.library},
          {"dtype", plan.fp8 ? "fp8" : "bf16"},
          {"linears", std::move(linears)},
          {"chains", std::move(chains)}};
}

Result<std::optional<CudaLinearPlan>> ReadCudaProfile(const json::object& profiles) {
  ASSIGN_OR_RETURN(const json::array* linears, GetArray(profiles, "linears"));
  ASSIGN_OR_RETURN(const json::array* chains, GetArray(profiles, "chains"));
  if (linears == nullptr || chains == nullptr) return std::optional<CudaLinearPlan>();
  CudaLinearPlan plan;
  ASSIGN_OR_RETURN(auto device, GetString(profiles, "device"));
  ASSIGN_OR_RETURN(auto library, GetString(profiles, "library"));
  ASSIGN_OR_RETURN(auto dtype, GetString(profiles, "dtype"));
  plan.device = device.value_or("");
  plan.library = library.value_or("");
  plan.fp8 = dtype == "fp8";
  for (const json::value& chain : *chains) {
    if (!chain.is_object()) return Refuse("chains", "no object");
    RETURN_IF_ERROR(ReadBucket(chain.get_object(), plan));
  }
  if (plan.for_all && plan.buckets.size() != 1) return Refuse("chains", "all");
  size_t kinds = 0;
  for (const json::value& linear : *linears) {
    if (!linear.is_object()) return Refuse("linears", "no object");
    RETURN_IF_ERROR(ReadLinear(linear.get_object(), plan, kinds));
  }
  if (kinds != kCudaLinearNames.size()) return Refuse("linears", fmt::format("{} kinds", kinds));
  return std::optional(std::move(plan));
}

std::string Describe(const CudaLinearBucket& bucket, bool for_all) {
  std::string out = for_all                        ? fmt::format("all, by {} tokens: ", bucket.tokens)
                    : bucket.first < bucket.tokens ? fmt::format("{} to {} tokens: ", bucket.first, bucket.tokens)
                                                   : fmt::format("{} tokens: ", bucket.tokens);
  for (size_t i = 0; i < kCudaLinearNames.size(); ++i) {
    const CudaLinearWay& way = bucket.ways[i];
    double us = way.own ? way.us_own : way.us;
    out += fmt::format("{}{} {}{}", i == 0 ? "" : ", ", kCudaLinearNames[i], Variant(way),
                       us > 0 ? fmt::format(" ({:.1f} us)", us) : "");
  }
  return out + fmt::format("; {:.1f} us a layer, unmeasured {:.1f}", bucket.us_a_layer, bucket.us_unmeasured);
}

}  // namespace ekiben
