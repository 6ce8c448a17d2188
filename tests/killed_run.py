"""A run to be killed by tests: `python -m tests.killed_run PATH LOG`.

Each simulation writes a line to LOG before its result is returned.
"""

import os
import sys
import time

from tests.two_levels import simulate

ROWS, BATCH = (600, 150), 5


class Logged:
    """A slow simulator that logs its theta."""

    def __init__(self, scale, log):
        self.scale, self.log = scale, log

    def __call__(self, theta, noise):
        if self.log is not None:
            time.sleep(0.02 * len(theta))
            lines = "".join(f"{self.scale} {row.tolist()}\n" for row in theta)
            file = os.open(self.log, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
            os.write(file, lines.encode())  # one write, so that lines are complete
            os.close(file)
        return theta + noise[:, :2] + self.scale * noise[:, 2:]


def run(path, log=None, **options):
    simulators = (Logged(0.0, log), Logged(0.1, log))
    options = {"simulation_batch_size": BATCH, **options}
    return simulate(simulators, n=ROWS, store=path, **options)


if __name__ == "__main__":
    print("started", flush=True)
    run(sys.argv[1], sys.argv[2], num_workers=2)
    print("done", flush=True)
