"""Quantised denoisers: their layers are other modules, and every pair runs on them.

Layerwise casting, which needs no library, is in `test_settings.py`.
"""

from __future__ import annotations

import pytest
import tiny
import torch

from w2sdiff import W2SD, Checkpoint, Guidance, Plain, attach
from w2sdiff.testing.replay import Role, replay

FAMILY = "flux-true-cfg"


def torchao(network, folder):
    """Eight-bit weights, as `from_pretrained` makes them."""
    quantisation = pytest.importorskip(
        "torchao.quantization", reason="eight-bit weights by torchao need torchao"
    )
    from diffusers import TorchAoConfig
    from torchao.utils import TorchAOBaseTensor

    network.save_pretrained(folder)
    config = TorchAoConfig(quantisation.Int8WeightOnlyConfig())
    loaded = type(network).from_pretrained(
        folder, quantization_config=config, torch_dtype=torch.float32
    )
    assert isinstance(loaded.proj_out.weight, TorchAOBaseTensor)
    return loaded


def gguf(network, folder):
    """A .gguf file, as `from_single_file` reads it; in this format a block is 32 numbers."""
    library = pytest.importorskip("gguf", reason="GGUF weights need gguf")
    from diffusers import GGUFQuantizationConfig
    from diffusers.quantizers.gguf.utils import GGUFLinear

    network.save_config(folder)
    kind = library.GGMLQuantizationType.Q8_0
    writer = library.GGUFWriter(folder / "network.gguf", "flux")
    for name, weight in network.state_dict().items():
        if weight.ndim == 2 and weight.shape[1] % 32 == 0:
            packed = library.quants.quantize(weight.numpy(), kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
        else:
            writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    loaded = type(network).from_single_file(
        str(folder / "network.gguf"),
        config=str(folder),
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
        torch_dtype=torch.float32,
    )
    assert isinstance(loaded.proj_out, GGUFLinear)
    return loaded


QUANTISERS = {"torchao": torchao, "GGUF": gguf}


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_quantised_denoiser(name, tmp_path):
    pipe = tiny.build(FAMILY)
    exact = tiny.latents(pipe, FAMILY, steps=3)
    pipe.transformer = QUANTISERS[name](pipe.transformer, tmp_path)
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
    # And the other way round: the cheap network is the weak one.
    exact_pipe = tiny.build(FAMILY)
    with attach(exact_pipe, Plain(Checkpoint(pipe.transformer))):
        assert torch.equal(tiny.latents(exact_pipe, FAMILY, steps=3), stock)
    assert torch.equal(tiny.latents(exact_pipe, FAMILY, steps=3), exact)
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
