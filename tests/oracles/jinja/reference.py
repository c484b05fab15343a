"""jinja2 with the settings that Hugging Face's apply_chat_template uses, and from_json beside tojson."""

import datetime
import json

import jinja2
import jinja2.ext
import jinja2.sandbox


class RaisedByTemplate(jinja2.exceptions.TemplateError):
    """The template called raise_exception."""


class Generation(jinja2.ext.Extension):
    """{% generation %}: marks what the model wrote; prints its body."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_print")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _print(self, caller):
        return caller()


def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise RaisedByTemplate(message)


class TooLarge(Exception):
    """A random template asks Python for a number or text that would take it minutes."""


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["**", "*"])

    def call_binop(self, context, operator, left, right):
        sized = [x if isinstance(x, (int, float)) else len(x) for x in (left, right) if isinstance(x, (int, float, str, list, tuple))]
        if len(sized) == 2 and (operator == "**" and abs(sized[1]) > 1000 or abs(sized[0]) * abs(sized[1]) > 1e30):
            raise TooLarge
        if len(sized) == 2 and not all(isinstance(x, (int, float)) for x in (left, right)) and abs(sized[0] * sized[1]) > 1e5:
            raise TooLarge
        return super().call_binop(context, operator, left, right)


def environment(now):
    env = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = to_json
    env.filters["from_json"] = json.loads
    env.globals["raise_exception"] = raise_exception
    moment = datetime.datetime.fromtimestamp(now, datetime.timezone.utc).replace(tzinfo=None)
    env.globals["strftime_now"] = moment.strftime
    return env


class Reference:
    """Renders one template, which is compiled once."""

    def __init__(self, source, now):
        self.error = None
        try:
            self.template = environment(now).from_string(source)
        except Exception as error:  # jinja2 raises whatever Python's compiler does
            self.error = error

    def render(self, inputs):
        """{output} or {error, raised}."""
        if self.error is not None:
            return {"error": f"{type(self.error).__name__}: {self.error}", "raised": False}
        try:
            return {"output": self.template.render(**inputs)}
        except TooLarge:
            return {"error": "too large", "raised": False, "skip": True}
        except RaisedByTemplate as error:
            return {"error": str(error), "raised": True}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "raised": False}
