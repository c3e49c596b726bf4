"""Stable Diffusion XL with a ControlNet with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "stabilityai/stable-diffusion-xl-base-1.0",
        custom_pipeline="pipelines/w2s_sdxl_controlnet.py",
        trust_remote_code=True,
        controlnet=controlnet,
    )
    method = ZigZag()
    image = pipe("a lighthouse in a storm", image=edges, method=method).images[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionXLControlNetPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SStableDiffusionXLControlNetPipeline(KeepsDtype, StableDiffusionXLControlNetPipeline):
    """`StableDiffusionXLControlNetPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(StableDiffusionXLControlNetPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
