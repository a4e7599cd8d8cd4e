"""Constructor calls that files hold as text: parsed, never evaluated."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

from geo3d.errors import InputError

#: The only names that may stand where a value does.
_NAMES = {"inf": math.inf}
#: Characters of a call at most: files that are damaged or made to harm hold longer texts.
_LONGEST = 10_000


def parse_call(text: Any, path: str | Path, what: str = "args.model") -> tuple[str, dict[str, Any]]:
    """Name and keyword arguments of a constructor call written as text.

    Values are literals, tuples and lists of these, and bare ``inf`` and ``-inf``: nothing is run.

    Args:
        text: such as ``LaplacianLossBounded2(a=3.0)``.
        path: of the file, for messages.
        what: where in the file it stands, for messages.

    Raises:
        InputError: anything else.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        found = f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__
        raise InputError(
            f"{path}: {what} {str(text)[:200]!r} is not a plain constructor call (expected a text of at most "
            f"{_LONGEST:,} characters, found {found})"
        )
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise ValueError("not a call with keyword arguments")
        if not isinstance(call.func, ast.Name):
            raise ValueError("not the name of a class")
        names = [k.arg for k in call.keywords]
        if len(set(names)) < len(names):
            raise ValueError("an argument is given twice")
        return call.func.id, {k.arg: _value(k.value) for k in call.keywords if k.arg}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(f"{path}: {what} {str(text)[:200]!r} is not a plain constructor call ({error})") from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple | ast.List):
        kind = tuple if isinstance(node, ast.Tuple) else list
        return kind(_value(item) for item in node.elts)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Name):
        return -_value(node.operand)
    if isinstance(node, ast.Name):
        if node.id not in _NAMES:
            raise ValueError(f"the name {node.id}")
        return _NAMES[node.id]
    return ast.literal_eval(node)


__all__ = ["parse_call"]
