"""What a function does to an image, as a graph that is believed only after it behaved like the function."""

from ellips.lipschitz.capture.graph import JITTER, Graph, Node, UnprovenOperationError
from ellips.lipschitz.capture.replay import captured

__all__ = ["JITTER", "Graph", "Node", "UnprovenOperationError", "captured"]
