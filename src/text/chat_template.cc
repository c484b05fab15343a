#include "text/chat_template.h"

#include "text/jinja_interpreter.h"
#include "text/jinja_parser.h"

namespace ekiben::text {

struct ChatTemplate::Program {
  jinja::Program parsed;
  TemplateLimits limits;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source, const TemplateLimits& limits) {
  auto program = std::make_unique<Program>();
  program->limits = limits;
  ASSIGN_OR_RETURN(program->parsed, jinja::ParseTemplate(source, limits));
  return ChatTemplate(std::move(program));
}

Result<std::vector<ChatTemplate::Span>> ChatTemplate::Render(const json::object& inputs, int64_t wall_seconds) const {
  jinja::Interpreter interpreter(program_->parsed, program_->limits, wall_seconds);
  ASSIGN_OR_RETURN(jinja::Text text, interpreter.Run(inputs));
  std::vector<Span> spans;
  text.ForEachRun([&](std::string_view run, bool trusted) { spans.push_back({std::string(run), trusted}); });
  return spans;
}

Result<std::string> ChatTemplate::RenderText(const json::object& inputs, int64_t wall_seconds) const {
  jinja::Interpreter interpreter(program_->parsed, program_->limits, wall_seconds);
  ASSIGN_OR_RETURN(jinja::Text text, interpreter.Run(inputs));
  return text.bytes();
}

}  // namespace ekiben::text
