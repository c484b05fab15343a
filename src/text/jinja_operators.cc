// Python's operators on template values.
#include <algorithm>
#include <cmath>

#include "text/jinja_print.h"
#include "text/jinja_runtime.h"

namespace ekiben::text::jinja {
namespace {

constexpr std::string_view kSymbols[] = {"+", "-", "*", "/", "//", "%", "**"};

Error Unsupported(BinaryOp op, const Value& a, const Value& b) {
  for (const Value* side : {&a, &b})
    if (side->Is(Kind::kUndefined)) return TypeProblem(side->undefined_message());
  return TypeProblem(fmt::format("unsupported operand types for {}: '{}' and '{}'", kSymbols[static_cast<int>(op)],
                                 TypeName(a), TypeName(b)));
}

Error TooLarge() {
  return TypeProblem("an integer of more than 127 bits is not supported");
}
Error ZeroDivision() {
  return TypeProblem("division by zero");
}

Integer FloorDivide(Integer a, Integer b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0) ? 1 : 0);
}

Result<Value> IntegerPower(Integer base, Integer exponent) {
  if (exponent < 0) {
    if (base == 0) return ZeroDivision();
    return Value::Float(std::pow(static_cast<double>(base), static_cast<double>(exponent)));
  }
  Integer result = 1;
  if (base == 0 || base == 1) return Value::Int(exponent == 0 ? 1 : base);
  if (base == -1) return Value::Int(exponent % 2 == 0 ? 1 : -1);
  for (; exponent > 0; --exponent)  // ends: |base| >= 2 overflows within 127 rounds
    if (__builtin_mul_overflow(result, base, &result)) return TooLarge();
  return Value::Int(result);
}

Result<Value> OnIntegers(BinaryOp op, Integer a, Integer b) {
  Integer result = 0;
  bool overflow = false;
  switch (op) {
    case BinaryOp::kAdd: overflow = __builtin_add_overflow(a, b, &result); break;
    case BinaryOp::kSub: overflow = __builtin_sub_overflow(a, b, &result); break;
    case BinaryOp::kMul: overflow = __builtin_mul_overflow(a, b, &result); break;
    case BinaryOp::kPow: return IntegerPower(a, b);
    default:
      if (b == 0) return ZeroDivision();
      if (op == BinaryOp::kDiv) return Value::Float(static_cast<double>(static_cast<long double>(a) / b));
      if (b == -1) {  // the one quotient that can overflow
        if (op == BinaryOp::kMod) return Value::Int(0);
        overflow = __builtin_sub_overflow(Integer{0}, a, &result);
        break;
      }
      result = op == BinaryOp::kFloorDiv ? FloorDivide(a, b) : a - FloorDivide(a, b) * b;
  }
  if (overflow) return TooLarge();
  return Value::Int(result);
}

// float.__floordiv__ and float.__mod__ as CPython computes them.
Result<Value> FloatDivMod(bool quotient, double a, double b) {
  if (b == 0) return ZeroDivision();
  double mod = std::fmod(a, b), div = (a - mod) / b;
  if (mod != 0) {
    if ((b < 0) != (mod < 0)) {
      mod += b;
      div -= 1;
    }
  } else {
    mod = std::copysign(0.0, b);
  }
  if (!quotient) return Value::Float(mod);
  if (div == 0) return Value::Float(std::copysign(0.0, a / b));
  double floor = std::floor(div);
  return Value::Float(div - floor > 0.5 ? floor + 1 : floor);
}

Result<Value> OnFloats(BinaryOp op, double a, double b) {
  switch (op) {
    case BinaryOp::kAdd: return Value::Float(a + b);
    case BinaryOp::kSub: return Value::Float(a - b);
    case BinaryOp::kMul: return Value::Float(a * b);
    case BinaryOp::kDiv:
      if (b == 0) return ZeroDivision();
      return Value::Float(a / b);
    case BinaryOp::kFloorDiv: return FloatDivMod(true, a, b);
    case BinaryOp::kMod: return FloatDivMod(false, a, b);
    case BinaryOp::kPow: break;
  }
  if (a == 0 && b < 0) return ZeroDivision();
  if (a < 0 && std::isfinite(b) && std::floor(b) != b && std::isfinite(a))
    return TypeProblem("a complex result is not supported");
  double result = std::pow(a, b);
  if (std::isinf(result) && std::isfinite(a) && std::isfinite(b)) return TypeProblem("Numerical result out of range");
  return Value::Float(result);
}

Result<Value> AddStrings(Runtime& runtime, const Value& a, const Value& b) {
  RETURN_IF_ERROR(runtime.CheckBytes(Integer{a.text().size()} + Integer{b.text().size()}));
  bool markup = a.markup() || b.markup();
  Text text = markup && !a.markup() ? EscapeHtml(a.text()) : a.text();
  text.Append(markup && !b.markup() ? EscapeHtml(b.text()) : b.text());
  return runtime.String(std::move(text), markup);
}

Result<Value> Repeat(Runtime& runtime, const Value& sequence, Integer times) {
  if (times > INT64_MAX || times < INT64_MIN) return TypeProblem("cannot fit 'int' into an index-sized integer");
  times = std::max<Integer>(times, 0);
  if (sequence.Is(Kind::kString)) {
    Integer bytes = 0;
    if (__builtin_mul_overflow(Integer{sequence.text().size()}, times, &bytes)) return TooLarge();
    RETURN_IF_ERROR(runtime.CheckBytes(bytes));
    RETURN_IF_ERROR(runtime.ChargeBytes(static_cast<uint64_t>(bytes)));
    Text text;
    if (bytes > 0)
      for (Integer i = 0; i < times; ++i) text.Append(sequence.text());
    return Value::String(std::move(text), sequence.markup());
  }
  Integer count = 0;
  if (__builtin_mul_overflow(Integer{sequence.items().size()}, times, &count) || count > kWeightMax) return TooLarge();
  RETURN_IF_ERROR(runtime.Charge(static_cast<uint64_t>(count)));
  std::vector<Value> items;
  if (count > 0)
    for (Integer i = 0; i < times; ++i) items.insert(items.end(), sequence.items().begin(), sequence.items().end());
  return runtime.Sequence(sequence.kind(), std::move(items));
}

bool IsSequence(const Value& value) {
  return value.Is(Kind::kString) || value.Is(Kind::kList) || value.Is(Kind::kTuple);
}

Result<Value> AddSequences(Runtime& runtime, const Value& a, const Value& b) {
  RETURN_IF_ERROR(runtime.Charge(a.items().size() + b.items().size()));
  std::vector<Value> items = a.items();
  items.insert(items.end(), b.items().begin(), b.items().end());
  return runtime.Sequence(a.kind(), std::move(items));
}

// Python's slice.indices.
struct Bounds {
  Integer start, stop, step, count;
};

Result<Bounds> SliceBounds(const Value& start, const Value& stop, const Value& step, Integer length) {
  Bounds bounds{0, 0, 1, 0};
  auto read = [](const Value& value, Integer absent) -> Result<Integer> {
    if (value.Is(Kind::kNone)) return absent;
    return AsIndex(value, "a slice index");
  };
  ASSIGN_OR_RETURN(bounds.step, read(step, 1));
  if (bounds.step == 0) return TypeProblem("slice step cannot be zero");
  bool down = bounds.step < 0;
  auto clamp = [&](Integer at) {
    if (at < 0) at += length;
    return std::clamp<Integer>(at, down ? -1 : 0, down ? length - 1 : length);
  };
  ASSIGN_OR_RETURN(bounds.start, read(start, down ? length : 0));
  ASSIGN_OR_RETURN(bounds.stop, read(stop, length));
  bounds.start = clamp(bounds.start);
  bounds.stop = stop.Is(Kind::kNone) && down ? -1 : clamp(bounds.stop);
  // Steps beyond the length act as the length does, and keep the sums below in range.
  bounds.step = std::clamp<Integer>(bounds.step, -length - 1, length + 1);
  Integer span = down ? bounds.start - bounds.stop : bounds.stop - bounds.start;
  Integer stride = down ? -bounds.step : bounds.step;
  bounds.count = span <= 0 ? 0 : (span + stride - 1) / stride;
  return bounds;
}

Result<Value> SliceString(Runtime& runtime, const Value& string, const Bounds& bounds) {
  const Text& text = string.text();
  if (bounds.step == 1) {
    size_t begin = ByteOffset(text.view(), static_cast<size_t>(bounds.start));
    size_t end = ByteOffset(text.view(), static_cast<size_t>(std::max(bounds.start, bounds.stop)));
    return runtime.String(text.Slice(begin, end), string.markup());
  }
  RETURN_IF_ERROR(runtime.Charge(text.size() / 8 + static_cast<uint64_t>(bounds.count)));
  std::vector<size_t> offsets;
  for (size_t at = 0; at < text.size(); at += CodePointBytes(text.view(), at)) offsets.push_back(at);
  Text out;
  for (Integer i = 0, at = bounds.start; i < bounds.count; ++i, at += bounds.step) {
    size_t begin = offsets[static_cast<size_t>(at)];
    out.AppendSlice(text, begin, begin + CodePointBytes(text.view(), begin));
  }
  return runtime.String(std::move(out), string.markup());
}

Result<bool> ContainsString(Runtime& runtime, const Value& string, const Value& item) {
  if (!item.Is(Kind::kString))
    return TypeProblem(fmt::format("'in <string>' requires string as left operand, not {}", TypeName(item)));
  RETURN_IF_ERROR(runtime.ChargeSearch(string.text().size(), item.text().size()));
  return string.text().view().find(item.text().view()) != std::string_view::npos;
}

Result<bool> AnyEqual(Runtime& runtime, const std::vector<Value>& items, const Value& item) {
  for (const Value& candidate : items) {
    RETURN_IF_ERROR(runtime.Charge(std::min(candidate.weight(), item.weight())));
    if (Equal(candidate, item)) return true;
  }
  return false;
}

Result<bool> ContainsIterator(Runtime& runtime, IteratorObject& iterator, const Value& item) {
  while (iterator.next < iterator.items.size()) {
    const Value& candidate = iterator.items[iterator.next++];
    RETURN_IF_ERROR(runtime.Charge(std::min(candidate.weight(), item.weight())));
    if (Equal(candidate, item)) return true;
  }
  if (iterator.error.has_value()) return *iterator.error;
  return false;
}

bool RangeContains(const RangeObject& range, const Value& item) {
  if (!item.IsNumber() ||
      (item.Is(Kind::kFloat) && (std::floor(item.real()) != item.real() || std::abs(item.real()) > 1e18)))
    return false;
  Integer at = item.IsIntegral() ? item.integer() : static_cast<Integer>(item.real());
  Integer offset = at - range.start;
  return offset % range.step == 0 && offset / range.step >= 0 && offset / range.step < range.Count();
}

}  // namespace

Result<bool> CompareOrder(const Value& a, const Value& b, bool greater, bool or_equal) {
  ASSIGN_OR_RETURN(bool before, greater ? Less(b, a) : Less(a, b));
  return before || (or_equal && Equal(a, b));
}

Result<Value> Binary(Runtime& runtime, BinaryOp op, const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) {
    bool integral = a.IsIntegral() && b.IsIntegral();
    Result<Value> value = integral ? OnIntegers(op, a.integer(), b.integer()) : OnFloats(op, a.real(), b.real());
    if (value.ok() && (a.untrusted() || b.untrusted())) value->Distrust();
    return value;
  }
  if (op == BinaryOp::kMod && a.Is(Kind::kString)) return FormatPercent(runtime, a, b);
  if (op == BinaryOp::kAdd && a.kind() == b.kind()) {
    if (a.Is(Kind::kString)) return AddStrings(runtime, a, b);
    if (IsSequence(a)) return AddSequences(runtime, a, b);
  }
  if (op == BinaryOp::kMul) {
    if (IsSequence(a) && b.IsIntegral()) return Repeat(runtime, a, b.integer());
    if (IsSequence(b) && a.IsIntegral()) return Repeat(runtime, b, a.integer());
  }
  return Unsupported(op, a, b);
}

Result<Value> Negate(const Value& value, bool minus) {
  if (value.Is(Kind::kFloat)) return Value::Float(minus ? -value.real() : value.real());
  if (value.IsIntegral()) return minus ? OnIntegers(BinaryOp::kSub, 0, value.integer()) : Value::Int(value.integer());
  if (value.Is(Kind::kUndefined)) return TypeProblem(value.undefined_message());
  return TypeProblem(fmt::format("bad operand type for unary {}: '{}'", minus ? '-' : '+', TypeName(value)));
}

Result<Integer> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined: return Integer{0};
    case Kind::kString: return Integer{CountCodePoints(value.text().view())};
    case Kind::kList:
    case Kind::kTuple: return Integer{value.items().size()};
    case Kind::kDict: return Integer{value.dict().entries.size()};
    case Kind::kDictView: return Length(value.As<DictViewObject>().dict);
    case Kind::kRange: return value.As<RangeObject>().Count();
    default: return TypeProblem(fmt::format("object of type '{}' has no len()", TypeName(value)));
  }
}

Result<bool> Contains(Runtime& runtime, const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined: return false;
    case Kind::kString: return ContainsString(runtime, container, item);
    case Kind::kList:
    case Kind::kTuple: return AnyEqual(runtime, container.items(), item);
    case Kind::kDict:
      if (!Hashable(item)) return TypeProblem(fmt::format("unhashable type: '{}'", TypeName(item)));
      RETURN_IF_ERROR(runtime.Charge(1 + item.weight()));
      return container.dict().Find(item) != nullptr;
    case Kind::kDictView: {
      const auto& view = container.As<DictViewObject>();
      if (view.part == DictViewObject::Part::kKeys) return Contains(runtime, view.dict, item);
      ASSIGN_OR_RETURN(std::vector<Value> items, runtime.IterateAll(container));
      return AnyEqual(runtime, items, item);
    }
    case Kind::kRange: return RangeContains(container.As<RangeObject>(), item);
    case Kind::kIterator: return ContainsIterator(runtime, container.As<IteratorObject>(), item);
    default: return TypeProblem(fmt::format("argument of type '{}' is not iterable", TypeName(container)));
  }
}

Result<Value> GetSlice(Runtime& runtime, const Value& object, const Value& start, const Value& stop,
                       const Value& step) {
  bool sliceable = IsSequence(object) || object.Is(Kind::kRange);
  if (object.Is(Kind::kUndefined)) return TypeProblem(object.undefined_message());
  if (!sliceable) return TypeProblem(fmt::format("'{}' object cannot be sliced", TypeName(object)));
  if (object.Is(Kind::kString)) RETURN_IF_ERROR(runtime.ChargeBytes(object.text().size()));
  ASSIGN_OR_RETURN(Integer length, Length(object));
  ASSIGN_OR_RETURN(Bounds bounds, SliceBounds(start, stop, step, length));
  if (object.Is(Kind::kString)) return SliceString(runtime, object, bounds);
  if (object.Is(Kind::kRange)) {
    const auto& range = object.As<RangeObject>();
    auto slice = std::make_shared<RangeObject>();
    slice->start = range.start + bounds.start * range.step;
    slice->stop = range.start + bounds.stop * range.step;
    slice->step = range.step * bounds.step;
    return Value::Of(Kind::kRange, std::move(slice));
  }
  RETURN_IF_ERROR(runtime.Charge(static_cast<uint64_t>(bounds.count)));
  std::vector<Value> items;
  for (Integer i = 0, at = bounds.start; i < bounds.count; ++i, at += bounds.step)
    items.push_back(object.items()[static_cast<size_t>(at)]);
  ASSIGN_OR_RETURN(Value slice, runtime.Sequence(object.kind(), std::move(items)));
  slice.object()->untrusted = object.object()->untrusted;
  return slice;
}

}  // namespace ekiben::text::jinja
