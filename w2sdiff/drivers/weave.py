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
        if _w2s.left == "continue": continue        # those of A mean the outer loop
        if _w2s.left == "break": break
        B                                           # once per step, as always

`step_of(scheduler)(...)` hands the prediction to the generator: another request goes round the
inner loop again, the generator's return value makes the one real step. ControlNet residuals,
IP-Adapter, guidance rescale, learned sigma, two-call guidance, callbacks and progress bars are
therefore the pipeline's own code, run again, and nothing is copied or forked.

File name and line numbers stay the original ones, so tracebacks and debuggers point into diffusers.
The transformation is made once per class (15 to 30 ms) and the result kept. What is not recognised
is refused: a loop that is not woven correctly would draw wrong images silently. `_check_repeatable`
lists what would go wrong when A runs twice.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from w2sdiff.errors import UnsupportedError

RUN = "_w2s"  # name of the run inside woven code
SLOT = "_w2sdiff_run"  # where the pipeline instance holds it meanwhile
RANDOM = {
    "randn_tensor",
    "randn",
    "randn_like",
    "rand",
    "rand_like",
    "normal",
    "normal_",
    "randint",
    "bernoulli",
}
# Latents that hold one half twice stay what they are (DiT).
TWICE = ("half = {x}[:len({x}) // 2]", "{x} = torch.cat([half, half], dim=0)")

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
    refuse = _Refusal(owner, original)
    _check_function(original, function, refuse)
    _check_loop(function, loop, refuse)
    cut = _statement_with_step(loop, refuse)
    again, after = loop.body[: cut + 1], loop.body[cut + 1 :]
    _check_random(owner, again, refuse)
    latents, history = _latents(again[-1], refuse)
    _check_repeatable(again, latents, history, _set_outside(function, loop), refuse)
    _check_memory(function, again, refuse)
    _check_sigmas(again, latents, refuse)
    inputs = _inputs(again, loop, latents, _stored(function) | _parameters(function))
    _rewrite(function, loop, again, after, latents, inputs, refuse)
    scales = any(_is_scaled(node, latents) for part in again for node in ast.walk(part))
    return Woven(_compile(tree, original), inputs, _timestep_name(loop, refuse), scales)


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
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For) and any(_steps(node))]
    inner = [
        loop
        for loop in loops
        if not any(other is not loop and other in loops for other in ast.walk(loop))
    ]
    if not inner:
        for call in ast.walk(function):
            # SkyReels-V2's diffusion forcing: every frame has a scheduler and a level of its own.
            if isinstance(call, ast.Call) and _is_one_of_many_schedulers(call.func):
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


def _steps(node: ast.AST) -> Iterator[ast.Call]:
    """Calls of `scheduler.step` under a node."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and _is_scheduler_method(call.func, "step"):
            yield call


def _is_scheduler_method(func: ast.expr, method: str | None = None) -> bool:
    if not isinstance(func, ast.Attribute) or (method is not None and func.attr != method):
        return False
    return ast.unparse(func.value).endswith("scheduler")


def _is_one_of_many_schedulers(func: ast.expr) -> bool:
    """`schedulers[i].step`."""
    many = isinstance(func, ast.Attribute) and func.attr == "step"
    return many and isinstance(func.value, ast.Subscript) and "scheduler" in ast.unparse(func.value)


def _statement_with_step(loop: ast.For, refuse: _Refusal) -> int:
    holders = [index for index, statement in enumerate(loop.body) if any(_steps(statement))]
    if len(holders) != 1:
        raise refuse(loop, "scheduler.step is called in several statements of the loop")
    return holders[0]


def _latents(statement: ast.stmt, refuse: _Refusal) -> tuple[str, set[str]]:
    """Name of the variable that `latents = scheduler.step(..., latents)[0]` reads and writes.

    CogVideoX's DPM has `latents, old = scheduler.step(noise, old, ..., latents)`: the names of what
    else is given and written are the second result.
    """
    names, history = set(), set()
    for call in _steps(statement):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        sample = keywords.get("sample", call.args[-1] if call.args else None)
        if not isinstance(sample, ast.Name):
            why = "what scheduler.step receives is not a plain variable (it is sliced or unpacked)"
            raise refuse(call, why)
        assign = _tail_assignment(statement, call)
        target = assign.targets[0] if assign is not None and len(assign.targets) == 1 else None
        several = isinstance(target, ast.Tuple) and assign is not None and assign.value is call
        written = [ast.unparse(part) for part in _parts(target)]
        if written[:1] != [sample.id] or (len(written) > 1 and not several):
            form = f"{', '.join(written)} = scheduler.step(..., {sample.id})"
            why = f"it steps a part or another form of the latents (`{form}`)"
            raise refuse(call, why)
        names.add(sample.id)
        history.update(set(written[1:]) & _loaded(call))
    if len(names) != 1:
        raise refuse(statement, "scheduler.step is applied to different variables")
    return names.pop(), history


def _parts(target: ast.expr | None) -> list[ast.expr]:
    if target is None:
        return []
    return target.elts if isinstance(target, ast.Tuple) else [target]


def _tail_assignment(statement: ast.stmt, call: ast.Call) -> ast.Assign | None:
    """The assignment that holds `call`, if nothing follows it within the statement."""
    if isinstance(statement, ast.Assign):
        return statement
    blocks = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody", "handlers")]
    for block in blocks:
        if not block or not isinstance(block[-1], ast.stmt):
            continue
        if any(node is call for node in ast.walk(block[-1])):
            return _tail_assignment(block[-1], call)
    return None


# ---- what is refused


class _Refusal:
    """Builds the error that says which line cannot be woven, and why."""

    def __init__(self, owner: type, original: Any) -> None:
        self.name = f"{owner.__name__}.__call__"
        self.file = inspect.getsourcefile(original)

    def __call__(self, node: ast.AST, why: str) -> UnsupportedError:
        line = getattr(node, "lineno", 0)
        return UnsupportedError(f"{self.name} cannot be woven: {why} ({self.file}, line {line}).")


def _check_function(original: Any, function: ast.FunctionDef, refuse: _Refusal) -> None:
    if original.__code__.co_freevars:
        free = original.__code__.co_freevars
        raise refuse(function, f"it uses variables of an enclosing scope {free}")
    for node in ast.walk(function):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if name.startswith("__") and not name.endswith("__"):
            raise refuse(node, f"it uses the private name {name}")
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await):
            raise refuse(node, "it is a generator or a coroutine")


def _check_loop(function: ast.FunctionDef, loop: ast.For, refuse: _Refusal) -> None:
    """One loop over timesteps, one scheduler, whose state the loop leaves to `step`."""
    outer = [node for node in ast.walk(function) if isinstance(node, ast.For) and node is not loop]
    around = [node for node in outer if any(part is loop for part in ast.walk(node))]
    if not _timesteps_in(loop) and any(map(_timesteps_in, around)):
        over = ast.unparse(loop.iter)
        raise refuse(loop, f"it steps parts of the latents one by one, such as views (`{over}`)")
    _timestep_name(loop, refuse)
    steps = [call.func for call in _steps(loop)]
    schedulers = {ast.unparse(func.value) for func in steps if isinstance(func, ast.Attribute)}
    if len(schedulers) > 1:
        names = ", ".join(sorted(schedulers))
        raise refuse(loop, f"it steps several schedulers in one loop ({names})")
    for node in ast.walk(loop):
        stores = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        sets = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and _is_scheduler_method(node.func)
            and node.func.attr.startswith("set_")
        )
        if sets or (stores and "scheduler" in ast.unparse(node)):
            raise refuse(node, "it changes the scheduler before or beside scheduler.step")


def _check_repeatable(
    again: list[ast.stmt],
    latents: str,
    history: set[str],
    initialised: set[str],
    refuse: _Refusal,
) -> None:
    """Refuse whatever would come out differently when A runs more than once per step."""
    for statement in again:
        for node in ast.walk(statement):
            if isinstance(node, ast.Return):
                raise refuse(node, "it returns from inside the loop")
            if isinstance(node, ast.Subscript | ast.AugAssign) and _writes_into(node, latents):
                raise refuse(node, f"it writes into {latents!r}, which scheduler.step receives")
    rebinds = [
        node
        for statement in again
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and node.id == latents and isinstance(node.ctx, ast.Store)
    ]
    steps, harmless = len(list(_steps(again[-1]))), _harmless(again, latents)
    if len(rebinds) != steps + harmless:
        raise refuse(rebinds[0], f"it rebinds {latents!r}, which scheduler.step receives")
    carried = _carried(again, initialised) - {latents} - history
    if carried:
        raise refuse(again[0], f"it carries {sorted(carried)} from one step to the next")


def _draws(call: ast.Call) -> bool:
    """A call that draws random numbers, by its name or because it is given a generator."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    names = {argument.id for argument in given if isinstance(argument, ast.Name)}
    steps = _is_scheduler_method(call.func, "step")
    return _name_of(call.func) in RANDOM or ("generator" in names and not steps)


def _writes_into(node: ast.Subscript | ast.AugAssign, name: str) -> bool:
    """`name[...] = ...` or `name += ...`, which change the tensor that the method holds."""
    if isinstance(node, ast.AugAssign):
        return isinstance(node.target, ast.Name) and node.target.id == name
    stores = isinstance(node.ctx, ast.Store)
    return stores and isinstance(node.value, ast.Name) and node.value.id == name


def _harmless(again: list[ast.stmt], latents: str) -> int:
    """How often A rebinds the latents to what they are already.

    That is `x = x.to(...)` (LCM), `x = scheduler.scale_model_input(x, t)` where the scheduler does
    not scale (see `Woven.scales_latents`), and DiT's `TWICE`.
    """
    halves, joins = (text.format(x=latents) for text in TWICE)
    count, halved = 0, False
    for node in (node for statement in again for node in ast.walk(statement)):
        if isinstance(node, ast.Assign):
            text = ast.unparse(node)
            halved = halved or text == halves
            cast = text.startswith(f"{latents} = {latents}.to(")
            count += cast or _is_scaled(node, latents) or (halved and text == joins)
    return count


def _is_scaled(node: ast.AST, latents: str) -> bool:
    """`x = scheduler.scale_model_input(x, ...)`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    call = node.value
    scales = _is_scheduler_method(call.func, "scale_model_input")
    names = [ast.unparse(part) for part in (node.targets[0], *call.args[:1])]
    return scales and names == [latents, latents]


def _check_random(owner: type, again: list[ast.stmt], refuse: _Refusal) -> None:
    """Refuse random numbers, also in a method that A calls (LTX's condition pipeline)."""
    for call in (node for statement in again for node in ast.walk(statement)):
        if not isinstance(call, ast.Call):
            continue
        if _draws(call):
            raise refuse(call, "it draws random numbers before scheduler.step")
        if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) == "self":
            body = _source_of(getattr(owner, call.func.attr, None))
            inside = ast.walk(body) if body is not None else ()
            if any(_draws(node) for node in inside if isinstance(node, ast.Call)):
                why = f"it draws random numbers before scheduler.step, in {call.func.attr}"
                raise refuse(call, why)


def _check_memory(function: ast.FunctionDef, again: list[ast.stmt], refuse: _Refusal) -> None:
    """Refuse guidance that remembers: AceStep's running average sees every evaluation."""
    read = set().union(*map(_loaded, again))
    for node in ast.walk(function):
        made = isinstance(node, ast.Assign) and "MomentumBuffer(" in ast.unparse(node.value)
        if made and _stored(node) & read:
            raise refuse(node, "its guidance keeps a running average from one call to the next")


def _check_sigmas(again: list[ast.stmt], latents: str, refuse: _Refusal) -> None:
    """Refuse arithmetic of the latents with `scheduler.sigmas[i]` (Cosmos 2): not their level."""
    sigmas: set[str] = set()  # variables that were computed from them
    for node in (node for statement in again for node in ast.walk(statement)):
        if isinstance(node, ast.Assign) and latents not in _loaded(node.value):
            reads = _loaded(node.value) & sigmas or "scheduler.sigmas[" in ast.unparse(node)
            sigmas |= _stored(node) if reads else set()
        if isinstance(node, ast.BinOp):
            a, b = _loaded(node.left), _loaded(node.right)
            if (latents in a and b & sigmas) or (latents in b and a & sigmas):
                why = (
                    "it scales the latents by the scheduler's sigma of the loop's step, which is "
                    "not the level of all latents that the network is asked about"
                )
                raise refuse(node, why)


def _source_of(method: Any) -> ast.AST | None:
    try:
        source = inspect.getsource(inspect.unwrap(method))
    except (OSError, TypeError):
        return None
    return ast.parse("if 1:\n" + source if source[:1].isspace() else source)


def _carried(again: list[ast.stmt], initialised: set[str]) -> set[str]:
    """Variables that A sets but may read before: their value survives to the next run of A.

    A variable that is set under one condition and read under another (`noise_pred_text`) is fine as
    long as nothing but an earlier statement of A can have set it.
    """
    stored = set().union(*map(_stored, again))
    certain: set[str] = set()  # set by an earlier statement of A, whatever the conditions
    possible: set[str] = set()  # set by an earlier statement of A, under some condition
    carried: set[str] = set()
    for statement in again:
        early = (_read_first(statement, certain) & stored) - certain
        carried |= early & (initialised | (early - possible))
        certain |= _surely_stored(statement)
        possible |= _stored(statement)
    return carried


def _set_outside(function: ast.FunctionDef, loop: ast.For) -> set[str]:
    """Parameters, and variables set anywhere but in the loop's own statements before the step."""
    inside = {id(node) for node in ast.walk(loop)}
    outside = {
        node.id
        for node in ast.walk(function)
        if id(node) not in inside and isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return _parameters(function) | outside


def _parameters(function: ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in ast.walk(function.args) if isinstance(argument, ast.arg)}


def _read_first(statement: ast.stmt, certain: set[str]) -> set[str]:
    """Variables a statement may read before it sets them itself."""
    if isinstance(statement, ast.If):
        branches = [
            _read_first_block(block, certain) for block in (statement.body, statement.orelse)
        ]
        return _loaded(statement.test) | branches[0] | branches[1]
    if isinstance(statement, ast.With):
        heads = set().union(*(_loaded(item.context_expr) for item in statement.items))
        return heads | _read_first_block(statement.body, certain)
    if isinstance(statement, ast.For):
        target = _stored(statement.target)
        inside = _read_first_block(statement.body, certain | target) - target
        return _loaded(statement.iter) | inside
    if isinstance(statement, ast.AugAssign):
        return _loaded(statement.value) | _stored(statement.target)
    return _loaded(statement)


def _read_first_block(block: list[ast.stmt], certain: set[str]) -> set[str]:
    known = set(certain)
    first: set[str] = set()
    for statement in block:
        first |= _read_first(statement, known) - known
        known |= _surely_stored(statement)
    return first


def _surely_stored(statement: ast.stmt) -> set[str]:
    if isinstance(statement, ast.If):
        branches = (statement.body, statement.orelse)
        stored = [set().union(*map(_surely_stored, block)) for block in branches]
        return stored[0] & stored[1]
    if isinstance(statement, ast.With):
        return set().union(*map(_surely_stored, statement.body))
    if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
        return _stored(statement)
    return set()


def _stored(node: ast.AST) -> set[str]:
    """Variables a node sets; a comprehension's own are in its own scope and do not count."""
    own = {id(name) for name in _comprehension_targets(node)}
    return {name.id for name in _names(node, ast.Store) if id(name) not in own}


def _loaded(node: ast.AST) -> set[str]:
    own = {name.id for name in _comprehension_targets(node)}
    return {name.id for name in _names(node, ast.Load)} - own


def _comprehension_targets(node: ast.AST) -> list[ast.Name]:
    loops = [part for part in ast.walk(node) if isinstance(part, ast.comprehension)]
    return [name for loop in loops for name in _names(loop.target, ast.Store)]


def _names(node: ast.AST, context: type[ast.expr_context]) -> list[ast.Name]:
    names = [name for name in ast.walk(node) if isinstance(name, ast.Name)]
    return [name for name in names if isinstance(name.ctx, context)]


def _name_of(func: ast.expr) -> str:
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else ""


# ---- the rewriting


def _inputs(
    again: list[ast.stmt], loop: ast.For, latents: str, variables: set[str]
) -> tuple[str, ...]:
    """Local variables that A reads and does not set; no globals: rebinding makes them local."""
    loaded = set().union(*map(_loaded, again)) & variables
    stored = set().union(*map(_stored, again)) | _stored(loop.target)
    return tuple(sorted(loaded - stored - {"self", latents}))


def _timesteps(loop: ast.For, refuse: _Refusal) -> ast.expr:
    """The expression of the loop's timesteps inside its iterator."""
    found = _timesteps_in(loop)
    if len(found) != 1:
        raise refuse(loop, f"it does not loop over timesteps but over `{ast.unparse(loop.iter)}`")
    return found[0]


def _timesteps_in(loop: ast.For) -> list[ast.expr]:
    return [
        node
        for node in ast.walk(loop.iter)
        if isinstance(node, ast.Name | ast.Attribute)
        and _name_of(node).endswith(("timesteps", "timesteps_tensor"))
    ]


def _timestep_name(loop: ast.For, refuse: _Refusal) -> str:
    _timesteps(loop, refuse)
    target = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
    plain = isinstance(loop.iter, ast.Name | ast.Attribute)
    known = ("enumerate", "progress_bar", "tqdm")
    calls = isinstance(loop.iter, ast.Call) and _name_of(loop.iter.func) in known
    if not isinstance(target, ast.Name) or not (plain or calls):
        over = ast.unparse(loop.iter)
        raise refuse(loop, f"it loops over `{over}`, whose timestep is not a plain variable")
    return target.id


def _rewrite(
    function: ast.FunctionDef,
    loop: ast.For,
    again: list[ast.stmt],
    after: list[ast.stmt],
    latents: str,
    inputs: tuple[str, ...],
    refuse: _Refusal,
) -> None:
    t = _timestep_name(loop, refuse)
    timesteps = ast.unparse(_timesteps(loop, refuse))
    leave = _LeaveOuterLoop()
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
    tail = _code(f"{left}\n{rebind}", loop)
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
    """`continue` and `break` of A: leave the inner loop with a note that the outer one acts on."""

    def rewritten(self, statement: ast.stmt) -> list[ast.stmt]:
        result = self.visit(statement)
        return result if isinstance(result, list) else [result]

    def visit_Continue(self, node: ast.Continue) -> list[ast.stmt]:
        return [*_code(f"{RUN}.leave('continue')", node), ast.copy_location(ast.Break(), node)]

    def visit_Break(self, node: ast.Break) -> list[ast.stmt]:
        return [*_code(f"{RUN}.leave('break')", node), node]

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
        written = [ast.unparse(part) for part in _parts(node.targets[0])]
        self.generic_visit(node)
        if written[:1] == [self.latents] and len(written) > 1 and isinstance(node.value, ast.Call):
            given = _loaded(node.value)
            # What the step was not given has no earlier value, and A does not read it.
            kept = [name if name in given else "None" for name in written[1:]]
            made = node.value.func
            assert isinstance(made, ast.Call)
            made.args += [ast.copy_location(_expression(name), node) for name in kept]
        return node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and _is_scheduler_method(node.func):
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
