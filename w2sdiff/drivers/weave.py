"""Weave: let a pipeline's own loop body answer a method's requests.

Every denoising loop of diffusers has the shape

    for i, t in enumerate(timesteps):
        A                                           # inputs, ControlNet, network, guidance, ...
        latents = self.scheduler.step(noise_pred, t, latents, ...)[0]
        B                                           # callbacks, progress, blending

A method needs "A at this x, as that role" several times per step, and then one real scheduler step.
So the class's own `__call__` is parsed, and its loop becomes

    _w2s.enter(timesteps, locals())                 # levels, number of steps
    for i, t in enumerate(timesteps):
        _w2s.begin(latents, t, locals())            # start the method's generator for this step
        while _w2s.asking:                          # once per request
            latents = _w2s.x                        # the request's latents ...
            t = _w2s.t                              # ... and the timestep the network is told
            if _w2s.inputs: prompt_embeds = ...     # other words (`Prompt`)
            A                                       # scale_model_input is told the level x is at
            latents = _w2s.step_of(self.scheduler)(noise_pred, t, latents, ...)[0]
        if _w2s.inputs: prompt_embeds = ...         # the words of the call again
        if _w2s.left == "continue": continue        # those of A mean the outer loop, and go with
        if _w2s.left == "break": break              # the latents that the step began with
        B                                           # once per step, as always

`step_of(scheduler)(...)` hands the prediction to the generator: another request goes round the
inner loop again, the generator's return value makes the one real step. ControlNet residuals,
IP-Adapter, guidance rescale, learned sigma, two-call guidance, callbacks and progress bars are
therefore the pipeline's own code, run again, and nothing is copied or forked.

File name and line numbers stay the original ones, so tracebacks and debuggers point into diffusers.
The transformation is made once per class (15 to 30 ms) and the result kept. What is not recognised
is refused: a loop that is not woven correctly would draw wrong images silently. `repeatable` knows
what would go wrong when A runs twice.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from w2sdiff.drivers.repeatable import (
    Refusal,
    check_function,
    check_loop,
    check_memory,
    check_random,
    check_repeatable,
    check_sigmas,
    is_one_of_many_schedulers,
    is_scaled,
    latents_of,
    statement_with_step,
    timestep_name,
    timesteps_of,
)
from w2sdiff.drivers.syntax import (
    is_scheduler_method,
    parameters_of,
    parts_of,
    read_in,
    set_outside,
    steps_in,
    stored_in,
)
from w2sdiff.errors import UnsupportedError

RUN = "_w2s"  # name of the run inside woven code
SLOT = "_w2sdiff_run"  # where the pipeline instance holds it meanwhile

_woven: weakref.WeakKeyDictionary[type, Woven] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Woven:
    """The transformed `__call__` of a class.

    Attributes:
        function: takes what the original takes; reads the run from the pipeline's `_w2sdiff_run`.
        inputs: local variables that A reads and does not set: there the prompt's embeddings are.
        timestep: the loop's variable for t.
        scales_latents: A steps with latents that `scale_model_input` has scaled (DiT), which is
            right for schedulers alone that do not scale.
    """

    function: Callable[..., Any]
    inputs: tuple[str, ...]
    timestep: str
    scales_latents: bool


class NotALoop(Exception):  # noqa: N818
    """The function has no denoising loop of its own: look in the next base class."""


def woven_call(cls: type) -> tuple[type, Woven]:
    """Find the class in `cls`'s ancestry whose `__call__` has the denoising loop, and weave it.

    A user's subclass that calls `super().__call__` is passed over for the class it derives from.

    Raises:
        UnsupportedError: no loop, or one that cannot be woven; says which line and why.
    """
    for owner in cls.__mro__:
        if "__call__" not in owner.__dict__:
            continue
        try:
            if owner not in _woven:
                _woven[owner] = _weave(owner)
            return owner, _woven[owner]
        except NotALoop:
            continue
    raise UnsupportedError(
        f"{cls.__name__} has no denoising loop of its own "
        "(a `for` over timesteps with one `scheduler.step`); "
        "attach to the pipeline that does the denoising."
    )


def _weave(owner: type) -> Woven:
    original = inspect.unwrap(owner.__dict__["__call__"])
    tree = _parse(owner, original)
    function = tree.body[0]
    assert isinstance(function, ast.FunctionDef)
    loop = _find_loop(owner, function)
    refuse = Refusal(owner, original)
    check_function(original, function, refuse)
    check_loop(function, loop, refuse)
    cut = statement_with_step(loop, refuse)
    again, after = loop.body[: cut + 1], loop.body[cut + 1 :]
    check_random(owner, again, refuse)
    latents, history = latents_of(again[-1], refuse)
    check_repeatable(again, latents, history, set_outside(function, loop), refuse)
    check_memory(function, again, refuse)
    check_sigmas(again, latents, refuse)
    scales = any(is_scaled(node, latents) for part in again for node in ast.walk(part))
    inputs = _inputs(again, loop, latents, stored_in(function) | parameters_of(function))
    _rewrite(function, loop, again, after, latents, inputs, refuse)
    return Woven(_compile(tree, original), inputs, timestep_name(loop, refuse), scales)


# ---- reading the source


def _parse(owner: type, original: Any) -> ast.Module:
    try:
        lines, first = inspect.getsourcelines(original)
    except (OSError, TypeError):
        raise UnsupportedError(
            f"The source of {owner.__name__}.__call__ is not available, "
            "and its loop cannot be woven without it. "
            "Install diffusers as ordinary files (not frozen or compiled)."
        ) from None
    # Wrapped in `if 1:` rather than dedented, so that columns stay right as well as lines.
    indented = lines[0][:1].isspace()
    source = ("if 1:\n" if indented else "") + "".join(lines)
    tree = ast.parse(source)
    ast.increment_lineno(tree, first - (2 if indented else 1))
    if indented:
        assert isinstance(tree.body[0], ast.If)
        tree.body = tree.body[0].body
    return tree


def _find_loop(owner: type, function: ast.FunctionDef) -> ast.For:
    loops = [
        node for node in ast.walk(function) if isinstance(node, ast.For) and any(steps_in(node))
    ]
    inner = [
        loop
        for loop in loops
        if not any(other is not loop and other in loops for other in ast.walk(loop))
    ]
    if not inner:
        for call in ast.walk(function):
            # SkyReels-V2's diffusion forcing: every frame has a scheduler and a level of its own.
            if isinstance(call, ast.Call) and is_one_of_many_schedulers(call.func):
                raise UnsupportedError(
                    f"{owner.__name__}.__call__ cannot be woven: it steps several schedulers in "
                    "one loop (diffusion forcing), so that its latents are at several noise levels "
                    f"at once (line {call.lineno})."
                )
        raise NotALoop
    if len(inner) > 1:
        lines = ", ".join(str(loop.lineno) for loop in inner)
        raise UnsupportedError(
            f"{owner.__name__}.__call__ has several denoising loops (lines {lines}); refused."
        )
    return inner[0]


# ---- the rewriting


def _inputs(
    again: list[ast.stmt], loop: ast.For, latents: str, variables: set[str]
) -> tuple[str, ...]:
    """Local variables that A reads and does not set; no globals: rebinding makes them local."""
    loaded = set().union(*map(read_in, again)) & variables
    stored = set().union(*map(stored_in, again)) | stored_in(loop.target)
    return tuple(sorted(loaded - stored - {"self", latents}))


def _rewrite(
    function: ast.FunctionDef,
    loop: ast.For,
    again: list[ast.stmt],
    after: list[ast.stmt],
    latents: str,
    inputs: tuple[str, ...],
    refuse: Refusal,
) -> None:
    t = timestep_name(loop, refuse)
    timesteps = ast.unparse(timesteps_of(loop, refuse))
    leave = _LeaveOuterLoop(latents)
    route = _RouteScheduler(latents)
    body = [route.visit(part) for statement in again for part in leave.rewritten(statement)]
    lines = [f"    if {name!r} in {RUN}.inputs: {name} = {RUN}.inputs[{name!r}]" for name in inputs]
    rebind = "\n".join([f"if {RUN}.inputs:", *lines, ""]) if inputs else ""
    head = _code(f"{RUN}.begin({latents}, {t}, locals())", loop)
    phase = _code(f"{latents} = {RUN}.x\n{t} = {RUN}.t\n{rebind}", loop)
    inner = _code(f"while {RUN}.asking: pass", loop)
    assert isinstance(inner[0], ast.While)
    inner[0].body = phase + body
    # B sees the loop's own variables again, whatever the last request was told.
    left = "\n".join(f"if {RUN}.left == '{how}': {how}" for how in ("continue", "break"))
    tail = _code(f"{rebind}{left}", loop)
    loop.body = head + inner + _code(f"{t} = {RUN}.t", loop) + tail + after
    _insert_before(function, loop, _code(f"{RUN}.enter({timesteps}, locals())", loop))
    docstring = 1 if ast.get_docstring(function) is not None else 0
    function.body[docstring:docstring] = _code(f"{RUN} = self.__dict__[{SLOT!r}]", function)


def _code(source: str, where: ast.AST) -> list[ast.stmt]:
    """Statements from text, all on the line of `where`."""
    statements = ast.parse(source).body
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.expr | ast.stmt | ast.excepthandler | ast.arg | ast.keyword):
                ast.copy_location(node, where)
                node.end_lineno = getattr(where, "lineno", None)
                node.end_col_offset = getattr(where, "col_offset", None)
    return statements


def _insert_before(function: ast.FunctionDef, loop: ast.For, statements: list[ast.stmt]) -> None:
    for node in ast.walk(function):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and loop in block:
                index = block.index(loop)
                block[index:index] = statements
                return


class _LeaveOuterLoop(ast.NodeTransformer):
    """`continue` and `break` of A: leave the inner loop with a note that the outer one acts on.

    It may happen between two requests of a step (an interrupt set from another thread), when the
    latents are a request's.
    """

    def __init__(self, latents: str) -> None:
        self.latents = latents

    def rewritten(self, statement: ast.stmt) -> list[ast.stmt]:
        result = self.visit(statement)
        return result if isinstance(result, list) else [result]

    def visit_Continue(self, node: ast.Continue) -> list[ast.stmt]:
        return [
            *_code(f"{self.latents} = {RUN}.leave('continue')", node),
            ast.copy_location(ast.Break(), node),
        ]

    def visit_Break(self, node: ast.Break) -> list[ast.stmt]:
        return [*_code(f"{self.latents} = {RUN}.leave('break')", node), node]

    def _stay(self, node: ast.AST) -> ast.AST:
        return node  # loops and functions inside A keep their own

    visit_For = visit_While = visit_FunctionDef = visit_Lambda = _stay  # noqa: N815


class _RouteScheduler(ast.NodeTransformer):
    """`X.step` -> `_w2s.step_of(X)`, `X.scale_model_input` -> `_w2s.scale_of(X)`."""

    routes = {"step": "step_of", "scale_model_input": "scale_of"}  # noqa: RUF012

    def __init__(self, latents: str) -> None:
        self.latents = latents

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        """`x, old = X.step(..., old, ..., x)` -> `x, old = _w2s.step_of(X, old)(...)`."""
        written = [ast.unparse(part) for part in parts_of(node.targets[0])]
        self.generic_visit(node)
        if written[:1] == [self.latents] and len(written) > 1 and isinstance(node.value, ast.Call):
            given = read_in(node.value)
            # What the step was not given has no earlier value, and A does not read it.
            kept = [name if name in given else "None" for name in written[1:]]
            made = node.value.func
            assert isinstance(made, ast.Call)
            made.args += [ast.copy_location(_expression(name), node) for name in kept]
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and is_scheduler_method(node.func):
            route = self.routes.get(node.func.attr)
            if route is not None:
                name = ast.copy_location(ast.Name(RUN, ast.Load()), node.func)
                method = ast.copy_location(ast.Attribute(name, route, ast.Load()), node.func)
                node.func = ast.copy_location(ast.Call(method, [node.func.value], []), node.func)
        return node


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _compile(tree: ast.Module, original: Any) -> Callable[..., Any]:
    ast.fix_missing_locations(tree)
    file = inspect.getsourcefile(original) or "<woven>"
    # The original module's `from __future__` lines hold for the copy as well.
    futures = original.__code__.co_flags & sum(
        getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
    )
    code = compile(tree, file, "exec", flags=futures, dont_inherit=True)
    namespace: dict[str, Any] = {}
    # Decorators (no_grad, docstring helpers) are part of the source and are applied again here.
    exec(code, original.__globals__, namespace)
    function: Callable[..., Any] = namespace["__call__"]
    return function
