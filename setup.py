"""Package description; everything a user needs to install simclr_jax."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "simclr_jax" / "version.py").read_text())[1]

# TensorFlow only feeds data: the CPU build is half the size where it exists.
CPU_BUILD = "platform_system == 'Linux' and platform_machine == 'x86_64'"

# The service needs neither JAX nor TensorFlow; `simclr export` writes the same list beside an ONNX file.
SERVE = [
    "fastapi>=0.115",
    "numpy>=2.0",
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "pillow>=10.1",
    "prometheus-client>=0.20",
    "pyarrow>=17.0",
    "python-multipart>=0.0.18",
    "uvicorn>=0.30",
]

setup(
    name="simclr_jax",
    version=VERSION,
    description="SimCLR in JAX and Flax: exact, fast, simple to read",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["simclr_jax", "simclr_jax.*"]), "simclr_jax.configs"],
    package_dir={"simclr_jax.configs": "configs"},  # at the top of the checkout, where recipes are read
    package_data={
        "simclr_jax": ["encoders/*/*"],
        "simclr_jax.data": ["*.npz", "*.md"],
        "simclr_jax.serve": ["*.html"],
    },
    entry_points={"console_scripts": ["simclr=simclr_jax.cli:main"]},
    # Each bound is the lowest version that works: make lower-bounds tries them, tools/lower_bounds.txt.
    install_requires=[
        "absl-py>=2.0",
        "array_record>=0.7.1; platform_system != 'Windows'",
        "etils[epath]>=1.14",
        "flax>=0.12",
        "importlib_resources>=6.0",  # tensorflow-datasets needs it to prepare a data set
        "jax>=0.10,<0.13",
        "matplotlib>=3.8.4",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11.20",
        "pillow>=10.1",
        "safetensors>=0.4",
        "scipy>=1.14",
        "scikit-learn>=1.4.2",
        "tensorboard>=2.20",
        f"tensorflow-cpu>=2.20; {CPU_BUILD}",
        "tensorflow>=2.20; platform_system != 'Linux' or platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.10",  # older ones fail with protobuf 7
        "tifffile>=2024.1.30",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        "dev": ["pre-commit>=4.0", "pyright[nodejs]>=1.1.400"],
        "dicom": ["pydicom>=3.0"],
        "embed": ["pyarrow>=17.0"],  # Parquet
        "docs": ["furo>=2025.12.19", "myst-nb>=1.4", "sphinx>=9.0"],
        "index": ["usearch>=2.16"],  # search in millions of embeddings
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
        "restore": ["scikit-image>=0.24", "PyWavelets>=1.6"],  # to compare with
        "serve": SERVE,
        "sweep": ["optuna>=4.9"],  # whose heartbeats tell of dead trials
        "torch": ["torch>=2.10"],  # to read and write .pth
        "tpu": ["jax[tpu]"],
        "umap": ["umap-learn>=0.5"],
        "wandb": ["wandb"],
        "test": [
            "bandit==1.9.4",
            "hypothesis>=6.100",
            "optuna>=4.9",
            "httpx>=0.27",
            "pydicom>=3.0",
            "pyright[nodejs]==1.1.414",
            "pytest>=8",
            "pytest-xdist>=3.5",
            "ruff==0.17.6",
            "usearch>=2.16",
            *SERVE,
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
