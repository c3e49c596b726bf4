"""Stable Diffusion 1 and 2 inpainting with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        custom_pipeline="pipelines/w2s_sd_inpaint.py",
        trust_remote_code=True,
    )
    method = ZigZag()
    image = pipe("a lighthouse in a storm", image=picture, mask_image=mask, method=method).images[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import StableDiffusionInpaintPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SStableDiffusionInpaintPipeline(KeepsDtype, StableDiffusionInpaintPipeline):
    """`StableDiffusionInpaintPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(StableDiffusionInpaintPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
