"""W2SD in closed form: on a linear network every step is a matrix, whichever driver applies it.

A denoiser `prediction = A x` with DDIM makes a run a product of matrices that can be written down
from the paper's Algorithm 1 without any of our code. The function driver and `attach` on a stock
pipeline must both give that product.
"""

from __future__ import annotations

import dataclasses

import pytest
import tiny
import torch
from diffusers import DDIMScheduler

from w2sdiff import W2SD, AutoGuidance, Checkpoint, Plain, UnsupportedError, attach
from w2sdiff.drivers.function import drive
from w2sdiff.levels import Levels

N, WIDTH = 7, 4


def matrices(seed=0):
    generator = torch.Generator().manual_seed(seed)
    strong, weak = torch.randn(2, WIDTH, WIDTH, generator=generator, dtype=torch.float64) * 0.3
    return strong, weak


def schedule():
    """(alpha, sigma) of DDIM's levels, from its definition (Song et al. 2021, Eq. 12, eta 0)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # float32, as diffusers keeps them
    products = torch.cumprod(1 - betas, 0).double()
    stride = 1000 // N
    times = [i * stride + 1 for i in range(N)][::-1]
    kept = [products[t] for t in times] + [products[0]]  # set_alpha_to_one=False
    return [(float(p.sqrt()), float((1 - p).sqrt())) for p in kept]


def step_matrix(a, source, target):
    """x -> alpha' (x - sigma A x) / alpha + sigma' A x."""
    (alpha, sigma), (alpha2, sigma2) = source, target
    eye = torch.eye(WIDTH, dtype=torch.float64)
    return alpha2 / alpha * (eye - sigma * a) + sigma2 * a


def by_hand(x, kind, scale=2.0, times=1):
    """The run, as one product of matrices applied to x."""
    strong, weak = matrices()
    levels = schedule()
    for i in range(N):
        here, there = levels[i], levels[i + 1]
        a = strong
        if kind in ("exact", "reference") and i < N - 1:
            for _ in range(times):
                x = step_matrix(strong, here, there) @ x
                if kind == "exact":
                    x = step_matrix(weak, there, here) @ x
                else:  # the published code: coefficients of the next pair of levels
                    x = step_matrix(weak, levels[i + 2], there) @ x
        if kind == "autoguidance":
            a = weak + scale * (strong - weak)
        x = step_matrix(a, here, there) @ x
    return x


def scheduler(**changes):
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
        "clip_sample": False,
        "set_alpha_to_one": False,
    }
    return DDIMScheduler(**settings | changes)


METHODS = {
    "plain": (Plain(), {"kind": "plain"}),
    "exact": (W2SD(), {"kind": "exact"}),
    "exact twice": (W2SD(times=2), {"kind": "exact", "times": 2}),
    "reference": (W2SD(inversion="reference"), {"kind": "reference"}),
    "autoguidance": (AutoGuidance(scale=1.8), {"kind": "autoguidance", "scale": 1.8}),
}


def linear(strong, weak):
    """The two networks as plain functions of row vectors."""
    return {
        "strong": lambda x, *_: x @ strong.T,
        "weak": lambda x, *_: x @ weak.T,
        "base": lambda x, *_: x @ strong.T,
    }


@pytest.fixture
def x():
    return torch.randn(WIDTH, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("name", METHODS)
def test_function_driver(name, x):
    method, settings = METHODS[name]
    strong, weak = matrices()
    ddim = scheduler()
    ddim.set_timesteps(N)
    out = drive(method, linear(strong, weak), x.T, Levels.from_scheduler(ddim)).T
    torch.testing.assert_close(out, by_hand(x, **settings), rtol=0, atol=1e-6)


def linear_unet(a):
    """A real UNet2DConditionModel that computes `prediction = A x` across its four channels.

    Everything between the first and the last convolution is made to vanish, and the network is left
    with a 1x1 path: conv_in copies x into the features, conv_out applies A. The group norm and SiLU
    in between are replaced by identities, which is what makes the map linear.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=WIDTH,
        out_channels=WIDTH,
        block_out_channels=(WIDTH,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        layers_per_block=1,
        norm_num_groups=1,
        cross_attention_dim=32,
        act_fn="silu",
    )
    with torch.no_grad():
        for p in unet.parameters():
            p.zero_()
        unet.conv_in.weight[range(WIDTH), range(WIDTH), 1, 1] = 1.0
        for block in (unet.down_blocks[0], unet.up_blocks[0]):
            for resnet in block.resnets:
                if resnet.conv_shortcut is not None:  # up: [features, skip] -> features
                    resnet.conv_shortcut.weight[range(WIDTH), range(WIDTH), 0, 0] = 1.0
        unet.conv_out.weight[:, :, 1, 1] = a.float()
    unet.conv_norm_out = torch.nn.Identity()
    unet.conv_act = torch.nn.Identity()
    return unet.eval()


def test_the_linear_network_is_linear(x):
    strong, _ = matrices()
    unet = linear_unet(strong)
    picture = x.float().T.reshape(1, 5, 1, WIDTH).permute(0, 3, 1, 2)
    out = unet(picture, 3, encoder_hidden_states=torch.zeros(1, 7, 32)).sample
    expected = (strong.float() @ x.float()).reshape(1, WIDTH, 5, 1)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_attach(name):
    """The same product through a stock pipeline: weak is another checkpoint, guidance is off."""
    method, settings = METHODS[name]
    strong, weak = matrices()
    pipe = tiny.build("sd")
    pipe.unet, pipe.scheduler = linear_unet(strong), scheduler()
    if "weak" in type(method).__dataclass_fields__:
        method = dataclasses.replace(method, weak=Checkpoint(linear_unet(weak)))
    noise = torch.randn(1, WIDTH, 8, 8, generator=torch.Generator().manual_seed(2))
    with attach(pipe, method):
        out = tiny.latents(pipe, "sd", steps=N, guidance_scale=1.0, latents=noise)
    columns = noise[0].double().reshape(WIDTH, -1)
    expected = by_hand(columns, **settings).reshape(1, WIDTH, 8, 8)
    size = float(expected.abs().max())
    assert float((out.double() - expected).abs().max()) < 2e-6 * max(1.0, size)


def test_the_four_results_differ(x):
    results = [by_hand(x, **settings) for _, settings in METHODS.values()]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert not torch.allclose(a, b, rtol=0.01)


def test_to_first_order_a_reflection_is_autoguidance_at_scale_two(x):
    """W2SD = base + (strong - weak) + O(h): the gap to AutoGuidance shrinks with the step."""
    strong, weak = matrices()

    def gap(n):
        levels = Levels.flow(n)
        model = linear(strong, weak)
        a = drive(W2SD(), model, x.T, levels)
        b = drive(AutoGuidance(scale=2.0), model, x.T, levels)
        return float((a - b).norm())

    coarse, fine = gap(40), gap(80)
    assert 0.4 < fine / coarse < 0.6


def test_the_base_model_is_the_strong_one_unless_given(x):
    strong, weak = matrices()
    levels, asked = Levels.flow(N), []

    def note(role, a):
        def model(x, i):
            asked.append((i, role))
            return x @ a.T

        return model

    two = {"strong": note("strong", strong), "weak": note("weak", weak)}
    out = drive(W2SD(), two, x.T, levels)
    assert asked[:4] == [(0, "strong"), (0, "weak"), (0, "strong"), (1, "strong")]
    assert len(asked) == 3 * (N - 1) + 1
    assert torch.equal(out, drive(W2SD(), linear(strong, weak), x.T, levels))


def test_plain_is_eulers_method(x):
    """dx/dsigma = A x, n Euler steps from 1 to 0: (I - A / n)^n."""
    strong, _ = matrices()
    out = drive(Plain(), lambda x, *_: x @ strong.T, x.T, Levels.flow(N)).T
    one = torch.eye(WIDTH, dtype=torch.float64) - strong / N
    torch.testing.assert_close(out, torch.linalg.matrix_power(one, N) @ x, rtol=0, atol=1e-12)


def test_no_published_inversion_where_no_code_was_published(x):
    from diffusers import DPMSolverMultistepScheduler

    dpm = DPMSolverMultistepScheduler()
    dpm.set_timesteps(N)
    with pytest.raises(UnsupportedError, match="exact"):
        drive(W2SD(inversion="reference"), lambda x, *_: x, x.T, Levels.from_scheduler(dpm))
