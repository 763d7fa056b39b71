"""`python -m benchmarks.peers`: see backlog.py."""

from benchmarks.peers.backlog import main

main()
