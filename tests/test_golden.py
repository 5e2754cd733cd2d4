"""tools/golden.py tells equal results from others."""

import json
import subprocess
import sys
from pathlib import Path

import golden
import numpy as np
import pytest

TOOL = Path(__file__).parents[1] / "tools" / "golden.py"


def test_a_checksum_tells_dtype_shape_and_every_bit():
    x = np.arange(6, dtype=np.float32)
    others = [x.astype(np.float64), x.reshape(2, 3), np.nextafter(x, 9), x[::-1]]
    assert golden.checksum(x) == golden.checksum(x.copy())
    assert len({golden.checksum(each) for each in (x, *others)}) == 5


def test_what_differs_is_named():
    before = {"losses": ["0x1p0", "0x1p1"], "arrays": {"a": "1", "b": "2"}}
    now = {"losses": ["0x1p0", "0x1p2"], "arrays": {"a": "1", "b": "3", "c": "4"}}
    assert golden.differences(before, before) == []
    assert golden.differences(before, now) == ["losses from step 2 on", "b", "c"]
    shorter = {**before, "losses": ["0x1p0"]}
    assert golden.differences(before, shorter) == ["the number of losses"]


@pytest.mark.slow
def test_the_same_version_is_equal_to_the_bit(tmp_path):
    def run(*options):
        done = subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr.strip().splitlines()[-1:]

    file = tmp_path / "before.json"
    assert run(f"--write={file}", "--cases=quickstart")[0] == 0
    code, said, _ = run(f"--compare={file}", "--cases=quickstart")
    assert (code, said) == (0, "quickstart: equal to the bit\n")
    found = json.loads(file.read_text())
    found["cases"]["quickstart"]["losses"][3] = (0.5).hex()
    file.write_text(json.dumps(found))
    code, said, error = run(f"--compare={file}", "--cases=quickstart")
    assert (code, error) == (2, ["error: 1 of 1 cases differ"])
    assert "losses from step 4 on" in said
    assert run(f"--compare={file}", "--cases=nothing")[0] == 2
    assert run(f"--write={file}", "--cases=")[0] == 2
    assert run(f"--write={file}/in_a_file.json", "--cases=quickstart")[0] == 2
    for text in ("no json", "{}", json.dumps({**found, "jax": "0.0"})):
        file.write_text(text)
        assert run(f"--compare={file}", "--cases=quickstart")[0] == 2
    assert run()[2] == ["error: give either --write=FILE or --compare=FILE"]
