"""Sun and four planets, one step at a time: floats and attributes."""
import sys
from math import sqrt

YEAR = 365.24
MASS = 4 * 3.141592653589793 ** 2


class Body:
    def __init__(self, x, y, z, vx, vy, vz, mass):
        self.x, self.y, self.z, self.mass = x, y, z, mass * MASS
        self.vx, self.vy, self.vz = vx * YEAR, vy * YEAR, vz * YEAR


bodies = [
    Body(0, 0, 0, 0, 0, 0, 1),
    Body(4.84, -1.16, -0.1, 0.00166, 0.0077, -6.9e-05, 0.00095),
    Body(8.34, 4.12, -0.4, -0.00277, 0.005, 2.3e-05, 0.000286),
    Body(12.89, -15.11, -0.22, 0.00296, 0.00238, -2.97e-05, 4.37e-05),
    Body(15.38, -25.92, 0.18, 0.00268, 0.00163, -9.5e-05, 5.15e-05),
]
pairs = [(a, b) for i, a in enumerate(bodies) for b in bodies[i + 1:]]
step = 0.01
for _ in range(int(sys.argv[1])):
    for a, b in pairs:
        dx, dy, dz = a.x - b.x, a.y - b.y, a.z - b.z
        square = dx * dx + dy * dy + dz * dz
        pull = step / (square * sqrt(square))
        ma, mb = a.mass * pull, b.mass * pull
        a.vx -= dx * mb
        a.vy -= dy * mb
        a.vz -= dz * mb
        b.vx += dx * ma
        b.vy += dy * ma
        b.vz += dz * ma
    for a in bodies:
        a.x += step * a.vx
        a.y += step * a.vy
        a.z += step * a.vz
print(*(f"{a.x:.9f} {a.y:.9f} {a.z:.9f}" for a in bodies))
