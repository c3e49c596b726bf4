"""AnimateDiff with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        custom_pipeline="pipelines/w2s_animatediff.py",
        trust_remote_code=True,
        motion_adapter=adapter,
    )
    method = ZigZag()
    video = pipe("a lighthouse in a storm", guidance_scale=7.5, method=method).frames[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import AnimateDiffPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SAnimateDiffPipeline(KeepsDtype, AnimateDiffPipeline):
    """`AnimateDiffPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(AnimateDiffPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
