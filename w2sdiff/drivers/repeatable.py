"""What a loop must be like so that its statements may run several times per step.

A loop that is not woven correctly would draw wrong pictures silently, so whatever would come out
differently the second time, or at latents of another level, is refused: with the line, and the
reason.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any

from w2sdiff.drivers.syntax import (
    is_scheduler_method,
    name_of,
    parts_of,
    read_first,
    read_in,
    steps_in,
    stored_in,
    surely_stored,
    timesteps_in,
)
from w2sdiff.errors import UnsupportedError

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


class Refusal:
    """Builds the error that says which line cannot be woven, and why."""

    def __init__(self, owner: type, original: Any) -> None:
        self.name = f"{owner.__name__}.__call__"
        self.file = inspect.getsourcefile(original)

    def __call__(self, node: ast.AST, why: str) -> UnsupportedError:
        """The error for a line."""
        line = getattr(node, "lineno", 0)
        return UnsupportedError(f"{self.name} cannot be woven: {why} ({self.file}, line {line}).")


def is_one_of_many_schedulers(func: ast.expr) -> bool:
    """`schedulers[i].step`."""
    if not isinstance(func, ast.Attribute) or not isinstance(func.value, ast.Subscript):
        return False
    return func.attr == "step" and "scheduler" in ast.unparse(func.value)


def statement_with_step(loop: ast.For, refuse: Refusal) -> int:
    """Index of the one statement of the loop that holds `scheduler.step`: the end of A."""
    holders = [index for index, statement in enumerate(loop.body) if any(steps_in(statement))]
    if len(holders) != 1:
        raise refuse(loop, "scheduler.step is called in several statements of the loop")
    return holders[0]


def latents_of(statement: ast.stmt, refuse: Refusal) -> tuple[str, set[str]]:
    """Name of the variable that `latents = scheduler.step(..., latents)[0]` reads and writes.

    CogVideoX's DPM has `latents, old = scheduler.step(noise, old, ..., latents)`: the names of what
    else is given and written are the second result.
    """
    names, history = set(), set()
    for call in steps_in(statement):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        sample = keywords.get("sample", call.args[-1] if call.args else None)
        if not isinstance(sample, ast.Name):
            why = "what scheduler.step receives is not a plain variable (it is sliced or unpacked)"
            raise refuse(call, why)
        assign = _tail_assignment(statement, call)
        target = assign.targets[0] if assign is not None and len(assign.targets) == 1 else None
        several = isinstance(target, ast.Tuple) and assign is not None and assign.value is call
        written = [ast.unparse(part) for part in parts_of(target)]
        if written[:1] != [sample.id] or (len(written) > 1 and not several):
            form = f"{', '.join(written)} = scheduler.step(..., {sample.id})"
            why = f"it steps a part or another form of the latents (`{form}`)"
            raise refuse(call, why)
        names.add(sample.id)
        history.update(set(written[1:]) & read_in(call))
    if len(names) != 1:
        raise refuse(statement, "scheduler.step is applied to different variables")
    return names.pop(), history


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


def check_function(original: Any, function: ast.FunctionDef, refuse: Refusal) -> None:
    """Refuse functions that cannot be compiled anew somewhere else."""
    if original.__code__.co_freevars:
        free = original.__code__.co_freevars
        raise refuse(function, f"it uses variables of an enclosing scope {free}")
    for node in ast.walk(function):
        name = node.attr if isinstance(node, ast.Attribute) else ""
        if name.startswith("__") and not name.endswith("__"):
            raise refuse(node, f"it uses the private name {name}")
        if isinstance(node, ast.Yield | ast.YieldFrom | ast.Await):
            raise refuse(node, "it is a generator or a coroutine")


def check_loop(function: ast.FunctionDef, loop: ast.For, refuse: Refusal) -> None:
    """One loop over timesteps, one scheduler, whose state the loop leaves to `step`."""
    outer = [node for node in ast.walk(function) if isinstance(node, ast.For) and node is not loop]
    around = [node for node in outer if any(part is loop for part in ast.walk(node))]
    if not timesteps_in(loop) and any(map(timesteps_in, around)):
        over = ast.unparse(loop.iter)
        raise refuse(loop, f"it steps parts of the latents one by one, such as views (`{over}`)")
    timestep_name(loop, refuse)
    steps = [call.func for call in steps_in(loop)]
    schedulers = {ast.unparse(func.value) for func in steps if isinstance(func, ast.Attribute)}
    if len(schedulers) > 1:
        names = ", ".join(sorted(schedulers))
        raise refuse(loop, f"it steps several schedulers in one loop ({names})")
    for node in ast.walk(loop):
        stores = isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        sets = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and is_scheduler_method(node.func)
            and node.func.attr.startswith("set_")
        )
        if sets or (stores and "scheduler" in ast.unparse(node)):
            raise refuse(node, "it changes the scheduler before or beside scheduler.step")


def check_random(owner: type, again: list[ast.stmt], refuse: Refusal) -> None:
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


def _draws(call: ast.Call) -> bool:
    """A call that draws random numbers, by its name or because it is given a generator."""
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    names = {argument.id for argument in given if isinstance(argument, ast.Name)}
    steps = is_scheduler_method(call.func, "step")
    return name_of(call.func) in RANDOM or ("generator" in names and not steps)


def _source_of(method: Any) -> ast.AST | None:
    try:
        source = inspect.getsource(inspect.unwrap(method))
    except (OSError, TypeError):
        return None
    return ast.parse("if 1:\n" + source if source[:1].isspace() else source)


def check_repeatable(
    again: list[ast.stmt],
    latents: str,
    history: set[str],
    initialised: set[str],
    refuse: Refusal,
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
    steps, harmless = len(list(steps_in(again[-1]))), _harmless(again, latents)
    if len(rebinds) != steps + harmless:
        raise refuse(rebinds[0], f"it rebinds {latents!r}, which scheduler.step receives")
    carried = _carried(again, initialised) - {latents} - history
    if carried:
        raise refuse(again[0], f"it carries {sorted(carried)} from one step to the next")


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
            count += cast or is_scaled(node, latents) or (halved and text == joins)
    return count


def is_scaled(node: ast.AST, latents: str) -> bool:
    """`x = scheduler.scale_model_input(x, ...)`."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
        return False
    call = node.value
    scales = is_scheduler_method(call.func, "scale_model_input")
    names = [ast.unparse(part) for part in (node.targets[0], *call.args[:1])]
    return scales and names == [latents, latents]


def _carried(again: list[ast.stmt], initialised: set[str]) -> set[str]:
    """Variables that A sets but may read before: their value survives to the next run of A.

    A variable that is set under one condition and read under another (`noise_pred_text`) is fine as
    long as nothing but an earlier statement of A can have set it.
    """
    stored = set().union(*map(stored_in, again))
    certain: set[str] = set()  # set by an earlier statement of A, whatever the conditions
    possible: set[str] = set()  # set by an earlier statement of A, under some condition
    carried: set[str] = set()
    for statement in again:
        early = (read_first(statement, certain) & stored) - certain
        carried |= early & (initialised | (early - possible))
        certain |= surely_stored(statement)
        possible |= stored_in(statement)
    return carried


def check_memory(function: ast.FunctionDef, again: list[ast.stmt], refuse: Refusal) -> None:
    """Refuse guidance that remembers: AceStep's running average sees every evaluation."""
    read = set().union(*map(read_in, again))
    for node in ast.walk(function):
        made = isinstance(node, ast.Assign) and "MomentumBuffer(" in ast.unparse(node.value)
        if made and stored_in(node) & read:
            raise refuse(node, "its guidance keeps a running average from one call to the next")


def check_guiders(pipe: Any) -> None:
    """Refuse guiders that remember: HunyuanImage's default has a momentum (diffusers 0.42).

    A guider is an object beside the loop, and may be another one in every call.
    """
    for name in ("guider", "ocr_guider"):
        guider = getattr(pipe, name, None)
        if getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
            raise UnsupportedError(
                f"The {name} of {type(pipe).__name__} keeps a running average from one evaluation "
                "to the next, which would mix the method's roles; use "
                f"pipe.{name} = pipe.{name}.new(adaptive_projected_guidance_momentum=None)."
            )


def check_sigmas(again: list[ast.stmt], latents: str, refuse: Refusal) -> None:
    """Refuse arithmetic of the latents with `scheduler.sigmas[i]` (Cosmos 2): not their level."""
    sigmas: set[str] = set()  # variables that were computed from them
    for node in (node for statement in again for node in ast.walk(statement)):
        if isinstance(node, ast.Assign) and latents not in read_in(node.value):
            reads = read_in(node.value) & sigmas or "scheduler.sigmas[" in ast.unparse(node)
            sigmas |= stored_in(node) if reads else set()
        if isinstance(node, ast.BinOp):
            a, b = read_in(node.left), read_in(node.right)
            if (latents in a and b & sigmas) or (latents in b and a & sigmas):
                why = (
                    "it scales the latents by the scheduler's sigma of the loop's step, which is "
                    "not the level of all latents that the network is asked about"
                )
                raise refuse(node, why)


def timesteps_of(loop: ast.For, refuse: Refusal) -> ast.expr:
    """The expression of the loop's timesteps inside its iterator."""
    found = timesteps_in(loop)
    if len(found) != 1:
        raise refuse(loop, f"it does not loop over timesteps but over `{ast.unparse(loop.iter)}`")
    return found[0]


def timestep_name(loop: ast.For, refuse: Refusal) -> str:
    """Name of the loop's variable that holds t."""
    timesteps_of(loop, refuse)
    target = loop.target.elts[-1] if isinstance(loop.target, ast.Tuple) else loop.target
    plain = isinstance(loop.iter, ast.Name | ast.Attribute)
    known = ("enumerate", "progress_bar", "tqdm")
    calls = isinstance(loop.iter, ast.Call) and name_of(loop.iter.func) in known
    if not isinstance(target, ast.Name) or not (plain or calls):
        over = ast.unparse(loop.iter)
        raise refuse(loop, f"it loops over `{over}`, whose timestep is not a plain variable")
    return target.id
