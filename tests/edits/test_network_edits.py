"""Experts and SkipLayers against networks changed by hand; compiled networks; what is refused."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import tiny
import torch
from edits.hosts import HIDREAM
from noise_models import close
from torch import nn

from w2sdiff import (
    W2SD,
    Experts,
    InputError,
    Plain,
    SkipLayers,
    UnsupportedError,
    attach,
)
from w2sdiff.edits import parse_edits
from w2sdiff.edits.base import Context
from w2sdiff.edits.skip_layers import returned

STEPS = 3


def drawn(variant, pipe, method):
    with attach(pipe, method):
        return variant.latents(pipe, steps=STEPS)


def latents(family, pipe, edit=None, **changes):
    if edit is None:
        return tiny.latents(pipe, family, steps=STEPS, **changes)
    with attach(pipe, Plain(edit)):
        return tiny.latents(pipe, family, steps=STEPS, **changes)


# --- experts --------------------------------------------------------------------------------------


def chosen(pipe):
    """What every gate chooses: ([tokens, k] experts, [tokens, n] scores)."""
    seen = []

    def look(gate, args, output):
        scores = (args[0].flatten(0, -2) @ gate.weight.T).softmax(-1)
        seen.append((output[0], scores))

    for module in pipe.transformer.modules():
        if type(module).__name__ == "MoEGate":
            module.register_forward_hook(look)
    return seen


@pytest.mark.parametrize(
    ("edit", "k", "lowest"),
    [
        (Experts("top"), 2, False),
        (Experts("bottom"), 2, True),
        (Experts(3), 3, False),
        (Experts("bottom", 1), 1, True),
    ],
)
def test_every_token_goes_to_the_experts_that_are_asked_for(edit, k, lowest):
    pipe = HIDREAM.build()
    seen = chosen(pipe)
    drawn(HIDREAM, pipe, Plain(edit))
    assert seen
    for experts, scores in seen:
        order = scores.argsort(-1, descending=not lowest)[:, :k]
        assert torch.equal(experts.sort(-1).values, order.sort(-1).values)


def test_all_of_the_experts_are_the_same_ones_from_above_and_below():
    pipe = HIDREAM.build()
    top = drawn(HIDREAM, pipe, Plain(Experts("top", 8)))
    bottom = drawn(HIDREAM, pipe, Plain(Experts("bottom", 8)))
    close(top, bottom)
    assert not torch.allclose(top, HIDREAM.latents(pipe, steps=STEPS), rtol=1e-3)


def test_the_published_pair():
    """Top-2 of 8 is the network itself, so W2SD of top against bottom is that of nothing."""
    pipe = HIDREAM.build()
    named = drawn(HIDREAM, pipe, W2SD(strong=Experts("top", 2), weak=Experts("bottom", 2)))
    assert torch.equal(named, drawn(HIDREAM, pipe, W2SD(weak=Experts("bottom"))))
    assert not torch.equal(named, drawn(HIDREAM, pipe, W2SD()))


class Routed(nn.Module):
    """A layer of experts that chooses by itself, as Mixtral's: the gate is a plain linear map."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.gate = nn.Linear(width, 8, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
        self.top_k, self.num_experts = 2, 8
        for parameter in self.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * parameter.shape[-1] ** -0.5

    def forward(self, x, *_, **__):
        weights, chosen = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        said = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = said.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        return (weights[..., None] * picked).sum(-2)


def test_any_module_that_routes_by_top_k():
    pipe = tiny.build("pixart")
    for i, block in enumerate(pipe.transformer.transformer_blocks):
        block.ff = Routed(32, i)
    stock = latents("pixart", pipe)
    assert not torch.allclose(latents("pixart", pipe, Experts("bottom")), stock, rtol=1e-3)
    three = latents("pixart", pipe, Experts(3))
    for block in pipe.transformer.transformer_blocks:
        block.ff.top_k = 3
    assert torch.equal(latents("pixart", pipe), three)


def test_experts_need_a_gate():
    with pytest.raises(UnsupportedError, match="PixArtTransformer2DModel has no gate"):
        latents("pixart", tiny.build("pixart"), Experts("bottom"))
    pipe = HIDREAM.build()
    with pytest.raises(UnsupportedError, match="9 experts are asked for, but MoEGate has 8"):
        drawn(HIDREAM, pipe, Plain(Experts(9)))


# --- layers ---------------------------------------------------------------------------------------


def test_sd3_skips_as_its_own_network_can():
    """`skip_layers`, which skip-layer guidance of Stable Diffusion 3.5 is made with."""
    pipe = tiny.build("sd3")
    found = latents("sd3", pipe, SkipLayers([1]))
    own = pipe.transformer.forward
    pipe.transformer.forward = lambda *args, **kwargs: own(*args, **kwargs, skip_layers=[1])
    assert torch.equal(found, latents("sd3", pipe))


@pytest.mark.parametrize(
    ("family", "layer", "where"),
    [
        ("pixart", 1, ("transformer_blocks", 1)),
        ("flux", 0, ("transformer_blocks", 0)),
        ("flux", 1, ("single_transformer_blocks", 0)),
        ("flux", "single_transformer_blocks.0", ("single_transformer_blocks", 0)),
    ],
)
def test_a_network_with_the_block_taken_out(family, layer, where):
    pipe = tiny.build(family)
    found = latents(family, pipe, SkipLayers([layer]))
    del getattr(pipe.transformer, where[0])[where[1]]
    assert torch.equal(found, latents(family, pipe))


def test_blocks_that_hand_on_to_another():
    pipe = HIDREAM.build()
    found = drawn(HIDREAM, pipe, Plain(SkipLayers([1])))
    assert torch.equal(found, drawn(HIDREAM, pipe, Plain(SkipLayers(["single_stream_blocks.0"]))))
    assert not torch.allclose(found, HIDREAM.latents(pipe, steps=STEPS), rtol=1e-3)


def test_the_blocks_of_a_unet_have_names():
    pipe = tiny.build("sdxl")
    with pytest.raises(UnsupportedError, match="no numbers; name them"):
        latents("sdxl", pipe, SkipLayers([0]))
    found = latents("sdxl", pipe, SkipLayers(["mid_block.attentions.0", "down_blocks.1"]))
    for part in (pipe.unet.mid_block, pipe.unet.down_blocks[1]):
        for attention in part.attentions:
            attention.transformer_blocks = nn.ModuleList()
    assert torch.equal(found, latents("sdxl", pipe))


@pytest.mark.parametrize(
    ("layers", "says"),
    [([2], "they go from 0 to 1"), (["nowhere"], "no part called"), (["proj_out"], "no transform")],
)
def test_layers_that_are_not_there(layers, says):
    with pytest.raises(UnsupportedError, match=says):
        latents("pixart", tiny.build("pixart"), SkipLayers(layers))


def test_a_block_that_gives_back_something_else_is_refused():
    class OddTransformerBlock(nn.Module):
        def forward(self, hidden_states):
            return hidden_states + 1

    network = nn.Module()
    network.transformer_blocks = nn.ModuleList([OddTransformerBlock()])
    pipe = type("Pipe", (), {})()
    pipe.transformer = network
    with pytest.raises(UnsupportedError, match="OddTransformerBlock gives back something else"):
        SkipLayers([0]).enter(Context(pipe, ["transformer"], lambda _: None))


# Blocks whose `return` is a formula, or gives what the block was not given: not to be skipped.
FORMULAS = {
    *("Cosmos3VLTextMoTDecoderLayer", "CosmosTransformerBlock", "ErnieImageSharedAdaLNBlock"),
    *("Flux2SingleTransformerBlock", "Flux3ModeTransformerBlock", "WanVACETransformerBlock"),
    *("Kandinsky6TransformerEncoderBlock", "Kandinsky6TransformerDecoderBlock"),
    *("Kandinsky6SRTransformerBlock",),
}


@pytest.mark.slow
def test_which_blocks_of_diffusers_can_be_skipped():
    """All transformer blocks but these few; a new one shows here."""
    import diffusers.models.transformers as package

    refused = set()
    for found in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{found.name}")
        for name, cls in vars(module).items():
            own = inspect.isclass(cls) and cls.__module__ == module.__name__
            if own and issubclass(cls, nn.Module) and "TransformerBlock" in name:
                refused |= set() if returned(inspect.unwrap(cls.forward)) else {name}
    assert refused <= FORMULAS


# --- compiled -------------------------------------------------------------------------------------


SKIP, ROUTE = SkipLayers([1]), Experts("bottom")


@pytest.mark.parametrize(
    ("edit", "how"),
    [
        (SKIP, "torch.compile(module)"),
        pytest.param(SKIP, "module.compile()", marks=pytest.mark.slow),
        pytest.param(ROUTE, "torch.compile(module)", marks=pytest.mark.slow),
        pytest.param(ROUTE, "module.compile()", marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "kind", value),
)
def test_a_compiled_network(edit, how):
    """What is compiled in the first call is all there is, and it draws the same picture."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    routed = edit.kind == "experts"
    pipe = tiny.build("pixart")
    for i, block in enumerate(pipe.transformer.transformer_blocks if routed else []):
        block.ff = Routed(32, i)
    method = W2SD(weak=edit)
    with attach(pipe, method):
        expected = tiny.latents(pipe, "pixart", steps=2)
    graphs = CompileCounter()
    if how == "module.compile()":
        pipe.transformer.compile(backend=graphs)
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend=graphs)
    counts = []  # after every attach
    for _ in range(3):
        with attach(pipe, method):
            found = tiny.latents(pipe, "pixart", steps=2)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        counts.append(graphs.frame_count)
    assert counts[0] == counts[2], counts
    if not routed:  # with the blocks and without
        assert counts[0] == 2


# --- their values ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("experts=top", Experts("top")),
        ("experts=bottom", Experts("bottom")),
        ("experts=3", Experts("top", 3)),
        ("experts:bottom=3", Experts("bottom", 3)),
        ("skip-layers=7+8+9", SkipLayers([7, 8, 9])),
        ("skip-layers=7-9", SkipLayers((7, 8, 9))),
        ('skip-layers="7,9"', SkipLayers([7, 9])),
        ("skip-layers=mid_block.attentions.0+3", SkipLayers(["mid_block.attentions.0", 3])),
    ],
)
def test_grammar(text, edit):
    assert list(parse_edits(text)) == [edit]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("experts=best", "experts=bottom"),
        ("experts=0", "1 or more"),
        ("experts:middle=2", "'top', 'bottom'"),
        ("experts:=2", "'top', 'bottom' or a number, got ''"),
        ("experts:bottom=", "experts:bottom=K; got ''"),
        ("skip-layers=7-", "two ends, such as 7-9; got '7-'"),
        ("skip-layers=-7", "two ends, such as 7-9; got '-7'"),
        ("skip-layers=", "number from 0 or a module's name"),
        ("skip-layers=1++2", "number from 0 or a module's name"),
        ("skip-layers=9-7+3", "goes upwards"),
        ("skip-layers:a=1", "skip-layers=7"),
    ],
)
def test_errors_are_one_line_that_helps(text, says):
    with pytest.raises(InputError, match=says) as error:
        parse_edits(text)
    assert "\n" not in str(error.value)


def test_one_form_of_each_value():
    assert Experts(2) == Experts("top", 2) == Experts("top", k=2)
    assert SkipLayers(3) == SkipLayers([3]) == SkipLayers((3,))
    with pytest.raises(InputError, match="-1"):
        SkipLayers([-1])
    with pytest.raises(InputError, match="True"):
        Experts("top", True)
