"""The command line: --help needs no JAX, and a mistake ends in one line without traceback."""

import subprocess
import sys

import pytest

QUICK = "--config=configs/quickstart.py"


def main(*args):
    done = subprocess.run(
        [sys.executable, "-m", "simclr_jax.main", *args],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_help_names_every_option_and_imports_no_jax():
    code, out, _ = main("--help")
    assert code == 0
    for text in ("--config ", "--workdir", "--resume", "--config.train.batch_size=4096"):
        assert text in out
    check = (
        "import sys; sys.argv = ['main', '--help']; import simclr_jax.main as m\n"
        "try: m.parse(sys.argv)\nexcept SystemExit: sys.exit('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0


MISTAKES = {
    (): "--config is missing",
    ("--config=configs/nowhere.py",): "configs/nowhere.py",
    (QUICK, "--config.train.batchsize=3"): "did you mean config.train.batch_size?",
    (
        QUICK,
        "--config.train.batch_size=many",
    ): "--config.train.batch_size=many: must be a whole number",
    (QUICK, "--config.model.width=wide"): "--config.model.width=wide: must be a number",
    (
        QUICK,
        "--config.model.decoder.skips=maybe",
    ): "--config.model.decoder.skips=maybe: must be true or false",
    (QUICK, "--config.loss.temperature=0"): "config.loss.temperature=0.0: must be above 0",
    (QUICK, "--config.augment.crop_area=(1.0,0.1)"): "config.augment.crop_area=(1.0, 0.1)",
    (QUICK, "--wrkdir=x"): "wrkdir",
    (QUICK, "extra"): "'extra': not understood",
    (QUICK, "--resume=maybe"): "auto",
    ("--config=configs/folder.py",): "say which one, for example --config.data.source=folder:",
}


@pytest.mark.parametrize("args", MISTAKES, ids=lambda a: " ".join(a) or "nothing")
def test_mistakes(args):
    code, _, err = main(*args)
    assert code == 2
    assert err.startswith("error: ")
    assert MISTAKES[args] in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_mistakes_found_by_the_run(tmp_path):
    data = f"--config.data.source=folder:{tmp_path / 'none'}"
    code, _, err = main(QUICK, data, f"--workdir={tmp_path / 'run'}")
    assert code == 2
    assert err.strip() == f"error: folder:{tmp_path / 'none'}: no such folder"
    assert not (tmp_path / "run").exists()
