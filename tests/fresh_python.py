"""A Python process of its own, which has imported nothing yet."""

import os
import subprocess
import sys


def run_python(script: str, *arguments: str) -> str:
    """Runs a script with what this process can import and returns its output, stripped; fails where it fails."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
