"""Measurements that ship with the package: `python -m hydrometer.benchmarks.gpu`."""
