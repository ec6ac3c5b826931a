"""The HTTP service: predictions, learning and the way back, for other programs and for people with a browser."""

from latewood.serve.server import serve

__all__ = ["serve"]
