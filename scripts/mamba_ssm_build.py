"""Build what the benchmark on a GPU needs of mamba-ssm: its scan in float32, in two minutes.

Where the sources can be fetched (`--no-build-isolation` wants torch there; a build for CPUs will
do):

    export MAMBA_SKIP_CUDA_BUILD=TRUE
    pip download mamba-ssm --no-deps --no-binary mamba-ssm --no-build-isolation

On the machine with the GPU, where nvcc, ninja and einops must be:

    python scripts/mamba_ssm_build.py mamba_ssm-2.3.2.post1.tar.gz FOLDER
    PYTHONPATH=FOLDER python -m mambair_cli.bench ...

FOLDER then holds the extension `selective_scan_cuda` and mamba-ssm's Python files. Their
`__init__`, which would import its language models and their packages, is emptied. Twelve kernels
belong to the extension; the two that the published networks call (real float32, forward and
backward) are compiled, with mamba-ssm's own flags, and the others refuse.
"""

import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from mambair_cli.errors import BackendError, CallError, MambairError

NAME = "selective_scan_cuda"
SCAN = "csrc/selective_scan"
TYPES = [
    (kind, weight)
    for kind in ("at::Half", "at::BFloat16", "float")
    for weight in ("float", "complex_t")
]
PASSES = {"fwd": "SSMParamsBase", "bwd": "SSMParamsBwd"}
HALF, OTHERS = ("HALF", "BFLOAT16", "BFLOAT162"), ("OPERATORS", "CONVERSIONS")
FLAGS = [
    *("-O3", "-std=c++17", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math"),
    *(f"-U__CUDA_NO_{kind}_{what}__" for kind in HALF for what in OTHERS),
]


def write_sources(folder: Path) -> list[str]:
    """Write the extension's sources: the two kernels, and functions in place of the others."""
    headers = [f"<c10/util/{name}.h>" for name in ("BFloat16", "Exception", "Half", "complex")]
    headers += ["<cuda_runtime_api.h>", '"selective_scan.h"']
    refusing = (
        "".join(f"#include {header}\n" for header in headers)
        + "using complex_t = c10::complex<float>;\n"
    )
    for step, parameters in PASSES.items():
        arguments = f"({parameters} &parameters, cudaStream_t stream)"
        kernel = f'#include "selective_scan_{step}_kernel.cuh"\n'
        kernel += f"template void selective_scan_{step}_cuda<float, float>{arguments};\n"
        (folder / f"{step}_float.cu").write_text(kernel)
        types = "template <typename input_t, typename weight_t>"
        refusing += f"{types} void selective_scan_{step}_cuda{arguments} {{\n"
        refusing += '    TORCH_CHECK(false, "built for real float32 alone");\n}\n'
        for kind, weight in TYPES[:-2] + TYPES[-1:]:
            kernel = f"selective_scan_{step}_cuda<{kind}, {weight}>"
            refusing += f"template void {kernel}{arguments};\n"
    (folder / "others.cpp").write_text(refusing)
    return [
        str(folder / name)
        for name in ("selective_scan.cpp", "fwd_float.cu", "bwd_float.cu", "others.cpp")
    ]


def build(sdist: Path, folder: Path) -> None:
    """Build from mamba-ssm's sdist into a folder for PYTHONPATH, and import it once.

    Raises:
        CallError: the sdist is missing or something else. BackendError: it cannot be built.
    """
    with tempfile.TemporaryDirectory() as temporary:
        try:
            with tarfile.open(sdist) as archive:
                archive.extractall(temporary, filter="data")
        except (OSError, tarfile.TarError) as error:
            raise CallError(
                f"{sdist} cannot be unpacked; name mamba-ssm's sdist, a .tar.gz"
            ) from error
        root = next(Path(temporary).glob("mamba_ssm-*"), Path(temporary))
        if not (root / SCAN / "selective_scan.cpp").is_file():
            raise CallError(
                f"{sdist} is no sdist of mamba-ssm, as it lacks {SCAN}/selective_scan.cpp"
            )
        shutil.copytree(root / "mamba_ssm", folder / "mamba_ssm", dirs_exist_ok=True)
        (folder / "mamba_ssm" / "__init__.py").write_text("")
        try:
            _compile(root / SCAN, folder)
        except (RuntimeError, OSError, ImportError) as error:
            raise BackendError(
                f"{NAME} cannot be built: {str(error).strip().splitlines()[0]}"
            ) from error


def _compile(sources: Path, folder: Path) -> None:
    toolkit = Path("/usr/local/cuda")
    # nvcc on the PATH may be a script that lies elsewhere.
    if (toolkit / "bin" / "nvcc").is_file():
        os.environ.setdefault("CUDA_HOME", str(toolkit))
    from torch.utils import cpp_extension

    cpp_extension.load(
        NAME,
        write_sources(sources),
        extra_cflags=["-O3", "-std=c++17"],
        extra_cuda_cflags=FLAGS,
        extra_include_paths=[str(sources)],
        build_directory=str(sources),
        verbose=True,
    )
    shutil.copy(sources / f"{NAME}.so", folder)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python scripts/mamba_ssm_build.py SDIST FOLDER")
    try:
        build(Path(sys.argv[1]), Path(sys.argv[2]))
    except MambairError as error:
        sys.exit(str(error))
    print(f"PYTHONPATH={sys.argv[2]}")
