// Drives src/text from a shell, so that compare.py can hold it against the reference tokenizers. Not part of the
// product.
//   tokenizer_tool encode TOKENIZER in out [--add-special] [--untrusted]   strings to ids
//   tokenizer_tool decode TOKENIZER in out [--keep-special] [--stream]    ids to strings
//   tokenizer_tool time   TOKENIZER file [seconds]                        MB/s of encoding the file, by lines and whole
//   tokenizer_tool load   TOKENIZER                                       milliseconds of each way to load it
// TOKENIZER: a file or a folder. `in`, `out`: u32 count, then each string as u32 bytes + bytes, each id list as
// u32 ids + i32 each.
#include <fmt/format.h>

#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/tokenizer_files.h"

namespace ekiben::text {
namespace {

constexpr size_t kInputMax = size_t{1} << 32;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

class Reader {
 public:
  explicit Reader(std::string bytes) : bytes_(std::move(bytes)) {}
  uint32_t Number() {
    uint32_t value = 0;
    std::memcpy(&value, Take(4).data(), 4);
    return value;
  }
  std::string_view Take(size_t count) {
    CHECK(count <= bytes_.size() - at_, "the input ends early at byte {}", at_);
    at_ += count;
    return std::string_view(bytes_).substr(at_ - count, count);
  }

 private:
  std::string bytes_;
  size_t at_ = 0;
};

void Put(std::string& out, uint32_t value) {
  out.append(reinterpret_cast<const char*>(&value), 4);
}

Result<TokenizerSpec> Load(const std::string& path) {
  if (std::filesystem::is_directory(path)) return LoadTokenizerFolder(path);
  return path.ends_with(".ekitok") ? ReadTokenizerSpec(path) : LoadTokenizerFile(path);
}

Result<void> Encode(const Tokenizer& tokenizer, const std::string& in, const std::string& out_path, bool add_special,
                    bool parse_special) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(in, kInputMax));
  Reader reader(std::move(bytes));
  std::string out;
  uint32_t count = reader.Number();
  Put(out, count);
  for (uint32_t i = 0; i < count; ++i) {
    std::string_view text = reader.Take(reader.Number());
    std::vector<int32_t> ids = tokenizer.Encode(text, {.add_special = add_special, .parse_special = parse_special});
    Put(out, static_cast<uint32_t>(ids.size()));
    out.append(reinterpret_cast<const char*>(ids.data()), ids.size() * 4);
  }
  return WriteFileAtomic(out_path, out);
}

std::string DecodeStreamed(const Tokenizer& tokenizer, const std::vector<int32_t>& ids, bool skip_special) {
  Detokenizer detokenizer(tokenizer, {.skip_special = skip_special});
  std::string out;
  for (int32_t id : ids) detokenizer.Push(id, out);
  detokenizer.Finish(out);
  return out;
}

Result<void> Decode(const Tokenizer& tokenizer, const std::string& in, const std::string& out_path, bool skip_special,
                    bool stream) {
  ASSIGN_OR_RETURN(std::string bytes, ReadFile(in, kInputMax));
  Reader reader(std::move(bytes));
  std::string out;
  uint32_t count = reader.Number();
  Put(out, count);
  for (uint32_t i = 0; i < count; ++i) {
    std::vector<int32_t> ids(reader.Number());
    std::string_view raw = reader.Take(ids.size() * 4);
    if (!ids.empty()) std::memcpy(ids.data(), raw.data(), raw.size());
    std::string text =
        stream ? DecodeStreamed(tokenizer, ids, skip_special) : tokenizer.Decode(ids, {.skip_special = skip_special});
    Put(out, static_cast<uint32_t>(text.size()));
    out += text;
  }
  return WriteFileAtomic(out_path, out);
}

Result<void> Time(const Tokenizer& tokenizer, const std::string& path, double seconds) {
  ASSIGN_OR_RETURN(std::string text, ReadFile(path, kInputMax));
  std::vector<std::string_view> lines;
  for (std::string_view rest = text; !rest.empty();) {
    size_t end = std::min(rest.find('\n'), rest.size() - 1) + 1;
    lines.push_back(rest.substr(0, end));
    rest.remove_prefix(end);
  }
  for (bool whole : {true, false}) {
    size_t ids = 0, passes = 0;
    double begin = Now(), best = 1e9;
    while (passes < 3 || Now() - begin < seconds) {
      ids = 0;
      double pass = Now();
      if (whole) {
        ids = tokenizer.Encode(text, {.add_special = false}).size();
      } else {
        for (std::string_view line : lines) ids += tokenizer.Encode(line, {.add_special = false}).size();
      }
      best = std::min(best, Now() - pass);
      ++passes;
    }
    double mean = (Now() - begin) / static_cast<double>(passes);
    double megabytes = static_cast<double>(text.size()) / 1e6;
    fmt::print(
        "{{\"how\": \"{}\", \"bytes\": {}, \"ids\": {}, \"passes\": {}, \"mb_per_s\": {:.2f}, "
        "\"best_mb_per_s\": {:.2f}}}\n",
        whole ? "whole" : "lines", text.size(), ids, passes, megabytes / mean, megabytes / best);
  }
  return {};
}

Result<void> TimeLoads(const std::string& path) {
  double begin = Now();
  ASSIGN_OR_RETURN(TokenizerSpec spec, Load(path));
  double read = Now();
  std::string saved = (std::filesystem::temp_directory_path() / fmt::format("{}.ekitok", ::getpid())).string();
  RETURN_IF_ERROR(WriteTokenizerSpec(spec, saved));
  double stored = Now();
  auto again = ReadTokenizerSpec(saved);
  double reread = Now();
  std::filesystem::remove(saved);
  if (!again.ok()) return std::move(again).error();
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(*std::move(again)));
  double built = Now();
  fmt::print(
      "{{\"tokens\": {}, \"parse_ms\": {:.1f}, \"write_ms\": {:.1f}, \"read_ms\": {:.1f}, "
      "\"create_ms\": {:.1f}}}\n",
      tokenizer->vocab_size(), (read - begin) * 1e3, (stored - read) * 1e3, (reread - stored) * 1e3,
      (built - reread) * 1e3);
  return {};
}

Result<void> Main(std::vector<std::string> args) {
  auto take = [&](const std::string& flag) { return std::erase(args, flag) > 0; };
  bool add_special = take("--add-special"), untrusted = take("--untrusted");
  bool keep_special = take("--keep-special"), stream = take("--stream");
  if (args.size() < 2) return Error(Code::kInvalid, "usage: tokenizer_tool encode|decode|time|load TOKENIZER ...");
  if (args[0] == "load") return TimeLoads(args[1]);
  ASSIGN_OR_RETURN(TokenizerSpec spec, Load(args[1]));
  ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Create(std::move(spec)));
  if (args[0] == "encode" && args.size() == 4) return Encode(*tokenizer, args[2], args[3], add_special, !untrusted);
  if (args[0] == "decode" && args.size() == 4) return Decode(*tokenizer, args[2], args[3], !keep_special, stream);
  if (args[0] == "time" && args.size() >= 3) {
    return Time(*tokenizer, args[2], args.size() > 3 ? std::stod(args[3]) : 2.0);
  }
  return Error(Code::kInvalid, fmt::format("tokenizer_tool: '{}' with {} arguments", args[0], args.size()));
}

}  // namespace
}  // namespace ekiben::text

int main(int argc, char** argv) {
  auto done = ekiben::text::Main(std::vector<std::string>(argv + 1, argv + argc));
  if (!done.ok()) {
    fmt::print(stderr, "{}\n", done.error().message());
    return 2;
  }
  return 0;
}
