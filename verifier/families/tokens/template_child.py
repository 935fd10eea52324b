"""Render a chat template in a process of its own: a template is a program, and this one is a stranger's.

Reads {"template", "variables"} as JSON from stdin and writes {"text"} or {"error"}. Nothing of the verifier is imported: the parent starts
this file isolated, with limits on time and memory.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

CPU_S, MEMORY_BYTES, TEXT_LIMIT = 5, 1 << 30, 1 << 20


def _refuse(message: object) -> None:
    raise ValueError(str(message))


def _tojson(value: Any, *_given: Any, **named: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=named.get("indent"))


def main() -> None:
    """Render once."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    if sys.platform != "darwin":  # macOS refuses such a limit; the time that a template has bounds what it can take
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from jinja2 import TemplateError
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, by which transformers marks what an assistant said: its text as it is."""

        tags = {"generation"}  # noqa: RUF012  jinja2's own way

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    given = json.loads(sys.stdin.buffer.read())
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda _format: "2024-01-01"
    environment.filters["tojson"] = _tojson
    try:
        text = environment.from_string(given["template"]).render(**given["variables"])
        answer = {"text": text} if len(text) <= TEXT_LIMIT else {"error": f"{len(text)} characters"}
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    except MemoryError:
        answer = {"error": "out of memory"}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
