"""The whole table of a GPU in one run: `python -m mambair_cli.bench --out DIR`.

Every measurement is kept in DIR/results.sqlite as soon as it is made, and every row in
DIR/rows.jsonl: the same command goes on where a run was cut off. After a change to the code, name
another DIR. What does not fit into memory or fails says so in its row. The table comes last, with
the bars that are met or missed.

A session on a lent GPU where nothing can be fetched (torch, Triton, nvcc, ninja, einops, pytest and
typer are there):

1. Where there is a network, put into a folder that travels along, say .gpu: mamba-ssm's sdist (see
   `mamba_ssm_build`), the wheels of what is missing there (platformdirs), and Set5, for the quality
   of half precision.
2. First call, about 5 minutes: are the kernels right, and does mamba-ssm build?

       pip install --no-index --no-deps --target /tmp/site .gpu/*.whl; export PYTHONPATH=/tmp/site
       python3 -m pytest -W default -k "gpu" tests/ops/test_scan_triton.py tests/restore
       python3 scripts/mamba_ssm_build.py .gpu/mamba_ssm-*.tar.gz /tmp/site
       python3 -m pytest -W default -k "gpu" tests/ops/test_scan_mamba_ssm.py

   and, as the machine is still there, a first table:
   `python3 -m mambair_cli.bench --out $OUT --quick`.
3. Second call, less than 10 minutes (the second and third pass only where a failure has left the
   GPU unusable):

       for i in 1 2 3; do python3 -m mambair_cli.bench --out $OUT && break; done

   Cut off, it goes on in the next call from the results.sqlite that came back: carry it along and
   copy it to $OUT before.
4. Third call, about 5 minutes: CUDA graphs and half precision through the program itself.

       alias bench='python3 -m mambair_cli bench'
       bench speed --device cuda -m tiny-x2 --backend triton --json > $OUT/speed.json
       for t in fp32 fp16 bf16; do
         bench --dataset .gpu/Set5 -s 2 --device cuda --dtype $t --json > $OUT/$t.json; done
       bench compare $OUT/fp32.json $OUT/fp16.json

5. What the rows of the engine decide: `options.GRAPHS`, and `restorer.BATCH_PIXELS`.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from ..errors import CallError, MambairError
from .cache import Cache
from .cost.gpu import scan_report
from .cost.rows import Row


def main() -> None:
    """Parse, measure, print.

    Exits with 0 when all is measured, 1 where the run could not go on, 2 for a wrong call.
    """
    parser = argparse.ArgumentParser("python -m mambair_cli.bench", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the results; made where it is missing"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cuda:N")
    parser.add_argument(
        "--quick", action="store_true", help="without images of 1024x1024, which most bars are of"
    )
    options = parser.parse_args()
    try:
        rows = run(options.out, options.device, options.quick)
    except MambairError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    for row in rows:
        print(f"{row.what:64}  {row.value:56}  {row.bar:>8}  {row.verdict}".rstrip())


def run(out: Path, device: str, quick: bool) -> list[Row]:
    """All rows, each written to a folder and told on stderr when it is known.

    Raises CallError where the folder cannot be written to; others as `gpu.scan_report`.
    """
    began, rows = time.perf_counter(), list[Row]()
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "rows.jsonl").open("w", encoding="utf-8")
    except OSError as error:
        raise CallError(
            f"{out} cannot be written to ({error.strerror}); name another folder"
        ) from error
    with file:
        for row in scan_report(device, quick, Cache(out / "results.sqlite")):
            rows.append(row)
            print(json.dumps(row.to_json()), file=file, flush=True)
            seconds = time.perf_counter() - began
            print(f"{seconds:5.0f} s  {row.what}: {row.value}", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
