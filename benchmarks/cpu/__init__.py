"""The CPU engine beside its peers and beside what the machine can do at best: docs/cpu.md's tables and picture."""
