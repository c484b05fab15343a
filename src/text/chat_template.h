// Chat templates: the Jinja subset that published templates use, rendered byte for byte as jinja2 does with the
// settings Hugging Face uses (trim_blocks, lstrip_blocks, loop controls, tojson without HTML escapes). A template is
// data from a model file: it reaches nothing but its inputs, and is bounded in steps, output, depth. Thread: immutable
// after Parse; Render runs on any number of threads at once.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "base/result.h"

namespace ekiben::text {

struct TemplateLimits {
  size_t source_bytes_max = size_t{1} << 20;
  size_t steps_max = 2'000'000;
  size_t output_bytes_max = size_t{64} << 20;
  int depth_max = 100;  // nesting of expressions, macros and values
};

class ChatTemplate {
 public:
  static Result<ChatTemplate> Parse(std::string_view source, const TemplateLimits& limits = {});
  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Part of the output, and whether it came from the template (trusted: special tokens count) or from `inputs`.
  struct Span {
    std::string text;
    bool trusted = true;
  };
  // `inputs`: messages, tools, add_generation_prompt, bos_token, ... `wall_seconds`: Unix time for strftime_now.
  // Errors: kInvalid with the template's own raise_exception text, or a limit that was hit, or a type error in it.
  Result<std::vector<Span>> Render(const json::object& inputs, int64_t wall_seconds) const;
  // The spans joined.
  Result<std::string> RenderText(const json::object& inputs, int64_t wall_seconds) const;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;
};

}  // namespace ekiben::text
