"""Random small templates over every operator, filter, test and method, for the comparison with jinja2. A seed names one
template, so a difference is reproduced by its number."""

import random

INPUTS = {
    "s": "Hello World",
    "t": "  straße\tÉCOLE \n'quoted' \"x\" <b>&amp;</b>  ",
    "e": "",
    "n": 7,
    "z": 0,
    "m": -3,
    "f": 2.5,
    "big": 18446744073709551615,
    "tiny": 1e-7,
    "yes": True,
    "no": False,
    "nil": None,
    "l": [3, 1, 2],
    "w": ["b", "A", "c", "a"],
    "mixed": [1, "a", None, 2.0, True, [1], {"k": 1}],
    "d": {"b": 1, "a": "x", "C": [1, 2], "items": "shadow"},
    "rows": [
        {"name": "Bo", "age": 3, "tags": ["x"], "on": True},
        {"name": "al", "age": 1, "tags": [], "on": False},
        {"name": "Cy", "age": 3, "on": True},
    ],
    "deep": {"x": {"y": [{"z": "end"}]}},
    "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo <|x|>"}],
}
STRINGS = ["", "a", "Abc", "x y z", "1", "-12", "3.5", "0x1F", "1_000", " pad ", "a,b,,c", "line\\nbreak", "tab\\there", "<b>&",
           "it's", "é", "ẞß", "日本", "🎉!", "%s", "{}", "%d-%s", "{0}{1}", "\\\\", "aaa", "hello world foo", "Title Case", "\\u00e9"]
NAMES = list(INPUTS) + ["missing", "x", "i"]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "~"]
COMPARE = ["==", "!=", "<", "<=", ">", ">=", "in", "not in"]


class Generator:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def pick(self, *choices):
        return self.r.choice(choices)

    def string(self):
        text = self.r.choice(STRINGS)
        return '"' + text + '"' if "'" in text or self.r.random() < 0.3 else "'" + text + "'"

    def small(self):
        return str(self.r.randint(-4, 6))

    def number(self):
        return self.pick(self.small(), self.small(), "2.5", "0.1", "1e3", "1_000", "0x1f", "10.0", "1e16", "-0.0", "123456789012")

    def atom(self):
        roll = self.r.random()
        if roll < 0.3:
            return self.r.choice(NAMES)
        if roll < 0.55:
            return self.string()
        if roll < 0.8:
            return self.number()
        return self.pick("true", "false", "none", "True", "None", "[]", "{}", "()", "[1, 2, 3]", "(1,)", "('a', 1)",
                         "{'k': 1, 'j': [2]}", "['b', 'a']", "range(4)", "{'a': none, 1: 2.0}", "[[2, 'x'], [1, 'y']]")

    def sequence(self):
        return self.pick("l", "w", "mixed", "rows", "d", "s", "t", "range(5)", "[1, 2, 3]", "('a', 'B')", "d.items()", "d.keys()",
                         "d.values()", "rows|map(attribute='name')", "l|reverse", "missing", "''", "[]", "w|sort", "s.split()",
                         "d|items", "messages", "w|unique", "'a-b-c'.split('-')", "l|select('odd')")

    def expr(self, depth):
        if depth <= 0:
            return self.atom()
        roll = self.r.random()
        if roll < 0.16:
            return self.atom()
        if roll < 0.32:
            text = f"{self.expr(depth - 1)} {self.r.choice(BINARY)} {self.expr(depth - 1)}"
            return f"({text})" if self.r.random() < 0.5 else text
        if roll < 0.40:
            chain = f" {self.r.choice(COMPARE)} {self.expr(depth - 1)}" if self.r.random() < 0.15 else ""
            return f"({self.expr(depth - 1)} {self.r.choice(COMPARE)} {self.expr(depth - 1)}{chain})"
        if roll < 0.46:
            return f"({self.expr(depth - 1)} {self.pick('and', 'or')} {self.expr(depth - 1)})"
        if roll < 0.49:
            return f"{self.pick('not ', '-', '+')}{self.expr(depth - 1)}"
        if roll < 0.53:
            other = f" else {self.expr(depth - 1)}" if self.r.random() < 0.8 else ""
            return f"({self.expr(depth - 1)} if {self.expr(depth - 1)}{other})"
        if roll < 0.70:
            return self.filtered(depth)
        if roll < 0.77:
            return f"({self.expr(depth - 1)} is {self.pick('', 'not ')}{self.test(depth)})"
        if roll < 0.88:
            return self.method(depth)
        return self.subscript(depth)

    def subscript(self, depth):
        inner = self.pick(self.r.choice(NAMES), self.string(), f"({self.expr(depth - 1)})", self.sequence())
        if "|" in inner:
            inner = f"({inner})"
        bound = lambda: self.pick("", "", self.small(), self.small(), "none", "n")
        if self.r.random() < 0.3:  # of a variable: jinja2 folds a slice of a constant, and forgives it what it is
            return self.pick("s", "t", "l", "w", "mixed", "n", "nil", "d", "rows") + f"[{bound()}:{bound()}:{self.pick('1', '2', '-1', '-2', '')}]"
        return inner + self.pick(
            f"[{self.small()}]", f"[{self.expr(depth - 1)}]",
            ".name", ".x", ".items", ".a", "['b']", "['items']", ".0", ".upper", ".append", ".y.z", "[0].name", ".__class__")

    def filtered(self, depth):
        e = lambda: self.expr(depth - 1)
        base = self.pick(f"({e()})", self.atom(), self.sequence())
        if "|" in base and not base.startswith("(") and self.r.random() < 0.7:
            base += "|list"  # a generator prints as its address
        call = self.pick(
            "upper", "lower", "capitalize", "title", "trim", f"trim({self.string()})", "length", "count", "string", "list",
            "first", "last", "reverse|list", "sort", "sort(reverse=true)", "sort(attribute='age')", "sort(attribute='age,name')",
            "sort(case_sensitive=true)", "unique|list", "unique(attribute='age')|list", "min", "max", "max(attribute='age')", "sum",
            "sum(attribute='age')", f"sum(start={self.small()})", "abs", "int", f"int({self.small()})", "int(0, 16)", "int(default=9, base=2)",
            "float", f"float({self.number()})", "round", f"round({self.small()})", "round(1, 'floor')", "round(2, 'ceil')",
            f"default({e()})", f"d({self.string()}, true)", "default(boolean=true)", "join", f"join({self.string()})",
            "join(', ', attribute='name')", f"replace({self.string()}, {self.string()})", f"replace('a', 'b', {self.small()})",
            "indent", f"indent({self.small()})", "indent(2, true)", "indent('> ', blank=true)", "indent(first=true, width=1)",
            "tojson", "tojson(indent=2)", "tojson(ensure_ascii=true)", "tojson(sort_keys=true)", "tojson(separators=(',', ':'))", "tojson(indent=0)",
            "safe", "e", "escape", "forceescape", "urlencode", "list|wordcount", "center(11)", "truncate(5)", "truncate(7, true, '~', 0)",
            "select|list", "reject|list", "select('odd')|list", "select('string')|list", "reject('none')|list", "select('in', [1, 2])|list",
            "selectattr('on')|list", "selectattr('age', 'gt', 1)|list", "rejectattr('tags')|list", "selectattr('name', 'equalto', 'Bo')|map(attribute='age')|list",
            "map('upper')|list", "map(attribute='name')|list", "map(attribute='tags', default='?')|list", "map(attribute='tags.0')|list", "map('int')|join",
            "map('default', 'z')|list", "dictsort", "dictsort(reverse=true)", "dictsort(by='value')", "dictsort(true)", "items|list",
            "batch(2)|list", f"batch(2, {self.string()})|list", "slice(2)|list", "slice(3, 'x')|list", "groupby('age')", "groupby('age')|map(attribute='list')|list",
            f"format({e()})", f"format({e()}, {e()})", "format(name='x')", "bogus", f"upper({e()})")
        return f"{base}|{call}"

    def test(self, depth):
        return self.pick(
            "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean",
            "true", "false", "callable", "odd", "even", "divisibleby 2", "divisibleby(3)", f"eq {self.atom()}", f"equalto({self.atom()})",
            f"ne({self.atom()})", f"lt {self.number()}", f"ge({self.number()})", f"in({self.sequence()})", "lower", "upper", "escaped",
            "filter", "test", f"gt({self.expr(depth - 1)})", "sameas(none)", "sameas(true)")

    def method(self, depth):
        e = lambda: self.expr(depth - 1)
        base = self.pick(self.string(), "s", "t", "d", "l", "rows[0]", f"({e()})")
        s, k = self.string, self.small
        return base + "." + self.pick(
            "upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "strip()", f"strip({s()})", "lstrip()", f"rstrip({s()})",
            "split()", f"split({s()})", f"split({s()}, {k()})", "split(none, 1)", f"rsplit({s()}, 1)", "rsplit()", "rsplit(maxsplit=1)", "splitlines()", "splitlines(true)",
            f"partition({s()})", f"rpartition({s()})", f"startswith({s()})", f"endswith({s()})", "startswith(('H', 'a'))", f"endswith({s()}, 1, -1)",
            f"find({s()})", f"find({s()}, {k()})", f"rfind({s()})", f"index({s()})", f"count({s()})", f"count({s()}, 1, {k()})",
            f"replace({s()}, {s()})", f"replace({s()}, {s()}, {k()})", f"join({self.sequence()})", f"removeprefix({s()})", f"removesuffix({s()})",
            "isalpha()", "isdigit()", "isalnum()", "isspace()", "isupper()", "islower()", "istitle()", "isascii()", "isdecimal()", "isnumeric()", "isidentifier()",
            f"center({k()}0)", f"ljust(8, {s()})", "rjust(8)", "zfill(6)", "expandtabs(4)", f"format({e()})", f"format({e()}, {e()})", "format(a=1)",
            "get('a')", "get('zz')", f"get({s()}, {e()})", "keys()|list", "values()|list", "items()|list", "items()", "keys()", "copy()", f"index({k()})",
            "append(1)", "pop()", "update({})", "bogus()", "isprintable()")

    def output(self, depth):
        left, right = self.pick("{{ ", "{{ ", "{{- ", "{{"), self.pick(" }}", " }}", " -}}", "}}")
        return left + self.expr(depth) + right

    def tag(self, text):
        return self.pick("{% ", "{% ", "{%- ", "{%+ ", "  {% ", "\n  {%- ") + text + self.pick(" %}", " %}", " -%}", " %}\n", " +%}\n", "%}  \n")

    def body(self, depth):
        return "".join(self.statement(depth) for _ in range(self.r.randint(1, 3)))

    def statement(self, depth):
        roll = self.r.random()
        if depth <= 0 or roll < 0.35:
            return self.pick("text ", "\n", " \n  ", "a\n", "{# note #}", "{#- note -#}\n", "") + self.output(self.r.randint(1, 2))
        if roll < 0.5:
            other = self.tag("else") + self.body(depth - 1) if self.r.random() < 0.5 else ""
            middle = self.tag("elif " + self.expr(1)) + self.body(depth - 1) if self.r.random() < 0.3 else ""
            return self.tag("if " + self.expr(2)) + self.body(depth - 1) + middle + other + self.tag("endif")
        if roll < 0.72:
            return self.loop(depth)
        if roll < 0.84:
            return self.pick(
                self.tag(f"set x = {self.expr(2)}"), self.tag(f"set x, i = {self.expr(1)}, {self.expr(1)}"),
                self.tag("set ns = namespace(x=0)") + self.tag(f"set ns.x = {self.expr(2)}") + "{{ ns.x }}",
                self.tag("set x") + self.body(depth - 1) + self.tag("endset"),
                self.tag("set x | upper") + self.body(depth - 1) + self.tag("endset"),
                self.tag(f"with x = {self.expr(1)}") + self.body(depth - 1) + self.tag("endwith"))
        if roll < 0.92:
            fallback = self.pick("", "='dd'", "=n")
            use = self.pick(f"{{{{ f({self.expr(1)}) }}}}", f"{{{{ f({self.expr(1)}, i={self.expr(1)}) }}}}", "{{ f() }}", "{{ f(1, 2, 3) }}",
                            "{% call f(1) %}inner{% endcall %}")
            extra = self.pick("", "{{ caller() if caller }}", "{{ varargs }}", "{{ kwargs }}")
            return self.tag(f"macro f(x, i{fallback})") + "[{{ x }}|{{ i }}]" + extra + self.body(depth - 1) + self.tag("endmacro") + use
        return self.pick(
            self.tag("filter upper") + self.body(depth - 1) + self.tag("endfilter"),
            self.tag("filter trim|replace('a', 'b')") + self.body(depth - 1) + self.tag("endfilter"),
            self.tag("raw") + "{{ x }}{% y %}" + self.tag("endraw"),
            self.tag("generation") + self.body(depth - 1) + self.tag("endgeneration"))

    def loop(self, depth):
        target, over = self.pick(("i", self.sequence()), ("i", self.expr(1)), ("k, v", "d.items()"), ("k, v", "d|dictsort"), ("(k, v)", "[[1, 2], (3, 4)]"), ("x", "l"))
        test = self.pick("", "", "", " if i", f" if {self.expr(1)}", " if x is defined")
        inside = self.pick("{{ loop.index }}", "{{ loop.index0 }},{{ loop.length }}", "{{ loop.first }}{{ loop.last }}", "{{ loop.revindex }}{{ loop.revindex0 }}",
                           "{{ loop.previtem }}<{{ loop.nextitem }}", "{{ loop.cycle('a', 'b') }}", "{{ loop.changed(i) }}", "{{ ', ' if not loop.last }}", "{{ i }}", "")
        leave = self.pick("", "", "", self.tag("if loop.index > 1") + self.tag(self.pick("break", "continue")) + self.tag("endif"))
        other = self.tag("else") + "none" if self.r.random() < 0.3 else ""
        return self.tag(f"for {target} in {over}{test}") + inside + leave + self.body(depth - 1) + other + self.tag("endfor")

    def template(self):
        if self.r.random() < 0.6:
            return self.output(self.r.randint(1, 4))
        return self.body(self.r.randint(1, 3)) + self.pick("", "\n", "\n\n", "{{ x }}{{ i }}")


def template(seed):
    return Generator(seed).template()
