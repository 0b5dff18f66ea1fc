"""Builds the library of a program, and tries it.  Run as a script by `programs`, in a process of its own.

A compiler that dies, or a library that does, then costs the training process a warning, and no memory.
"""

from __future__ import annotations

import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch

from rlsurreal.utils import matrix_products

OPTIONS = {
    # By one exponential, with an error of 2e-7 at most: the compiler's own takes far longer.
    "cpp.use_decompose_tanh": True,
    "cpp.enable_floating_point_contract_flag": "fast",  # a product and a sum are one operation
}


def build(exported: torch.export.ExportedProgram, num_threads: int) -> bytes:
    """The library's content; ``num_threads``: of the processes that will run it."""
    patch = torch._inductor.config.patch({"cpp.threads": num_threads, **OPTIONS})
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), patch:
        package = torch._inductor.aoti_compile_and_package(exported, package_path=str(Path(folder) / "program.pt2"))
        # Every process that loads a package unpacks it, and leaves that behind if it is killed.  So unpack it here.
        with zipfile.ZipFile(package) as archive:
            (library,) = [name for name in archive.namelist() if name.endswith(".so")]
            return archive.read(library)


def run_on_zeros(library: Path, exported: torch.export.ExportedProgram) -> None:
    """One run, whose results do not matter."""
    names = set(exported.graph_signature.user_inputs)
    examples = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder" and node.name in names]
    zeros = [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).zero_() for x in examples]
    torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1).run(zeros)


def main() -> None:
    """Arguments: the file of the exported program, the library to write, the number of threads."""
    source, library, num_threads = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter("ignore", FutureWarning)  # PyTorch's own, to itself
    torch.set_num_threads(num_threads)
    matrix_products.teach_compiler()
    exported = torch.export.load(source)
    library.write_bytes(build(exported, num_threads))
    run_on_zeros(library, exported)


if __name__ == "__main__":
    main()
