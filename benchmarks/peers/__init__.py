"""The peers of the benchmarks: who they are, how they are installed, and their small programs."""
