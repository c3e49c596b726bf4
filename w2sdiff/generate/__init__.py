"""From prompts to pictures: what `w2sdiff generate` does, as a library.

    find_model -> Settings.on_device -> choose_method -> Plan -> generate -> draw_grids

A `Plan` is prompts × seeds × methods on one model; every picture in it is an item of the ledger,
with a key made of everything that decides its pixels. `Studio` draws without a plan or a folder.
"""

from __future__ import annotations

from w2sdiff.generate.again import Again, make_again
from w2sdiff.generate.calls import image_strength
from w2sdiff.generate.choose import choose_method, find_loras, parse_kv, parse_window, with_loras
from w2sdiff.generate.draw import Drawn, Shot, Studio, Verdict
from w2sdiff.generate.image_prompts import ImagePrompt
from w2sdiff.generate.models import DEFAULT_MODEL, Model, find_model
from w2sdiff.generate.plan import Arm, Picture, Plan, compared, slug
from w2sdiff.generate.presets import Preset
from w2sdiff.generate.published import PRESETS, preset
from w2sdiff.generate.recipe import Recipe, cfg_scale, item_of
from w2sdiff.generate.run import draw_grids, generate
from w2sdiff.generate.settings import DTYPES, OFFLOADS, SCHEDULERS, LoraFile, Settings
from w2sdiff.generate.stages import Stage
from w2sdiff.generate.stored import outcome_of

__all__ = [
    "DEFAULT_MODEL",
    "DTYPES",
    "OFFLOADS",
    "PRESETS",
    "SCHEDULERS",
    "Again",
    "Arm",
    "Drawn",
    "ImagePrompt",
    "LoraFile",
    "Model",
    "Picture",
    "Plan",
    "Preset",
    "Recipe",
    "Settings",
    "Shot",
    "Stage",
    "Studio",
    "Verdict",
    "cfg_scale",
    "choose_method",
    "compared",
    "draw_grids",
    "find_loras",
    "find_model",
    "generate",
    "image_strength",
    "item_of",
    "make_again",
    "outcome_of",
    "parse_kv",
    "parse_window",
    "preset",
    "slug",
    "with_loras",
]
