"""What makes an episode go wrong on purpose."""

import os


class OfEachRank(int):
    """A seed that makes each rank's objects other ones than the others expect."""

    def __format__(self, spec: str) -> str:
        return str(os.getpid())
