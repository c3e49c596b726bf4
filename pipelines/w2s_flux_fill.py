"""FLUX.1 Fill with weak-to-strong sampling, as a custom pipeline.

    pipe = DiffusionPipeline.from_pretrained(
        "black-forest-labs/FLUX.1-Fill-dev",
        custom_pipeline="pipelines/w2s_flux_fill.py",
        trust_remote_code=True,
    )
    method = W2SD(weak=Guidance(10.0))
    image = pipe("a lighthouse in a storm", image=picture, mask_image=mask, method=method).images[0]
    pipe.run_stats  # evaluations, seconds, size of each reflection

All the work is `w2sdiff.attach`, which any loaded pipeline can use without this file.
"""

from __future__ import annotations

from typing import Any

from diffusers import FluxFillPipeline

from w2sdiff import attach
from w2sdiff.custom import KeepsDtype, takes_method


class W2SFluxFillPipeline(KeepsDtype, FluxFillPipeline):
    """`FluxFillPipeline` with `method=`; without one it is the stock pipeline.

    Attributes:
        run_stats: what the last call cost; None after a call without a method.
    """

    run_stats: Any = None

    @takes_method(FluxFillPipeline)
    def __call__(self, *args, method=None, **kwargs):
        self.run_stats = None
        if method is None:
            return super().__call__(*args, **kwargs)
        with attach(self, method) as run:
            output = super().__call__(*args, **kwargs)
        self.run_stats = run.stats
        return output
