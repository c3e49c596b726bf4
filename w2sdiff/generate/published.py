"""The published settings by name, so that nobody has to look them up.

Windows and inversions are our defaults where nothing is said: every step but the last, as in the
papers' tables, and inverted exactly. The authors' code, from which the tables came, inverts one
noise level off: `inversion="reference"`.
"""

from __future__ import annotations

from w2sdiff.generate.presets import PLACE, Preset
from w2sdiff.registry import unknown

__all__ = ["PRESETS", "preset"]

_SDXL, _SDXL_HUB = "Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0"
_SD15, _SD15_HUB = "Stable Diffusion 1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5"
_SD35 = "Stable Diffusion 3.5 Large"
_CORE2 = "arXiv 2503.09662 and its authors' code (xie-lab-ml/CoRe)"
_W2SD = "W2SD, arXiv 2502.00473"
_W2SD_CODE = "xie-lab-ml/Weak-to-Strong-Diffusion-with-Reflection"
_NOISE = "a published noise model (.pth), read by `w2sdiff core2 convert`, as --noise-model"
_MOREART = "the LoRA xlMoreArtFullV1 (civitai.com/models/124347), as --lora moreart=FILE"
_DDIM = {"steps": 50, "guidance": 5.5, "scheduler": "ddim"}
_FLOW = {"steps": 28, "guidance": 3.5}


def _lora(name: str, strong: float = 0.8, weak: float = -1.5, base: float = 0.8) -> dict[str, str]:
    """A LoRA worn at three weights, both halves of the pair at guidance 1."""
    return {
        "strong": f"guidance=1,lora:{name}={strong:g}",
        "weak": f"guidance=1,lora:{name}={weak:g}",
        "base": f"lora:{name}={base:g}",
    }


_TABLE = (
    # ---- W2SD: weights
    Preset(
        *("w2sd/sd15-checkpoint", "w2sd", "DreamShaper v8", f"{_W2SD}, tables 1 and 8"),
        {"strong": "guidance=1", "weak": f"guidance=1,checkpoint={_SD15_HUB}"},
        *(_DDIM, "Lykon/dreamshaper-8"),
        f"{_SD15} ({_SD15_HUB}), its unet, as the weak checkpoint",
    ),
    Preset(
        *("w2sd/sdxl-checkpoint", "w2sd", "Juggernaut-XL", f"{_W2SD}, tables 1 and 8"),
        {"strong": "guidance=1", "weak": f"guidance=1,checkpoint={_SDXL_HUB}"},
        *(_DDIM, ""),
        f"{_SDXL} ({_SDXL_HUB}), its unet, as the weak checkpoint",
    ),
    Preset(
        *("w2sd/sdxl-lora", "w2sd", _SDXL, f"{_W2SD}, tables 10 and 11; {_W2SD_CODE}: evaluate.py"),
        _lora("moreart"),
        *(_DDIM, _SDXL_HUB, _MOREART),
    ),
    # All three roles differ, and only the weak one is at guidance 1.
    Preset(
        *("w2sd/sdxl-lora-script", "w2sd", _SDXL, f"the defaults of {_W2SD_CODE}: w2sd_lora.py"),
        {**_lora("moreart", strong=1.5), "strong": "guidance=5.5,lora:moreart=1.5"},
        *(_DDIM, _SDXL_HUB, _MOREART),
    ),
    # The table states the LoRA's weights; guidance is that of the other pairs of weights.
    Preset(
        *("w2sd/sd15-lora", "w2sd", _SD15, f"{_W2SD}, table 2 (twenty LoRAs of single subjects)"),
        _lora("subject"),
        *(_DDIM, _SD15_HUB, "a LoRA of one subject or style, as --lora subject=FILE"),
    ),
    Preset(
        *("w2sd/dit-moe", "w2sd", "DiT-MoE-S (class-conditional, ImageNet)", f"{_W2SD}, table 3"),
        {"strong": "experts=top", "weak": "experts=bottom"},
        {"steps": 50, "guidance": 1.5},
        "",
        "a pipeline for DiT-MoE, which diffusers does not have (its gate takes 2 of 8 experts); "
        "another mixture of experts serves as --model",
    ),
    Preset(
        *("w2sd/hidream-experts", "w2sd", "HiDream-I1 (its gate takes 2 of 4 experts)"),
        f"the pair of {_W2SD}, table 3, on a mixture that diffusers has; not published, not tuned",
        {"weak": "experts=bottom"},
    ),
    # ---- W2SD: condition
    Preset(
        *("w2sd/sdxl-guidance", "w2sd", _SDXL, f"{_W2SD}, tables 4 and 9"),
        {"strong": "guidance=5.5", "weak": "guidance=0"},
        *(_DDIM, _SDXL_HUB),
    ),
    Preset(
        *("w2sd/sd15-guidance", "w2sd", _SD15, f"{_W2SD}, tables 4 and 9"),
        {"strong": "guidance=5.5", "weak": "guidance=0"},
        *(_DDIM, _SD15_HUB),
    ),
    Preset(
        *("w2sd/sdxl-prompt", "w2sd", _SDXL, f"{_W2SD}, table 5"),
        {
            "strong": "guidance=1,prompt=@refined",
            "weak": "guidance=1",
            "base": "prompt=@refined",
        },
        *(_DDIM, _SDXL_HUB),
        'a prompt file with a column "refined": each prompt rewritten by a language model '
        "(Qwen-Plus in the paper)",
    ),
    # ---- W2SD: the sampling pipeline
    Preset(
        *("w2sd/controlnet", "w2sd", "any pipeline with a ControlNet", f"{_W2SD}, figure 10"),
        {"strong": "guidance=0.5", "weak": "guidance=0.5,no-control=1"},
        *(_DDIM, ""),
        "the folder of a pipeline with a ControlNet for edge maps (called at conditioning scale "
        "1), as --model, and an edge map, as --control-image FILE",
    ),
    # The figure states no scales: both halves are guided as the pipeline is called.
    Preset(
        *("w2sd/ip-adapter", "w2sd", "any pipeline with an IP-Adapter", f"{_W2SD}, figure 17"),
        {"weak": "ip-adapter-scale=0"},
        *(_DDIM, ""),
        "an IP-Adapter, as --ip-adapter FILE, and the picture it looks at, as --ip-adapter-image "
        "FILE; in Python load_ip_adapter",
    ),
    # ---- W2SD: stacked pairs, video
    Preset(
        *("w2sd/sdxl-checkpoint-guidance", "w2sd", "Juggernaut-XL", f"{_W2SD}, table 6"),
        {"strong": "guidance=5.5", "weak": f"guidance=0,checkpoint={_SDXL_HUB}"},
        *(_DDIM, ""),
        f"{_SDXL} ({_SDXL_HUB}), its unet, as the weak checkpoint",
    ),
    Preset(
        *("w2sd/animatediff", "w2sd", "AnimateDiff for SDXL with the weights of Juggernaut-XL"),
        f"{_W2SD}, table 12",
        {"strong": "guidance=3", "weak": f"guidance=1,checkpoint={PLACE}"},
        *({"guidance": 3.0}, ""),
        f"the weak network, a UNetMotionModel made of the unet of {_SDXL} ({_SDXL_HUB}) and of the "
        "same motion adapter, saved to a folder",
    ),
    # ---- Z-Sampling
    Preset(
        *("z-sampling/sdxl", "zigzag", _SDXL),
        "Z-Sampling, arXiv 2412.10891: the defaults of xie-lab-ml/Zigzag-Diffusion-Sampling",
        {"strong": "guidance=5.5", "weak": "guidance=0"},
        *(_DDIM, _SDXL_HUB),
    ),
    Preset(
        *("z-sampling/sdxl-equal-time", "zigzag", _SDXL),
        f"{_W2SD}, protocol of equal time: half the steps, the first half of them reflected",
        {"strong": "guidance=5.5", "weak": "guidance=0", "window": "0:0.48"},
        *({**_DDIM, "steps": 25}, _SDXL_HUB),
    ),
    # ---- CoRe2
    # Slow nearly to the end, as the script's comment recommends: all steps but two.
    Preset(
        *("core2/sdxl", "core2", _SDXL, _CORE2),
        {"scale": 1.5, "slow_until": 0.96, "reference": True},
        *(_DDIM, _SDXL_HUB, _NOISE),
    ),
    Preset(
        *("core2/sdxl-fast", "core2", _SDXL, _CORE2),
        {"slow_until": 0.0, "reference": True},
        *(_DDIM, _SDXL_HUB, _NOISE),
    ),
    Preset(
        *("core2/sd35", "core2", _SD35, _CORE2),
        {"scale": 1.5, "slow_until": 0.93, "reference": True},
        *(_FLOW, "", _NOISE),
    ),
    Preset(
        *("core2/sd35-fast", "core2", _SD35, _CORE2),
        {"slow_until": 0.0, "reference": True},
        *(_FLOW, "", _NOISE),
    ),
    Preset(
        *("zcore2/sdxl", "zcore2", _SDXL, _CORE2),
        {"scale": 1.5, "inversion": "reference", "reference": True},
        *(_DDIM, _SDXL_HUB, _NOISE),
    ),
    # The published code has 3.5 in the last leg, whatever it is called with.
    Preset(
        *("zcore2/sd35", "zcore2", _SD35, _CORE2),
        {"scale": 1.5, "real_scale": 3.5, "inversion": "reference", "reference": True},
        *(_FLOW, "", _NOISE),
    ),
)
PRESETS = {entry.name: entry for entry in _TABLE}


def preset(name: str) -> Preset:
    """The published settings of this name; `w2sdiff list presets` shows them.

    Raises:
        InputError: there are none; says the nearest.

    Example:
        >>> preset("w2sd/sdxl-lora").make().weak
        Guidance(scale=1.0) | Lora(name='moreart', scale=-1.5, sha256=None)
        >>> preset("core2/sdxl").settings["guidance"]
        5.5
    """
    if name not in PRESETS:
        raise unknown("preset", name, sorted(PRESETS))
    return PRESETS[name]
