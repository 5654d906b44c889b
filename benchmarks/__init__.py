"""What streamq costs and how fast it is, measured beside what one would write by hand on the same server.

Each benchmark is a program, `python -m benchmarks.NAME [--json] [--quick]`. The figures that count are ratios to a
loop of plain redis-py in the same round on the same server, and CPU and commands per job: they say the same on a
loud machine as on a quiet one.
"""
