"""The prompt sets of the field: where they come from, under which licence, and their hashes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from w2sdiff.prompts import formats
from w2sdiff.prompts.formats import Reader

__all__ = ["KNOWN", "KnownFile", "KnownSet"]


@dataclass(frozen=True)
class KnownFile:
    """A file of a known set, as it is kept on disk.

    Attributes:
        name: relative to the folder it is looked for in.
        url: where it is published; None if not as one small file.
        size: in bytes; None if not known.
        sha256: of the file; None if not known, then only the number of prompts is checked.
        convert: makes the kept form from the published one; None where they are the same.
        other_names: under which it may also lie.
    """

    name: str
    url: str | None = None
    size: int | None = None
    sha256: str | None = None
    convert: Callable[[bytes], bytes] | None = None
    other_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class KnownSet:
    """A prompt set that the field evaluates on.

    Attributes:
        name: what `load_set` and the command line call it.
        title: with its authors.
        count: of prompts.
        files: in order.
        read: makes rows of them.
        source: who published it, in words.
        licence: of the prompts, as its authors state it.
        first: only so many rows of the files; None for all.
        note: what one must know.
    """

    name: str
    title: str
    count: int
    files: tuple[KnownFile, ...]
    read: Reader
    source: str
    licence: str
    first: int | None = None
    note: str = ""


_GITHUB = "https://raw.githubusercontent.com"
_W2SD = f"{_GITHUB}/xie-lab-ml/Weak-to-Strong-Diffusion-with-Reflection/bb20e19/datasets"
_GOLDEN = f"{_GITHUB}/xie-lab-ml/Golden-Noise-for-Diffusion-Models/aa7103e/data"
_T2I = f"{_GITHUB}/Karine-Huang/T2I-CompBench/1b70949/examples/dataset"
_REWARD = f"{_GITHUB}/THUDM/ImageReward/c1392c6"
_HPD = "https://huggingface.co/datasets/ymhao/HPDv2/resolve/main/benchmark"

_DRAWBENCH = KnownSet(
    name="drawbench",
    title="DrawBench (Saharia et al. 2022, arXiv 2205.11487)",
    count=200,
    files=(
        KnownFile(
            "drawbench.csv",
            f"{_W2SD}/drawbench.csv",
            15_717,
            "e120fd4d8aa8f6c44b0b3ee92d9dfb7463c67f5b2d427d23a2bf388f80a0c0c1",
        ),
    ),
    read=formats.drawbench,
    source="a spreadsheet by Google; this copy: xie-lab-ml/Weak-to-Strong-Diffusion-with-Reflection"
    " @ bb20e19",
    licence="none stated",
)

_PICKAPIC = KnownFile(
    "test_unique_caption_zh.csv",
    f"{_W2SD}/test_unique_caption_zh.csv",
    80_645,
    "c6bca144fbb0e11d0b2a12bd5a275d8ac89bcc2da47e78d1fbc67a3335b99f91",
)


def _pickapic(name: str, count: int, first: int | None, note: str) -> KnownSet:
    return KnownSet(
        name=name,
        title="Pick-a-Pic v1, unique test prompts (Kirstain et al. 2023, arXiv 2305.01569)",
        count=count,
        files=(_PICKAPIC,),
        read=formats.pickapic,
        source="xie-lab-ml/Weak-to-Strong-Diffusion-with-Reflection @ bb20e19",
        licence="none stated",
        first=first,
        note=note,
    )


# The part, its bytes, its sha256.
_T2I_PARTS = (
    ("color", 11_871, "1634259756dbc77d13093d907d414480080ec9790a8c97ad09efaea7b2534f2d"),
    ("shape", 15_935, "37e1a276906c7ea9516cbd7ac8501be896006c0c17ca7344f260562834455bae"),
    ("texture", 14_211, "fbb5363515b4a28009e360afaaaf389d2dd2289e50dbb0c6ef4ea0c7fe4f3d4f"),
    ("spatial", 9_213, "8707a1d7e42ce3002d95363cf55f74bd043c843ae27108f5125aaaa7840ca988"),
    ("3d_spatial", 7_851, "c9953597315f36a5fcb41291bb19bdc6ab5f64a0fa760d691b4854a73f5d1fe9"),
    ("non_spatial", 17_750, "04c56cc9ac441dc9ea6c5157652058bd1635b5308526dd31bb29a1caab9a758d"),
    ("numeracy", 10_863, "dad8df141604b70ba7554bec724e3db0a80023680769b5c514854ea2d2527bbe"),
    ("complex", 22_724, "1b808018b8d9916db3d47d5aa2ef18377a3549a56901a474156f799824cdf3b4"),
)


def _t2i(name: str, *parts: tuple[str, int, str]) -> KnownSet:
    files = (
        KnownFile(
            f"t2i_compbench/{part}_val.txt",
            f"{_T2I}/{part}_val.txt",
            size,
            sha256,
            other_names=(f"{part}_val.txt",),
        )
        for part, size, sha256 in parts
    )
    return KnownSet(
        name=name,
        title="T2I-CompBench, validation (Huang et al. 2023, arXiv 2307.06350)",
        count=300 * len(parts),
        files=tuple(files),
        read=formats.t2i,
        source="Karine-Huang/T2I-CompBench @ 1b70949",
        licence="MIT",
        note="made for its own verifiers; a preference score on it is a by-product",
    )


def _reward(name: str, count: int, file: KnownFile) -> KnownSet:
    return KnownSet(
        name=name,
        title="ImageReward (Xu et al. 2023, arXiv 2304.05977)",
        count=count,
        files=(file,),
        read=formats.plain,
        source="THUDM/ImageReward @ c1392c6",
        licence="Apache-2.0",
        note="" if count == 100 else "466 rows, 463 distinct prompts: told apart by id",
    )


def _coco(year: int, count: int) -> KnownSet:
    return KnownSet(
        name=f"coco-val{year}",
        title=f"COCO captions, validation {year} (Chen et al. 2015, arXiv 1504.00325)",
        count=count,
        files=(
            KnownFile(
                f"captions_val{year}.json", other_names=(f"annotations/captions_val{year}.json",)
            ),
        ),
        read=formats.coco,
        source=f"annotations_trainval{year}.zip of cocodataset.org",
        licence="CC BY 4.0 (annotations); keep the attribution",
        note="one caption per picture: the one of the lowest annotation id",
    )


_SETS = (
    _DRAWBENCH,
    _pickapic("pickapic-100", 100, 100, "the 100 prompts of the W2SD evaluation"),
    _pickapic("pickapic-500", 499, None, "500 rows, of which number 87 is empty"),
    KnownSet(
        name="hpdv2-test400",
        title="HPD v2, test split (Wu et al. 2023, arXiv 2306.09341)",
        count=400,
        files=(
            KnownFile(
                "hpdv2_test400.txt",
                f"{_GOLDEN}/HPD_prompt.csv",
                32_967,
                "6eb1c5561a58da305155ba00755822de4f8b0bc239175e20334e431e978f4a82",
                formats.hpd_text,
            ),
        ),
        read=formats.plain,
        source="xie-lab-ml/Golden-Noise-for-Diffusion-Models @ aa7103e",
        licence="Apache-2.0",
    ),
    KnownSet(
        name="hpdv2-benchmark",
        title="HPD v2, benchmark of four styles (Wu et al. 2023, arXiv 2306.09341)",
        count=3_200,
        files=tuple(
            KnownFile(
                f"hpdv2_benchmark/{style}.json",
                f"{_HPD}/{style}.json",
                other_names=(f"benchmark/{style}.json", f"{style}.json"),
            )
            for style in ("anime", "concept-art", "paintings", "photo")
        ),
        read=formats.styles,
        source="ymhao/HPDv2 on the Hugging Face hub, benchmark/",
        licence="Apache-2.0",
        note="no hash is known; checked by number",
    ),
    KnownSet(
        name="partiprompts",
        title="PartiPrompts (Yu et al. 2022, arXiv 2206.10789)",
        count=1_632,
        files=(
            KnownFile(
                "partiprompts.tsv",
                f"{_GITHUB}/google-research/parti/5a65797/PartiPrompts.tsv",
                123_107,
                "fab29e41bb512a169b56acab4cf2a41dcb675e285df2efcde6640c7dd3c440eb",
                other_names=("PartiPrompts.tsv",),
            ),
        ),
        read=formats.partiprompts,
        source="google-research/parti @ 5a65797",
        licence="Apache-2.0",
    ),
    KnownSet(
        name="geneval",
        title="GenEval (Ghosh et al. 2023, arXiv 2310.11513)",
        count=553,
        files=(
            KnownFile(
                "geneval_evaluation_metadata.jsonl",
                f"{_GITHUB}/djghosh13/geneval/af4902f/prompts/evaluation_metadata.jsonl",
                85_209,
                "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13",
                other_names=("evaluation_metadata.jsonl",),
            ),
        ),
        read=formats.geneval,
        source="djghosh13/geneval @ af4902f",
        licence="MIT",
        note="made for its own verifier; a preference score on it is a by-product",
    ),
    _t2i("t2i-compbench", *_T2I_PARTS),
    *(_t2i(f"t2i-compbench-{part[0].replace('_', '-')}", part) for part in _T2I_PARTS),
    KnownSet(
        name="dpg-bench",
        title="DPG-Bench (Hu et al. 2024, arXiv 2403.05135)",
        count=1_065,
        files=(
            KnownFile(
                "dpg_bench.jsonl",
                None,
                497_176,
                "f200e5f8837fdc90d2b9de728c3715a5e331ed716cfcf625c31b221eb7b68cdf",
            ),
        ),
        read=formats.plain,
        source="TencentQQGYLab/ELLA @ 3c228f1, dpg_bench/prompts/*.txt, as one file of JSON lines"
        ' {"id": file name, "source": ..., "prompt": ...}',
        licence="Apache-2.0",
        note="60% of its prompts are longer than CLIP's 77 tokens",
    ),
    _reward(
        "imagereward-100",
        100,
        KnownFile(
            "imagereward_benchmark100.jsonl",
            f"{_REWARD}/benchmark/benchmark-prompts.json",
            11_856,
            "dad3f8f1c90337fa4eb7323f15384c4002aa788323e28bf6916bfe63e6f89ff5",
            formats.id_and_prompt,
        ),
    ),
    _reward(
        "imagereward-466",
        466,
        KnownFile(
            "imagereward_test466.jsonl",
            f"{_REWARD}/data/test.json",
            86_902,
            "689bf8d74fe7022c4a09e870d1c5d3733126bef34ef73ac5b33c8fde75cbbe7d",
            formats.id_and_prompt,
        ),
    ),
    _coco(2014, 40_504),
    _coco(2017, 5_000),
)

KNOWN = {known.name: known for known in _SETS}
