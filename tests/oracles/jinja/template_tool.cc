// Renders templates for compare.py: one JSON object a line in, {template, inputs, now}; one out, {output, trusted} or
// {error}. `trusted`: the lengths in bytes of the spans, the template's positive and a request's negative.
#include <boost/json.hpp>
#include <iostream>
#include <string>

#include "text/chat_template.h"

namespace {

namespace json = boost::json;

json::object Failure(const ekiben::Error& error) {
  return {{"error", error.message()}, {"field", error.field()}};
}

json::object Answer(const json::object& request) {
  auto parsed = ekiben::text::ChatTemplate::Parse(std::string_view(request.at("template").as_string()));
  if (!parsed.ok()) return Failure(parsed.error());
  const json::object& inputs = request.at("inputs").as_object();
  int64_t now = request.at("now").to_number<int64_t>();
  auto spans = parsed->Render(inputs, now);
  if (!spans.ok()) return Failure(spans.error());
  std::string joined;
  json::array lengths;
  for (const auto& span : *spans) {
    joined += span.text;
    auto length = static_cast<int64_t>(span.text.size());
    lengths.push_back(span.trusted ? length : -length);
  }
  auto text = parsed->RenderText(inputs, now);
  if (!text.ok() || *text != joined) return {{"error", "the spans joined are not the text"}};
  return {{"output", joined}, {"trusted", lengths}};
}

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    auto request = ekiben::ParseJson(line, {.depth_max = 200});
    json::object answer = request.ok() ? Answer(request->as_object()) : Failure(request.error());
    std::cout << json::serialize(answer) << '\n' << std::flush;
  }
}
