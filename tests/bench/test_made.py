"""What the made-up results promise to the tests that use them."""

from __future__ import annotations

import hashlib

import numpy as np
from bench.made import made_results
from PIL import Image


def test_pictures_are_real_and_all_different(tmp_path):
    results = made_results(tmp_path, prompts=5, replicates=2, failed=[(0, 0, 0)])
    done = [sample for sample in results.samples if sample.status == "done"]
    assert len(done) == 4 * 5 * 2 - 1
    assert len({sample.sha256 for sample in done}) == len(done)
    for sample in done:
        data = (tmp_path / sample.image).read_bytes()
        assert hashlib.sha256(data).hexdigest() == sample.sha256
        assert Image.open(tmp_path / sample.image).size == (16, 16)


def test_without_noise_the_gain_is_the_difference():
    results = made_results(gains={("w2sd", "aesthetic"): 2.0}, noise=0.0)
    values = results.values["aesthetic"]
    np.testing.assert_allclose(values[1] - values[0], 2.0 * 0.3)
    assert np.isnan(made_results(missing=[(1, 2, 0)]).values["shapes"]).sum() == 1
