"""Wan 2.1 and 2.2 with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        custom_pipeline="pipelines/w2s_wan.py",
        trust_remote_code=True,
    )
    method = ZigZag()
    video = pipe("a lighthouse in a storm", guidance_scale=5.0, method=method).frames[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import WanPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SWanPipeline(KeepsDtype, WanPipeline):
    """`WanPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(WanPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
