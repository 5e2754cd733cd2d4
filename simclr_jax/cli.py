"""The command `simclr`: `simclr train --config=imagenet` is `python -m simclr_jax.main --config=imagenet`.

Each word names a module that runs as with `python -m`, so that options, exit codes and signals are the same.
Nothing but the chosen module is imported: a command needs only the libraries of its own.
"""

import argparse
import difflib
import importlib.util
import runpy
import sys

from simclr_jax.version import __version__

# word: (module, what it does)
COMMANDS = {
    "train": ("simclr_jax.main", "trains an encoder without labels, or with them, and scores it"),
    "evaluate": ("simclr_jax.evaluate", "tells how good the encoder of a run is, on one page"),
    "embed": ("simclr_jax.embed", "embeddings of a folder of images, as one file"),
    "search": ("simclr_jax.embed.search", "the images most similar to one"),
    "dedup": ("simclr_jax.index.dedup", "lists images that are there twice"),
    "curate": ("simclr_jax.index.curate", "lists outliers, or a diverse subset"),
    "export": ("simclr_jax.export", "the encoder as ONNX, StableHLO, SavedModel, LiteRT or PyTorch"),
    "compress": ("simclr_jax.compress", "a smaller encoder: int8, or fewer channels"),
    "serve": ("simclr_jax.serve", "embeddings and neighbours over HTTP"),
    "publish": ("simclr_jax.publish", "a folder for the Hugging Face Hub"),
    "generate": ("simclr_jax.generate", "draws images from the latents of a run with a decoder"),
    "restore": ("simclr_jax.restore", "corrupted images in, clean ones out"),
    "convert": ("simclr_jax.convert", "other projects' weights in, ours out"),
    "models": ("simclr_jax.convert.released", "lists the checkpoints that Google released"),
    "sweep": ("simclr_jax.sweep", "tries settings of a config's fields"),
    "doctor": ("simclr_jax.doctor", "checks machine, memory, images and recipe before a run"),
}
FAILED = 2

_typed: dict[str, str] = {}  # module: how the user called it


def name(module: str) -> str:
    """How the user calls a module's command, for its own help: `simclr train`, or `python -m MODULE`."""
    return _typed.get(module, f"python -m {module}")


def parser(
    module: str,
    description: str,
    epilog: str,
    formatter: type[argparse.HelpFormatter] = argparse.RawDescriptionHelpFormatter,
) -> argparse.ArgumentParser:
    """A parser without options for the command of a module; words are not abbreviated."""
    return argparse.ArgumentParser(
        prog=name(module),
        description=description,
        epilog=epilog,
        formatter_class=formatter,
        allow_abbrev=False,
    )


def present() -> dict[str, str]:
    """{word: module} of the commands whose module is installed."""
    return {word: module for word, (module, _) in COMMANDS.items() if _installed(module)}


def _installed(module: str) -> bool:
    package = module.rpartition(".")[0]
    return bool(importlib.util.find_spec(package) and importlib.util.find_spec(module))


def show_help() -> None:
    """Prints the commands."""
    words = present()
    width = max(map(len, words))
    print("SimCLR in JAX and Flax: from images to a scored encoder.\n\nusage: simclr COMMAND [OPTIONS]\n")
    for word in words:
        print(f"  {word:{width}}  {COMMANDS[word][1]}")
    print("\nsimclr COMMAND --help has the options of each, simclr --version the version.")


def main(argv: list[str] | None = None) -> int:
    """Runs the command that the first word names, with the words after it.

    Args:
      argv: the words behind `simclr`, those of the process by default.

    Returns:
      The exit code, where the command itself does not end the process.
    """
    word, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    words = present()
    if word in ("-h", "-help", "--help", "help"):
        show_help()
    elif word in ("-version", "--version"):
        print(f"simclr_jax {__version__}")
    elif word in words:
        _typed[words[word]] = f"simclr {word}"
        sys.argv = [sys.argv[0], *rest]
        try:
            runpy.run_module(words[word], run_name="__main__", alter_sys=True)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == __name__.partition(".")[0]:
                raise
            print(
                f"error: simclr {word}: {error.name} is not installed; an environment for simclr serve holds "
                "nothing else: pip install simclr_jax with its dependencies", file=sys.stderr,
            )  # fmt: skip
            return FAILED
    else:
        near = difflib.get_close_matches(word, words, n=1)
        hint = f"did you mean simclr {near[0]}?" if near else f"there are {', '.join(words)}"
        print(f"error: simclr {word}: no such command; {hint}", file=sys.stderr)
        return FAILED
    return 0
