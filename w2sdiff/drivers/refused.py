"""What `attach` refuses, by kind, with the reason: a table for people, and for a test of the weave.

The weave decides by what it reads in a loop, not by this table; see `w2sdiff.drivers.repeatable`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A kind of pipeline that cannot be attached to.

    Attributes:
        kind: a few words.
        why: what would go wrong.
        says: part of the error's message, a regular expression.
        examples: classes of diffusers of this kind.
    """

    kind: str
    why: str
    says: str
    examples: tuple[str, ...]


REFUSED = (
    Refused(
        "diffusion forcing",
        "its frames are at different noise levels at once, each with a scheduler of its own",
        "several schedulers in one loop",
        ("SkyReelsV2DiffusionForcingPipeline",),
    ),
    Refused(
        "several schedulers in one loop",
        "sound and picture are stepped together; a prediction for one says nothing of the other",
        "several schedulers in one loop",
        ("LTX2Pipeline",),
    ),
    Refused(
        "panorama views",
        "parts of the latents that overlap are stepped one by one",
        "steps parts of the latents one by one",
        ("StableDiffusionPanoramaPipeline",),
    ),
    Refused(
        "no loop over timesteps",
        "there are no noise levels to move between, or the loop is another pipeline's",
        "loop",
        ("LLaDA2Pipeline", "FluxPriorReduxPipeline"),
    ),
    Refused(
        "random numbers before the step",
        "each evaluation of a step would see another input",
        "draws random numbers before scheduler.step",
        ("LTXConditionPipeline", "UniDiffuserPipeline"),
    ),
    Refused(
        "scheduler or loop state changed before the step",
        "each evaluation of a step would change it again",
        "changes the scheduler",
        ("CosmosTextToWorldPipeline", "ChronoEditPipeline"),
    ),
    Refused(
        "a slice or another form of the latents is stepped",
        "what is reflected would not be what the loop goes on with",
        "a part or another form of the latents|sliced or unpacked",
        ("LTXImageToVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    ),
    Refused(
        "latents scaled by the loop's sigma",
        "the weak model's latents are at another level",
        "scales the latents by the scheduler's sigma",
        ("Cosmos2TextToImagePipeline",),
    ),
    Refused(
        "guidance with a memory",
        "its running average would take in every evaluation of a step",
        "running average",
        ("AceStepPipeline",),
    ),
    Refused(
        "no readable source",
        "the loop is rewritten from its source, which frozen applications do not carry",
        "is not available",
        (),
    ),
)
