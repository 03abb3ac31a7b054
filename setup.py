"""Metadata, dependency ranges and extras; the build system and the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
ANALYSIS = ["matplotlib>=3.8"]
TEST = [
    *(
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3",
        "ruff",
        "mypy",
        "types-tqdm",
        "build",
    ),
    "triton; sys_platform == 'linux'",  # its interpreter runs the GPU's kernels
    *("pillow>=10", "webdataset>=0.2.100", *ANALYSIS, *EXPORT),
]

HERE = Path(__file__).parent

setup(
    name="fastbn",
    version=(HERE / "fastbn" / "version.py").read_text(encoding="utf-8").split('"')[-2],
    description="Trains BatchNorm and only BatchNorm, fast",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["fastbn", "fastbn.*"]),
        "fastbn.kernels",
        "fastbn.kernels.cpu",
        "fastbn.kernels.triton",
    ],
    package_data={
        "fastbn": ["py.typed"],
        "fastbn.engine.native": ["algorithms.json"],
        "fastbn.engine.triton": ["tuning.json"],
        "fastbn.planning": ["step_rates.json"],
        "fastbn.kernels.cpu": ["*.cpp", "*.h", "*/*.cpp", "*/*.h"],
        "fastbn.data": ["digits.csv.gz", "DIGITS.md"],
    },
    entry_points={"console_scripts": ["fastbn=fastbn.__main__:main"]},
    install_requires=[
        "torch>=2.9",
        "numpy>=1.26",
        "safetensors>=0.4.3",
        "tqdm>=4.66",  # triton comes with PyTorch's CUDA builds; a CPU build needs none
    ],
    extras_require={
        "test": TEST,
        "images": ["pillow>=10"],
        "webdataset": ["pillow>=10", "webdataset>=0.2.100"],
        "energy": ["nvidia-ml-py"],
        "analysis": ANALYSIS,
        "export": EXPORT,
        "docs": ["mkdocs-material>=9.5,<10", "mkdocstrings[python]>=0.26"],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
