"""The stages of :mod:`benchmarks.cifar10`, each in a file of its own."""
