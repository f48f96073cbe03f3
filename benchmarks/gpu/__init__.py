"""Measurements on a GPU: ``python -m benchmarks.gpu``, or all with tests by ``make gpu``."""
