"""Redline's own compiler: an ONNX graph becomes C++, and that a shared object."""
