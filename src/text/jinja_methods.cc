// Methods of strings (those that do not search), dicts, lists and tuples.
#include <algorithm>
#include <unordered_map>

#include "text/jinja_print.h"
#include "text/jinja_strings.h"
#include "text/jinja_unicode.h"

namespace ekiben::text::jinja {
namespace {

using V = const Value&;
using A = const Arguments&;

Result<Value> Cased(Runtime& runtime, V self, A arguments, CaseMap map) {
  RETURN_IF_ERROR(Bind("upper", arguments, {}, 0));
  RETURN_IF_ERROR(runtime.ChargeBytes(self.text().size() * 4));
  return runtime.String(MapCase(self.text(), map), self.markup());
}

// Maps each character by what `choose(code, previous is cased)` says.
template <class Choose>
Result<Value> CaseEach(Runtime& runtime, V self, A arguments, Choose choose) {
  RETURN_IF_ERROR(Bind("title", arguments, {}, 0));
  const Text& text = self.text();
  RETURN_IF_ERROR(runtime.Charge(1 + text.size() / 4));
  Text out;
  bool after_cased = false;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + CodePointBytes(text.view(), at);
    char32_t code = CodePointAt(text.view(), at);
    out.Append(MapCase(text.view().substr(at, end - at), choose(code, after_cased)), text.TrustedAt(at));
    after_cased = IsCased(code);
    at = end;
  }
  return runtime.String(std::move(out), self.markup());
}

Result<Value> Title(Runtime& runtime, V self, A arguments) {
  return CaseEach(runtime, self, arguments,
                  [](char32_t, bool after) { return after ? CaseMap::kLower : CaseMap::kTitleFirst; });
}

Result<Value> SwapCase(Runtime& runtime, V self, A arguments) {
  return CaseEach(runtime, self, arguments,
                  [](char32_t code, bool) { return IsUpper(code) ? CaseMap::kLower : CaseMap::kUpper; });
}

Result<Value> StripMethod(Runtime& runtime, V self, A arguments, bool left, bool right) {
  ASSIGN_OR_RETURN(auto bound, Bind("strip", arguments, {"chars"}, 0, 1));
  if (bound[0] == nullptr || bound[0]->Is(Kind::kNone))
    return runtime.String(Strip(self.text(), nullptr, left, right), self.markup());
  ASSIGN_OR_RETURN(const Text* chars, AsText(*bound[0], "strip"));
  RETURN_IF_ERROR(runtime.ChargeSearch(self.text().size(), chars->size()));
  return runtime.String(Strip(self.text(), &chars->bytes(), left, right), self.markup());
}

Result<Value> PadMethod(Runtime& runtime, V self, A arguments, Align align) {
  ASSIGN_OR_RETURN(auto bound, Bind("center", arguments, {"width", "fillchar"}, 1, 2));
  ASSIGN_OR_RETURN(Integer width, AsIndex(*bound[0], "width"));
  Text fill(" ", true);
  if (bound[1] != nullptr) {
    ASSIGN_OR_RETURN(const Text* given, AsText(*bound[1], "fillchar"));
    fill = self.markup() && !bound[1]->markup() ? EscapeHtml(*given) : *given;
  }
  if (CountCodePoints(fill.view()) != 1) return TypeProblem("The fill character must be exactly one character long");
  return Pad(runtime, self, width, fill, align);
}

Result<Value> ZeroFill(Runtime& runtime, V self, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("zfill", arguments, {"width"}, 1, 1));
  ASSIGN_OR_RETURN(Integer width, AsIndex(*bound[0], "width"));
  const Text& text = self.text();
  size_t sign = text.view().starts_with("+") || text.view().starts_with("-") ? 1 : 0;
  Integer missing = width - static_cast<Integer>(CountCodePoints(text.view()));
  RETURN_IF_ERROR(runtime.CheckBytes(missing));
  Text out = text.Slice(0, sign);
  out.Append(std::string(missing > 0 ? static_cast<size_t>(missing) : 0, '0'), true);
  out.AppendSlice(text, sign, text.size());
  return runtime.String(std::move(out), self.markup());
}

Result<Value> ExpandTabs(Runtime& runtime, V self, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("expandtabs", arguments, {"tabsize"}, 0));
  Integer size = 8;
  if (bound[0] != nullptr) {
    ASSIGN_OR_RETURN(size, AsIndex(*bound[0], "tabsize"));
  }
  RETURN_IF_ERROR(runtime.CheckBytes(size));
  const Text& text = self.text();
  Text out;
  Integer column = 0;
  for (size_t at = 0; at < text.size();) {
    size_t end = at + CodePointBytes(text.view(), at);
    char c = text.view()[at];
    if (c == '\t') {
      Integer spaces = size > 0 ? size - column % size : 0;
      RETURN_IF_ERROR(runtime.CheckBytes(static_cast<Integer>(out.size()) + spaces));
      RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<uint64_t>(spaces)));
      out.Append(std::string(static_cast<size_t>(spaces), ' '), text.TrustedAt(at));
      column += spaces;
    } else {
      out.AppendSlice(text, at, end);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    at = end;
  }
  return runtime.String(std::move(out), self.markup());
}

// str.isalpha and its kin: every character, and at least one.
template <bool (*kPredicate)(char32_t)>
Result<Value> All(Runtime& runtime, V self, A arguments) {
  RETURN_IF_ERROR(Bind("isalpha", arguments, {}, 0));
  std::string_view view = self.text().view();
  RETURN_IF_ERROR(runtime.ChargeBytes(view.size() * 4));
  bool all = !view.empty();
  for (size_t at = 0; at < view.size() && all; at += CodePointBytes(view, at)) all = kPredicate(CodePointAt(view, at));
  return Value::Bool(all);
}

bool IsAlnum(char32_t code) {
  return IsAlpha(code) || IsNumeric(code);
}

// isupper (wanted IsUpper, refused lower or title) and islower.
Result<Value> HasCase(Runtime& runtime, V self, A arguments, bool upper) {
  RETURN_IF_ERROR(Bind("isupper", arguments, {}, 0));
  std::string_view view = self.text().view();
  RETURN_IF_ERROR(runtime.ChargeBytes(view.size() * 4));
  bool any = false;
  for (size_t at = 0; at < view.size(); at += CodePointBytes(view, at)) {
    char32_t code = CodePointAt(view, at);
    if (IsTitle(code) || (upper ? IsLower(code) : IsUpper(code))) return Value::Bool(false);
    any = any || (upper ? IsUpper(code) : IsLower(code));
  }
  return Value::Bool(any);
}

Result<Value> IsTitleText(Runtime& runtime, V self, A arguments) {
  RETURN_IF_ERROR(Bind("istitle", arguments, {}, 0));
  std::string_view view = self.text().view();
  RETURN_IF_ERROR(runtime.ChargeBytes(view.size() * 4));
  bool any = false, after_cased = false;
  for (size_t at = 0; at < view.size(); at += CodePointBytes(view, at)) {
    char32_t code = CodePointAt(view, at);
    bool high = IsUpper(code) || IsTitle(code);
    if ((high && after_cased) || (IsLower(code) && !after_cased)) return Value::Bool(false);
    after_cased = high || IsLower(code);
    any = any || after_cased;
  }
  return Value::Bool(any);
}

Result<Value> IsPrintableText(Runtime& runtime, V self, A arguments) {
  if (self.text().empty()) return Value::Bool(true);
  return All<IsPrintable>(runtime, self, arguments);
}

Result<Value> DictGet(Runtime& runtime, V self, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("get", arguments, {"key", "default"}, 1, 2));
  if (!Hashable(*bound[0])) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(*bound[0])));
  RETURN_IF_ERROR(runtime.Charge(bound[0]->weight()));
  const Value* value = self.dict().Find(*bound[0]);
  if (value != nullptr) return *value;
  return bound[1] == nullptr ? Value::None() : *bound[1];
}

template <DictViewObject::Part kPart>
Result<Value> View(Runtime&, V self, A arguments) {
  RETURN_IF_ERROR(Bind("items", arguments, {}, 0));
  auto view = std::make_shared<DictViewObject>();
  view->part = kPart;
  view->dict = self;
  view->depth = self.object()->depth;
  view->weight = self.object()->weight;
  return Value::Of(Kind::kDictView, std::move(view));
}

// Containers never change, so a copy is the container.
Result<Value> Copy(Runtime&, V self, A arguments) {
  RETURN_IF_ERROR(Bind("copy", arguments, {}, 0));
  return self;
}

Result<Value> CountItems(Runtime& runtime, V self, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("count", arguments, {"value"}, 1, 1));
  Integer count = 0;
  for (const Value& item : self.items()) {
    RETURN_IF_ERROR(runtime.Charge(std::min(item.weight(), bound[0]->weight())));
    count += Equal(item, *bound[0]) ? 1 : 0;
  }
  return Value::Int(count);
}

Result<Value> IndexOf(Runtime& runtime, V self, A arguments) {
  ASSIGN_OR_RETURN(auto bound, Bind("index", arguments, {"value", "start", "stop"}, 1, 3));
  Integer length = static_cast<Integer>(self.items().size());
  Integer range[2] = {0, length};
  for (int i = 0; i < 2; ++i) {
    if (bound[i + 1] == nullptr) continue;
    ASSIGN_OR_RETURN(range[i], AsIndex(*bound[i + 1], "index"));
    if (range[i] < 0) range[i] = std::max<Integer>(range[i] + length, 0);
  }
  for (Integer i = range[0]; i < std::min(range[1], length); ++i) {
    const Value& item = self.items()[static_cast<size_t>(i)];
    RETURN_IF_ERROR(runtime.Charge(std::min(item.weight(), bound[0]->weight())));
    if (Equal(item, *bound[0])) return Value::Int(i);
  }
  return TypeProblem("the value is not in the list");
}

Result<Value> CyclerNext(Runtime&, V self, A) {
  auto& cycler = self.As<CyclerObject>();
  Value value = cycler.items[cycler.position];
  cycler.position = (cycler.position + 1) % cycler.items.size();
  return value;
}

Result<Value> CyclerReset(Runtime&, V self, A) {
  self.As<CyclerObject>().position = 0;
  return Value::None();
}

}  // namespace

Result<Value> SoftStr(Runtime& runtime, const Value& value) {
  if (value.Is(Kind::kString)) return value;
  ASSIGN_OR_RETURN(Text text, Str(runtime, value));
  return runtime.String(std::move(text));
}

Result<Value> Pad(Runtime& runtime, const Value& string, Integer width, const Text& fill, Align align) {
  const Text& text = string.text();
  Integer length = static_cast<Integer>(CountCodePoints(text.view()));
  Integer missing = std::max<Integer>(width - length, 0);
  RETURN_IF_ERROR(runtime.CheckBytes(missing > kWeightMax ? missing : missing * static_cast<Integer>(fill.size())));
  RETURN_IF_ERROR(runtime.Charge(static_cast<uint64_t>(missing) / 8));
  // CPython puts the odd one on the left when both width and margin are odd.
  Integer left = align == Align::kLeft ? 0 : align == Align::kRight ? missing : missing / 2 + (missing & width & 1);
  Text out;
  for (Integer i = 0; i < left; ++i) out.Append(fill);
  out.Append(text);
  for (Integer i = left; i < missing; ++i) out.Append(fill);
  return runtime.String(std::move(out), string.markup());
}

Method FindStringMethod(std::string_view name) {
  static const std::unordered_map<std::string_view, Method> kMethods = {
      {"upper", [](Runtime& r, V s, A a) { return Cased(r, s, a, CaseMap::kUpper); }},
      {"lower", [](Runtime& r, V s, A a) { return Cased(r, s, a, CaseMap::kLower); }},
      {"casefold", [](Runtime& r, V s, A a) { return Cased(r, s, a, CaseMap::kFold); }},
      {"capitalize", [](Runtime& r, V s, A a) { return Cased(r, s, a, CaseMap::kTitleFirst); }},
      {"title", Title},
      {"swapcase", SwapCase},
      {"strip", [](Runtime& r, V s, A a) { return StripMethod(r, s, a, true, true); }},
      {"lstrip", [](Runtime& r, V s, A a) { return StripMethod(r, s, a, true, false); }},
      {"rstrip", [](Runtime& r, V s, A a) { return StripMethod(r, s, a, false, true); }},
      {"center", [](Runtime& r, V s, A a) { return PadMethod(r, s, a, Align::kCenter); }},
      {"ljust", [](Runtime& r, V s, A a) { return PadMethod(r, s, a, Align::kLeft); }},
      {"rjust", [](Runtime& r, V s, A a) { return PadMethod(r, s, a, Align::kRight); }},
      {"zfill", ZeroFill},
      {"expandtabs", ExpandTabs},
      {"format", FormatBraces},
      {"isalpha", All<IsAlpha>},
      {"isdigit", All<IsDigit>},
      {"isdecimal", All<IsDecimal>},
      {"isnumeric", All<IsNumeric>},
      {"isalnum", All<IsAlnum>},
      {"isspace", All<IsSpace>},
      {"isprintable", IsPrintableText},
      {"isupper", [](Runtime& r, V s, A a) { return HasCase(r, s, a, true); }},
      {"islower", [](Runtime& r, V s, A a) { return HasCase(r, s, a, false); }},
      {"istitle", IsTitleText},
      {"isascii", [](Runtime&, V s, A) -> Result<Value> { return Value::Bool(IsAscii(s.text().view())); }},
      {"isidentifier", [](Runtime&, V s, A) -> Result<Value> { return Value::Bool(IsIdentifier(s.text().view())); }},
  };
  auto found = kMethods.find(name);
  return found == kMethods.end() ? FindSearchMethod(name) : found->second;
}

Method FindContainerMethod(const Value& self, std::string_view name) {
  using Part = DictViewObject::Part;
  if (self.Is(Kind::kDict)) {
    if (name == "get") return DictGet;
    if (name == "items") return View<Part::kItems>;
    if (name == "keys") return View<Part::kKeys>;
    if (name == "values") return View<Part::kValues>;
    if (name == "copy") return Copy;
  }
  if (self.Is(Kind::kList) || self.Is(Kind::kTuple)) {
    if (name == "count") return CountItems;
    if (name == "index") return IndexOf;
    if (name == "copy" && self.Is(Kind::kList)) return Copy;
  }
  if (self.Is(Kind::kCycler)) {
    if (name == "next") return CyclerNext;
    if (name == "reset") return CyclerReset;
  }
  return nullptr;
}

}  // namespace ekiben::text::jinja
