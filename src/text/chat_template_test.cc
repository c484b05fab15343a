// Expected texts are jinja2 3.1.6's, with Hugging Face's settings. tests/oracles/jinja/ compares much more with it.
#include "text/chat_template.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

namespace ekiben::text {
namespace {

constexpr int64_t kNow = 1'722'000'000;  // 2024-07-26 13:20:00 UTC

json::object Inputs(std::string_view text) {
  return json::parse(text).as_object();
}

// The output, or "error: " and the message.
std::string Show(std::string_view source, std::string_view inputs = "{}", const TemplateLimits& limits = {}) {
  auto parsed = ChatTemplate::Parse(source, limits);
  if (!parsed.ok()) return "error: " + parsed.error().message();
  auto text = parsed->RenderText(Inputs(inputs), kNow);
  return text.ok() ? *text : "error: " + text.error().message();
}

struct Case {
  std::string_view source, wanted;
};

void ExpectAll(std::initializer_list<Case> cases, std::string_view inputs = "{}") {
  for (const Case& one : cases) EXPECT_EQ(Show(one.source, inputs), one.wanted) << one.source;
}

TEST(ChatTemplate, RendersAConversation) {
  constexpr std::string_view kTemplate =
      "{% for message in messages %}\n"
      "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}\n"
      "{% endfor %}\n"
      "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}\n";
  EXPECT_EQ(Show(kTemplate, R"({"messages": [{"role": "user", "content": " Hi! "}], "add_generation_prompt": true})"),
            "<|im_start|>user\nHi!<|im_end|>\n\n<|im_start|>assistant\n");
}

TEST(ChatTemplate, TrimsAsTheBlockSettingsSay) {
  ExpectAll({
      {"a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"},
      {"a\n  {%+ if true %}\nb{% endif %}\n\nc", "a\n  b\nc"},
      {"a  {{- 'b' -}}  \n c", "abc"},
      {"a {# note #}\nb", "a b"},
      {"  {% if true +%}\nb{% endif %}", "\nb"},
      {"{% raw %}{{ x }}{% endraw %}\n", "{{ x }}"},
      {"x\n", "x"},
      {"x\r\ny\n\n", "x\ny\n"},
      {"{%- for i in [1] -%}\n  {{ i }}\n{%- endfor -%}", "1"},
  });
}

TEST(ChatTemplate, PrintsValuesAsPythonDoes) {
  ExpectAll({
      {"{{ true }} {{ none }} {{ 1.0 }} {{ 1e16 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}",
       "True None 1.0 1e+16 1e-05 0.30000000000000004"},
      {"{{ ['a', \"it's\", 'q\"', '\\n', 'é', none] }}", "['a', \"it's\", 'q\"', '\\n', 'é', None]"},
      {"{{ (1,) }} {{ () }} {{ {'a': [1.5, true], 2: {}} }}", "(1,) () {'a': [1.5, True], 2: {}}"},
      {"{{ missing }}|{{ [missing] }}", "|[Undefined]"},
      {"{{ range(3) }} {{ {'a': 1}.items() }}", "range(0, 3) dict_items([('a', 1)])"},
      {"{{ 18446744073709551615 * 2 }}", "36893488147419103230"},
  });
}

TEST(ChatTemplate, ComputesAsPythonDoes) {
  ExpectAll({
      {"{{ 7 / 2 }} {{ 6 / 2 }} {{ -7 // 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 2 ** -1 }} {{ 7.5 // 2 }}",
       "3.5 3.0 -4 2 1024 0.5 3.0"},
      {"{{ 'ab' * 3 }} {{ [1] + [2] }} {{ 1 ~ 'x' ~ none }} {{ '%s=%05.1f' % ('k', 2.25) }}",
       "ababab [1, 2] 1xNone k=002.2"},
      {"{{ 1 < 2 < 3 }} {{ 1 == 1.0 }} {{ 'a' in 'cat' }} {{ 2 not in [1] }} {{ 'k' in {'k': 1} }}",
       "True True True True True"},
      {"{{ 'x' if false }}|{{ 'a' if 0 else 'b' }}|{{ 0 or 'c' }}|{{ '' and 1 }}", "|b|c|"},
      {"{{ 'héllo'[1:3] }} {{ 'abc'[::-1] }} {{ [1, 2, 3][-1] }} {{ [1, 2, 3][5] }} {{ (1, 2, 3)[:2] }}",
       "él cba 3  (1, 2)"},
      {"{{ -2 ** 2 }} {{ not true or true }} {{ 1 ~ 2 * 3 }}", "4 True 16"},
  });
}

TEST(ChatTemplate, KeepsScopes) {
  ExpectAll(
      {
          {"{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "231"},
          {"{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"},
          {"{% if true %}{% set x = 1 %}{% endif %}{{ x }}", "1"},
          {"{% set x %}a{{ 1 }}{% endset %}{{ x|upper }}", "A1"},
          {"{% macro f(a, b='d', c=a) %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1, c=2, z=3) "
           "}}",
           "1d2(){'z': 3}"},
          {"{% macro up() %}<{{ caller('x') }}>{% endmacro %}{% call(v) up() %}{{ v }}y{% endcall %}", "<xy>"},
          {"{% generation %}{% set y = 1 %}g{{ y }}{% endgeneration %}{{ y }}", "g1"},
          {"{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{{ a }}", "3"},
          {"{% filter upper %}a{{ 'b' }}{% endfilter %}", "AB"},
          {"{% for i in [1] %}{{ n }}{% endfor %}{% set n = 2 %}{% for i in [1] %}{{ n }}{% endfor %}", "2"},
          {"{{ n }}{% for i in [1] %}{{ n }}{% endfor %}{% set n = 2 %}{{ n }}", "112"},
          {"{% for i in [1] %}{{ n }}{% endfor %}{% if 1 %}{% set n = 2 %}{% endif %}{{ n }}", "12"},
          {"{% for a, (b, c) in [[1, [2, 3]]] %}{{ a + b + c }}{% endfor %}", "6"},
      },
      R"({"n": 1})");
}

TEST(ChatTemplate, KnowsTheLoop) {
  ExpectAll({
      {"{% for i in 'abc' %}{{ loop.index }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }} {% endfor %}",
       "12TrueFalse 21FalseFalse 30FalseTrue "},
      {"{% for i in [1, 2, 3] if i != 2 %}{{ loop.length }}{{ loop.previtem }}-{{ loop.nextitem }} {% endfor %}",
       "2-3 21- "},
      {"{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% else %}none{% endfor %}", "13"},
      {"{% for i in [1] %}{% break %}{% else %}none{% endfor %}", "none"},
      {"{% for i in missing %}{% else %}none{% endfor %}", "none"},
      {"{% for k, v in [[1, 2]] if k %}{{ loop.last }}{{ loop.changed(k) }}{{ loop.cycle('a', 'b') }}{% endfor %}",
       "TrueTruea"},
  });
}

TEST(ChatTemplate, HasTheFiltersOfTemplates) {
  ExpectAll(
      {
          {"{{ tools|tojson }}", R"([{"n": "é<b>", "p": {"x": 1.0, "y": null}}])"},
          {"{{ tools|tojson(indent=2) }}",
           "[\n  {\n    \"n\": \"é<b>\",\n    \"p\": {\n      \"x\": 1.0,\n      \"y\": null\n    }\n  }\n]"},
          {"{{ 'é'|tojson(ensure_ascii=true) }}", "\"\\u00e9\""},
          {"{{ tools|map(attribute='p.x')|list }} {{ tools|selectattr('n', 'defined')|list|length }}", "[1.0] 1"},
          {"{{ {'b': 1, 'A': 2}|dictsort }} {{ ['b', 'A']|sort|join(',') }} {{ [1, 1, 2]|unique|list }}",
           "[('A', 2), ('b', 1)] A,b [1, 2]"},
          {"{{ 'a\nb\n\nc'|indent(2) }}", "a\n  b\n\n  c"},
          {"{{ '3.7'|int }} {{ 'x'|int(9) }} {{ '1e2'|float }} {{ 2.5|round }} {{ 2.25|round(1) }} {{ -3|abs }}",
           "3 9 100.0 2.0 2.2 3"},
          {"{{ x|default('d') }} {{ ''|d('e', true) }} {{ 'hello world'|title }} {{ 'aXa'|replace('a', 'b', 1) }}",
           "d e Hello World bXa"},
          {"{{ '<'|e }} {{ '<' + ('&'|safe) }} {{ '<' ~ ('&'|safe) }}", "&lt; &lt;& <&"},
          {"{{ [3, 1]|min }}{{ [3, 1]|max }}{{ [3, 1]|sum }}{{ [3, 1]|first }}{{ [3, 1]|last }}{{ 'ab'|reverse }}",
           "13431ba"},
          {"{{ '{\"a\": [1]}'|from_json }}", "{'a': [1]}"},
      },
      R"({"tools": [{"n": "é<b>", "p": {"x": 1.0, "y": null}}]})");
}

TEST(ChatTemplate, HasTheMethodsAndTestsOfTemplates) {
  ExpectAll({
      {"{{ ' a b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'a b  '.split(none, 1) }}",
       "['a', 'b'] ['a', 'b,c'] ['a', 'b  ']"},
      {"{{ 'xxaxx'.strip('x') }} {{ 'abc'.startswith(('b', 'a')) }} {{ 'a-b'.partition('-') }} {{ 'ß'.upper() }}",
       "a True ('a', '-', 'b') SS"},
      {"{{ '{} {1} {k!r:>5}'.format(1) if false else '{0:>4}|{k!r}'.format(7, k='v') }}", "   7|'v'"},
      {"{{ {'items': 1}.items is callable }} {{ {'items': 1}['items'] }} {{ {'a': 1}.get('b', 2) }}", "True 1 2"},
      {"{{ missing is defined }} {{ none is none }} {{ 1 is number }} {{ true is integer }} {{ 's' is sequence }}",
       "False True True False True"},
      {"{{ {} is mapping }} {{ 4 is divisibleby 2 }} {{ 3 is not even }} {{ 'a' is in ['a'] }} {{ 2 is gt 1 }}",
       "True True True True True"},
      {"{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"},
  });
}

TEST(ChatTemplate, ErrorsNameTheLine) {
  ExpectAll({
      {"a\n{{ missing.x }}", "error: chat template line 2: 'missing' is undefined"},
      {"\n\n{% if %}", "error: chat template line 3: an expression is expected, got 'end of statement block'"},
      {"{{ 1 / 0 }}", "error: chat template line 1: division by zero"},
      {"{% for x in 5 %}{% endfor %}", "error: chat template line 1: 'int' object is not iterable"},
      {"{{ 'a'|nope }}", "error: chat template line 1: No filter named 'nope'."},
      {"{% if false %}{{ 'a'|nope }}{% endif %}ok", "ok"},
      {"{% break %}", "error: chat template line 1: 'break' outside of a loop"},
      {"{% include 'x' %}", "error: chat template line 1: 'include' is not supported in a chat template"},
      {"{% for x in y recursive %}{% endfor %}",
       "error: chat template line 1: recursive loops are not supported in a chat template"},
      {"{{ [].append(1) }}",
       "error: chat template line 1: access to attribute 'append' of 'list' object is unsafe: a chat template cannot "
       "change lists or dicts, nor reach into Python"},
      {"{{ ''.__class__.__mro__ }}",
       "error: chat template line 1: access to attribute '__class__' of 'str' object is unsafe: a chat template cannot "
       "change lists or dicts, nor reach into Python"},
  });
}

TEST(ChatTemplate, KeepsTheWordsOfRaiseException) {
  auto parsed = ChatTemplate::Parse("\n{{ raise_exception('System role not supported') }}");
  ASSERT_TRUE(parsed.ok());
  auto text = parsed->RenderText({}, kNow);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().message(), "System role not supported");
  EXPECT_EQ(text.error().field(), "messages");
  EXPECT_EQ(text.error().code(), Code::kInvalid);
}

// Spans as text, what a request wrote in brackets.
std::string Marks(std::string_view source, std::string_view inputs) {
  auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return parsed.error().message();
  auto spans = parsed->Render(Inputs(inputs), kNow);
  if (!spans.ok()) return spans.error().message();
  std::string out;
  for (const auto& span : *spans) out += span.trusted ? span.text : "[" + span.text + "]";
  return out;
}

TEST(ChatTemplate, MarksWhatARequestWrote) {
  constexpr std::string_view kInputs =
      R"({"u": " <|x|> ", "l": ["<|y|>", 1], "d": {"<|k|>": true}, "bos_token": "<s>",)"
      R"( "messages": [{"role": "user", "content": "<|z|>"}, {"role": "<|r|>", "content": ""}]})";
  const Case kCases[] = {
      {"<|a|>{{ u }}<|b|>", "<|a|>[ <|x|> ]<|b|>"},
      {"{{ 'a' + u|trim + 'b' }}", "a[<|x|>]b"},
      {"{{ u.replace('|', '!')|upper }}", "[ <]![X]![> ]"},
      {"{{ ('p' ~ u ~ 'q')[1:-1] }}", "[ <|x|> ]"},
      {"{{ ['a', u, 'b']|join('-') }}", "a-[ <|x|> ]-b"},
      {"{{ l|tojson }} {{ d }}", "[[\"<|y|>\", 1]] [{'<|k|>': True}]"},
      {"{% set x %}a{{ u }}{% endset %}{{ x }}{% macro m(v) %}b{{ v }}{% endmacro %}{{ m(u) }}",
       "a[ <|x|> ]b[ <|x|> ]"},
      {"{{ '%s|%s' % ('a', u) }} {{ '{}!'.format(u) }}", "a|[ <|x|> ] [ <|x|> ]!"},
      {"{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}",
       "<s><|user|>[<|z|>]<|[<|r|>]|>"},
      {"{{ u|indent(2, true) }}{{ u * 2 }}", "  [ <|x|>  <|x|>  <|x|> ]"},
  };
  for (const Case& one : kCases) EXPECT_EQ(Marks(one.source, kInputs), one.wanted) << one.source;
}

TEST(ChatTemplate, StaysInItsLimits) {
  TemplateLimits limits;
  limits.steps_max = 10'000;
  limits.output_bytes_max = 1000;
  limits.source_bytes_max = 1000;
  limits.depth_max = 30;
  const Case kCases[] = {
      {"{% for i in range(100000) %}{% endfor %}", "takes more than its limit of 10000 steps"},
      {"{{ 'a' * 1001 }}", "a text over its limit of 1000 bytes"},
      {"{% for i in range(200) %}0123456789{% endfor %}", "a text over its limit of 1000 bytes"},
      {"{{ range(100001) }}", "Range too big"},
      {"{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls nest too deep"},
      {"{% set ns = namespace(x=1) %}{% for i in range(40) %}{% set ns.x = [ns.x] %}{% endfor %}",
       "a value nests deeper than the limit of 30"},
      {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "limit"},
      {"{{ '%1000000d' % 1 }}", "a text over its limit"},
      {"{{ 'x'.ljust(99999999999999999999) }}", "a text over its limit"},
      {"{{ ((((((((((((((((((((((((((((((((1)))))))))))))))))))))))))))))))) }}", "nested deeper than the limit of 30"},
      {"{% set x = ['a'] * 100000 %}", "steps"},
  };
  for (const Case& one : kCases) {
    std::string shown = Show(one.source, "{}", limits);
    EXPECT_TRUE(shown.starts_with("error: ") && shown.find(one.wanted) != std::string::npos) << one.source << "\n"
                                                                                             << shown;
  }
  EXPECT_NE(Show(std::string(1001, ' '), "{}", limits).find("the limit is 1000"), std::string::npos);
}

TEST(ChatTemplate, RefusesWhatIsNotUtf8AndRepairsInputs) {
  EXPECT_EQ(Show("a\xFF"), "error: chat template: not valid UTF-8");
  auto parsed = ChatTemplate::Parse("{{ x|length }}{{ x }}");
  ASSERT_TRUE(parsed.ok());
  json::object inputs;
  inputs["x"] = "a\xFF";
  auto text = parsed->RenderText(inputs, kNow);
  ASSERT_TRUE(text.ok());
  EXPECT_EQ(*text, "2a\xEF\xBF\xBD");
}

}  // namespace
}  // namespace ekiben::text
