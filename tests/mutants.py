"""Faults of a decoder: the source of tests/minidecoder.py with one check or operation changed."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

# Faults that no single change of an expression makes: name, text of the decoder, text in its place
REWRITTEN = [
    ("a byte order mark is dropped", "else data.decode()", 'else data.decode("utf-8-sig")'),
    ("sums of a transform in 32 bits", "values = [f32(sum(", "values = [f32(int32("),
    ("sums of a transform in binary32", "values = [f32(sum(", "values = [f32(sum_f32("),
    ("sums of a product in 32 bits", "sums = ((sum(", "sums = ((int32("),
    ("sums of a product in binary32", "sums = ((sum(", "sums = ((sum_f32("),
    ("subnormals of a product flushed", "return [f32(f32(f32(s)", "return [flushed(f32(f32(s)"),
    ("subnormals of scaled rows flushed", "return [f32(f32(f32(s)", "return [f32(flushed(f32(s)"),
    ("subnormals of a scaled entry flushed", "values.append(f32(scales", "values.append(flushed(scales"),
    ("subnormals of a step's multiple flushed", "f32((code - zero) * table", "flushed((code - zero) * table"),
    ("subnormals of a sum flushed", "t = [f32(a + b)", "t = [flushed(a + b)"),
    ("subnormals of a trellis stage flushed", "return [f32(scales.values[scales.group(r, c)] * f32(v",
     "return [flushed(scales.values[scales.group(r, c)] * f32(v"),
    ("subnormals of a trellis entry flushed", "* f32(v * step))", "* flushed(v * step))"),
    ("a sum of products is -0", "return [f32(f32(f32(s)", "return [f32(f32(f32(s or -0.0)"),
    ("a sum of coefficients is -0", "values = [f32(sum(", "values = [f32(minus_zero("),
    ("a content checksum is not tested", "zstandard.ZstdDecompressor().decompress(frame,",
     "zstandard.ZstdDecompressor().decompress(without_checksum(frame, end),"),
    ("bytes after a frame are ignored", "allow_extra_data=False", "allow_extra_data=True"),
    ("a key may come twice", "next(reversed(pairs)).encode() < key.encode()",
     "next(reversed(pairs)).encode() <= key.encode()"),
    ("keys in the order of code points of UTF-16", "next(reversed(pairs)).encode() < key.encode()",
     'next(reversed(pairs)).encode("utf-16-be") < key.encode("utf-16-be")'),
    ("classes sorted by an unstable sort", "key=read(n).__getitem__)", "key=descending(read(n)))"),
    ("truth values are integers", "type(value) is int and value >= 0", "isinstance(value, int) and value >= 0"),
    ("dtype of a table: bf16 is unknown", 'F16, F32  # of tables', 'BF16, F32  # of tables'),
    ("dtype of a table: f64 is known", 'F16, F32  # of tables', 'F16, F64  # of tables'),
    ("dtype of a table: i64 is known", 'F16, F32  # of tables', '8, F32  # of tables'),
    ("half a unit rounds up in bf16", "(word >> 16 & 1)", "1"),
    ("half a unit rounds down in bf16", "(word >> 16 & 1)", "0"),
    ("f16 and bf16 by way of truncation", "word + 0x7FFF + (word >> 16 & 1) >> 16", "word >> 16"),
]  # fmt: skip


class Mutant(NamedTuple):
    name: str
    line: int  # where the function begins that it changes; 0 outside functions
    is_check: bool  # whether it changes a check of the file, and nothing that is done with it
    compile: Callable[[], Any]  # what is executed after the module as it is; call it before asking for the next mutant


def flushed(x: float) -> float:
    return 0.0 * x if abs(x) < 2.0**-126 else NAMES["f32"](x)


def int32(terms: Iterator[int]) -> int:
    return (sum(terms) + 2**31) % 2**32 - 2**31


def sum_f32(terms: Iterator[int]) -> float:
    total = 0.0
    for term in terms:
        total = NAMES["f32"](total + term)
    return total


def minus_zero(terms: Iterator[int]) -> float:
    return sum(terms) or -0.0


def descending(classes: bytes) -> Callable[[int], tuple[int, int]]:
    return lambda i: (classes[i], -i)


def without_checksum(frame: bytes, end: int) -> bytes:
    """The frame, its flag for a checksum cleared; ``end`` is that of its header."""
    return frame[:4] + bytes([frame[4] & ~4]) + frame[5 : -4 if frame[4] & 4 and len(frame) > end else None]


def first_of(value: Any, length: int) -> Any:
    """The fields that a decoder reads of an array whose length it does not compare."""
    return value[:length] if type(value) in (list, bytes) else value


NAMES: dict[str, Any] = {}  # of the decoder as it is
HELPERS = [flushed, int32, sum_f32, minus_zero, descending, without_checksum, first_of]


def replaced(call: ast.Call, position: int, new: ast.expr) -> ast.Call:
    return ast.Call(call.func, [new if i == position else arg for i, arg in enumerate(call.args)], call.keywords)


def calls(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def moved(value: ast.expr, by: int) -> ast.expr:
    return ast.BinOp(value, ast.Add() if by > 0 else ast.Sub(), ast.Constant(1))


TYPES = ("Read", "Book", "Freq", "View", "Stage", "Tensor")
INFINITY, FIRST_OF = (ast.parse(text, mode="eval").body for text in ("math.inf", "first_of"))
WEAKER: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE,), ast.LtE: (ast.Lt,), ast.Gt: (ast.GtE,), ast.GtE: (ast.Gt,), ast.Eq: (ast.LtE, ast.GtE),
    ast.NotEq: (ast.Lt, ast.Gt),
}  # fmt: skip


def changed(place: Place) -> Iterator[ast.AST]:
    """What may stand in place of a node."""
    match node := place.node:
        case ast.Call():
            yield from _changed_call(node)
        case ast.BoolOp():
            for i in range(len(node.values)):
                rest = node.values[:i] + node.values[i + 1 :]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.Compare():
            yield from _changed_comparison(node, is_check=place.is_check)
        case ast.IfExp():
            yield node.body
            yield node.orelse
        case ast.If():
            always = ast.BoolOp(ast.Or(), [node.test, ast.Constant(True)])
            never = ast.BoolOp(ast.And(), [node.test, ast.Constant(False)])
            yield ast.If(always, node.body, node.orelse)
            yield ast.If(never, node.body, node.orelse)
        case ast.BinOp():
            yield node.left
            if isinstance(node.op, (ast.Add, ast.Mult, ast.BitOr, ast.BitXor, ast.BitAnd)):
                yield node.right
        case ast.AugAssign() | ast.Expr():
            yield ast.Pass()
        case ast.Constant(value=str(text)) if re.fullmatch(r"[A-Z]{3}-\d{3} \w+", text):
            yield ast.Constant(text.split()[0])
        case ast.Constant(value=int(number)) if type(number) is int:
            yield ast.Constant(number + 1)
            if number:
                yield ast.Constant(number - 1)


def changed_limit(node: ast.AST) -> Iterator[ast.AST]:
    """A constant ``MAX_…`` is moved as a whole."""
    assert isinstance(node, ast.expr)
    yield from (moved(node, 1), moved(node, -1))


def _changed_call(node: ast.Call) -> Iterator[ast.AST]:
    if calls(node, "f32", "abs"):
        yield node.args[0]
    elif calls(node, "max", "min") and not node.keywords:
        yield from (arg for arg in node.args if len(node.args) > 1 and not isinstance(arg, ast.Starred))
    elif calls(node, "need"):
        for i in range(2, len(node.args), 2):
            if _is_budget(node.args[i]):
                continue
            yield replaced(node, i, ast.BoolOp(ast.Or(), [node.args[i], ast.Constant(True)]))
    elif calls(node, "integer"):
        fields = dict(zip(("value", "rule", "least", "most", "over"), node.args, strict=False))
        fields |= {str(word.arg): word.value for word in node.keywords}
        if isinstance(fields.get("least"), ast.Constant) and fields["least"].value == 0:
            del fields["least"]  # all integers are at least 0
        for name, removed in (("least", ast.Constant(0)), ("most", INFINITY)):
            if name in fields:
                constant = isinstance(fields[name], ast.Constant)  # it is moved by itself
                for new in (removed, *([] if constant else [moved(fields[name], 1), moved(fields[name], -1)])):
                    changes = {**fields, name: new}
                    yield ast.Call(node.func, [], [ast.keyword(key, value) for key, value in changes.items()])
        if isinstance(fields.get("over"), ast.Constant):
            yield replaced(node, 4, ast.Constant("format"))
    elif calls(node, "id_of"):
        for i in range(2, len(node.args)):
            yield ast.Call(node.func, node.args[:i] + node.args[i + 1 :], [])
    elif calls(node, "kind_of"):
        yield node.args[0]
        if len(node.args) == 3:
            yield replaced(node, 0, ast.Call(FIRST_OF, [node.args[0], node.args[2]], []))


def _changed_comparison(node: ast.Compare, *, is_check: bool) -> Iterator[ast.AST]:
    terms = [node.left, *node.comparators]
    is_number = not any(isinstance(term, (ast.List, ast.Set)) or _is_text(term) for term in terms)
    for i, op in enumerate(node.ops if is_number else []):
        # Outside a check, whether a value is equal decides which of few kinds it is
        for new in WEAKER.get(type(op), ()) if is_check or not isinstance(op, (ast.Eq, ast.NotEq)) else ():
            yield ast.Compare(node.left, [*node.ops[:i], new(), *node.ops[i + 1 :]], node.comparators)
    if len(node.ops) > 1:
        yield ast.Compare(terms[1], node.ops[1:], terms[2:])
        yield ast.Compare(terms[0], node.ops[:-1], terms[1:-1])


class Place(NamedTuple):
    """Where a node stands: in a field of its parent, or at a position of a list of its parent."""

    node: ast.AST
    parent: ast.AST
    holder: Any
    key: Any
    scope: str
    line: int
    is_check: bool  # within a call of need()

    def put(self, node: ast.AST) -> None:
        if isinstance(self.holder, list):
            self.holder[self.key] = node
        else:
            setattr(self.holder, self.key, node)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and not isinstance(node.value, int)


def places(node: ast.AST, scope: str = "", line: int = 0, *, is_check: bool = False) -> Iterator[Place]:
    """All nodes but those of messages, annotations and the program, with the function in which they are."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        scope = f"{scope}.{node.name}" if scope else node.name
    if isinstance(node, ast.FunctionDef):
        line = node.lineno
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lstrip("(").startswith("MAX_"):
        for i, target in enumerate(node.targets[0].elts):
            yield Place(node.value.elts[i], node.value, node.value.elts, i, target.id, 0, False)
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "args", "ctx") and not isinstance(node, ast.Call):
            continue
        items = list(enumerate(value)) if isinstance(value, list) else [(field, value)]
        for key, item in items:
            if not isinstance(item, ast.AST) or _is_silent(node, field, key, item):
                continue
            yield Place(item, node, value if isinstance(value, list) else node, key, scope, line, is_check)
            yield from places(item, scope, line, is_check=is_check or calls(node, "need"))


def _is_silent(node: ast.AST, field: str, key: object, item: ast.AST) -> bool:
    """Whether no outcome depends on it: messages, which rule is named, types, docstrings, what the program prints."""
    return (
        isinstance(item, ast.JoinedStr)
        or (calls(node, "need") and field == "args" and (key == 0 or (key % 2 and not isinstance(item, ast.Constant))))
        or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
        or (isinstance(item, ast.If) and "__name__" in ast.unparse(item.test))
        or (isinstance(item, ast.FunctionDef) and item.name == "described")
        or (isinstance(item, ast.IfExp) and _is_text(item.body) and _is_text(item.orelse))
        or (isinstance(item, ast.ClassDef) and item.name == "Refused")
        or (isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) in TYPES)
        or isinstance(item, (ast.Import, ast.ImportFrom))
        or _is_budget(item)
    )


def _is_budget(node: ast.AST) -> bool:
    """Whether it belongs to the budgets of LIM-002, which the caller sets, and no fixture."""
    text = ast.unparse(node)
    is_sum = isinstance(node, (ast.AugAssign, ast.Assign)) and text.startswith(("self.budget", "self.n_resident ="))
    return is_sum or (isinstance(node, ast.Compare) and "budget" in text) or text == "'LIM-002 limit'"


def mutants(source: str) -> Iterator[Mutant]:
    tree = ast.parse(source)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]  # outer ones first
    for title, old, new in REWRITTEN:
        assert source.count(old) == 1, f"{title}: the text occurs {source.count(old)} times"
        at = source[: source.index(old)].count("\n") + 1
        lines = [node.lineno for node in functions if node.lineno <= at <= (node.end_lineno or 0)]
        yield Mutant(title, max(lines, default=0), True, partial(compile, source.replace(old, new), title, "exec"))
    seen: Counter[str] = Counter()
    parts = [ast.Module([statement], []) for statement in tree.body]
    for place, module in [(place, part) for part in parts for place in places(part)]:
        for new in changed_limit(place.node) if place.scope.startswith("MAX_") else changed(place):
            old_text = _text(place)
            place.put(new)
            name = f"{place.scope or 'module'}: {_difference(old_text, _text(place))}"
            seen[name] += 1
            name += f" #{seen[name]}" if seen[name] > 1 else ""
            is_check = place.is_check or calls(place.node, "need", "integer", "kind_of", "id_of")
            yield Mutant(name, place.line, is_check, partial(_compiled, [module] if place.line else parts))
            place.put(place.node)


def _compiled(parts: list[ast.Module]) -> Any:
    whole = ast.Module([statement for part in parts for statement in part.body], [])
    return compile(ast.fix_missing_locations(whole), "mutant", "exec")


def _difference(old: str, new: str) -> str:
    """Both texts, of long ones what is around the difference."""
    if len(old) < 100:
        return f"{old} -> {new}"
    n_same = _n_common(old, new)
    n_end = _n_common(old[n_same:][::-1], new[n_same:][::-1])
    start = max(0, n_same - 50)
    return " -> ".join(f"… {text[start : len(text) - n_end + 15]} …" for text in (old, new))


def _n_common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _text(place: Place) -> str:
    """The code at a place, with what is around a number; the first line of a statement."""
    node = place.holder[place.key] if isinstance(place.holder, list) else getattr(place.holder, place.key)
    if isinstance(node, ast.Pass):
        return "nothing"
    is_short = isinstance(place.node, ast.Constant) and isinstance(place.parent, ast.expr)
    return ast.unparse(place.parent if is_short else node).partition("\n")[0]
