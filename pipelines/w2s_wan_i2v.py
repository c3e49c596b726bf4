"""Wan 2.1 and 2.2 from a picture with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
        custom_pipeline="pipelines/w2s_wan_i2v.py",
        trust_remote_code=True,
    )
    method = ZigZag()
    video = pipe(picture, "a lighthouse in a storm", guidance_scale=5.0, method=method).frames[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import WanImageToVideoPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SWanImageToVideoPipeline(KeepsDtype, WanImageToVideoPipeline):
    """`WanImageToVideoPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(WanImageToVideoPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
