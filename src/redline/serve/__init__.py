"""Serve engines: the data plane and its fronts; numpy and a backend's wheel, never torch."""
