"""What the statements of a function read, set and call: the facts that `weave` decides by."""

from __future__ import annotations

import ast
from collections.abc import Iterator


def steps_in(node: ast.AST) -> Iterator[ast.Call]:
    """Calls of `scheduler.step` under a node."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and is_scheduler_method(call.func, "step"):
            yield call


def is_scheduler_method(func: ast.expr, method: str | None = None) -> bool:
    """`...scheduler.method`, or any method of a scheduler."""
    if not isinstance(func, ast.Attribute) or (method is not None and func.attr != method):
        return False
    return ast.unparse(func.value).endswith("scheduler")


def parts_of(target: ast.expr | None) -> list[ast.expr]:
    """The targets of an assignment: of `x, y = ...` two."""
    if target is None:
        return []
    return target.elts if isinstance(target, ast.Tuple) else [target]


def timesteps_in(loop: ast.For) -> list[ast.expr]:
    """Timesteps in what a loop iterates over: one expression, if it is a denoising loop."""
    return [
        node
        for node in ast.walk(loop.iter)
        if isinstance(node, ast.Name | ast.Attribute)
        and name_of(node).endswith(("timesteps", "timesteps_tensor"))
    ]


def parameters_of(function: ast.FunctionDef) -> set[str]:
    """Names of a function's parameters."""
    return {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}


def set_outside(function: ast.FunctionDef, loop: ast.For) -> set[str]:
    """Parameters, and variables set anywhere but in the loop's own statements before the step."""
    inside = {id(node) for node in ast.walk(loop)}
    outside = {
        node.id
        for node in ast.walk(function)
        if id(node) not in inside and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return parameters_of(function) | outside


def read_first(statement: ast.stmt, certain: set[str]) -> set[str]:
    """Variables a statement may read before it sets them itself."""
    if isinstance(statement, ast.If):
        branches = [
            _read_first_block(block, certain) for block in (statement.body, statement.orelse)
        ]
        return read_in(statement.test) | branches[0] | branches[1]
    if isinstance(statement, ast.With):
        heads = set().union(*(read_in(item.context_expr) for item in statement.items))
        return heads | _read_first_block(statement.body, certain)
    if isinstance(statement, ast.For):
        target = stored_in(statement.target)
        inside = _read_first_block(statement.body, certain | target) - target
        return read_in(statement.iter) | inside
    if isinstance(statement, ast.AugAssign):
        return read_in(statement.value) | stored_in(statement.target)
    return read_in(statement)


def _read_first_block(block: list[ast.stmt], certain: set[str]) -> set[str]:
    known = set(certain)
    first: set[str] = set()
    for statement in block:
        first |= read_first(statement, known) - known
        known |= surely_stored(statement)
    return first


def surely_stored(statement: ast.stmt) -> set[str]:
    """Variables that a statement sets, whatever the conditions."""
    if isinstance(statement, ast.If):
        branches = (statement.body, statement.orelse)
        stored = [set().union(*map(surely_stored, block)) for block in branches]
        return stored[0] & stored[1]
    if isinstance(statement, ast.With):
        return set().union(*map(surely_stored, statement.body))
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return stored_in(statement)
    return set()


def stored_in(node: ast.AST) -> set[str]:
    """Variables a node sets; a comprehension's own are in its own scope and do not count."""
    own = {id(name) for name in _comprehension_targets(node)}
    return {name.id for name in _names(node, ast.Store) if id(name) not in own}


def read_in(node: ast.AST) -> set[str]:
    """Variables a node reads; a comprehension's own do not count."""
    own = {name.id for name in _comprehension_targets(node)}
    return {name.id for name in _names(node, ast.Load)} - own


def _comprehension_targets(node: ast.AST) -> list[ast.Name]:
    loops = [part for part in ast.walk(node) if isinstance(part, ast.comprehension)]
    return [name for loop in loops for name in _names(loop.target, ast.Store)]


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    names = [name for name in ast.walk(node) if isinstance(name, ast.Name)]
    return [name for name in names if isinstance(name.ctx, context)]


def name_of(func: ast.expr) -> str:
    """Last name of what is called: `f` in `a.b.f(...)`."""
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""
