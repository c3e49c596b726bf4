"""Quantised denoisers: their layers are other modules, and every pair runs on them.

Layerwise casting, which needs no library, is in `test_settings.py`.
"""

from __future__ import annotations

import pytest
import tiny
import torch
from torch import nn

from w2sdiff import W2SD, Checkpoint, Guidance, Plain, attach
from w2sdiff.testing.replay import Role, replay

FAMILY = "flux-true-cfg"


def torchao(network):
    quantisation = pytest.importorskip(
        "torchao.quantization", reason="eight-bit weights by torchao need torchao"
    )
    quantisation.quantize_(network, quantisation.Int8WeightOnlyConfig())


def gguf(network):
    """As `from_single_file` does it for a .gguf file, with the network's own weights."""
    library = pytest.importorskip("gguf", reason="GGUF weights need gguf")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    kind = library.GGMLQuantizationType.Q8_0
    for name, layer in list(network.named_modules()):
        # A block of this format is 32 numbers.
        if not isinstance(layer, nn.Linear) or layer.in_features % 32:
            continue
        parent, _, child = name.rpartition(".")
        other = GGUFLinear(
            layer.in_features, layer.out_features, layer.bias is not None, torch.float32
        )
        data = torch.from_numpy(library.quants.quantize(layer.weight.detach().numpy(), kind))
        other.weight, other.bias = GGUFParameter(data, quant_type=kind), layer.bias
        setattr(network.get_submodule(parent), child, other)


QUANTISERS = {"torchao": torchao, "GGUF": gguf}


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_denoiser(name):
    pipe = tiny.build(FAMILY)
    exact = tiny.latents(pipe, FAMILY, steps=3)
    QUANTISERS[name](pipe.transformer)
    stock = tiny.latents(pipe, FAMILY, steps=3)
    assert not torch.equal(stock, exact)
    with attach(pipe, Plain()):
        assert torch.equal(tiny.latents(pipe, FAMILY, steps=3), stock)
    with attach(pipe, W2SD(weak=Guidance(2.0))):
        found = tiny.latents(pipe, FAMILY, steps=3)
    call = tiny.call_kwargs(FAMILY, steps=3)
    expected = replay(pipe, FAMILY, call, weak=Role(guidance=2.0))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(found.abs().max()))
    # As published for CoRe2: the strong network is quantised, the weak one is what it was.
    with attach(pipe, W2SD(weak=Checkpoint(tiny.build_denoiser(FAMILY)))):
        assert torch.isfinite(tiny.latents(pipe, FAMILY, steps=3)).all()
    assert torch.equal(tiny.latents(pipe, FAMILY, steps=3), stock)


@pytest.mark.gpu
def test_four_bits_by_bitsandbytes(tmp_path):
    """The published CoRe2 setting of SD3.5 is NF4, which bitsandbytes has on CUDA only."""
    pytest.importorskip("bitsandbytes", reason="four-bit weights need bitsandbytes")
    from diffusers import BitsAndBytesConfig

    pipe = tiny.build("sd3", dtype=torch.bfloat16)
    pipe.transformer.save_pretrained(tmp_path)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    network = type(pipe.transformer).from_pretrained(
        tmp_path, quantization_config=config, torch_dtype=torch.bfloat16
    )
    pipe.transformer = None
    pipe = pipe.to("cuda")
    pipe.transformer = network
    stock = tiny.latents(pipe, "sd3")
    with attach(pipe, Plain()):
        assert torch.equal(tiny.latents(pipe, "sd3"), stock)
    with attach(pipe, W2SD(weak=Guidance(1.0))):
        assert torch.isfinite(tiny.latents(pipe, "sd3")).all()
    assert torch.equal(tiny.latents(pipe, "sd3"), stock)
