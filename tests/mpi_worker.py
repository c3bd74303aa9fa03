"""What mpiexec starts for an MpiPool: a rank that tells the pool which it is, and then runs bodies.

The first argument is the socket of the pool, the second its scratch folder.
"""

import os
import socket
import struct
import sys

HELLO = struct.Struct("<II")
"""Rank and process id."""


def main(path: str, scratch: str) -> None:
    from mpi4py import MPI

    import rank_worker

    link = socket.socket(socket.AF_UNIX)
    link.connect(path)
    link.sendall(HELLO.pack(MPI.COMM_WORLD.rank, os.getpid()))
    rank_worker.serve(link.detach(), scratch)


if __name__ == "__main__":
    main(*sys.argv[1:])
