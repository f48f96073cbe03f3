"""Benchmarks on real layers and whole networks; see CONTRIBUTING.md."""
