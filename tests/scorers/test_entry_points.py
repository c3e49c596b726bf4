"""A scorer of somebody else's package is found like ours."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def test_a_third_party_scorer_is_found_by_its_entry_point(tmp_path):
    (tmp_path / "brightness_scorer.py").write_text(
        textwrap.dedent('''
        from dataclasses import dataclass
        import numpy as np
        from w2sdiff.scorers import Scorer

        @dataclass(frozen=True)
        class Brightness(Scorer):
            """Mean grey level."""

            kind = "brightness"
            group = "statistic"
            higher_is_better = None
            expected = (0.0, 255.0)
            needs_prompt = False
            gain: float = 1.0

            def fingerprint(self):
                return {"scorer": self.kind, "weights": {}, "preprocessing": "grey",
                        "dtype": "float64", "formula": f"{self.gain} * mean"}

            def score(self, images, prompts=None):
                return np.array([self.gain * np.asarray(i.convert("L")).mean() for i in images],
                                np.float32)
        ''')
    )
    info = tmp_path / "brightness_scorer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brightness-scorer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[w2sdiff.scorers]\nbrightness = brightness_scorer:Brightness\n"
    )
    code = """
        from PIL import Image
        from w2sdiff.scorers import SCORERS, parse_scorer, scorer_from_json
        scorer = parse_scorer("brightness:gain=2")
        print(scorer.score([Image.new("RGB", (4, 4), (50, 50, 50))])[0], scorer.name)
        print("brightness" in list(SCORERS), "hpsv2.1" in list(SCORERS))
        print(scorer_from_json(scorer.to_json()) == scorer, len(scorer.recipe()))
    """
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stdout.splitlines() == [
        "100.0 brightness:gain=2",
        "True True",
        "True 64",
    ], done.stderr
