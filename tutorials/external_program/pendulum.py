#!/usr/bin/env python
"""An external program that uses no Python packages, as an example.

    pendulum.py INPUT OUTPUT

INPUT contains `length friction seed steps`. OUTPUT receives ten noisy angles, one per
line. All random numbers come from the seed, so that two step sizes make a pair.
"""

import math
import random
import sys

TIME, READINGS = 5.0, 10


def simulate(length, friction, seed, steps):
    if length <= 0:
        raise SystemExit(f"length must be positive, but is {length}")
    noise = random.Random(seed)
    angle, speed = noise.gauss(1.0, 0.05), 0.0
    step, readings = TIME / steps, []
    for i in range(1, steps + 1):
        speed -= step * (9.81 / length * math.sin(angle) + friction * speed)
        angle += step * speed
        if i * READINGS % steps == 0:
            readings.append(angle + noise.gauss(0.0, 0.05))
    return readings


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with open(source) as file:
        length, friction, seed, steps = file.read().split()
    readings = simulate(float(length), float(friction), int(seed), int(steps))
    with open(target, "w") as file:
        file.write("\n".join(f"{reading:.9g}" for reading in readings))
