"""What `import gather_core` costs a program that does not use it yet: `python -m gather_bench.import_time`."""

import argparse
import subprocess
import sys
import time
from statistics import median

MAX_ADDED_S = 0.030
MUST_NOT_IMPORT = ("torch", "msgpack", "pydantic", "numpy", "zstandard", "xxhash", "typer", "rich")


def added_s(rounds: int) -> float:
    """Median seconds that the import adds to a bare interpreter, over interleaved rounds."""
    return median(_run_s("import gather_core") - _run_s("pass") for _ in range(rounds))


def imported_too_much() -> list[str]:
    """Returns the packages that `import gather_core` loads although it must not."""
    program = f"import sys, gather_core; print(*set({MUST_NOT_IMPORT!r}) & set(sys.modules))"
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()


def _run_s(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints both; exits with 1 where one is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    seconds, too_much = added_s(rounds), imported_too_much()
    print(f"import gather_core adds {seconds * 1e3:.1f} ms, bound {MAX_ADDED_S * 1e3:g} ms")
    print(f"imported with it, and must not be: {', '.join(sorted(too_much)) or 'nothing'}")
    sys.exit(bool(too_much) or seconds >= MAX_ADDED_S)


if __name__ == "__main__":
    main()
