"""Runs the scripts of pages, each in forked children of one process that has imported torch once.

A page that calls `init_process_group` runs on two ranks, as under torchrun or srun; any other alone, as in a notebook.
Reads a JSON list of [page, script, settings file]; writes one of the failures, "" for none.
"""

import json
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from types import ModuleType

_NUM_RANKS = 2


def main() -> None:
    """Runs all, one page after the other."""
    pages = json.load(sys.stdin)
    _import_what_takes_long()
    json.dump([_run(*page) for page in pages], sys.stdout)


def _import_what_takes_long() -> None:
    import torch.distributed
    import torch.utils.data  # noqa: F401

    import gather_core.gatherer
    import gather_core.settings_variables  # noqa: F401


def _run(page: str, script: str, settings_file: str) -> str:
    from torch._C._distributed_c10d import TCPStore

    with tempfile.TemporaryDirectory() as folder:
        if settings_file:
            Path(folder, "job.toml").write_text(settings_file)
        if "init_process_group" not in script:
            children = [_fork(page, script, folder, {})]
        else:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            children = [_fork(page, script, folder, _launched(rank, store.port)) for rank in range(_NUM_RANKS)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        texts = [Path(folder, f"output.{child}").read_text() for child in children]
    return "\n".join(text or f"exit status {code}" for code, text in zip(codes, texts, strict=True) if code)


def _launched(rank: int, port: int) -> dict[str, str]:
    """What torchrun and srun tell a rank; the store is this process's, as it is the agent's under torchrun."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(_NUM_RANKS),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "GLOO_SOCKET_IFNAME": "lo",
        "SLURM_PROCID": str(rank),
        "SLURM_NTASKS": str(_NUM_RANKS),
    }


def _fork(page: str, script: str, folder: str, variables: dict[str, str]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.chdir(folder)
        output = os.open(f"output.{os.getpid()}", os.O_CREAT | os.O_WRONLY, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for name in [name for name in os.environ if name.startswith("GATHER_")]:
            del os.environ[name]
        os.environ.update(variables)
        warnings.simplefilter("error")
        _execute(page, script)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(page: str, script: str) -> None:
    """Runs it as the main program, whose classes and functions pickle by name."""
    main_module = sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(script, page, "exec"), main_module.__dict__)


if __name__ == "__main__":
    main()
